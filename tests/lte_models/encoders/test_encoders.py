"""Encoders against the libraries they stand for, and the identity of the basis they make."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rounding
from lte_models.encoders import images as encoder_images
from lte_models.encoders import loading as encoders
from lte_models.encoders import minilm as encoder_minilm
from lte_models.encoders import open_clip as encoder_clip
from lte_models.encoders.base import (
    EncoderConfig,
    EncoderError,
    Float32Array,
    ItemEncoder,
    aggregate,
    item_text,
    unit_rows,
)
from lte_models.encoders.images import ImageError, decode_image, image_bytes
from lte_models.encoders.loading import basis_version, load_encoder
from tiny_clip import TINY_CLIP, encoded, picture, png_header, write_clip

TEXTS = ["red dress", "a", "blue cotton shirt with buttons", "red dress, size 12", "Ünïcödé 鞋", "blue shirt"] * 3


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def minilm() -> ItemEncoder:
    return load_encoder(EncoderConfig("minilm"))


def clip_config(folder: Path, **settings: Any) -> EncoderConfig:
    return EncoderConfig("open_clip", weights=str(folder), **settings)


# --- the text of an item


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("Red dress", "Cotton,  knee\nlong", "Dresses", "Acme"), "Red dress. Cotton, knee long. Dresses. Acme"),
        (("Red dress", None, "", "  "), "Red dress"),
        ((None, "only this", None, None), "only this"),
        ((" ", "", None, "\u00a0"), ""),  # a no-break space says nothing either
        (("ACME red dress", "dress", "Dress", "acme"), "ACME red dress"),  # nothing is said twice
        (("Redwood table", None, None, "Red"), "Redwood table. Red"),  # part of a word is not the word
        (("C++ primer", None, "C++", None), "C++ primer"),
    ],
)
def test_item_text(parts: tuple[str | None, ...], expected: str) -> None:
    assert item_text(*parts) == expected


# --- aggregation


def test_aggregate_averages_unit_vectors() -> None:
    image = np.array([[3, 4]], dtype=np.float32)  # unit: (.6, .8)
    text = np.array([[0, 9]], dtype=np.float32)  # unit: (0, 1); mean (.3, .9), whose length is sqrt(.9)
    np.testing.assert_allclose(aggregate(image, text, ["a"]), [[0.3 / 0.9**0.5, 0.9 / 0.9**0.5]], rtol=1e-6)
    np.testing.assert_allclose(aggregate(image, None, ["a"]), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(aggregate(None, text, ["a"]), [[0, 1]], rtol=1e-6)


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_a_vector_that_has_no_direction_is_an_error_naming_the_item(bad: list[float]) -> None:
    vectors = np.array([[1, 0], bad], dtype=np.float32)
    with pytest.raises(EncoderError, match=r"1 of 2 vectors.*item-b"):
        unit_rows(vectors, ["item-a", "item-b"])


def test_opposite_picture_and_text_are_an_error_naming_the_item() -> None:
    image = np.array([[1, 0]], dtype=np.float32)
    with pytest.raises(EncoderError, match="item-a"):
        aggregate(image, -image, ["item-a"])


def test_an_item_with_nothing_is_an_error() -> None:
    with pytest.raises(EncoderError, match="item-a"):
        aggregate(None, None, ["item-a"])


# --- MiniLM


def test_minilm_gives_the_vectors_of_transformers(minilm: ItemEncoder) -> None:
    import torch
    from transformers import AutoTokenizer, BertModel

    folder = encoder_minilm.weights_folder(EncoderConfig("minilm"))
    long_text = "a very long description " * 200  # cut at 256 tokens
    texts = [*TEXTS[:6], long_text]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = BertModel.from_pretrained(folder, local_files_only=True).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()  # mean pooling over real tokens
    np.testing.assert_allclose(minilm.encode_texts(texts), expected, rtol=0, atol=rounding.MINILM * longest(expected))
    assert minilm.dim == 384


def test_minilm_knows_what_is_alike(minilm: ItemEncoder) -> None:
    texts = ["red dress", "crimson gown", "laundry detergent"]
    dress, gown, soap = unit_rows(minilm.encode_texts(texts), texts)
    assert dress @ gown > 0.5 > dress @ soap


def test_minilm_refuses_pictures(minilm: ItemEncoder) -> None:
    with pytest.raises(EncoderError, match="text only"):
        minilm.encode_images([picture(0)])


def test_no_text_gives_no_vector(minilm: ItemEncoder) -> None:
    assert minilm.encode_texts([]).shape == (0, 384)


def longest(vectors: Float32Array) -> float:
    """Tolerances are those of unit vectors; encoders give vectors of any length."""
    return float(np.linalg.norm(vectors, axis=1).max())


def assert_independent_of_company(
    texts_of: dict[int, Float32Array], shuffled: Float32Array, order: np.ndarray, tolerance: float
) -> None:
    allowed = tolerance * longest(texts_of[64])
    for size, vectors in texts_of.items():
        np.testing.assert_allclose(vectors, texts_of[64], rtol=0, atol=allowed, err_msg=f"batch size {size}")
    np.testing.assert_array_equal(shuffled, texts_of[64][order])  # to the bit, whatever the order


def test_a_minilm_vector_depends_on_its_text_alone() -> None:
    sizes = {
        size: load_encoder(EncoderConfig("minilm", batch_size=size, threads=1 + size % 2)).encode_texts(TEXTS)
        for size in (1, 2, 3, 64)
    }
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = load_encoder(EncoderConfig("minilm")).encode_texts([TEXTS[row] for row in order])
    assert_independent_of_company(sizes, shuffled, order, rounding.MINILM)


def linked_minilm(folder: Path) -> Path:
    """A copy of the package's folder at another path; the weights are linked."""
    source = encoder_minilm.weights_folder(EncoderConfig("minilm"))
    (folder / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "sentence_bert_config.json", "tokenizer.json", "1_Pooling/config.json"):
        shutil.copyfile(source / name, folder / name)
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


