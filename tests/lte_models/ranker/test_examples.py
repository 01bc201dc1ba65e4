import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lte_models.ranker.examples import (
    AGE_BUCKETS,
    EXAMPLE_COLUMNS,
    ExampleCollate,
    age_bucket,
    averaged_lte,
    left_pad,
    lte_weights,
)
from lte_models.ranker.logits.history_features import FEATURE_SCALES, HISTORY_FEATURES, history_features
from lte_models.training.stream import RowGroupStream, StreamConfig, batches, list_parts, stage

# item_index 0..3; index 2 is outside the vocabulary
ROW_OF_INDEX = np.array([2, 1, 0, 3])


def example(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "anchor_day": 17000,
        "items": [0, 1, 3],
        "types": [0, 1, 0],
        "ages_hours": [50, 10, 0],
        "moments": [0, 1, 2],
        "past_items": [3, 0, 1],
        "past_n_week": [1, 1, 1],
        "past_n_month": [1, 1, 1],
        "past_n_short": [1, 1, 1],
        "past_n_long": [0, 3, 0],
        "past_days": [1, 4, 1],
        "past_weekday": [0, 1, 0],
        "past_visits_since": [0, 2, 1],
        "past_visits_from": [1, 9, 2],
        "past_last_age": [0.5, 2.5, 1.0],
        "past_first_age": [0.5, 92.5, 1.0],
        "past_last_gap": [0.0, 30.0, 0.0],
        "past_w_short": [1.0, 1.0, 1.0],
        "past_w_long": [0.0, 0.75, 0.0],
        "targets": [1, 2],
    }
    return row | changes


def table(*rows: dict[str, Any]) -> pa.Table:
    types = {
        name: pa.list_(pa.float32())
        if name in ("past_last_age", "past_first_age", "past_last_gap", "past_w_short", "past_w_long")
        else pa.list_(pa.int32())
        for name in EXAMPLE_COLUMNS
    }
    schema = pa.schema([(name, pa.int32() if name == "anchor_day" else types[name]) for name in EXAMPLE_COLUMNS])
    return pa.Table.from_pylist(list(rows), schema=schema)


EMPTY: dict[str, Any] = {name: [] for name in EXAMPLE_COLUMNS if name not in ("anchor_day", "targets")}


def test_left_pad_keeps_the_last_items_at_the_right_end() -> None:
    padded = left_pad(np.array([1, 2, 3, 4]), np.array([3, 0, 1]), 2)
    assert padded.tolist() == [[2, 3], [0, 0], [0, 4]]


def test_collate_maps_pads_and_shifts() -> None:
    batch = ExampleCollate(ROW_OF_INDEX)(table(example(), example(items=[3], types=[1], ages_hours=[3])))
    assert batch.items.tolist() == [[2, 1, 3], [0, 0, 3]]
    assert batch.types.tolist() == [[1, 2, 1], [0, 0, 2]]
    # hours 50, 10, 0 are 5.67, 3.46, 0 octaves: buckets 12, 7, 1
    assert batch.ages.tolist() == [[12, 7, 1], [0, 0, 5]]
    assert batch.query_position.tolist() == [2, 2]
    # target index 2 is unknown and cannot be ranked
    assert (batch.target_query.tolist(), batch.targets.tolist()) == ([0, 1], [1, 1])


def test_unknown_items_leave_the_sequence() -> None:
    batch = ExampleCollate(ROW_OF_INDEX)(table(example(items=[0, 2, 99], types=[0, 1, 1], ages_hours=[9, 8, 7])))
    assert batch.items.tolist() == [[2]]
    assert batch.types.tolist() == [[1]]


def test_a_user_without_history_keeps_one_padding_position() -> None:
    batch = ExampleCollate(ROW_OF_INDEX)(table(example(**EMPTY)))
    assert batch.items.tolist() == [[0]]
    assert batch.past.items.numel() == 0
    lte, has = averaged_lte(batch.past, lte_weights(batch.past, method="uniform", lagged=True), torch.ones(4, 2), 1)
    assert lte.tolist() == [[0.0, 0.0]]
    assert has.tolist() == [False]


def test_causal_training_predicts_the_next_item_at_each_position() -> None:
    batch = ExampleCollate(ROW_OF_INDEX, objective="clm")(
        table(example(), example(items=[3], types=[1], ages_hours=[3], moments=[0]))
    )
    # the newest item is no input: a query stands at every position, the last one too, where serving asks
    assert batch.items.tolist() == [[2, 1], [0, 0]]
    assert batch.types.shape == batch.ages.shape == (2, 2)
    assert batch.query_user.tolist() == [0, 0]
    assert batch.query_position.tolist() == [0, 1]
    assert batch.targets.tolist() == [1, 3]
    assert batch.target_query.tolist() == [0, 1]


