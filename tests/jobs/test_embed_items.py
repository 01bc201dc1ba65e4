"""The basis as a table: what is encoded, what is left out, and that nothing ever changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import jobs.basis.encode
import jobs.embed_items
import rounding
from jobs.basis.basis import (
    BasisError,
    basis_versions,
    catalogue_versions,
    configured_basis,
    encoder_config,
    read_basis,
    single_basis,
)
from jobs.basis.encode import EncodeTask
from jobs.basis.repair import repair_basis
from jobs.config.sections import BasisSection, Deployment
from jobs.embed_items import extend_basis, main, portion_size, with_content
from jobs.lake.lake import ConcurrentWriteError, Lake
from jobs.runtime.entry import run_job
from lte_models.encoders.base import EncoderConfig, EncoderError, aggregate
from lte_models.encoders.images import decode_image
from lte_models.encoders.loading import basis_version, load_encoder
from lte_models.encoders.minilm import MiniLmEncoder
from schemas import ITEM_EMBEDDINGS, ITEMS, METRICS
from tiny_clip import encoded, picture, png_header, write_clip

DAY = date(2017, 3, 1)
NEXT = date(2017, 3, 2)
MINILM = EncoderConfig("minilm")


def item(item_id: str, title: str = "", landing_ds: date = DAY, **columns: Any) -> dict[str, Any]:
    return dict.fromkeys(ITEMS.columns) | {"item_id": item_id, "title": title, "landing_ds": landing_ds} | columns


def add_items(lake: Lake, *rows: dict[str, Any]) -> None:
    lake.append_rows([tuple(row[c] for c in ITEMS.columns) for row in rows], ITEMS)


def embeddings(lake: Lake) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row.asDict() for row in lake.read(ITEM_EMBEDDINGS).collect()}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    folder = write_clip(tmp_path_factory.mktemp("basis") / "clip")
    return EncoderConfig("open_clip", weights=str(folder), batch_size=4)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[Any, float]]:
    """Run the transform on a lake with the landing folder under tmp_path."""
    (tmp_path / "landing").mkdir()

    def extend(lake: Lake, encoder: EncoderConfig, ds: date = DAY, partitions: int = 2) -> dict[Any, float]:
        return extend_basis(lake, encoder, ds=ds, landing=tmp_path / "landing", partitions=partitions)

    return extend


def expected_vector(encoder: EncoderConfig, text: str = "", image: bytes | None = None) -> np.ndarray:
    model = load_encoder(encoder)
    images = model.encode_images([decode_image(image)]) if image else None
    return aggregate(images, model.encode_texts([text]) if text else None, ["x"])[0]


# --- what is encoded


def test_pictures_and_texts_on_both_engines(
    engine_lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], tmp_path: Path
) -> None:
    photo, filed = encoded(picture(1), "JPEG"), encoded(picture(2))
    (tmp_path / "landing" / "b.png").write_bytes(filed)
    add_items(
        engine_lake,
        item("a", "red dress", image=photo, description="cotton", category="Dresses", brand="Acme"),
        item("b", "blue shirt", image_path="b.png"),
        item("c", "", image=photo),  # a picture alone
        item("d", "green hat"),  # a text alone
        item("e", "no file", image_path="none.png"),
        item("f", "torn", image=photo[:300]),
        item("g", "bomb", image=png_header(60_000, 60_000)),
        item("h", "escape", image_path="../landing/../b.png"),
        item("i", "", image=photo[:300]),  # nothing that can be used
        item("j", " ", description=""),  # nothing at all
        item("k", "future", landing_ds=NEXT),
    )
    metrics = run(engine_lake, clip)
    rows = embeddings(engine_lake)
    sources = {item_id: row["source"] for item_id, row in rows.items()}
    assert sources == {"a": "image+text", "b": "image+text", "c": "image"} | dict.fromkeys("defgh", "text")
    assert {item_id: row["item_index"] for item_id, row in rows.items()} == {c: n for n, c in enumerate("abcdefgh")}
    assert {row["basis_version"] for row in rows.values()} == {basis_version(clip)}
    assert {row["first_ds"] for row in rows.values()} == {DAY}
    wanted = {
        "a": expected_vector(clip, "red dress. cotton. Dresses. Acme", photo),
        "b": expected_vector(clip, "blue shirt", filed),
        "c": expected_vector(clip, "", photo),
        "d": expected_vector(clip, "green hat"),
        "e": expected_vector(clip, "no file"),
        "f": expected_vector(clip, "torn"),
    }
    for item_id, vector in wanted.items():
        np.testing.assert_allclose(rows[item_id]["embedding"], vector, rtol=0, atol=rounding.TINY_CLIP, err_msg=item_id)
    lengths = [np.linalg.norm(row["embedding"]) for row in rows.values()]
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert metrics == {
        "n_encoded": 8,
        "n_backdated": 0,
        "n_catalogue": 10,
        "n_in_basis": 8,
        "n_left_out": 2,
        ("n_image_not_used", "missing"): 1,
        ("n_image_not_used", "outside_landing"): 1,
        ("n_image_not_used", "too_large"): 1,
        ("n_image_not_used", "unreadable"): 2,
    }


def test_incremental_on_both_engines(engine_lake: Lake, run: Callable[..., dict[Any, float]]) -> None:
    add_items(engine_lake, item("b", "red dress"), item("d", "blue shirt"))
    assert run(engine_lake, MINILM)["n_encoded"] == 2
    before = embeddings(engine_lake)
    add_items(engine_lake, item("a", "green hat", NEXT), item("d", "another description", NEXT))
    assert run(engine_lake, MINILM, NEXT)["n_encoded"] == 1
    after = embeddings(engine_lake)
    assert {item_id: row["item_index"] for item_id, row in after.items()} == {"b": 0, "d": 1, "a": 2}
    assert after["a"]["first_ds"] == NEXT
    assert after["d"] == before["d"]  # the new description has no effect within the basis
    assert after["b"] == before["b"]


def test_a_rerun_encodes_nothing_and_loads_no_weights(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    add_items(lake, item("a", "red dress"), item("b", image=b"torn"))
    first = run(lake, clip)
    version = lake.version(ITEM_EMBEDDINGS)

    def refuse(*arguments: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(jobs.basis.encode, "load_encoder", refuse)
    assert run(lake, clip) == first | {"n_encoded": 0}
    assert lake.version(ITEM_EMBEDDINGS) == version  # not even an empty commit


def test_one_text_is_encoded_once(
    lake: Lake, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    real = MiniLmEncoder.encode_texts
    monkeypatch.setattr(MiniLmEncoder, "encode_texts", lambda self, new: texts.extend(new) or real(self, new))
    add_items(lake, *(item(f"{n:02}", ["milk", "bread", "red wine"][n % 3], brand="Acme") for n in range(30)))
    run(lake, MINILM, partitions=3)
    assert sorted(texts) == ["bread. Acme", "milk. Acme", "red wine. Acme"]
    rows = embeddings(lake)
    assert len(rows) == 30
    assert rows["00"]["embedding"] == rows["27"]["embedding"] != rows["01"]["embedding"]
    assert rows["00"]["content_hash"] == rows["27"]["content_hash"] != rows["01"]["content_hash"]


def test_texts_beyond_the_kept_ones_are_still_right(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.basis.encode, "MAX_KEPT_TEXTS", 1)
    add_items(lake, item("a", "milk"), item("b", "bread"), item("c", "milk"))
    run(lake, clip)
    rows = embeddings(lake)
    for item_id, text in {"a": "milk", "b": "bread", "c": "milk"}.items():
        np.testing.assert_allclose(
            rows[item_id]["embedding"], expected_vector(clip, text), rtol=0, atol=rounding.TINY_CLIP
        )


def test_many_pictures_are_taken_in_parts(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.basis.encode, "MAX_PICTURED_ROWS", 2)
    pictures = [encoded(picture(n)) for n in range(5)]
    add_items(lake, *(item(f"{n}", f"text {n}", image=content) for n, content in enumerate(pictures)))
    assert run(lake, clip, partitions=1)["n_encoded"] == 5
    rows = embeddings(lake)
    for n, content in enumerate(pictures):
        expected = expected_vector(clip, f"text {n}", content)
        np.testing.assert_allclose(rows[f"{n}"]["embedding"], expected, rtol=0, atol=rounding.TINY_CLIP)


def test_partitions_and_company_change_no_bit(
    sail: Any, tmp_path: Path, clip: EncoderConfig, run: Callable[..., dict[Any, float]]
) -> None:
    rows = [item(f"{n:02}", f"text {n % 7}", image=encoded(picture(n % 5))) for n in range(20)]
    whole, split, daily = (Lake(sail, str(tmp_path / name)) for name in ("whole", "split", "daily"))
    add_items(whole, *rows)
    run(whole, clip, partitions=1)
    add_items(split, *rows[::-1])
    run(split, clip, partitions=5)
    for row in rows:  # one item at a time
        add_items(daily, row)
    run(daily, clip)
    assert embeddings(whole) == embeddings(split) == embeddings(daily)


def test_minilm_leaves_items_without_text_out(lake: Lake, run: Callable[..., dict[Any, float]]) -> None:
    add_items(lake, item("a", "milk", image=encoded(picture(1))), item("b", image=encoded(picture(1))))
    metrics = run(lake, MINILM)
    assert (metrics["n_in_basis"], metrics["n_left_out"]) == (1, 1)
    assert embeddings(lake)["a"]["source"] == "text"
    np.testing.assert_allclose(
        embeddings(lake)["a"]["embedding"], expected_vector(MINILM, "milk"), rtol=0, atol=rounding.MINILM
    )


def test_an_empty_catalogue_is_no_error(lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]]) -> None:
    assert run(lake, clip) == {
        "n_encoded": 0,
        "n_backdated": 0,
        "n_catalogue": 0,
        "n_in_basis": 0,
        "n_left_out": 0,
    }


def test_a_picture_that_came_later_is_told_apart(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]]
) -> None:
    add_items(lake, item("a", "red dress"))
    run(lake, clip)
    add_items(lake, item("a", "red dress", NEXT, image=encoded(picture(1))))
    metrics = run(lake, clip, NEXT)
    assert metrics["n_encoded"] == 0
    assert metrics["n_image_not_used", "came_later"] == 1


# --- days


def test_the_catalogue_of_a_day_is_each_items_newest_version(lake: Lake) -> None:
    add_items(lake, item("a", "old"), item("a", "new", NEXT), item("b", "other"), item("c", "future", NEXT))
    items = lake.read(ITEMS)
    days = {
        ds: {
            row["item_id"]: (row["title"], row["first_ds"])
            for row in with_content(items, catalogue_versions(items, ds)).collect()
        }
        for ds in (DAY, NEXT)
    }
    assert days[DAY] == {"a": ("old", DAY), "b": ("other", DAY)}
    assert days[NEXT] == {"a": ("new", DAY), "b": ("other", DAY), "c": ("future", NEXT)}


def test_days_loaded_out_of_order_on_both_engines(engine_lake: Lake, run: Callable[..., dict[Any, float]]) -> None:
    """An item first met on NEXT turns out to have landed on DAY: it must be known to DAY, with the vector it has."""
    add_items(engine_lake, item("b", "as of next", NEXT), item("c", "only next", NEXT))
    run(engine_lake, MINILM, NEXT)
    before = embeddings(engine_lake)
    add_items(engine_lake, item("b", "as of day"), item("a", "new with day"))
    metrics = run(engine_lake, MINILM, DAY)
    assert (metrics["n_backdated"], metrics["n_encoded"], metrics["n_in_basis"]) == (1, 1, 2)
    after = embeddings(engine_lake)
    assert after["b"] == before["b"] | {"first_ds": DAY}
    assert after["c"] == before["c"]
    assert (after["a"]["item_index"], after["a"]["first_ds"]) == (2, DAY)
    assert run(engine_lake, MINILM, NEXT)["n_backdated"] == 0


# --- bad weights, bad tables


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_a_vector_without_direction_is_an_error_naming_the_item(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], tmp_path: Path, value: float
) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_clip(tmp_path / "broken")
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file(weights | {"text_projection": weights["text_projection"] * value}, folder / "open_clip_model.safetensors")
    add_items(lake, item("item-77", "red dress"))
    with pytest.raises(EncoderError, match=r"^1 of 1 vectors cannot be scaled to length 1: item-77"):
        run(lake, EncoderConfig("open_clip", weights=str(folder)))
    assert embeddings(lake) == {}


def test_two_bases_live_apart_and_are_not_mixed(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], tmp_path: Path
) -> None:
    other = EncoderConfig("open_clip", weights=str(write_clip(tmp_path / "other", seed=9)))
    add_items(lake, item("a", "red dress"), item("b", "blue shirt"))
    run(lake, clip)
    assert {row["basis_version"] for row in read_basis(lake).collect()} == {basis_version(clip)}
    assert run(lake, other)["n_encoded"] == 2
    both = sorted([basis_version(clip), basis_version(other)])
    with pytest.raises(BasisError, match=f"item_embeddings.*{both[0]} and {both[1]} must not be mixed"):
        read_basis(lake)
    with pytest.raises(BasisError, match=f"user_lte of 2017-03-01.*{both[0]} and {both[1]}"):
        single_basis(lake.read(ITEM_EMBEDDINGS), "user_lte of 2017-03-01")
    mine = read_basis(lake, basis_version(other))
    assert single_basis(mine, "item_embeddings") == basis_version(other)
    assert sorted(row["item_index"] for row in mine.collect()) == [0, 1]
    assert basis_versions(lake.read(ITEM_EMBEDDINGS)) == both


def test_a_basis_that_is_not_there_is_an_error_that_names_what_is(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]]
) -> None:
    with pytest.raises(BasisError, match="item_embeddings: no basis at all"):
        read_basis(lake)
    add_items(lake, item("a", "red dress"))
    run(lake, clip)
    with pytest.raises(BasisError, match=rf"'feedfeedfeedfeed'.*{basis_version(clip)}"):
        read_basis(lake, "feedfeedfeedfeed")


def test_a_basis_numbered_twice_is_refused(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]]
) -> None:
    add_items(lake, item("a", "red dress"))
    run(lake, clip)
    lake.append(lake.read(ITEM_EMBEDDINGS), ITEM_EMBEDDINGS)  # what two runs at once would leave
    with pytest.raises(BasisError, match=rf"{basis_version(clip)}: .*got 2 rows, 1 item ids, 1 indices below 1"):
        run(lake, clip)


def test_repair_brings_back_the_last_good_basis(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]]
) -> None:
    with pytest.raises(BasisError, match="nothing to repair"):
        repair_basis(lake)
    add_items(lake, item("a", "red dress"), item("b", "blue shirt"))
    run(lake, clip)
    good, version = embeddings(lake), lake.version(ITEM_EMBEDDINGS)
    assert str(repair_basis(lake)).endswith("2 rows, nothing to repair")
    assert lake.version(ITEM_EMBEDDINGS) == version
    lake.append(lake.read(ITEM_EMBEDDINGS), ITEM_EMBEDDINGS)
    lake.append(lake.read(ITEM_EMBEDDINGS), ITEM_EMBEDDINGS)  # damaged twice: the version before is damaged, too
    done = repair_basis(lake)
    assert (done.to_version, done.n_rows_before, done.n_rows_after) == (version, 8, 2)
    assert "got 8 rows, 2 item ids, 2 indices below 2" in str(done)
    assert embeddings(lake) == good
    add_items(lake, item("c", "black hat", landing_ds=NEXT))
    assert run(lake, clip, NEXT)["n_encoded"] == 1
    assert embeddings(lake)["c"]["item_index"] == 2


def test_a_kill_loses_the_portion_that_was_being_encoded(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(jobs.embed_items, "MIN_PORTION", 2)
    monkeypatch.setattr(jobs.embed_items, "MAX_PORTIONS", 3)
    add_items(lake, *(item(name, f"text {name}") for name in "edcba"))
    encoded_portion = jobs.embed_items._encoded

    def killed(lake: Lake, additions: Any, ids: Any, start: int) -> Any:
        if "c" in ids:
            raise KeyboardInterrupt
        return encoded_portion(lake, additions, ids, start)

    monkeypatch.setattr(jobs.embed_items, "_encoded", killed)
    with pytest.raises(KeyboardInterrupt):
        run(lake, clip)
    assert sorted(embeddings(lake)) == ["a", "b"]
    monkeypatch.setattr(jobs.embed_items, "_encoded", encoded_portion)
    capsys.readouterr()
    assert run(lake, clip)["n_encoded"] == 3
    assert {name: row["item_index"] for name, row in embeddings(lake).items()} == dict(
        zip("abcde", range(5), strict=True)
    )
    shown = capsys.readouterr().err
    assert "2 of 3 new items are in the basis" in shown
    assert "3 of 3 new items are in the basis" in shown


def test_a_run_whose_table_changed_meanwhile_writes_nothing(
    lake: Lake, clip: EncoderConfig, run: Callable[..., dict[Any, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs number from one maximum: the second commit is refused, and a rerun numbers on."""
    add_items(lake, item("a", "red dress"), item("b", "blue shirt", landing_ds=NEXT))
    encoded_portion = jobs.embed_items._encoded

    def beside_another_run(*arguments: Any) -> Any:
        rows = encoded_portion(*arguments)
        monkeypatch.setattr(jobs.embed_items, "_encoded", encoded_portion)
        run(lake, clip, DAY)
        return rows

    monkeypatch.setattr(jobs.embed_items, "_encoded", beside_another_run)
    with pytest.raises(ConcurrentWriteError, match="item_embeddings: expected version"):
        run(lake, clip, NEXT)
    assert {name: row["item_index"] for name, row in embeddings(lake).items()} == {"a": 0}
    run(lake, clip, NEXT)
    assert {name: row["item_index"] for name, row in embeddings(lake).items()} == {"a": 0, "b": 1}