def test_minilm_version_does_not_depend_on_where_or_how(tmp_path: Path) -> None:
    folder = linked_minilm(tmp_path / "elsewhere")
    assert basis_version(EncoderConfig("minilm")) == basis_version(
        EncoderConfig("minilm", model="any", weights=str(folder), batch_size=3, threads=2)
    )


def change_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1  # one bit of one weight
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)


def change_max_length(folder: Path) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')


def change_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    assert '"lowercase": true' in text or '"lowercase":true' in text
    (folder / "tokenizer.json").write_text(
        text.replace('"lowercase": true', '"lowercase": false').replace('"lowercase":true', '"lowercase":false')
    )


@pytest.mark.parametrize("change", [change_weights, change_max_length, change_tokenizer])
def test_minilm_version_changes_with_what_decides_the_vectors(tmp_path: Path, change: Any) -> None:
    folder = linked_minilm(tmp_path / "changed")
    change(folder)
    assert basis_version(EncoderConfig("minilm", weights=str(folder))) != basis_version(EncoderConfig("minilm"))


@pytest.mark.parametrize("constant", ["AGGREGATION_VERSION", "ITEM_TEXT_VERSION"])
def test_version_changes_with_our_own_rules(monkeypatch: pytest.MonkeyPatch, constant: str) -> None:
    before = basis_version(EncoderConfig("minilm"))
    monkeypatch.setattr(encoders, constant, 99)
    assert basis_version(EncoderConfig("minilm")) != before


def test_torn_minilm_weights_are_an_error_naming_the_file(tmp_path: Path) -> None:
    folder = linked_minilm(tmp_path / "torn")
    content = (folder / "model.safetensors").read_bytes()[:100_000]
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(EncoderError, match=r"torn/model\.safetensors"):
        load_encoder(EncoderConfig("minilm", weights=str(folder)))


def test_a_bert_of_another_kind_is_refused_by_what_it_is(tmp_path: Path) -> None:
    folder = linked_minilm(tmp_path / "other")
    shape = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shape | {"hidden_act": "relu"}))
    message = r"other: expected a BERT with gelu and mean pooling, got model_type 'bert', hidden_act 'relu' and .* True"
    with pytest.raises(EncoderError, match=message):
        load_encoder(EncoderConfig("minilm", weights=str(folder)))


# --- open_clip


def test_clip_gives_the_vectors_of_open_clip(clip_folder: Path) -> None:
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    pictures = [picture(seed, (20 + seed, 50 - seed)) for seed in range(5)]
    model.eval()
    with torch.inference_mode():
        texts = model.encode_text(tokenizer(TEXTS)).numpy()
        images = model.encode_image(torch.stack([transform(image) for image in pictures])).numpy()
    encoder = load_encoder(clip_config(clip_folder))
    for found, expected in ((encoder.encode_texts(TEXTS), texts), (encoder.encode_images(pictures), images)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding.TINY_CLIP * longest(expected))
    assert encoder.dim == 16
    assert np.std(images, axis=0).max() > 1e-3  # the pictures differ, so the comparison means something