def test_an_item_of_the_same_moment_is_never_predicted() -> None:
    rows = table(
        example(moments=[0, 0, 1]),  # items 0 and 1 in one basket
        example(moments=[0, 1, 1]),
        # The item outside the vocabulary goes; its neighbours stay in one basket.
        example(items=[1, 2, 0, 3], types=[0] * 4, ages_hours=[9, 9, 9, 0], moments=[0, 0, 0, 1]),
    )
    batch = ExampleCollate(ROW_OF_INDEX, objective="clm")(rows)
    assert batch.items.tolist() == [[2, 1], [2, 1], [1, 2]]
    found = list(zip(batch.query_user.tolist(), batch.query_position.tolist(), batch.targets.tolist(), strict=True))
    assert found == [(0, 1, 3), (1, 0, 1), (2, 1, 3)]


def test_only_the_last_max_length_items_are_kept() -> None:
    assert ExampleCollate(ROW_OF_INDEX, max_length=2)(table(example())).items.tolist() == [[1, 3]]
    causal = ExampleCollate(ROW_OF_INDEX, max_length=1, objective="clm")(table(example()))
    assert (causal.items.tolist(), causal.targets.tolist()) == ([[1]], [3])


def test_the_past_is_sorted_by_user_then_row() -> None:
    past = ExampleCollate(ROW_OF_INDEX)(table(example(), example())).past
    assert past.user.tolist() == [0, 0, 0, 1, 1, 1]
    assert past.items.tolist() == [1, 2, 3, 1, 2, 3]
    assert past.n_long.tolist() == [0, 3, 0, 0, 3, 0]


def test_history_features_by_hand() -> None:
    # item 7: four days with it in the ten visits since the first, 90 days from the first to the last; item 8: yesterday
    past = {
        "n_week": [0, 1],
        "n_month": [1, 1],
        "n_short": [1, 1],
        "n_long": [3, 0],
        "days": [4, 1],
        "weekday": [1, 0],
        "visits_since": [2, 0],
        "visits_from": [9, 1],
        "last_age": [2.5, 0.5],
        "first_age": [92.5, 0.5],
        "last_gap": [40, 0],
        "w_short": [1, 1],
        "w_long": [0.75, 0],
    }
    arrays = {name: np.array(value, dtype=np.float32) for name, value in past.items()}
    expected = {
        "log_n_week": [0, math.log(2)],
        "log_n_month": [math.log(2), math.log(2)],
        "log_n_short": [math.log(2), math.log(2)],
        "log_n_year": [math.log(5), math.log(2)],
        "log_days": [math.log(5), math.log(2)],
        "log_recent": [math.log(2.75), math.log(2)],
        "log_last_age": [math.log(3.5), math.log(1.5)],
        "log_first_age": [math.log(93.5), math.log(1.5)],
        "log_gap": [math.log(31), 0],  # 90 days are three gaps of 30
        "overdue": [math.log(3.5 / 31), 0],
        "log_last_gap": [math.log(41), 0],
        "log_visits_since": [math.log(3), 0],
        "log_visits_from": [math.log(10), math.log(2)],
        "overdue_visits": [math.log(3 / 3), 0],  # six visits are three gaps of two, and two came since
        "share_of_visits": [4 / 9, 1],
        "log_weekday": [math.log(2), 0],
        "in_last_visit": [0, 1],
        "share": [4 / 5, 1 / 5],
        "log_total": [math.log(6)] * 2,
        "log_visits": [math.log(10)] * 2,
        "log_last_visit": [math.log(1.5)] * 2,
        "log_basket": [math.log(1 + 5 / 9)] * 2,
    }
    assert list(expected) == list(FEATURE_SCALES)
    features = history_features(np.array([0, 0]), arrays, 1)
    assert features.shape == (2, HISTORY_FEATURES)
    for column, (name, (centre, scale)) in zip(features.T, FEATURE_SCALES.items(), strict=True):
        assert column * scale + centre == pytest.approx(expected[name], abs=1e-5), name


def test_ltes_of_both_windows_and_methods_by_hand() -> None:
    past = ExampleCollate(ROW_OF_INDEX)(table(example())).past
    content = torch.tensor([[9.0, 9.0], [1, 0], [0, 1], [1, 1]])
    lagged, has = averaged_lte(past, lte_weights(past, method="uniform", lagged=True), content, 1)
    assert lagged.tolist() == [[0.0, 1.0]]  # three interactions with row 2
    assert has.tolist() == [True]
    full, _ = averaged_lte(past, lte_weights(past, method="uniform", lagged=False), content, 1)
    assert full[0].tolist() == pytest.approx([2 / 6, 5 / 6])  # rows 1 and 3 once, row 2 four times
    recency, _ = averaged_lte(past, lte_weights(past, method="recency", lagged=False), content, 1)
    assert recency[0].tolist() == pytest.approx([2 / 3.75, 2.75 / 3.75])
    with pytest.raises(ValueError, match="got 'mean'"):
        lte_weights(past, method="mean", lagged=True)


def test_age_buckets_stay_within_the_embedding() -> None:
    assert age_bucket(np.array([0, 1, 10**9])).tolist() == [1, 3, AGE_BUCKETS - 1]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, first in (("a", 0), ("b", 50)):
        rows = table(*(example(anchor_day=first + i) for i in range(50)))
        pq.write_table(rows, tmp_path / f"{name}.parquet", row_group_size=7)
    return sorted(tmp_path.glob("*.parquet"))


