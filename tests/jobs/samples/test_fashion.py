"""The made fashion shop: what is planted is there, what is not planted is not, and a run writes all or nothing."""

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.landing.catalogue import CatalogueError, picture_folder, read_catalogue, texts_of
from jobs.runtime.entry import run_job
from jobs.samples.fashion import items as fashion_items
from jobs.samples.fashion import shop as job
from jobs.samples.fashion.items import KINDS, TIERS, make_items
from jobs.samples.fashion.pictures import SHAPES, draw_garment
from jobs.samples.fashion.sheet import COLOURS, PATTERNS, Garment
from jobs.samples.fashion.shop import catalogue_with_pictures
from jobs.samples.fashion.users import (
    MARKETS,
    ShopConfig,
    ShopError,
    _draw,
    demand,
    mission_numbers,
    peak_days,
    season_factor,
    simulate_interactions,
    stock_shelf,
)

CONFIG = ShopConfig(users=700, days=430, sessions_per_day=0.12, seed=5)


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    return make_items(260, seed=5)


@pytest.fixture(scope="module")
def interactions(items) -> pd.DataFrame:
    return simulate_interactions(items, stock_shelf(items, CONFIG), CONFIG)


# --- what is planted -------------------------------------------------------------------------------------------------


def words_of_items(items: pd.DataFrame) -> pd.DataFrame:
    """Which words each item's text has: an item vector that owes nothing to the simulator's own features."""
    words = pd.Series(texts_of(items), index=items["item_id"]).str.lower().str.findall(r"\w+").explode()
    counts = pd.crosstab(words.index, words)
    return counts.loc[:, counts.sum() > 5].clip(upper=1) - counts.loc[:, counts.sum() > 5].clip(upper=1).mean()


def taste_signal(items: pd.DataFrame, interactions: pd.DataFrame) -> tuple[float, float]:
    """Mean over user-days of cos(own long-window mean, next day's items) - cos(another user's, same items), and its t.

    Long window [365, 60) before the end of day 400; next days are those after it.
    """
    words = words_of_items(items)
    day = (interactions["event_ts"] - pd.Timestamp(CONFIG.first_day, tz="UTC")).dt.days
    clicks = interactions[interactions["interaction_type"] == "click"]
    vectors = words.loc[clicks["item_id"]].to_numpy()
    day = day[clicks.index].to_numpy()
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    users = clicks["user_id"].to_numpy()

    def means(mask):
        sums = pd.DataFrame(vectors[mask]).groupby(users[mask]).mean()
        return sums, unit(sums.to_numpy())

    long_window, new_days = means((day >= 401 - 365) & (day < 401 - 60)), means(day >= 401)
    both = long_window[0].index.intersection(new_days[0].index)
    own = long_window[1][long_window[0].index.get_indexer(both)]
    new = new_days[1][new_days[0].index.get_indexer(both)]
    others = np.roll(own, 1, axis=0)
    difference = ((own - others) * new).sum(axis=1)
    return float(difference.mean()), float(difference.mean() / difference.std(ddof=1) * np.sqrt(len(difference)))


def test_long_term_taste_is_there(items, interactions):
    difference, t = taste_signal(items, interactions)
    assert difference > 0.1
    assert t > 8


def test_without_taste_a_long_history_says_nothing(items):
    config = replace(CONFIG, taste=0.0)
    _, t = taste_signal(items, simulate_interactions(items, stock_shelf(items, config), config))
    assert abs(t) < 3


def test_a_session_is_about_one_category(items, interactions):
    clicks = interactions[interactions["interaction_type"] == "click"].merge(items[["item_id", "category"]])
    sizes = clicks.groupby(["session_id", "category"]).size().groupby("session_id").agg(["sum", "max"])
    usual = sizes[(sizes["sum"] >= 3) & (sizes["sum"] < 30)]
    assert usual["max"].sum() / usual["sum"].sum() > 0.85  # 8 % of the clicks are strays
    assert clicks.groupby("user_id")["category"].nunique().median() > 3  # a user is not