def test_a_clip_vector_depends_on_its_input_alone(clip_folder: Path) -> None:
    pictures = [picture(seed) for seed in range(7)]
    order = np.random.default_rng(0).permutation(7)
    by_size = {
        size: load_encoder(clip_config(clip_folder, batch_size=size)).encode_images(pictures) for size in (1, 3, 64)
    }
    encoder = load_encoder(clip_config(clip_folder))
    shuffled = encoder.encode_images([pictures[row] for row in order])
    assert_independent_of_company(by_size, shuffled, order, rounding.TINY_CLIP)
    np.testing.assert_array_equal(encoder.encode_images(pictures[2:3]), by_size[64][2:3])  # alone: the same bits
    texts = {size: load_encoder(clip_config(clip_folder, batch_size=size)).encode_texts(TEXTS) for size in (5, 64)}
    np.testing.assert_allclose(texts[5], texts[64], rtol=0, atol=rounding.TINY_CLIP * longest(texts[64]))


def test_clip_from_one_file_and_a_named_architecture(clip_folder: Path, tmp_path: Path) -> None:
    import open_clip

    architecture = tmp_path / "tiny-for-test.json"
    architecture.write_text(json.dumps(TINY_CLIP["model_cfg"]))
    open_clip.add_model_config(architecture)
    config = EncoderConfig("open_clip", "tiny-for-test", str(clip_folder / "open_clip_model.safetensors"))
    texts = load_encoder(config).encode_texts(TEXTS)
    np.testing.assert_array_equal(texts, load_encoder(clip_config(clip_folder)).encode_texts(TEXTS))
    assert basis_version(config) != basis_version(clip_config(clip_folder))  # pictures are normalised otherwise


def test_a_cut_token_table_reads_known_texts_as_the_whole_one(tmp_path: Path) -> None:
    import torch
    from open_clip.tokenizer import SimpleTokenizer

    from lte_models.clip.model import TokenTable, build_model, write_checkpoint

    tokens = SimpleTokenizer(context_length=12)(["red dress", "blue shirt"])
    table = TokenTable.of_tokens(tokens, 49408)
    config = {"model_cfg": TINY_CLIP["model_cfg"], "preprocess_cfg": TINY_CLIP["preprocess_cfg"]}
    torch.manual_seed(0)
    (tmp_path / "cut").mkdir()
    write_checkpoint(tmp_path / "cut", build_model(config, table.size), table, config)
    red, blue, unknown = load_encoder(clip_config(tmp_path / "cut")).encode_texts(["red dress", "blue shirt", "xyzzy"])
    assert np.abs(red - blue).max() > 1e-3
    assert np.isfinite(unknown).all()


def test_clip_preprocessing_defaults_are_those_of_open_clip() -> None:
    from open_clip.transform import PreprocessCfg

    defaults = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(PreprocessCfg()).items()}
    assert defaults == encoder_clip.PREPROCESS_DEFAULTS


def changed_clip(section: str, name: str, value: Any) -> dict[str, Any]:
    return TINY_CLIP | {section: TINY_CLIP[section] | {name: value}}


