"""open_clip behind the encoder protocol: any architecture; weights from a folder, a file or a pretrained tag.

A checkpoint folder has open_clip's own ``local-dir:`` layout: ``lte_models.clip.model`` writes this layout, and
open_clip's repositories on the hub have it. Weights are read from safetensors only: nothing is unpickled. There is no
fall-back: weights that are missing or do not fit are an error.
Axes: N items, D embedding size, L tokens, H x W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from lte_models.encoders.base import EncoderConfig, EncoderError, Float32Array, ItemEncoder, file_digest

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from torch import Tensor


CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"

# Those of these files that a checkpoint folder holds decide how its texts are read.
TOKENIZER_FILES = (
    "token_ids.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)

# open_clip's own defaults, repeated so that a folder is named without importing open_clip; a test compares them.
PREPROCESS_DEFAULTS: dict[str, Any] = {
    "size": 224,
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


@dataclass(frozen=True)
class ClipSource:
    """Files of a model.

    Attributes:
        folder: Checkpoint folder, or None for one of open_clip's own architectures.
        model_cfg: Architecture.
        preprocess_cfg: How pictures are scaled and normalised.
        weights: The safetensors file.
    """

    folder: Path | None
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    weights: Path


def encoder_identity(config: EncoderConfig) -> dict[str, Any]:
    """All inputs that decide the vectors: weights, architecture, tokenizer, picture size and normalisation."""
    source = resolve(config)
    folder = source.folder
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()] if folder else []
    return {
        "encoder": "open_clip",
        "weights": file_digest(source.weights),
        "architecture": source.model_cfg,
        "preprocessing": {
            "image": source.preprocess_cfg,
            "tokenizer": {file.name: file_digest(file) for file in files},
        },
    }


def resolve(config: EncoderConfig) -> ClipSource:
    """Find the files of a model; a pretrained tag is downloaded unless the hub's cache has it.

    Raises:
        EncoderError: There is no such folder, file or tag, the download failed, or the weights are no safetensors.
    """
    path = Path(config.weights)
    if config.weights and path.is_dir():
        source = _from_folder(path)
    elif config.weights and path.is_file():
        source = _from_architecture(config, path, {})
    else:
        source = _from_tag(config)
    if source.weights.suffix != ".safetensors":
        raise EncoderError(f"open_clip weights {source.weights}: only .safetensors is read, nothing is unpickled")
    return source


def _from_folder(folder: Path) -> ClipSource:
    file = folder / CONFIG_FILE
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        model_cfg = dict(stored["model_cfg"])
    except (OSError, ValueError, KeyError) as error:
        raise EncoderError(f"open_clip checkpoint {file}: cannot be read ({error!r})") from error
    if not (folder / WEIGHTS_FILE).is_file():
        raise EncoderError(f"open_clip checkpoint {folder}: no {WEIGHTS_FILE}")
    preprocess = _preprocess_cfg(stored.get("preprocess_cfg") or {}, model_cfg)
    return ClipSource(folder, model_cfg, preprocess, folder / WEIGHTS_FILE)


def _from_architecture(config: EncoderConfig, weights: Path, preprocess: dict[str, Any]) -> ClipSource:
    import open_clip

    model_cfg = open_clip.get_model_config(config.model)
    if model_cfg is None:
        raise EncoderError(f"open_clip model {config.model!r}: open_clip knows no such architecture")
    return ClipSource(None, model_cfg, _preprocess_cfg(preprocess, model_cfg), weights)


def _from_tag(config: EncoderConfig) -> ClipSource:
    from open_clip import pretrained

    tags = pretrained.list_pretrained_tags_by_model(config.model)
    if config.weights not in tags:
        raise EncoderError(
            f"open_clip weights {config.weights!r}: no such folder or file, and model {config.model!r} has the "
            f"pretrained tags {tags}"
        )
    tag = pretrained.get_pretrained_cfg(config.model, config.weights)
    _require_same_gelu(config, tag)
    try:
        weights = Path(pretrained.download_pretrained(tag))
    except (OSError, RuntimeError, ValueError) as error:
        raise EncoderError(
            f"open_clip weights {config.weights!r} of {config.model!r} cannot be downloaded: {error}. Where there is "
            "no hub, set weights to a checkpoint folder"
        ) from error
    return _from_architecture(config, weights, tag)


def _require_same_gelu(config: EncoderConfig, tag: dict[str, Any]) -> None:
    """Refuse an activation that the weights were not trained with: open_clip only warns, and vectors become worse."""
    import open_clip

    wanted = bool(tag.get("quick_gelu"))
    if bool((open_clip.get_model_config(config.model) or {}).get("quick_gelu")) != wanted:
        raise EncoderError(
            f"open_clip weights {config.weights!r} were trained with quick_gelu = {wanted}, model {config.model!r} was "
            f"not: use the model of that name {'with' if wanted else 'without'} -quickgelu"
        )


def _preprocess_cfg(given: dict[str, Any], model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Defaults, given values and the picture size of the architecture, merged as in open_clip."""
    known = {name: value for name, value in given.items() if name in PREPROCESS_DEFAULTS and value is not None}
    size = model_cfg["vision_cfg"].get("image_size", PREPROCESS_DEFAULTS["size"])
    merged = PREPROCESS_DEFAULTS | known | {"size": [size, size] if isinstance(size, int) else list(size)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in merged.items()}