def test_noise_bursts_are_there(interactions):
    clicks = interactions[interactions["interaction_type"] == "click"]
    long_sessions = (clicks.groupby("session_id").size() > 30).mean()
    assert 0.0005 < long_sessions < 0.01  # 0.3 % of the sessions are bursts of 30 to 80


def test_popularity_is_skewed_and_users_come_late_leave_and_return(items, interactions):
    counts = interactions["item_id"].value_counts()
    assert counts.iloc[: len(items) // 10].sum() / counts.sum() > 0.3  # the top tenth of the items
    day = (interactions["event_ts"] - pd.Timestamp(CONFIG.first_day, tz="UTC")).dt.days
    first = day.groupby(interactions["user_id"]).min()
    assert (first > 200).mean() > 0.1  # cold users
    gap = day.groupby(interactions["user_id"]).apply(lambda days: np.diff(np.sort(days), prepend=days.min()).max())
    assert (gap > 60).mean() > 0.1  # returning users


def test_coats_sell_in_winter(items, interactions):
    season = items.set_index("item_id")["season"].reindex(interactions["item_id"]).to_numpy()
    month = interactions["event_ts"].dt.month.to_numpy()
    winter, summer = np.isin(month, [12, 1, 2]), np.isin(month, [6, 7, 8])
    assert (season[winter] == "winter").mean() > 1.3 * (season[summer] == "winter").mean()
    assert (season[summer] == "summer").mean() > 1.3 * (season[winter] == "summer").mean()


def test_nothing_is_bought_that_was_not_put_into_the_cart_and_clicked(interactions):
    key = ["session_id", "user_id", "item_id"]
    reached = {name: set(map(tuple, rows[key].to_numpy())) for name, rows in interactions.groupby("interaction_type")}
    assert set(reached) == {"click", "wishlist", "cart", "checkout"}
    assert reached["checkout"] <= reached["cart"] <= reached["click"] >= reached["wishlist"]


def test_all_markets_trade_and_keys_are_unique(interactions):
    assert set(interactions["market"]) <= {name for name, _, _ in MARKETS}
    assert len(MARKETS) == 25
    assert interactions.groupby("user_id")["market"].nunique().max() == 1
    assert not interactions.duplicated(["user_id", "item_id", "event_ts", "interaction_type"]).any()


# --- its parts -------------------------------------------------------------------------------------------------------


def test_missions_go_on_within_a_week_of_the_same_user():
    # User 1 comes on days 0, 5 and 13: the second goes on, the third is 8 days later. User 2 starts anew.
    numbers = mission_numbers(np.array([1, 1, 1, 2, 2]), np.array([0, 5, 13, 13, 20]), 1.0, np.random.default_rng(0))
    assert numbers.tolist() == [0, 0, 1, 2, 2]
    assert mission_numbers(np.array([1, 1]), np.array([0, 1]), 0.0, np.random.default_rng(0)).tolist() == [0, 1]


def test_season_factor_peaks_on_its_day():
    peak = np.array([190, -1])
    assert season_factor(peak, 190).tolist() == [1.75, 1.0]
    assert season_factor(peak, 190 + 183)[0] == pytest.approx(0.25, abs=0.001)  # half a year later


def test_draw_follows_weight_and_liking():
    # Weights 1, 2, 0 and a liking of log 3 for the first: probabilities 3/5, 2/5, 0.
    liking = np.tile(np.log([3.0, 1.0, 5.0]).astype(np.float32), (40_000, 1))
    drawn = _draw(np.array([1, 2, 0], dtype=np.float32), liking, np.random.default_rng(0))
    assert np.bincount(drawn, minlength=3) / 40_000 == pytest.approx([0.6, 0.4, 0.0], abs=0.01)


def test_nothing_sells_before_its_launch_or_after_its_end(items):
    shelf = stock_shelf(items, CONFIG)
    for day in (0, 200, 429):
        on_sale = (shelf.launched <= day) & (day < shelf.retired)
        assert ((demand(shelf, CONFIG, day) > 0) == on_sale).all()
        assert set(shelf.category[on_sale]) == set(shelf.category)  # no category is ever sold out
    assert (shelf.launched > 0).mean() > 0.2
    assert (shelf.retired < 430).mean() > 0.2


def test_items_say_what_their_picture_shows(items):
    assert len(items) == items["item_id"].nunique() == 260
    assert set(items["price_tier"]) <= set(TIERS)
    row = items[items["category"] == "dress"].iloc[0]
    assert row["title"].endswith("dress")
    assert any(colour in row["title"] for colour in COLOURS)
    by_tier = items.groupby("price_tier")["price"].median()
    assert by_tier["premium"] > by_tier["mid"] > by_tier["budget"]
    assert set(KINDS) == set(SHAPES)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_every_garment_can_be_seen_in_its_colour(kind):
    for cut in range(3):
        encoded = draw_garment(Garment(kind, cut, "red", "red", "plain", "cotton", logo=cut), seed=cut)
        picture = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), dtype=float)
        assert picture.shape == (192, 144, 3)
        red = (picture[..., 0] > 1.6 * picture[..., 1]) & (picture[..., 0] > 1.6 * picture[..., 2])
        assert 0.02 < red.mean() < 0.9
        edge = np.concatenate([picture[0], picture[-1]])
        assert edge.mean() > 225  # stands on a light ground, whole


