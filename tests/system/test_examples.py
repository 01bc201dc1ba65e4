"""The examples do what they say: a shop's own tables become landing files that ``ingest`` takes whole."""

import io
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import pytest

from checkout import ROOT
from jobs.config.loading import load_deployment
from jobs.ingest import ingest
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from schemas import INGEST_LOG, INTERACTIONS, ITEMS

SCRIPT = ROOT / "examples" / "online_retail_ii.py"
# Real files, where a developer has them; nothing in the project needs them.
REAL = ROOT.parent / "shared" / "data" / "online_retail_ii"

SALES = [
    # user, item, time, quantity, price, country
    (13085, "85048", "2009-12-01 07:45", 12, 6.95, "United Kingdom"),
    (13085, "85048", "2009-12-01 07:45", 3, 6.95, "United Kingdom"),  # a second line of the same basket
    (13085, "79323P", "2009-12-01 07:45", 12, 0.75, "United Kingdom"),
    (12346, "79323P", "2009-12-01 09:00", 1, 1.25, "Unspecified"),
    (12346, "79323P", "2009-12-03 23:59", 1, 9.0, "Unspecified"),  # dearer later: its tier stays
    (12346, "85048", "2009-12-03 23:59", -1, 6.95, "Unspecified"),  # a return
    (12346, "15030", "2009-12-03 23:59", 1, 0.0, "Unspecified"),  # a gift
]
PRODUCTS = [("85048", "15CM CHRISTMAS GLASS BALL"), ("79323P", "PINK CHERRY LIGHTS"), ("15030", "FAN BLACK FRAME")]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    sales = pd.DataFrame(SALES, columns=["user_id", "item_id", "ts", "Quantity", "Price", "Country"])
    sales.assign(ts=pd.to_datetime(sales["ts"])).to_parquet(folder / "interactions.parquet")
    pd.DataFrame(PRODUCTS, columns=["item_id", "Description"]).to_parquet(folder / "items.parquet")
    return folder


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def convert(source: Path, landing: Path) -> Done:
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr):
        code = runpy.run_path(str(SCRIPT), run_name="example")["main"]([str(source), "--out", str(landing)])
    return Done(code, stdout.getvalue(), stderr.getvalue())


def landed(landing: Path, target: str) -> pd.DataFrame:
    files = sorted((landing / target).glob("ds=*/*.parquet"))
    return pd.concat([pq.read_table(file).to_pandas().assign(ds=file.parent.name[3:]) for file in files])


def test_sales_become_purchases_and_products_land_with_their_first_sale(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path / "landing")
    assert done.returncode == 0, done.stderr
    assert "4 purchases of 2 days and 2 items" in done.stdout
    assert "2 lines that are no sale, 1 second lines" in done.stdout
    rows = landed(tmp_path / "landing", "interactions")
    found = rows[["user_id", "item_id", "ds", "interaction_type"]].to_numpy().tolist()
    assert found == [
        ["13085", "79323P", "2009-12-01", "purchase"],
        ["13085", "85048", "2009-12-01", "purchase"],
        ["12346", "79323P", "2009-12-01", "purchase"],
        ["12346", "79323P", "2009-12-03", "purchase"],
    ]
    assert str(rows["event_ts"].iloc[3]) == "2009-12-03 23:59:00+00:00"
    assert rows["market"].fillna("").tolist() == ["United Kingdom", "United Kingdom", "", ""]
    items = landed(tmp_path / "landing", "items").sort_values("item_id")
    # median price of the first day: (.75 + 1.25) / 2 = 1.0, which still is budget; 15030 was never sold
    assert items[["item_id", "title", "price", "price_tier", "ds"]].to_numpy().tolist() == [
        ["79323P", "Pink cherry lights", 1.0, "budget", "2009-12-01"],
        ["85048", "15cm christmas glass ball", 6.95, "premium", "2009-12-01"],
    ]


def test_a_rerun_as_a_script_writes_the_same_bytes(source: Path, tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in (tmp_path / "landing").rglob("*") if file.is_file()}

    convert(source, tmp_path / "landing")
    before = contents()
    subprocess.run([sys.executable, str(SCRIPT), str(source), "--out", str(tmp_path / "landing")], check=True)
    assert contents() == before
    assert len(before) == 3  # two days of purchases, one of items; no unfinished file


def test_ingest_takes_every_row(source: Path, tmp_path: Path, lake: Lake) -> None:
    (tmp_path / "configs").mkdir()
    config = shutil.copy(ROOT / "configs" / "online_retail_ii.toml", tmp_path / "configs")
    deployment = load_deployment(Path(config), environ={})
    assert convert(source, Path(deployment.paths.landing)).returncode == 0
    ingest(Day(lake, deployment, date(2009, 12, 3)))
    assert (lake.read(INTERACTIONS).count(), lake.read(ITEMS).count()) == (4, 2)
    log = lake.read(INGEST_LOG).collect()
    assert sum(row["rows_quarantined"] + row["rows_duplicate"] for row in log) == 0


def spoil(source: Path, target: str, change: object) -> None:
    file = source / f"{target}.parquet"
    change(pd.read_parquet(file)).to_parquet(file)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        ("interactions", lambda rows: rows.rename(columns={"ts": "InvoiceDate"}), "no column ts; found user_id"),
        ("interactions", lambda rows: rows.assign(ts="1/12/2009 7:45"), "column ts holds"),
        ("interactions", lambda rows: rows.assign(Quantity=0), "none of 7 rows"),
        ("interactions", lambda rows: rows.head(0), "no rows"),
        ("items", lambda rows: rows.assign(Description=[None, "a", "b"]), "column Description is null in row 0"),
    ],
)
def test_other_files_are_refused_by_name(
    source: Path, tmp_path: Path, target: str, change: object, message: str
) -> None:
    spoil(source, target, change)
    done = convert(source, tmp_path / "landing")
    assert done.returncode == 1
    assert f"{target}.parquet" in done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "landing").exists()


def test_missing_and_broken_files_are_refused_by_name(source: Path, tmp_path: Path) -> None:
    (source / "items.parquet").write_bytes(b"PAR1 but no more")
    done = convert(source, tmp_path / "landing")
    assert (done.returncode, "items.parquet: cannot be read as Parquet" in done.stderr) == (1, True)
    assert "interactions.parquet" in convert(tmp_path / "nowhere", tmp_path / "landing").stderr


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real files in {REAL}: doi 10.24432/C5CG6D, as Parquet")
def test_the_real_files(tmp_path: Path) -> None:
    done = convert(REAL, tmp_path / "landing")
    assert "765,986 purchases of 604 days and 4,619 items" in done.stdout  # 776,524 lines less 10,538 repeated ones
    rows = landed(tmp_path / "landing", "interactions")
    assert not rows.duplicated(["user_id", "item_id", "event_ts"]).any()
    assert (rows["event_ts"].dt.floor("D") == pd.to_datetime(rows["ds"], utc=True)).all()
    first = landed(tmp_path / "landing", "items").set_index("item_id")["ds"]
    assert (first.reindex(rows["item_id"]).to_numpy() <= rows["ds"].to_numpy()).all()  # known before it is bought
