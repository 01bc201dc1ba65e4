"""The catalogue CLIP: token table, recall, augmentation, and a tiny training that learns and repeats itself."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from jobs.landing.catalogue import CatalogueError, pictured_items, read_catalogue
from jobs.runtime.entry import run_job
from jobs.samples import train_clip as job
from jobs.samples.fashion.items import make_items
from jobs.samples.fashion.pictures import draw_garment
from jobs.samples.fashion.sheet import Garment
from lte_models.clip import model as clip_model
from lte_models.clip.model import (
    ClipConfigError,
    TokenTable,
    checkpoint_digest,
    load_clip_weights,
    load_tokenizer,
    open_tokenizer,
    read_config,
    resize_pictures,
)
from lte_models.clip.train import (
    ClipTrainConfig,
    ClipTrainError,
    Pairs,
    cut_texts,
    epoch_batches,
    hide_words,
    image_to_text_recall,
    in_test_set,
    train_clip,
)
from lte_models.encoders.base import EncoderConfig
from lte_models.encoders.loading import basis_version, load_encoder

TINY_MODEL = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": [32, 24], "patch_size": 8, "layers": 2, "width": 64, "head_width": 32},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {
        "size": [32, 24],
        "resize_mode": "longest",
        "fill_color": 255,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    },
}
COLOURS = ("red", "blue", "green", "yellow", "black", "pink")
KINDS = ("dress", "trousers", "backpack", "watch")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def catalogue_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 different products (6 colours x 4 kinds), five pictures each: place, size and material differ."""
    rows = []
    for number in range(120):
        colour, kind = COLOURS[number % 6], KINDS[number // 6 % 4]
        material = ("cotton", "denim", "leather", "knit", "linen")[number // 24]
        garment = Garment(kind, 0, colour, "beige", "plain", material)
        picture = draw_garment(garment, number)
        rows.append({"item_id": f"i{number}", "title": f"{colour} {kind}", "category": kind, "image": picture})
    folder = tmp_path_factory.mktemp("catalogue")
    pd.DataFrame(rows).to_parquet(folder / "items.parquet")
    (folder / "tiny.json").write_text(json.dumps(TINY_MODEL))
    return folder


@pytest.fixture
def shop(catalogue_files: Path, tmp_path: Path) -> Path:
    """A copy of the catalogue of its own: drawing 120 pictures takes a second, copying them none."""
    shutil.copytree(catalogue_files, tmp_path, dirs_exist_ok=True)
    return tmp_path


def train(shop: Path, out: str, *flags: str) -> dict:
    argv = ["--catalogue", str(shop / "items.parquet"), "--out", str(shop / out), "--threads", "1"]
    argv += [
        "--model-config",
        str(shop / "tiny.json"),
        "--batch-size",
        "24",
        "--unknown-share",
        "0",
        "--cut-share",
        "0",
    ]
    job.main([*argv, *flags])
    return json.loads((shop / out / "training.json").read_text())


def test_token_table_keeps_order_so_that_end_of_text_stays_the_largest_id():
    # Of a table of ten ids, 8 starts and 9 ends a text. Kept: 3 and 6. New: 0 pad, 1 unknown, 2 = 3, 3 = 6, 4, 5.
    table = TokenTable((3, 6), original_size=10)
    text = torch.tensor([[8, 6, 5, 3, 9, 0, 0]])
    assert table.size == 6
    assert table.remap(text).tolist() == [[4, 3, 1, 2, 5, 0, 0]]
    assert TokenTable.from_json(table.to_json()) == table
    assert TokenTable.of_tokens(torch.tensor([[8, 6, 3, 3, 9, 0]]), 10) == table


@pytest.mark.parametrize("kept", [(6, 3), (3, 3), (0, 3), (3, 8)])
def test_token_table_refuses_ids_out_of_order_repeated_or_special(kept):
    with pytest.raises(ValueError, match="token table"):
        TokenTable(kept, original_size=10)


def test_words_that_were_never_seen_get_the_unknown_id(shop):
    train(shop, "clip", "--epochs", "1")
    tokenizer = load_tokenizer(shop / "clip")
    known, unknown = tokenizer(["red dress"])[0].tolist(), tokenizer(["red zeppelin"])[0].tolist()
    assert 1 not in known
    assert unknown[1] == known[1]  # red
    assert unknown[2] == 1


def test_recall_counts_ties_as_chance():
    # Picture 0 lies nearest to its own text. Pictures 1 and 2 share one text, nearest to both: each has an even
    # chance to be first. Picture 3 lies nearest to the shared text, its own comes third. R@1 = (1 + .5 + .5 + 0) / 4.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.8, -0.6]])
    recall = image_to_text_recall(images, texts, torch.tensor([7, 3, 3, 9]))
    assert recall[1] == pytest.approx(0.5)
    assert recall[5] == 1.0  # four texts only


def test_recall_of_some_pictures_still_ranks_them_among_all_texts():
    # As above, without the pictures that tie: the first finds its own text, the last finds it third of four.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.8, -0.6]])
    counted = torch.tensor([True, False, False, True])
    assert image_to_text_recall(images, texts, torch.tensor([7, 3, 3, 9]), counted)[1] == pytest.approx(0.5)


def test_new_items_share_neither_text_nor_picture_with_a_trained_one():
    pixels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2).clone()
    pixels[3] = pixels[0]  # row 3 has the picture of row 0, row 4 the text of row 1
    catalogue = job.Catalogue(
        name="",
        digest="",
        pixels=pixels,
        tokens=torch.zeros(5, 4),
        texts=["a", "b", "c", "d", "b"],
        is_test=torch.tensor([False, False, True, True, True]),
    )
    assert job.never_trained(catalogue, torch.tensor([2, 3, 4])).tolist() == [True, False, False]


def test_recall_needs_the_own_text_among_the_first_ten():
    # 20 pictures, all pointing the way of text 0; text i has cosine cos(i / 20): picture i finds its own at rank i + 1.
    angles = torch.arange(20) / 20
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    recall = image_to_text_recall(texts[:1].expand(20, 2), texts, torch.arange(20))
    assert recall == pytest.approx({1: 1 / 20, 5: 5 / 20, 10: 10 / 20})


def test_hold_out_depends_on_the_id_alone():
    ids = [f"item-{number}" for number in range(20_000)]
    is_test = in_test_set(ids, 0.1, seed=0)
    assert is_test.mean() == pytest.approx(0.1, abs=0.008)  # four standard deviations
    assert (in_test_set(ids[::-1], 0.1, seed=0)[::-1] == is_test).all()
    assert (in_test_set(ids, 0.1, seed=1) != is_test).any()


def test_hidden_words_leave_padding_start_and_end():
    text = torch.tensor([[8, 2, 3, 4, 9, 0]]).expand(2000, 6)  # 8 start, 9 end
    hidden = hide_words(text, 0.5, 9, torch.Generator().manual_seed(0))
    assert torch.equal(hidden[:, [0, 4, 5]], text[:, [0, 4, 5]])
    assert (hidden[:, 1:4] == 1).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_cut_texts_end_after_a_word():
    text = torch.tensor([[8, 2, 3, 4, 9, 0]])
    possible = {(8, 2, 9, 0, 0, 0), (8, 2, 3, 9, 0, 0), (8, 2, 3, 4, 9, 0)}
    cut = cut_texts(text.expand(600, 6), 0.9, 9, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in cut.tolist()} == possible
    assert torch.equal(cut_texts(text, 0.0, 9, torch.Generator()), text)


def test_an_epoch_sees_each_pair_at_most_once_in_full_batches():
    batches = list(epoch_batches(10, 4, torch.Generator().manual_seed(0)))
    assert [len(rows) for rows in batches] == [4, 4]
    assert len(set(torch.cat(batches).tolist())) == 8


def test_pictures_keep_their_shape_and_are_padded_white():
    wide = Image.new("RGB", (100, 50), (200, 0, 0))
    pixels = resize_pictures([wide], TINY_MODEL)  # 24 wide, so 12 high, in the middle of 32
    assert pixels.shape == (1, 3, 32, 24)
    assert (pixels[0, :, :9] == 255).all()
    assert (pixels[0, :, 16] == np.array([[200], [0], [0]])).all()


@pytest.mark.usefixtures("one_thread")
def test_a_tiny_training_learns_and_the_encoder_of_the_basis_reads_it(shop):
    result = train(shop, "clip", "--epochs", "30", "--learning-rate", "0.002")
    # Tell 24 products apart that were seen in other sizes, places and materials: chance is 1/24 at the first place.
    items = pd.read_parquet(shop / "items.parquet").iloc[:24]
    encoder = load_encoder(EncoderConfig("open_clip", weights=str(shop / "clip"), batch_size=24))
    fresh = [draw_garment(Garment(k, 0, c, "beige", "plain", "suede"), 10_000 + n)
             for n, (c, k) in enumerate(title.split() for title in items["title"])]  # fmt: skip
    (shop / "fresh").mkdir()
    for number, picture in enumerate(fresh):
        (shop / "fresh" / f"{number}.jpg").write_bytes(picture)
    images = encoder.encode_images([Image.open(shop / "fresh" / f"{number}.jpg") for number in range(24)])
    texts = encoder.encode_texts(items["title"].tolist())
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (images, texts)]
    found = (unit[0] @ unit[1].T).argmax(axis=1)
    assert (found == np.arange(24)).mean() > 0.5
    assert result["catalogues"][0]["recall_at_1"] > 3 * result["catalogues"][0]["chance_at_1"]
    assert encoder.dim == 32


