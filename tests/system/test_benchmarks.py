"""The benchmarks' small cases: they run, and what they compare agrees. Never a time."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from checkout import ROOT

BENCHMARKS = ROOT / "benchmarks"
PEER = ROOT / "build" / "peer-rectools"

pytestmark = pytest.mark.slow


def run(script: str, *flags: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def bench(monkeypatch):
    """The benchmarks' own modules."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_lte
    import bench_sasrec

    return {"lte": bench_lte, "sasrec": bench_sasrec}


def test_job_floor_and_naive_join_agree(tmp_path):
    shape = ("--sizes", "20000", "--items", "300", "--dim", "16", "--repeats", "1", "--partitions", "2")
    text = run("bench_lte.py", *shape, "--folder", str(tmp_path), "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(size["interactions"], size["users"]) for size in found["sizes"]] == [(20_000, 4000)]
    for size in found["sizes"]:
        # one table, three ways: rounding of float32 is all that differs; bit-equal numbers would prove a copy
        assert 0 <= size["largest_difference"]["floor"] < 1e-6
        assert 0 < size["largest_difference"]["naive"] < 1e-6
        for part in ("floor", "job", "naive"):
            assert size[part]["seconds"] > 0
            assert size[part]["peak_mib"] > 50  # an interpreter with NumPy alone is larger
        bare, job = size["floor"]["seconds"], size["job"]["seconds"]
        assert size["job_over_floor"]["seconds"] == pytest.approx(job / bare)
    assert "job_over_floor" in text
    assert not list(tmp_path.glob("tmp*"))  # ten million rows must not stay behind


def test_a_part_over_its_limit_is_stopped_and_says_so(tmp_path, bench):
    shop = bench["lte"].MadeShop(2000, 100, 50, 8)
    (tmp_path / "shop.json").write_text(json.dumps(vars(shop)))
    bench["lte"].make(tmp_path, shop, 2)
    found = bench["lte"].measured("naive", tmp_path, limit_s=600, limit_mib=60)
    assert found["stopped"] == "over 60 MiB"
    assert found["peak_mib"] > 60


def test_another_count_or_number_is_seen(tmp_path, bench):
    import deltalake

    def table(n_items: int, value: float) -> pa.Table:
        vector = pa.array([[1.0, value]], pa.list_(pa.float32()))
        return pa.table({"user_id": ["u"], "embedding": vector, "n_items": pa.array([n_items], pa.int32())})

    deltalake.write_deltalake(str(tmp_path / "lake" / "user_lte"), table(3, 0.5))
    for name, other in (("same", table(3, 0.5)), ("near", table(3, 0.75)), ("miscounted", table(4, 0.5))):
        pa.parquet.write_table(other, tmp_path / f"{name}.parquet")
    assert bench["lte"].difference(tmp_path, tmp_path / "same.parquet") == 0
    assert bench["lte"].difference(tmp_path, tmp_path / "near.parquet") == 0.25
    with pytest.raises(AssertionError, match="n_items differs"):
        bench["lte"].difference(tmp_path, tmp_path / "miscounted.parquet")


def test_a_store_is_measured():
    text = run("bench_store.py", "--users", "300", "--dim", "8", "--store", "lmdb")
    found = json.loads(text[text.index("{") :])
    assert found["store"] == "lmdb"
    assert found["load_rows_per_s"] > 0
    assert found["get_us"]["p50"] <= found["get_us"]["p99"]


def test_ndcg_of_lists_by_hand(bench):
    top = np.array([[4, 2, 9], [1, 2, 3], [7, 8, 9]])
    # second of its list: 1 / log2(3); first: 1; not in the list: 0
    assert bench["sasrec"].ndcg(top, np.array([2, 1, 5])) == pytest.approx((1 / np.log2(3) + 1) / 3)


def test_the_held_out_item_is_the_last_one_and_is_not_trained_on(bench):
    parts = bench["sasrec"].split(200, 50)
    more = bench["sasrec"].split(200, 10)
    assert len(parts.last_item) == 50
    assert np.array_equal(np.unique(parts.users), np.arange(50))
    assert np.array_equal(more.items, parts.items[parts.users < 10])
    assert np.bincount(parts.users).min() >= 2  # three with the held-out one
    rows = bench["sasrec"].example_rows(parts)
    assert rows["targets"].combine_chunks().flatten().to_pylist() == parts.last_item.tolist()
    assert rows["items"].combine_chunks().flatten().to_pylist() == parts.items.tolist()
    # each purchase follows the one before it, so each position predicts the next item
    assert rows["moments"].to_pylist() == [list(range(n)) for n in np.bincount(parts.users)]


SMALL = ("--users", "60", "--items", "100", "--epochs", "1", "--max-length", "20", "--dim", "16", "--threads", "1")


def test_our_half_of_the_comparison_runs(tmp_path):
    run("bench_sasrec.py", *SMALL, "--only", "ours", "--seeds", "2", "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["users"], found["items"]) == (60, 100)
    first, second = found["ours"]["ndcg_of_seeds"]
    assert 0 < first < 1
    assert found["ours"]["ndcg_at_10"] == pytest.approx((first + second) / 2)
    assert len(found["ours"]["epoch_s"]) == 2


def test_both_halves_are_scored_by_one_code(tmp_path):
    if not (PEER / ".ready").exists():
        pytest.skip("no environment of the peer yet: `make bench-peer` makes it (some minutes of download)")
    run("bench_sasrec.py", *SMALL, "--json", str(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["peer"]["versions"]["rectools"] == "0.19.0"
    assert found["quality"] == pytest.approx(found["ours"]["ndcg_at_10"] / found["peer"]["ndcg_at_10"])
    assert found["speed_epoch_s"] > 0


def test_simulated_ab_tests_cover_the_known_uplift():
    """30 tests: an interval that held with 95 % holds in fewer than 20 of them once in 10**8 trials."""
    found = json.loads(run("bench_ab.py", "--tests", "30"))
    for kpi in found["A/B"]["kpis"].values():
        assert kpi["covers"] >= 20 / 30
    assert found["srm_found"]["0.51"] > found["srm_found"]["0.5"]


def test_an_answer_of_the_service_is_measured():
    found = json.loads(run("bench_serve.py", "--items", "600", "--requests", "3"))
    assert 0 < found["processor_time"]["p50_ms"] <= found["processor_time"]["p99_ms"]
