"""Files of a few kilobytes that would become gigabytes: refused, or read a little at a time, in bounded memory."""

from __future__ import annotations

import gzip
import resource
import subprocess
import sys
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.landing.checks import RowRules
from jobs.landing.files import LandingFile
from jobs.landing.formats.parquet_pages import column_pages
from jobs.landing.formats.pieces import ReadLimits
from jobs.landing.rows import file_batches

DS = date(2024, 3, 1)
MIB = 1 << 20
HEADER = b"user_id,item_id,event_ts,interaction_type\n"
EVENT = {"user_id": "u", "item_id": "i", "event_ts": "2024-02-29", "interaction_type": "click"}


def events(n_rows: int, **columns: Any) -> pa.Table:
    return pa.table({name: pa.array([value] * n_rows) for name, value in EVENT.items()} | columns)


def place(folder: Path, name: str) -> Path:
    path = folder / "interactions" / f"ds={DS}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def batches(folder: Path, name: str, limits: ReadLimits) -> list[pa.RecordBatch]:
    path = place(folder, name)
    file = LandingFile(DS, "interactions", f"interactions/ds={DS}/{name}", path.stat().st_size)
    return list(file_batches(str(folder), file, RowRules(("click",), date(2000, 1, 1), limits=limits)))


def reasons(found: list[pa.RecordBatch]) -> dict[str | None, int]:
    rows = [row for batch in found for row in batch.select(["line", "reason"]).to_pylist()]
    names = [row["reason"] for row in rows if row["line"] >= 0]
    return {name: names.count(name) for name in set(names)}


LIMITS = ReadLimits(file_bytes=1 << 40, batch_bytes=MIB)
WIDE = "x" * (64 << 10)  # 16 of them are a batch


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dictionary": False, "column_encoding": {"market": "DELTA_BYTE_ARRAY"}}],
    ids=["references", "prefixes"],
)
def test_wide_values_of_a_small_file_are_decoded_a_few_at_a_time(options: dict[str, Any], tmp_path: Path) -> None:
    path = place(tmp_path, "a.parquet")
    pq.write_table(events(200, market=pa.array([WIDE] * 200)), path, compression="zstd", **options)
    assert path.stat().st_size < 3000
    found = batches(tmp_path, "a.parquet", LIMITS)
    assert reasons(found) == {"oversize_market": 200}
    assert max(batch.num_rows for batch in found) <= MIB // len(WIDE)
    lines = [line for batch in found for line in batch.column("line").to_pylist() if line > 0]
    assert lines == list(range(1, 201))


def test_small_values_stay_in_large_batches(tmp_path: Path) -> None:
    users = pa.array([f"u{n % 97}" for n in range(20_000)])
    for name, options in {"references": {}, "plain": {"use_dictionary": False}}.items():
        pq.write_table(events(20_000, user_id=users), place(tmp_path, f"{name}.parquet"), **options)
        found = batches(tmp_path, f"{name}.parquet", ReadLimits())
        assert (reasons(found), max(batch.num_rows for batch in found)) == ({None: 20_000}, 20_000)


def test_a_page_that_inflates_beyond_a_batch_is_refused_and_one_that_is_large_is_not(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "use_dictionary": False,
        "data_page_size": 1 << 30,
        "write_batch_size": 1 << 20,
        "compression": "zstd",
    }
    pq.write_table(events(40, market=pa.array([WIDE] * 40)), place(tmp_path, "bomb.parquet"), **options)
    assert reasons(batches(tmp_path, "bomb.parquet", LIMITS)) == {"unreadable_file": 1}
    options["compression"] = "none"
    pq.write_table(events(40, market=pa.array([WIDE] * 40)), place(tmp_path, "large.parquet"), **options)
    assert reasons(batches(tmp_path, "large.parquet", LIMITS)) == {"oversize_market": 40}


def test_a_list_without_a_bound_is_refused(tmp_path: Path) -> None:
    lists = pa.array([[1] * 300_000])
    pq.write_table(events(1, market=lists), place(tmp_path, "a.parquet"), compression="zstd")
    details = [row for batch in batches(tmp_path, "a.parquet", LIMITS) for row in batch.column("detail").to_pylist()]
    expected = "column market: expected at most 1048576 bytes at once (landing.max_batch_bytes), got lists"
    assert details[0].startswith(expected)