@pytest.mark.usefixtures("one_thread")
def test_same_seed_same_digest_another_seed_another(shop):
    first, again = train(shop, "a", "--epochs", "2"), train(shop, "b", "--epochs", "2")
    other = train(shop, "c", "--epochs", "2", "--seed", "1")
    assert first["digest"] == again["digest"] != other["digest"]
    versions = [basis_version(EncoderConfig("open_clip", weights=str(shop / name))) for name in "abc"]
    assert versions[0] == versions[1] != versions[2]


def test_card_and_weights_say_what_was_trained(shop):
    result = train(shop, "clip", "--epochs", "1", "--note", "Licence: CC0")
    card = (shop / "clip" / "README.md").read_text()
    assert result["digest"] in card
    assert "lte train-clip --catalogue" in card
    assert "- Licence: CC0" in card
    shipped = load_clip_weights(shop / "clip")
    assert sum(p.numel() for p in shipped.parameters()) == result["parameters"]
    tokens = shipped.get_submodule("token_embedding")
    assert isinstance(tokens, torch.nn.Embedding)
    assert tokens.num_embeddings == result["tokens"] < 60
    assert (shop / "clip" / "open_clip_model.safetensors").stat().st_size < 2.2 * result["parameters"]


def test_a_training_that_fails_leaves_the_older_checkpoint(shop, monkeypatch):
    before = train(shop, "clip", "--epochs", "1")["digest"]
    monkeypatch.setattr(job, "measure", lambda *_: (_ for _ in ()).throw(ClipTrainError("killed")))
    with pytest.raises(ClipTrainError, match="killed"):
        train(shop, "clip", "--epochs", "2")
    assert json.loads((shop / "clip" / "training.json").read_text())["digest"] == before
    assert [path.name for path in shop.iterdir() if path.name.startswith(".")] == []