def test_patterns_and_materials_can_be_told_apart():
    def draw(pattern, material):
        encoded = draw_garment(Garment("t-shirt", 0, "navy", "yellow", pattern, material), seed=3)
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), dtype=float)

    pictures = [draw(pattern, "cotton") for pattern in PATTERNS] + [draw("plain", "leather"), draw("plain", "denim")]
    for number, one in enumerate(pictures):
        assert all(np.abs(one - other).mean() > 0.8 for other in pictures[:number])
    assert draw_garment(Garment("watch", 2, "red", "blue", "plain", "leather"), 7) == draw_garment(
        Garment("watch", 2, "red", "blue", "plain", "leather"), 7
    )


def test_pictures_drawn_by_several_processes_are_the_same(monkeypatch):
    garments = [Garment("dress", cut, "red", "blue", "floral", "satin") for cut in range(3)]
    monkeypatch.setattr(fashion_items.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(fashion_items, "FEW_PICTURES", 1)
    assert fashion_items.draw_all(garments, 7) == [draw_garment(garment, 7 + n) for n, garment in enumerate(garments)]


# --- the job ---------------------------------------------------------------------------------------------------------


def make(out: Path, *flags: str) -> dict:
    job.main(["--out", str(out), "--users", "40", "--days", "20", "--items", "60", "--sessions-per-day", "0.3", *flags])
    return json.loads((out / job.MADE_FILE).read_text())


def landed(folder: Path, target: str) -> pd.DataFrame:
    files = sorted((folder / target).glob("ds=*/*.parquet"))
    return pd.concat([pq.read_table(file).to_pandas().assign(ds=file.parent.name[3:]) for file in files])


def test_landing_layout_and_same_seed_same_files(tmp_path):
    summary = make(tmp_path / "a")
    make(tmp_path / "b")
    make(tmp_path / "c", "--seed", "1")
    rows, items = landed(tmp_path / "a", "interactions"), landed(tmp_path / "a", "items")
    assert (rows["event_ts"].dt.strftime("%Y-%m-%d") == rows["ds"]).all()
    assert str(rows["event_ts"].dt.tz) == "UTC"
    assert len(rows) == summary["interactions"] > 200
    assert len(items) == items["item_id"].nunique() == 60
    first_ds = items.set_index("item_id")["ds"].reindex(rows["item_id"]).to_numpy()
    assert (first_ds <= rows["ds"].to_numpy()).all()  # an item lands before it is clicked

    def contents(name):
        folder = tmp_path / name
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.parquet")}

    assert contents("a") == contents("b")
    assert contents("a") != contents("c")


def test_a_failed_run_leaves_nothing_and_an_existing_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "write_interactions", lambda *_: (_ for _ in ()).throw(ShopError("disk full")))
    with pytest.raises(ShopError, match="disk full"):
        make(tmp_path / "shop")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "shop").mkdir()
    with pytest.raises(ShopError, match="exists"):
        make(tmp_path / "shop")


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--users", "0", "from 1 to 9,999,999"),
        ("--items", "0", "of at least 1"),
        ("--items", "-3", "of at least 1"),
        ("--days", "0", "from 1 to 10,000"),
        ("--days", "1000000", "from 1 to 10,000"),  # longer than timestamps in nanoseconds reach
        ("--seed", "-1", "from 0 to 9,223,372,036,854,775,807"),
        ("--taste", "-1", "from 0 to 100"),
        ("--taste", "nan", "from 0 to 100"),
        ("--taste", "1000", "from 0 to 100"),
        ("--sessions-per-day", "0", "from 0.0001 to 100"),
        ("--sessions-per-day", "inf", "from 0.0001 to 100"),
        ("--clicks-per-session", "nan", "from 1 to 1,000"),
        ("--mission-share", "-0.1", "from 0 to 1"),
        ("--stray-share", "nan", "from 0 to 1"),
        ("--burst-share", "2", "from 0 to 1"),
        ("--first-day", "nonsense", "from 1970-01-01 to 2200-01-01"),
        ("--first-day", "2024-02-30", "from 1970-01-01 to 2200-01-01"),
        ("--first-day", "20240101", "as YYYY-MM-DD"),
        ("--first-day", "9999-12-31", "from 1970-01-01 to 2200-01-01"),
    ],
)
def test_impossible_settings_are_refused_with_their_range(tmp_path, flag, value, wanted):
    with pytest.raises(ShopError, match=f"{flag} .*{value}.*{wanted}"):
        make(tmp_path / "shop", flag, value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--items", "--seed"])
def test_a_flag_out_of_its_range_ends_with_exit_code_2(tmp_path, flag, capsys):
    with pytest.raises(SystemExit) as end:
        run_job(lambda: make(tmp_path / "shop", flag, "-1"))
    assert end.value.code == 2
    assert f"{flag} -1: expected a number" in capsys.readouterr().err


def test_the_ends_of_the_ranges_can_be_simulated(tmp_path):
    flags = {"--taste": "100", "--clicks-per-session": "1000", "--seed": str(2**63 - 1), "--first-day": "2200-01-01"}
    summary = make(tmp_path / "a", *(each for pair in flags.items() for each in pair))
    assert summary["interactions"] > 1000
    assert make(tmp_path / "b", "--items", "1", "--days", "1", "--sessions-per-day", "100")["items"] == 1


def test_a_shop_in_which_nobody_comes_is_an_error(tmp_path):
    with pytest.raises(ShopError, match=r"--users 1, --days 1, .*nobody comes"):
        make(tmp_path / "shop", "--users", "1", "--days", "1", "--sessions-per-day", "0.001")


def own_catalogue(folder: Path) -> Path:
    """Twelve items of our own: the first has its picture in the table's folder, the others have none."""
    (folder / "pictures").mkdir(parents=True)
    Image.new("RGB", (30, 40), "red").save(folder / "pictures" / "one.png")
    rows = [
        {"item_id": n, "title": f"thing {n} {'red' if n % 2 else 'blue'}", "category": "ab"[n % 2]} for n in range(12)
    ]
    rows[0]["image_path"] = "pictures/one.png"
    pd.DataFrame(rows).to_csv(folder / "mine.csv", index=False)
    return folder / "mine.csv"


def test_a_catalogue_of_ones_own_with_pictures_as_files(tmp_path):
    summary = make(tmp_path / "shop", "--catalogue", str(own_catalogue(tmp_path / "own")), "--taste", "2")
    items = landed(tmp_path / "shop", "items").set_index("item_id")
    assert len(items) == summary["items"] == 12
    assert items.at["0", "image"] == (tmp_path / "own" / "pictures" / "one.png").read_bytes()
    assert items.drop(index="0")["image"].isna().all() if "image" in items else True
    assert summary["interactions"] > 100


def test_a_landing_folder_is_a_catalogue_too(tmp_path):
    make(tmp_path / "a")
    whole = read_catalogue(tmp_path / "a")
    assert len(whole) == 60
    assert whole.equals(read_catalogue(tmp_path / "a" / "items"))
    assert picture_folder(tmp_path / "a") == picture_folder(tmp_path / "a" / "items") == tmp_path / "a"


def test_a_catalogue_that_cannot_be_right_is_refused(tmp_path):
    own = own_catalogue(tmp_path / "own")
    (tmp_path / "own" / "pictures" / "one.png").unlink()
    with pytest.raises(CatalogueError, match="item 0: no picture file"):
        make(tmp_path / "shop", "--catalogue", str(own))
    pd.DataFrame({"item_id": ["a", "a"], "title": ["x", "y"]}).to_csv(own, index=False)
    with pytest.raises(CatalogueError, match="'a' occurs more than once"):
        read_catalogue(own)
    pd.DataFrame({"item_id": ["a"]}).to_csv(own, index=False)
    with pytest.raises(CatalogueError, match="no column"):
        read_catalogue(own)
    with pytest.raises(CatalogueError, match=r"nowhere\.csv: no such file or folder; docs/fashion\.md"):
        read_catalogue(tmp_path / "nowhere.csv")
    own.write_text("item_id,title\n")
    with pytest.raises(CatalogueError, match="no item in it"):
        read_catalogue(own)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CatalogueError, match=r"empty: no file \*\.parquet, .*\*\.jsonl\.gz in it"):
        read_catalogue(tmp_path / "empty")