@pytest.mark.parametrize(
    "config",
    [
        changed_clip("preprocess_cfg", "mean", [0.5, 0.4, 0.31]),
        changed_clip("preprocess_cfg", "std", [0.2, 0.3, 0.41]),
        changed_clip("preprocess_cfg", "resize_mode", "squash"),
        changed_clip("model_cfg", "vision_cfg", TINY_CLIP["model_cfg"]["vision_cfg"] | {"image_size": [24, 24]}),
        changed_clip("model_cfg", "text_cfg", TINY_CLIP["model_cfg"]["text_cfg"] | {"context_length": 13}),
    ],
)
def test_clip_version_changes_with_preprocessing(clip_folder: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(clip_folder, folder)
    assert basis_version(clip_config(folder)) == basis_version(clip_config(clip_folder))
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert basis_version(clip_config(folder)) != basis_version(clip_config(clip_folder))


def test_clip_version_changes_with_weights_and_tokenizer(clip_folder: Path, tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "other", seed=1)
    assert basis_version(clip_config(folder)) != basis_version(clip_config(clip_folder))
    before = basis_version(clip_config(folder))
    (folder / "README.md").write_text("a model card decides nothing")
    assert basis_version(clip_config(folder)) == before
    (folder / "token_ids.json").write_text("{}")
    assert basis_version(clip_config(folder)) != before


def test_clip_version_spells_defaults_out(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spelled"
    shutil.copytree(clip_folder, folder)
    spelled = changed_clip("preprocess_cfg", "interpolation", "bicubic")  # open_clip's default
    (folder / "open_clip_config.json").write_text(json.dumps(spelled))
    assert basis_version(clip_config(folder)) == basis_version(clip_config(clip_folder))


def test_a_tag_is_resolved_through_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The production default, as it is found on a machine that downloaded it: the real path, with other bytes."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = EncoderConfig("open_clip", "ViT-B-32", "laion2b_s34b_b79k")
    with pytest.raises(EncoderError, match=r"laion2b_s34b_b79k.*cannot be downloaded.*checkpoint folder"):
        basis_version(config)
    repository = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "open_clip_model.safetensors").write_bytes(b"weights")
    source = encoder_clip.resolve(config)
    assert source.weights == snapshot / "open_clip_model.safetensors"
    assert (source.model_cfg["embed_dim"], source.preprocess_cfg["size"]) == (512, [224, 224])
    assert basis_version(config) == basis_version(replace(config, batch_size=3))


@pytest.mark.parametrize(
    ("model", "weights", "message"),
    [
        ("ViT-B-32", "nope", "'nope': no such folder or file.*laion2b_s34b_b79k"),
        ("ViT-B-32", "openai", "quick_gelu = True.*-quickgelu"),
        ("no-such-model", "laion2b_s34b_b79k", "no-such-model"),
    ],
)
def test_weights_that_do_not_exist_or_fit_are_refused(model: str, weights: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        basis_version(EncoderConfig("open_clip", model, weights))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"anything")
    with pytest.raises(EncoderError, match=r"model\.pt.*safetensors"):
        basis_version(EncoderConfig("open_clip", "ViT-B-32", str(tmp_path / "model.pt")))


def test_a_folder_without_weights_or_config_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"open_clip_config\.json"):
        basis_version(clip_config(tmp_path))
    shutil.copyfile(clip_folder / "open_clip_config.json", tmp_path / "open_clip_config.json")
    with pytest.raises(EncoderError, match=r"no open_clip_model\.safetensors"):
        basis_version(clip_config(tmp_path))


def test_torn_and_foreign_clip_weights_are_errors_naming_the_file(clip_folder: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(clip_folder, torn)
    weights = torn / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    foreign = tmp_path / "foreign"
    shutil.copytree(clip_folder, foreign)
    other = changed_clip("model_cfg", "embed_dim", 8)
    (foreign / "open_clip_config.json").write_text(json.dumps(other))
    for folder in (torn, foreign):
        with pytest.raises(EncoderError, match=f"{folder.name}/open_clip_model"):
            load_encoder(clip_config(folder))


# --- building


def test_an_unknown_encoder_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"word2vec.*minilm, open_clip"):
        EncoderConfig("word2vec")
    with pytest.raises(EncoderError, match="batch_size 0"):
        EncoderConfig("minilm", batch_size=0)


def test_a_config_crosses_process_borders() -> None:
    config = EncoderConfig("open_clip", "ViT-B-32", "laion2b_s34b_b79k", batch_size=8, threads=2)
    assert pickle.loads(pickle.dumps(config)) == config


def test_weights_are_loaded_once_a_process(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = encoder_clip.load
    monkeypatch.setattr(encoder_clip, "load", lambda config: calls.append(config) or real(config))
    config = clip_config(clip_folder, batch_size=17)
    version = basis_version(config)
    with ThreadPoolExecutor(4) as pool:  # as partitions do on an engine in one process
        found = list(pool.map(lambda _: load_encoder(config, version), range(8)))
    assert len(calls) == 1
    assert all(encoder is found[0] for encoder in found)


def test_a_worker_with_other_weights_fails(clip_folder: Path) -> None:
    version = basis_version(clip_config(clip_folder))
    with pytest.raises(EncoderError, match=f"make basis {version} here, not 0123456789abcdef"):
        load_encoder(clip_config(clip_folder), "0123456789abcdef")


def test_new_weights_at_the_same_place_are_loaded(clip_folder: Path, tmp_path: Path) -> None:
    """A Spark worker may outlive a training: what it has loaded is not what the folder holds now."""
    folder = tmp_path / "live"
    shutil.copytree(clip_folder, folder)
    before = load_encoder(clip_config(folder)).encode_texts(["red dress"])
    shutil.rmtree(folder)
    write_clip(folder, seed=5)
    assert np.abs(load_encoder(clip_config(folder)).encode_texts(["red dress"]) - before).max() > 1e-3


def test_naming_the_basis_loads_no_model_library(clip_folder: Path) -> None:
    code = (
        "import sys; from lte_models.encoders.base import EncoderConfig\n"
        "from lte_models.encoders.loading import basis_version\n"
        "basis_version(EncoderConfig('minilm'))\n"
        f"basis_version(EncoderConfig('open_clip', weights={str(clip_folder)!r}))\n"
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# --- pictures


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
        *((kind, mode) for kind in ("PNG", "WEBP", "GIF") for mode in ("RGB", "L", "P", "RGBA")),
    ],
)
def test_pictures_of_all_kinds_become_rgb(kind: str, mode: str) -> None:
    decoded = decode_image(encoded(picture(1).convert(mode), kind))
    assert (decoded.mode, decoded.size) == ("RGB", (30, 40))