def test_a_diverged_training_is_an_error():
    model: Any = torch.nn.Module()
    model.vocab_size, model.logit_scale = 6, torch.nn.Parameter(torch.tensor(float("nan")))
    model.forward = lambda image, text: {"image_features": torch.ones(2, 3), "text_features": torch.ones(2, 3)}
    pairs = Pairs(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([[4, 2, 5]] * 2))
    config = ClipTrainConfig(epochs=1, batch_size=2)
    with pytest.raises(ClipTrainError, match="not finite"):
        train_clip(model, pairs, open_config=read_config(), config=config)


@pytest.mark.parametrize(
    "setting", [{"epochs": 0}, {"learning_rate": 0.0}, {"unknown_share": 1.0}, {"smallest_crop": 0.0}]
)
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ClipTrainError):
        ClipTrainConfig(**setting)


@pytest.mark.parametrize(
    ("flag", "value"), [("--threads", "0"), ("--seed", "-1"), ("--epochs", "0"), ("--smallest-crop", "2")]
)
def test_impossible_flags_end_with_exit_code_2_before_anything_is_read(tmp_path, flag, value, capsys):
    flags = ["--catalogue", str(tmp_path / "nowhere"), "--out", str(tmp_path / "clip"), flag, value]
    with pytest.raises(SystemExit) as end:
        run_job(lambda: job.main(flags))
    assert end.value.code == 2
    assert value in capsys.readouterr().err


def test_a_catalogue_without_readable_pictures_is_an_error(shop):
    items = pd.read_parquet(shop / "items.parquet")
    items.loc[:1, "image"] = b"no picture"  # 2 of 120: more than one in a hundred
    items.to_parquet(shop / "items.parquet")
    with pytest.raises(CatalogueError, match=r"118 pictures can be read, 2 not: \{'unreadable': 2\}"):
        train(shop, "clip", "--epochs", "1")