def test_a_file_that_becomes_larger_than_allowed_is_refused_whole(tmp_path: Path) -> None:
    limits = ReadLimits(file_bytes=MIB, batch_bytes=MIB)
    line = b"u,i,2024-02-29,click\n"
    place(tmp_path, "a.csv.gz").write_bytes(gzip.compress(HEADER + line * (MIB // len(line) + 1)))
    place(tmp_path, "b.csv.gz").write_bytes(gzip.compress(HEADER + b"x" * (2 * MIB)))
    place(tmp_path, "c.jsonl.gz").write_bytes(gzip.compress(b"\n" * (2 * MIB)))
    pq.write_table(events(40, market=pa.array([WIDE] * 40)), place(tmp_path, "d.parquet"), compression="zstd")
    for name in ("a.csv.gz", "b.csv.gz", "c.jsonl.gz", "d.parquet"):
        found = batches(tmp_path, name, limits)
        assert reasons(found).get("unreadable_file") == 1, name
        details = [row for batch in found for row in batch.column("detail").to_pylist() if row]
        assert any("landing.max_file_bytes" in detail for detail in details), name
    place(tmp_path, "plain.csv").write_bytes(HEADER + line * (MIB // len(line) + 1))  # as large as it looks
    assert set(reasons(batches(tmp_path, "plain.csv", limits))) == {None}


def test_page_headers_say_what_the_footer_says(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for version in ("1.0", "2.0"):
        table = events(5000, n=pa.array(range(5000)), long=pa.array(["x" * 20_000] + ["y"] * 4999))
        pq.write_table(table, path, data_page_version=version, data_page_size=4096, compression="zstd")
        facts = pq.ParquetFile(path).metadata.row_group(0)
        with path.open("rb") as stream:
            for at in range(facts.num_columns):
                chunk = facts.column(at)
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                pages = list(column_pages(stream, start, start + chunk.total_compressed_size))
                assert sum(page.n_values for page in pages if page.is_data) == chunk.num_values
                headers = chunk.total_compressed_size - sum(page.n_packed for page in pages)
                assert sum(page.n_bytes for page in pages) + headers == chunk.total_uncompressed_size


QUOTES = {  # each line is looked at with the 200 after it where it has to be
    "open": '"a\n' * 20_000,
    "escaped": '"a""b' + "y" * 1000 + "\n" + ('""y' + "y" * 1000 + "\n") * 2000,
    "open again": ('"a","b' + "y" * 500 + "\n") * 4000,
    "twice": HEADER.decode().strip() + ",market" * 100_000 + "\n",
}


@pytest.mark.parametrize("name", QUOTES)
def test_the_work_grows_with_the_file_and_not_with_its_square(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: what the csv module is given to parse is a small multiple of what is there."""
    import csv as module

    parsed = 0
    reader = module.reader

    def counting(lines: Any, **options: Any) -> Any:
        nonlocal parsed
        texts = list(lines)
        parsed += sum(map(len, texts))
        return reader(texts, **options)

    monkeypatch.setattr(module, "reader", counting)
    content = HEADER + QUOTES[name].encode()
    place(tmp_path, "a.csv").write_bytes(content)
    batches(tmp_path, "a.csv", ReadLimits())
    assert parsed <= 5 * len(content)  # a line on its own, inside a field (one character more), and in its record


READ = """
    import sys
    from datetime import date
    from pathlib import Path
    from jobs.landing.checks import RowRules
    from jobs.landing.files import LandingFile
    from jobs.landing.rows import file_batches
    from collections import Counter
    import resource
    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    landing, name = sys.argv[1:]
    file = LandingFile(date(2024, 3, 1), "interactions", name, (Path(landing) / name).stat().st_size)
    found, before = Counter(), peak()
    for batch in file_batches(landing, file, RowRules(("click",), date(2000, 1, 1))):
        found.update(reason for reason in batch.column("reason").to_pylist() if reason)
    print(dict(found), peak() - before)
"""


@pytest.mark.slow
def test_five_gigabytes_in_a_kilobyte_are_read_in_half_a_gigabyte(tmp_path: Path) -> None:
    path = place(tmp_path, "a.parquet")
    wide = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * (256 << 10)]))
    pq.write_table(events(20_000, market=wide), path, compression="zstd")
    assert path.stat().st_size < 5000
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ), str(tmp_path), f"interactions/ds={DS}/a.parquet"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30)),
    )
    found, peak_mib = done.stdout.rsplit(" ", 1)
    assert found == "{'oversize_market': 20000}"
    assert int(peak_mib) < 512  # a batch of 64 MiB, some copies of it, and Arrow itself
