"""Searching the basis by words and by a picture, over items embedded by the real job with a tiny CLIP trained here."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jobs.basis.basis import encoder_config
from jobs.basis.nearest import NearItem
from jobs.commands.users.items import (
    COLUMNS,
    MARGIN,
    TILE,
    Found,
    SearchError,
    contact_sheet,
    found_text,
    pictures_of,
    search_items,
    write_sheet,
)
from jobs.commands.users.user import UserView, user_text
from jobs.config.sections import BasisSection, Deployment
from jobs.embed_items import extend_basis
from jobs.lake.lake import Lake
from jobs.samples import train_clip
from jobs.samples.fashion.pictures import draw_garment
from jobs.samples.fashion.sheet import Garment
from lte_models.encoders.base import EncoderError
from schemas import ITEMS

DS = date(2024, 5, 1)
MODEL = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": [32, 24], "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"size": [32, 24], "resize_mode": "longest", "fill_color": 255},
}
COLOURS = ("red", "blue", "green", "yellow", "black", "pink")
KINDS = ("dress", "trousers", "backpack", "watch")

ITEM_SCHEMA = "item_id string, title string, description string, category string, brand string, price double, "
ITEM_SCHEMA += "price_tier string, season string, image binary, image_path string, landing_ds date"


def product(number: int) -> dict[str, Any]:
    """One of 24 products, drawn for the ``number // 24``-th time."""
    colour, kind = COLOURS[number % 6], KINDS[number // 6 % 4]
    picture = draw_garment(Garment(kind, 0, colour, "beige", "plain", "cotton"), number)
    return {"item_id": f"i{number}", "title": f"{colour} {kind}", "image": picture}


def item_row(item: dict[str, Any]) -> tuple[object, ...]:
    return tuple((item | {"landing_ds": DS}).get(name) for name in ITEMS.columns)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that tells the 24 products apart."""
    folder = tmp_path_factory.mktemp("clip")
    pd.DataFrame([product(number) for number in range(96)]).to_parquet(folder / "items.parquet")
    (folder / "model.json").write_text(json.dumps(MODEL))
    before = torch.get_num_threads()
    flags = ["--epochs", "40", "--batch-size", "24", "--learning-rate", "0.002", "--threads", "1"]
    flags += ["--unknown-share", "0", "--cut-share", "0", "--model-config", str(folder / "model.json")]
    train_clip.main(["--catalogue", str(folder / "items.parquet"), "--out", str(folder / "clip"), *flags])
    torch.set_num_threads(before)
    return folder / "clip"


@pytest.fixture
def pictured(deployment: Deployment, checkpoint: Path) -> Deployment:
    return replace(deployment, basis=BasisSection(encoder="open_clip", weights=str(checkpoint), batch_size=24))


@pytest.fixture
def searchable(pictured: Deployment, lake: Lake) -> Deployment:
    """48 items in the basis, two of each product."""
    rows = [item_row(product(number)) for number in range(48)]
    lake.append(lake.spark.createDataFrame(rows, ITEM_SCHEMA), ITEMS)
    landing = Path(pictured.paths.landing)
    extend_basis(lake, encoder_config(pictured.basis), ds=DS, landing=landing, partitions=1)
    return pictured


def test_words_and_pictures_find_the_product(searchable: Deployment, tmp_path: Path):
    by_words = search_items(searchable, like="red dress", n=2)
    assert {item.title for item in by_words.items} == {"red dress"}  # there are two of 48
    assert by_words.items[0].cosine >= by_words.items[1].cosine
    (tmp_path / "query.jpg").write_bytes(product(6 * 3 + 1 + 24 * 9)["image"])  # a blue watch, never seen
    by_picture = search_items(searchable, like_image=tmp_path / "query.jpg", n=2)
    assert {item.title for item in by_picture.items} == {"blue watch"}
    assert by_picture.query == "query.jpg"
    assert found_text(by_picture).count("blue watch") == 2
    assert json.loads(json.dumps(by_picture.as_json()))["items"][0]["title"] == "blue watch"


def test_the_sheet_shows_what_was_found(searchable: Deployment, tmp_path: Path):
    found = search_items(searchable, like="red dress", n=10)
    write_sheet(searchable, found, tmp_path / "sheets" / "red.png")
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "red.png").convert("RGB"), dtype=float)
    tile = sheet[28 : 28 + TILE, MARGIN : MARGIN + TILE]
    red = (tile[..., 0] > 1.6 * tile[..., 1]) & (tile[..., 0] > 1.6 * tile[..., 2])
    assert red.mean() > 0.05  # the first is a red dress
    assert sheet.shape[1] == COLUMNS * (TILE + MARGIN) + MARGIN
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["red.png"]


def test_pictures_are_the_newest_and_an_unreadable_one_is_a_grey_tile(searchable: Deployment, lake: Lake):
    # Item 1, which was blue, now looks like item 0.
    later = product(0) | {"item_id": "i1", "landing_ds": date(2024, 5, 2)}
    broken = product(2) | {"item_id": "i99", "image": b"no picture", "landing_ds": date(2024, 5, 2)}
    frame = lake.spark.createDataFrame(
        [tuple(row.get(name) for name in ITEMS.columns) for row in (later, broken)], lake.read(ITEMS).schema
    )
    lake.append(frame, ITEMS)
    pictures = pictures_of(searchable, ["i0", "i1", "i99", "nobody"])
    assert set(pictures) == {"i0", "i1"}
    assert pictures["i0"].tobytes() == pictures["i1"].tobytes()
    found = Found("x", None, (NearItem("i99", "green dress", 0.5), NearItem("i0", "red dress", 0.4)))
    assert contact_sheet(found, pictures).getpixel((MARGIN + 5, 28 + 5)) == (228, 228, 228)


def test_an_item_with_only_a_picture_has_no_title_to_show(searchable: Deployment, lake: Lake, tmp_path: Path):
    # The landing contract takes such an item; ingest stores its missing title as an empty text.
    lake.append(lake.spark.createDataFrame([item_row(product(48) | {"title": ""})], ITEM_SCHEMA), ITEMS)
    extend_basis(lake, encoder_config(searchable.basis), ds=DS, landing=Path(searchable.paths.landing), partitions=1)
    found = search_items(searchable, like="red dress", n=50)
    (untitled,) = (item for item in found.items if item.item_id == "i48")
    assert untitled.title == ""
    write_sheet(searchable, found, tmp_path / "all.png")
    assert f"{untitled.cosine:.3f}  i48" in found_text(found).splitlines()


def test_a_title_that_is_null_is_drawn_as_nothing():
    found, titled = (Found("red", None, (NearItem("a", title, 0.5),)) for title in (None, "red dress"))
    blank = contact_sheet(found, {})
    assert blank.tobytes() == contact_sheet(Found("red", None, (NearItem("a", "", 0.5),)), {}).tobytes()
    assert blank.tobytes() != contact_sheet(titled, {}).tobytes()
    assert found_text(found) == "0.500  a"
    view = UserView("u1", DS, "b", "average", "365-60", 1, 1.0, None, found.items)
    assert user_text(view).splitlines()[-1] == "  0.500  a"


@pytest.mark.parametrize("query", [{}, {"like": " "}, {"like": "a", "like_image": Path("b.png")}])
def test_exactly_one_query_is_wanted(deployment: Deployment, query: dict):
    with pytest.raises(SearchError, match="exactly one"):
        search_items(deployment, **query)


def test_what_cannot_be_searched_says_why(pictured: Deployment, tmp_path: Path):
    with pytest.raises(SearchError, match="nothing in basis"):
        search_items(pictured, like="red dress")
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SearchError, match=r"torn\.jpg"):
        search_items(pictured, like_image=tmp_path / "torn.jpg")
    with pytest.raises(SearchError, match=r"none\.jpg"):
        search_items(pictured, like_image=tmp_path / "none.jpg")


def test_an_encoder_of_texts_refuses_a_picture(deployment: Deployment, tmp_path: Path):
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    with pytest.raises(EncoderError, match="text"):
        search_items(deployment, like_image=tmp_path / "a.png")