def test_photos_are_held_at_the_models_size(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    rows = []
    for number in range(12):
        photo = Image.linear_gradient("L").resize((600, 800)).point(lambda grey, n=number: grey // 2 + n).convert("RGB")
        photo.save(tmp_path / "photos" / f"{number}.png")
        rows.append({"item_id": number, "title": f"photo {number}", "image_path": f"photos/{number}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "photos.csv", index=False)
    decoded: list[weakref.ref[Image.Image]] = []
    n_alive: list[int] = []

    def resize_and_count(pictures, config):
        decoded.extend(weakref.ref(picture) for picture in pictures)
        n_alive.append(sum(each() is not None for each in decoded))
        return resize_pictures(pictures, config)

    monkeypatch.setattr(job, "resize_pictures", resize_and_count)
    catalogue = job.load_catalogue(tmp_path / "photos.csv", TINY_MODEL, seed=2)  # holds out one of them
    assert n_alive == [1] * 12  # the photo before is gone when the next one is decoded
    photos = [Image.open(tmp_path / "photos" / f"{number}.png") for number in range(12)]
    assert (catalogue.pixels.numpy() == resize_pictures(photos, TINY_MODEL)).all()  # the same pixels as all at once


def test_a_catalogue_without_a_test_item_is_refused_before_the_training(shop, monkeypatch):
    few = pd.read_parquet(shop / "items.parquet").iloc[:8]
    few.to_parquet(shop / "items.parquet")
    n_test = {seed: in_test_set(few["item_id"].tolist(), 0.1, seed).sum() for seed in range(40)}
    none, one = (next(seed for seed, n in n_test.items() if n == wanted) for wanted in (0, 1))
    with monkeypatch.context() as patched:
        patched.setattr(job, "train_clip", lambda *_, **__: pytest.fail("trained in vain"))
        with pytest.raises(CatalogueError, match=rf"got 0 of 8 items .*--seed {none} .*another --seed"):
            train(shop, "clip", "--epochs", "1", "--seed", str(none))
    assert not (shop / "clip").exists()
    measured = train(shop, "clip", "--epochs", "1", "--seed", str(one))["catalogues"][0]
    assert (measured["trained"], measured["measured"], measured["chance_at_10"]) == (7, 1, 1.0)


def test_where_no_test_pair_is_new_there_is_no_recall_of_new_ones(shop):
    items = pd.read_parquet(shop / "items.parquet")
    items["title"] = items["category"] = "the same"
    items.to_parquet(shop / "items.parquet")
    measured = train(shop, "clip", "--epochs", "1")["catalogues"][0]
    assert (measured["measured_new"], measured["recall_new_at_1"]) == (0, None)
    assert "nan" not in (shop / "clip" / "README.md").read_text().lower()


def test_a_config_whose_parts_do_not_fit_is_refused(tmp_path):
    file = tmp_path / "model.json"
    file.write_text(json.dumps(TINY_MODEL | {"preprocess_cfg": {"size": [24, 32]}}))
    with pytest.raises(ClipConfigError, match="size"):
        read_config(file)
    file.write_text(json.dumps({"model_cfg": TINY_MODEL["model_cfg"]}))
    with pytest.raises(ClipConfigError, match="preprocess_cfg"):
        read_config(file)


def test_the_shipped_checkpoint_is_whole_and_knows_clothes_it_never_saw(tmp_path):
    folder = Path(clip_model.__file__).parents[1] / "assets" / "catalogue_clip"
    result = json.loads((folder / "training.json").read_text())
    assert checkpoint_digest(folder) == result["digest"]
    assert result["digest"] in (folder / "README.md").read_text()
    assert (folder / "open_clip_model.safetensors").stat().st_size <= 25e6
    make_items(60, seed=1234).to_parquet(tmp_path / "fresh.parquet")  # other brands, other garments
    fresh = pictured_items(read_catalogue(tmp_path / "fresh.parquet"), tmp_path, keep=lambda picture: picture)
    encoder = load_encoder(EncoderConfig("open_clip", weights=str(folder)))
    images, texts = (torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1) for vectors in
                     (encoder.encode_images(fresh.pictures), encoder.encode_texts(fresh.texts)))  # fmt: skip
    assert image_to_text_recall(images, texts, torch.arange(60))[5] > 0.5  # chance: 5/60


def test_both_shipped_architectures_build():
    folder = Path(job.__file__).parents[2] / "lte_models" / "clip"
    table = TokenTable((5, 6, 7), open_tokenizer(8).vocab_size)
    for name in ("catalogue_clip.json", "catalogue_clip_vit.json"):
        config = read_config(folder / name)
        model: Any = job.build_model(config, table.size)
        height, width = np.broadcast_to(config["preprocess_cfg"]["size"], 2)
        with torch.inference_mode():
            vectors = model.eval().encode_image(torch.zeros(1, 3, int(height), int(width)))
        assert vectors.shape == (1, 512)