def _anchors(files: list[Path], config: StreamConfig, epoch: int = 0) -> list[list[int]]:
    stream = RowGroupStream(files, ["anchor_day"], _anchor_column, config, epoch)
    return list(batches(stream))


def _anchor_column(rows: pa.Table) -> list[int]:
    column: list[int] = rows["anchor_day"].to_pylist()
    return column


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("buffer", [0, 20, 1000])
def test_an_epoch_reads_each_row_once_in_an_order_that_the_seed_decides(files, n_workers: int, buffer: int) -> None:
    config = StreamConfig(batch_size=8, shuffle_buffer=buffer, n_workers=n_workers, seed=3)
    first = _anchors(files, config)
    assert sorted(chain.from_iterable(first)) == list(range(100))
    assert first == _anchors(files, config)
    assert max(map(len, first)) == 8


def test_epochs_differ_and_no_buffer_keeps_the_order_of_the_files(files) -> None:
    config = StreamConfig(batch_size=100, shuffle_buffer=30)
    assert _anchors(files, config, 0) != _anchors(files, config, 1)
    assert list(chain.from_iterable(_anchors(files, StreamConfig(batch_size=9, shuffle_buffer=0)))) == list(range(100))


def test_memory_is_bounded_by_the_buffer(files, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = pa.concat_tables

    def spy(tables: list[pa.Table]) -> pa.Table:
        held.append(sum(part.num_rows for part in tables))
        return original(tables)

    monkeypatch.setattr(pa, "concat_tables", spy)
    _anchors(files, StreamConfig(batch_size=8, shuffle_buffer=20))
    assert max(held) <= 20 + 7  # the buffer and one row group


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="no Parquet file"):
        RowGroupStream([], ["anchor_day"], _anchor_column, StreamConfig())
    with pytest.raises(ValueError, match="is null"):
        list_parts(pa.chunked_array([pa.array([[1], None], type=pa.list_(pa.int32()))]))
    with pytest.raises(ValueError, match="'mlm'"):
        ExampleCollate(ROW_OF_INDEX, objective="mlm")
    with pytest.raises(ValueError, match="batch_size"):
        StreamConfig(batch_size=0)


def test_a_bucket_with_too_many_rows_is_split_and_small_ones_stay_as_they_are(tmp_path: Path) -> None:
    rows = pa.table({"user_id": [f"u{i}" for i in range(500)], "items": [[i] for i in range(500)]})
    shuffled = rows.take(np.random.default_rng(0).permutation(500))
    whole = stage(rows.to_batches(), ("user_id",), tmp_path / "whole", n_buckets=4)
    sizes = [pq.ParquetFile(file).metadata.num_rows for file in whole.files]
    assert (len(sizes), sum(sizes)) == (4, 500)
    same = stage(rows.to_batches(), ("user_id",), tmp_path / "same", n_buckets=4, max_rows=max(sizes))
    assert same.digest == whole.digest
    first = stage(rows.to_batches(max_chunksize=7), ("user_id",), tmp_path / "a", n_buckets=4, max_rows=20)
    second = stage(shuffled.to_batches(max_chunksize=11), ("user_id",), tmp_path / "b", n_buckets=4, max_rows=20)
    assert first.digest == second.digest
    assert [file.name for file in first.files] == [file.name for file in second.files]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [file.name for file in first.files]
    tables = [pq.read_table(file) for file in first.files]
    assert sum(-(-size // 20) for size in sizes) == len(tables)
    assert max(table.num_rows for table in tables) <= 2 * 20  # a hash fills its buckets about evenly
    assert all(table["user_id"].to_pylist() == sorted(table["user_id"].to_pylist()) for table in tables)
    found = pa.concat_tables(tables).sort_by("user_id")
    assert found.equals(rows.sort_by("user_id"))


def test_staged_rows_do_not_depend_on_who_wrote_them(tmp_path: Path) -> None:
    rows = pa.table({"user_id": [f"u{i}" for i in range(50)], "items": [[i] for i in range(50)]})
    shuffled = rows.take(np.random.default_rng(0).permutation(50))
    first = stage(rows.to_batches(max_chunksize=7), ("user_id",), tmp_path / "a", n_buckets=4)
    second = stage(shuffled.to_batches(max_chunksize=11), ("user_id",), tmp_path / "b", n_buckets=4)
    assert first.digest == second.digest
    assert [file.name for file in first.files] == [f"rows-{i:05d}.parquet" for i in range(4)]
    found = pa.concat_tables(pq.read_table(file) for file in first.files)
    assert sorted(found["user_id"].to_pylist()) == sorted(rows["user_id"].to_pylist())
    changed = stage(rows.slice(1).to_batches(), ("user_id",), tmp_path / "a", n_buckets=4)
    assert changed.digest != first.digest
    with pytest.raises(ValueError, match="no row to train on"):
        stage(iter(()), ("user_id",), tmp_path / "c")