def load(config: EncoderConfig) -> ItemEncoder:
    """Load model, tokenizer and transform.

    Raises:
        EncoderError: The weights are torn or of another architecture.
    """
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors import SafetensorError

    source = resolve(config)
    name = f"local-dir:{source.folder}" if source.folder else config.model
    pretrained = None if source.folder else str(source.weights)
    torch.set_num_threads(config.threads)
    try:
        model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True).eval()
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise EncoderError(f"open_clip weights {source.weights} do not load: {error}") from error
    transform = image_transform_v2(PreprocessCfg(**source.preprocess_cfg), is_train=False)
    return OpenClipEncoder(config, model, _tokenizer(config, source), transform)


def _tokenizer(config: EncoderConfig, source: ClipSource) -> Callable[[Sequence[str]], Tensor]:
    if source.folder:
        from lte_models.clip.model import load_tokenizer  # reads the cut token tables of this project's checkpoints

        return load_tokenizer(source.folder)
    import open_clip

    tokenizer: Callable[[Sequence[str]], Tensor] = open_clip.get_tokenizer(config.model)
    return tokenizer


class OpenClipEncoder:
    """Both towers of an open_clip model."""

    def __init__(
        self,
        config: EncoderConfig,
        model: CLIP,
        tokenizer: Callable[[Sequence[str]], Tensor],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.config = config
        self._model = model
        self._tokenizer = tokenizer
        self._transform = transform
        self.dim = self.encode_texts(["a"]).shape[1]

    def encode_texts(self, texts: Sequence[str]) -> Float32Array:
        """Encode N texts to float32 [N, D]; each text is cut or padded to the model's context length."""
        return self._in_batches(texts, self._tokenizer, self._model.encode_text)

    def encode_images(self, images: Sequence[Image.Image]) -> Float32Array:
        """Encode N pictures to float32 [N, D]."""
        return self._in_batches(images, self._pixels, self._model.encode_image)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Scale, crop or pad and normalise: N pictures to float32 [N, 3, H, W]."""
        import torch

        return torch.stack([self._transform(image) for image in images])

    def _in_batches(
        self, inputs: Sequence[Any], prepare: Callable[[Sequence[Any]], Tensor], encode: Callable[[Tensor], Tensor]
    ) -> Float32Array:
        """Encode in batches of exactly ``batch_size`` rows, so that a row's vector does not depend on their number.

        torch chooses kernels by the shape of a batch. The last batch is filled with copies of its first row.
        """
        import torch

        torch.set_num_threads(self.config.threads)
        size = self.config.batch_size
        parts = []
        with torch.inference_mode():
            for start in range(0, len(inputs), size):
                rows = prepare(inputs[start : start + size])  # [<= size, ...]
                filler = rows[:1].expand(size - len(rows), *rows.shape[1:])
                parts.append(encode(torch.cat([rows, filler]))[: len(rows)].float().numpy())
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), dtype=np.float32)