def test_a_portion_is_at_least_so_large_and_there_are_at_most_so_many() -> None:
    assert [portion_size(n) for n in (0, 4096, 4096 * 64, 4096 * 64 + 1, 10**8)] == [4096, 4096, 4096, 4097, 65536]


# --- the job


@pytest.fixture
def clip_deployment(deployment_file: Path, clip: EncoderConfig) -> Path:
    text = f'[basis]\nencoder = "open_clip"\nweights = "{clip.weights}"\n'
    deployment_file.write_text(deployment_file.read_text() + text)
    return deployment_file


def test_the_job_from_its_command_line(
    clip_deployment: Path, lake: Lake, clip: EncoderConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lake of the fixture is that of the deployment: both are at tmp_path / lake."""
    add_items(lake, item("a", "red dress"), item("b"))
    main(["--config", str(clip_deployment), "--ds", "2017-03-01"])
    assert list(embeddings(lake)) == ["a"]
    metrics = {
        (row["metric"], row["label"], row["ds"], row["job"]): row["value"] for row in lake.read(METRICS).collect()
    }
    assert metrics["n_left_out", "", DAY, "embed_items"] == 1
    assert f"basis {basis_version(clip)} holds 0 items, 1 are new" in capsys.readouterr().err


def test_weights_that_are_not_there_end_the_job_with_one_line(
    deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[basis]\nencoder = "open_clip"\nweights = "./no-such-folder"\n'
    deployment_file.write_text(deployment_file.read_text() + text)
    with pytest.raises(SystemExit) as ended:
        run_job(lambda: main(["--config", str(deployment_file), "--ds", "2017-03-01"]))
    assert ended.value.code == 1
    assert "EncoderError: open_clip weights" in capsys.readouterr().err


def test_the_configured_basis(deployment: Deployment) -> None:
    assert configured_basis(deployment) == basis_version(MINILM)
    section = BasisSection(encoder="open_clip", model="ViT-B-32", weights="laion2b_s34b_b79k", batch_size=9)
    assert encoder_config(section) == EncoderConfig("open_clip", "ViT-B-32", "laion2b_s34b_b79k", batch_size=9)


def test_nothing_is_loaded_for_an_empty_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    task = EncodeTask(EncoderConfig("open_clip", weights="/nowhere"), "x", "/nowhere")

    def none() -> Iterator[Any]:
        yield from ()

    assert list(task.encode(none())) == []


def test_pictures_are_decoded_as_many_at_once_as_there_is_room_for(
    clip: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fourteen small PNGs may be three gigabytes decoded, so that their number says nothing."""
    encoder = load_encoder(clip)
    sizes: list[list[int]] = []
    encode_images = type(encoder).encode_images

    def recorded(self: object, pictures: list[Any]) -> Any:
        sizes.append([4 * each.width * each.height for each in pictures])
        return encode_images(encoder, pictures)

    edges = (100, 100, 50, 100, 160, 100, 50)
    pictures = [encoded(picture(edge).resize((edge, edge))) for edge in edges]
    rows = [item(str(at), image=each) | {"item_index": at, "first_ds": DAY} for at, each in enumerate(pictures)]
    batch = pa.RecordBatch.from_pylist(
        rows, pa.schema([(name, COLUMN_TYPES.get(name, pa.string())) for name in rows[0]])
    )
    whole, small = (EncodeTask(clip, basis_version(clip), str(tmp_path), room) for room in (1 << 20, 90_000))
    [expected] = list(whole.encode(iter([batch.take([0, 1, 2, 3, 5, 6])])))
    monkeypatch.setattr(type(encoder), "encode_images", recorded)
    [found] = list(small.encode(iter([batch.take([0, 1, 2, 3, 5, 6])])))
    assert sizes == [[40_000, 40_000, 10_000], [40_000, 40_000, 10_000]]
    close, exact = (np.array(each.column("embedding").to_pylist()) for each in (found, expected))
    np.testing.assert_allclose(close, exact, atol=1e-6)  # sums of float32 in another order
    problems = small.picture_problems(iter([batch])).__next__().column("reason").to_pylist()
    assert problems == [*["came_later"] * 4, "too_large", *["came_later"] * 2]  # 160 x 160 x 4 bytes are above the room


COLUMN_TYPES = {"image": pa.binary(), "landing_ds": pa.date32(), "first_ds": pa.date32(), "item_index": pa.int32()}