def test_ids_and_texts_of_a_csv_file_are_taken_as_they_are(tmp_path):
    (tmp_path / "mine.csv").write_text("item_id,title,brand,price\n00123,501,007,49.90\n1e5,a,,\n")
    items = read_catalogue(tmp_path / "mine.csv")
    assert items[["item_id", "title", "brand"]].to_numpy().tolist() == [["00123", "501", "007"], ["1e5", "a", None]]
    assert items["price"].tolist()[0] == 49.9


def test_whole_numbers_are_ids_without_a_fraction(tmp_path):
    pd.DataFrame({"item_id": [1.0, 2.0], "title": ["a", "b"]}).to_parquet(tmp_path / "mine.parquet")
    assert read_catalogue(tmp_path / "mine.parquet")["item_id"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", '{"item_id": 1, "title": "x"}\n{"item_id": null}', "line 2: null_item_id: item_id = n"),
        ("a.csv", "item_id,title\n1,x\n,y\n ,z", r"2 bad rows \{'null_item_id': 2\}, first a\.csv, line 2"),
        ("a.csv", "item_id,title,price\n1,x,-2", r'line 1: bad_price: price = "-2"'),
        ("a.csv", "item_id,title\n1,x,y", "line 1: malformed_row: 3 fields where the header has 2"),
        ("a.csv", "item_id,title,image_path\n1,x,../secret.txt", r'malformed_image_path: image_path = "\.\./secret'),
        ("a.csv.gz", "no gzip", r"a\.csv\.gz: unreadable_file"),
        ("a.json", "[]", r"a\.json: unreadable_file: expected a file of parquet, csv"),
    ],
)  # fmt: skip
def test_a_row_that_ingest_would_not_take_is_named(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(CatalogueError, match=fault):
        read_catalogue(tmp_path / name)


def test_a_null_id_in_parquet_is_no_item_called_nan(tmp_path):
    pd.DataFrame({"item_id": [1.0, None], "title": ["a", "b"]}).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(CatalogueError, match=r"mine\.parquet, line 2: null_item_id: item_id = null"):
        read_catalogue(tmp_path / "mine.parquet")


@pytest.mark.parametrize("name", ["mine.csv.gz", "mine.jsonl.gz", "mine.jsonl", "MINE.CSV"])
def test_every_format_of_the_landing_contract_is_a_catalogue(tmp_path, name):
    content = b"item_id,title\n01,a\n" if "csv" in name.lower() else b'{"item_id": "01", "title": "a"}\n'
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_catalogue(tmp_path / name)[["item_id", "title"]].to_numpy().tolist() == [["01", "a"]]


def test_a_landing_folder_is_read_as_ingest_reads_it(tmp_path, capsys):
    for ds, name, rows in [
        ("2024-01-01", "a.csv", "1,old\n2,two\n2,again"),
        ("2024-01-02", "b.csv", "1,new"),
        ("2024-01-02", "_unfinished.csv", "3,a writer's own"),
        ("2024-01-02", ".c.csv", "4,hidden"),
    ]:
        (tmp_path / "items" / f"ds={ds}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "items" / f"ds={ds}" / name).write_text(f"item_id,title\n{rows}\n")
    items = read_catalogue(tmp_path)
    assert dict(zip(items["item_id"], items["title"], strict=True)) == {"2": "two", "1": "new"}
    assert "items/ds=2024-01-01/a.csv, line 3: item_id '2' occurs more than once on its day" in capsys.readouterr().err


def test_a_folder_without_days_is_a_catalogue_of_the_files_in_it(tmp_path):
    for name, row in (("part-1.csv", "1,a"), ("part-2.csv", "2,b"), ("_3.csv", "3,c"), ("readme.txt", "4,d")):
        (tmp_path / name).write_text(f"item_id,title\n{row}\n")
    assert read_catalogue(tmp_path)["item_id"].tolist() == ["1", "2"]
    (tmp_path / "part-2.csv").write_text("item_id,title\n1,b\n")
    with pytest.raises(CatalogueError, match=r"part-2\.csv, line 1: item_id '1' occurs more than once"):
        read_catalogue(tmp_path)


def test_pictures_outside_the_catalogues_folder_are_not_read(tmp_path):
    own = own_catalogue(tmp_path / "own")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "own" / "pictures" / "one.png").unlink()
    (tmp_path / "own" / "pictures" / "one.png").symlink_to(tmp_path / "secret.txt")  # the path itself looks harmless
    with pytest.raises(CatalogueError, match=r"item 0: no picture file in .*outside_landing: pictures/one\.png"):
        make(tmp_path / "shop", "--catalogue", str(own))
    assert not (tmp_path / "shop").exists()


@pytest.mark.filterwarnings("error")
def test_pictures_from_files_and_bytes_go_side_by_side(tmp_path):
    (tmp_path / "one.png").write_bytes(b"one")
    rows = {"item_id": ["1", "2", "3"], "title": ["a"] * 3, "image": [None, b"two", None]}
    pd.DataFrame(rows | {"image_path": ["one.png", None, None]}).to_parquet(tmp_path / "mine.parquet")
    assert catalogue_with_pictures(tmp_path / "mine.parquet")["image"].tolist() == [b"one", b"two", None]


def test_seasons_are_read_in_any_case_and_others_are_named(tmp_path, capsys):
    seasons = pd.Series(["Summer", "FALL", "autumn", " winter", "SS24", None])
    assert peak_days(seasons).tolist() == [190, 280, 280, 355, -1, -1]
    pd.DataFrame({"item_id": range(6), "title": "x", "season": seasons}).to_parquet(tmp_path / "mine.parquet")
    catalogue_with_pictures(tmp_path / "mine.parquet")
    assert "column season: {'SS24': 1} of 6 items is none of spring, summer" in capsys.readouterr().err
