import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.sections import Deployment
from jobs.registry.tracking import TrainingRecord, follow_live, track, track_test_day, tracking_uri
from lte_models.training.manifest import Manifest

STARTED = 1_600_000_000.0


def _record(folder: Path, fingerprint: str = "f1") -> TrainingRecord:
    artefact = folder / "manifest.json"
    artefact.write_text('{"kind": "ranker"}')
    curve = [{"loss": 3.0, "validation": 0.1}, {"loss": 2.0, "validation": 0.2}]
    return TrainingRecord(
        kind="ranker",
        ds="2020-12-31",
        fingerprint=fingerprint,
        parameters={"dim": 8},
        curve=curve,
        metrics={"validation_ndcg_at_5": 0.2},
        artefact=artefact,
        weights_sha256=f"sha-{fingerprint}",
        started=STARTED,
        source="jobs.train_ranker",
    )


def _manifest(fingerprint: str) -> Manifest:
    return Manifest("ranker", {}, "b", "365-60", "2020-12-31", "v", "1", {}, weights_sha256=f"sha-{fingerprint}")


def _at(deployment: Deployment, uri: str) -> Deployment:
    return replace(deployment, tracking=replace(deployment.tracking, uri=uri))


@pytest.mark.slow
def test_a_training_is_logged_once_with_its_curve_and_manifest(deployment: Deployment, tmp_path: Path, capsys) -> None:
    (Path(deployment.paths.lake) / "models").mkdir(parents=True)
    run_id = track(deployment, _record(tmp_path))
    assert run_id is not None
    assert track(deployment, _record(tmp_path)) == run_id  # a rerun of the same training
    assert track(deployment, _record(tmp_path, "f2")) != run_id
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri(deployment))
    run = client.get_run(run_id)
    assert run.data.params == {"dim": "8"}
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "loss")] == [(0, 3.0), (1, 2.0)]
    assert run.data.metrics["validation_ndcg_at_5"] == 0.2
    assert [file.path for file in client.list_artifacts(run_id)] == ["manifest.json"]
    assert str(Path(deployment.paths.lake) / "models" / "mlflow_artifacts") in run.info.artifact_uri
    assert client.get_experiment_by_name("test") is not None
    assert not Path("mlruns").exists()  # nothing in the working directory
    assert (run.info.start_time, run.info.status) == (int(STARTED * 1000), "FINISHED")
    assert run.info.end_time > run.info.start_time
    assert run.data.tags["mlflow.source.name"] == "jobs.train_ranker"
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    assert_that_the_alias_follows_what_is_live(deployment, client, capsys)
    assert_that_the_test_day_stands_beside_the_baselines(deployment, client, run_id)
    assert_that_a_copied_lake_leaves_the_original_alone(deployment, tmp_path, run_id)


def assert_that_the_alias_follows_what_is_live(deployment: Deployment, client, capsys) -> None:
    """Part of the test above."""
    for fingerprint in ("f1", "f2", "f1"):  # live, its successor, and a rollback
        follow_live(deployment, "ranker", f"sha-{fingerprint}")
        live = client.get_model_version_by_alias("test-ranker", "live")
        assert live.tags == {"lte.weights_sha256": f"sha-{fingerprint}", "lte.ds": "2020-12-31"}
    assert len(client.search_model_versions("name = 'test-ranker'")) == 2  # a rerun of a training adds none
    follow_live(deployment, "ranker", "unknown")
    assert "the alias live of the ranker stays where it was" in capsys.readouterr().err
    assert client.get_model_version_by_alias("test-ranker", "live").tags["lte.weights_sha256"] == "sha-f1"


def assert_that_the_test_day_stands_beside_the_baselines(deployment: Deployment, client, run_id: str) -> None:
    """Part of the test above."""
    metrics = {("ndcg_at_5", "candidate"): 0.4, ("ndcg_at_5", "popularity_7d"): 0.3, ("p", "candidate"): float("nan")}
    track_test_day(deployment, _manifest("f1"), metrics)
    found = client.get_run(run_id).data.metrics
    assert (found["test_ndcg_at_5"], found["test_ndcg_at_5/popularity_7d"]) == (0.4, 0.3)
    assert "test_p" not in found


def assert_that_a_copied_lake_leaves_the_original_alone(deployment: Deployment, tmp_path: Path, run_id: str) -> None:
    """Part of the test above: MLflow takes seconds to make a database."""
    from mlflow import MlflowClient

    lake, copy = Path(deployment.paths.lake), tmp_path / "a copy" / "lake"
    shutil.copytree(lake, copy)
    before = sorted(path for path in lake.rglob("*"))
    content = (lake / "models" / "mlflow.db").read_bytes()
    moved = replace(deployment, paths=replace(deployment.paths, lake=str(copy)))
    new = track(moved, _record(tmp_path, "f3"))
    assert new is not None
    assert sorted(path for path in lake.rglob("*")) == before
    assert (lake / "models" / "mlflow.db").read_bytes() == content
    client = MlflowClient(tracking_uri=tracking_uri(moved))
    for each in (run_id, new):  # the run of before the copy, too
        assert client.get_run(each).info.artifact_uri.startswith(f"{(copy / 'models').as_uri()}/mlflow_artifacts/")
        assert [file.path for file in client.list_artifacts(each)] == ["manifest.json"]
    assert len([path for path in copy.rglob("manifest.json") if new in str(path)]) == 1


def test_a_server_that_is_down_costs_a_warning_and_no_training(
    deployment: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    assert track(_at(deployment, "http://127.0.0.1:9"), _record(tmp_path)) is None
    assert time.monotonic() - started < 120
    assert "ranker of ds 2020-12-31 is not logged at http://127.0.0.1:9" in capsys.readouterr().err


def test_tracking_that_is_off_loads_nothing(deployment: Deployment, tmp_path: Path) -> None:
    loaded = "mlflow" in sys.modules
    assert track(_at(deployment, ""), _record(tmp_path)) is None
    assert ("mlflow" in sys.modules) == loaded
