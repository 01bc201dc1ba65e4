import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lte_models.files import write_atomically
from lte_models.training.bundle import load_bundle, load_bundle_weights, save_bundle
from lte_models.training.manifest import (
    MANIFEST,
    BundleError,
    Manifest,
    read_manifest,
    vocabulary_hash,
)

IDS = ["a", "b"]


def _manifest(**changes: Any) -> Manifest:
    fields = {
        "kind": "autoencoder",
        "config": {"dim": 2},
        "basis_version": "basis1",
        "lte_window": "365-60",
        "ds": "2017-12-01",
        "vocabulary_hash": "",
        "code_version": "0.1.0",
        "metrics": {"auc": 0.5},
    }
    return Manifest(**(fields | changes))


def _save(folder: Path, **changes: Any) -> Manifest:
    return save_bundle(folder, _manifest(**changes), {"w": torch.arange(4.0)}, IDS)


def test_a_bundle_comes_back_as_it_was(tmp_path: Path) -> None:
    written = _save(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", kind="autoencoder", basis_version="basis1", lte_window="365-60")
    assert bundle.tensors["w"].tolist() == [0, 1, 2, 3]
    assert bundle.item_ids == IDS
    assert bundle.manifest == written
    assert bundle.manifest.vocabulary_hash == hashlib.sha256(b"\0\0\0\x01a\0\0\0\x01b").hexdigest()


def test_saving_again_leaves_one_weights_file(tmp_path: Path) -> None:
    _save(tmp_path)
    save_bundle(tmp_path, _manifest(), {"w": torch.ones(2)}, ["c"])
    assert len(list(tmp_path.iterdir())) == 3
    assert load_bundle(tmp_path, kind="autoencoder").item_ids == ["c"]


def test_a_crash_before_the_manifest_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path)

    def crash(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise OSError("disk full")
        write_atomically(path, content)

    monkeypatch.setattr("lte_models.training.bundle.write_atomically", crash)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(tmp_path, _manifest(), {"w": torch.ones(2)}, ["c"])
    assert load_bundle(tmp_path, kind="autoencoder").item_ids == IDS


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "ranker"}, "expected kind 'ranker', got 'autoencoder'"),
        ({"kind": "autoencoder", "basis_version": "other"}, "expected basis_version 'other', got 'basis1'"),
        ({"kind": "autoencoder", "lte_window": "365-0"}, "expected lte_window '365-0', got '365-60'"),
    ],
)
def test_another_pairing_is_refused(tmp_path: Path, wanted: dict[str, str], message: str) -> None:
    _save(tmp_path)
    with pytest.raises(BundleError, match=message):
        load_bundle(tmp_path, **wanted)


def test_a_truncated_weights_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / _save(tmp_path).weights_file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BundleError, match="truncated or changed"):
        load_bundle(tmp_path, kind="autoencoder")


def test_a_missing_weights_file_and_a_truncated_manifest_or_vocabulary_are_refused(tmp_path: Path) -> None:
    manifest = _save(tmp_path)
    vocabulary = next(tmp_path.glob("vocabulary-*"))
    vocabulary.write_text('["a"')
    with pytest.raises(BundleError, match="vocabulary missing or truncated"):
        load_bundle(tmp_path, kind="autoencoder")
    vocabulary.write_text('["b", "a"]')
    with pytest.raises(BundleError, match="vocabulary changed"):
        load_bundle(tmp_path, kind="autoencoder")
    (tmp_path / manifest.weights_file).unlink()
    with pytest.raises(BundleError, match="weights that the manifest names are missing"):
        load_bundle(tmp_path, kind="autoencoder")
    (tmp_path / MANIFEST).write_text('{"kind": ')
    with pytest.raises(BundleError, match="not a manifest"):
        read_manifest(tmp_path)
    with pytest.raises(BundleError, match="there is no bundle"):
        read_manifest(tmp_path / "nowhere")


def test_another_format_is_refused(tmp_path: Path) -> None:
    _save(tmp_path)
    fields = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(fields | {"format_version": 99}))
    with pytest.raises(BundleError, match="format 99, this code reads 1"):
        read_manifest(tmp_path)


def test_weights_that_are_not_finite_are_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="tensor w holds 1 values"):
        save_bundle(tmp_path, _manifest(), {"w": torch.tensor([1.0, float("nan")])}, IDS)
    assert not (tmp_path / MANIFEST).exists()


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    manifest = _save(tmp_path)
    path = tmp_path / manifest.weights_file
    torch.save({"w": torch.ones(2)}, path)
    fields = json.loads((tmp_path / MANIFEST).read_text())
    fields["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="not safetensors"):
        load_bundle(tmp_path, kind="autoencoder")


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_bundle(tmp_path, _manifest(), {"weight": torch.ones(3, 2), "bias": torch.ones(3)}, IDS)
    bundle = load_bundle(tmp_path, kind="autoencoder")
    load_bundle_weights(nn.Linear(2, 3), bundle)
    with pytest.raises(BundleError, match="ds 2017-12-01 does not fit"):
        load_bundle_weights(nn.Linear(2, 4), bundle)


def test_vocabularies_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no item"):
        vocabulary_hash([])
    with pytest.raises(ValueError, match="1 items twice"):
        vocabulary_hash(["a", "a"])
    assert vocabulary_hash(["ab", "c"]) != vocabulary_hash(["a", "bc"])