def test_pictures_become_what_a_shop_shows() -> None:
    # 16 bits of grey: 0x8000 of 0xffff is 128 of 255, not white
    grey = decode_image(encoded(Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))))
    assert grey.getpixel((0, 0)) == (128, 128, 128)
    # transparent black is white, half transparent red is between
    drawn = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    drawn.putpixel((1, 0), (255, 0, 0, 128))
    flat = decode_image(encoded(drawn))
    assert (flat.getpixel((0, 0)), flat.getpixel((1, 0))) == ((255, 255, 255), (255, 127, 127))
    palette = Image.new("P", (1, 1), 3)
    palette.putpalette([0, 0, 0] * 256)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=3)
    assert decode_image(buffer.getvalue()).getpixel((0, 0)) == (255, 255, 255)
    # a camera held upright: EXIF orientation 6 is turned by a quarter
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture(1).save(turned, "JPEG", exif=exif)
    assert (picture(1).size, decode_image(turned.getvalue()).size) == ((30, 40), (40, 30))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unreadable"),
        (b"not a picture", "unreadable"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unreadable"),
        (encoded(picture(1), "BMP"), "unreadable"),  # no format of ours
        (encoded(picture(1), "JPEG")[:500], "unreadable"),  # cut off
        (encoded(picture(1), "PNG")[:-200], "unreadable"),
        (png_header(8000, 8000), "too_large"),  # 64 megapixels: above our limit, below Pillow's
        (png_header(60_000, 60_000), "too_large"),  # Pillow's own limit
        (png_header(1, 10_000), "too_large"),  # the shorter side would be scaled up to the model's
    ],
)
def test_pictures_that_cannot_be_used_say_why(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(content)
    assert caught.value.reason == reason
    assert reason in encoder_images.REASONS


JPEG = encoded(picture(3), "JPEG")


@given(cut=st.integers(0, len(JPEG)), at=st.integers(0, len(JPEG) - 1), byte=st.integers(0, 255))
def test_damage_is_an_image_error_or_a_picture(cut: int, at: int, byte: int) -> None:
    damaged = bytearray(JPEG)
    damaged[at] = byte
    try:
        decoded = decode_image(bytes(damaged[:cut]))
    except ImageError:  # any other error fails the test
        return
    assert decoded.mode == "RGB"


def test_picture_files_are_read_below_the_landing_folder_only(tmp_path: Path) -> None:
    landing = tmp_path / "landing"
    (landing / "pictures").mkdir(parents=True)
    content = encoded(picture(1))
    (landing / "pictures" / "a.png").write_bytes(content)
    (tmp_path / "secret.png").write_bytes(content)
    (landing / "link.png").symlink_to(tmp_path / "secret.png")
    (landing / "loop.png").symlink_to(landing / "loop.png")
    os.mkfifo(landing / "pipe.png")  # a read would wait for ever
    assert image_bytes(None, "pictures/a.png", landing) == content
    assert image_bytes(b"bytes first", "pictures/a.png", landing) == b"bytes first"
    assert image_bytes(None, None, landing) is None
    reasons = {
        "../secret.png": "outside_landing",
        str(tmp_path / "secret.png"): "outside_landing",
        "link.png": "outside_landing",
        "none.png": "missing",
        "pictures": "missing",
        "a\0b.png": "missing",
        "loop.png": "missing",
        "pipe.png": "missing",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError) as caught:
            image_bytes(None, name, landing)
        assert caught.value.reason == reason, name


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_images, "MAX_IMAGE_BYTES", 10)
    (tmp_path / "a.png").write_bytes(b"x" * 11)
    for content, name in ((None, "a.png"), (b"x" * 11, None)):
        with pytest.raises(ImageError, match="too_large"):
            decode_image(image_bytes(content, name, tmp_path) or b"")
