"""The catalogue CLIP: open_clip's own model, tokenizer and transforms, with a table of only the tokens that occur.

A checkpoint is a folder in open_clip's ``local-dir:`` layout: ``open_clip_config.json`` (architecture and
preprocessing), ``open_clip_model.safetensors`` (weights) and, where the token table was cut, ``token_ids.json``.
Without the last file a folder is any other open_clip checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
TOKENS_FILE = "token_ids.json"
PAD_ID, UNKNOWN_ID = 0, 1
_FIRST_KEPT_ID = 2
Tokenizer = Callable[[Sequence[str]], Tensor]


class ClipConfigError(ValueError):
    """A model configuration that is impossible; the message names the file or the value."""


@dataclass(frozen=True)
class TokenTable:
    """Which of open_clip's token ids a model keeps, and the id each gets.

    New ids: 0 padding, 1 every token that is not kept, then the kept tokens in ascending order of their open_clip id,
    start of text, end of text. End of text stays the largest id, because open_clip pools the text at the arg max.

    Attributes:
        kept: open_clip ids of the kept word pieces, ascending.
        original_size: Size of the tokenizer's own table; its last two ids are start and end of text.
    """

    kept: tuple[int, ...]
    original_size: int

    def __post_init__(self) -> None:
        """Refuse ids that are out of order, repeated, or not word pieces."""
        inside = all(PAD_ID < token < self.original_size - 2 for token in self.kept)
        if not inside or list(self.kept) != sorted(set(self.kept)):
            raise ClipConfigError(f"token table: kept ids must ascend within 1..{self.original_size - 3}")

    @property
    def size(self) -> int:
        """Rows of the model's token embedding."""
        return _FIRST_KEPT_ID + len(self.kept) + 2

    @cached_property
    def new_ids(self) -> Tensor:
        """New id of each open_clip id: long [original_size]."""
        lookup = torch.full((self.original_size,), UNKNOWN_ID, dtype=torch.long)
        lookup[PAD_ID] = PAD_ID
        lookup[list(self.kept)] = torch.arange(_FIRST_KEPT_ID, _FIRST_KEPT_ID + len(self.kept))
        lookup[-2:] = torch.tensor([self.size - 2, self.size - 1])
        return lookup

    def remap(self, tokens: Tensor) -> Tensor:
        """Replace open_clip ids by the model's: long [N, L] to long [N, L]."""
        return self.new_ids[tokens]

    def to_json(self) -> str:
        """The table in the form of ``token_ids.json``."""
        rule = "0 pad, 1 unknown, 2.. kept open_clip ids in order, then start of text, end of text"
        return json.dumps({"rule": rule, "original_size": self.original_size, "kept": list(self.kept)}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TokenTable:
        """Read the output of :meth:`to_json`."""
        stored = json.loads(text)
        return cls(kept=tuple(stored["kept"]), original_size=stored["original_size"])

    @classmethod
    def of_tokens(cls, tokens: Tensor, original_size: int) -> TokenTable:
        """Keep the word pieces that occur in ``tokens``, long [N, L] of open_clip ids."""
        occurring: list[int] = torch.unique(tokens).tolist()
        return cls(tuple(token for token in occurring if PAD_ID < token < original_size - 2), original_size)


def read_config(path: Path | None = None) -> dict[str, Any]:
    """Read an open_clip config (``model_cfg`` and ``preprocess_cfg``); without a path, this project's own config.

    Raises:
        ClipConfigError: The file lacks one of the two sections, or they differ in the size of pictures.
    """
    source = path or Path(__file__).with_name("catalogue_clip.json")
    config: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    missing = {"model_cfg", "preprocess_cfg"} - set(config)
    if missing:
        raise ClipConfigError(f"{source}: no {sorted(missing)} in this open_clip config")
    trained, prepared = config["model_cfg"]["vision_cfg"]["image_size"], config["preprocess_cfg"].get("size")
    if trained != prepared:
        raise ClipConfigError(f"{source}: pictures of size {prepared} do not fit a model for {trained}")
    return config


def build_model(config: dict[str, Any], vocabulary: int) -> nn.Module:
    """Build open_clip's CLIP with fresh weights from the global torch generator.

    Args:
        config: As :func:`read_config` gives it.
        vocabulary: Rows of the token embedding, :attr:`TokenTable.size`.
    """
    model_cfg = config_with_vocabulary(config, vocabulary)["model_cfg"]
    model: nn.Module = CLIP(**model_cfg, output_dict=True)
    return model


def config_with_vocabulary(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """A copy of the config whose token table has ``vocabulary`` rows."""
    copy = deepcopy(config)
    copy["model_cfg"]["text_cfg"]["vocab_size"] = vocabulary
    return copy


def open_tokenizer(context_length: int) -> SimpleTokenizer:
    """open_clip's tokenizer with its own full table."""
    return SimpleTokenizer(context_length=context_length)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder: open_clip's, followed by the folder's token table where it has one.

    Args:
        folder: A checkpoint in open_clip's ``local-dir:`` layout.

    Returns:
        A function from N texts to long [N, L].
    """
    tokenizer: Tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    table_file = folder / TOKENS_FILE
    if not table_file.exists():
        return tokenizer
    table = TokenTable.from_json(table_file.read_text(encoding="utf-8"))
    return lambda texts: table.remap(tokenizer(list(texts)))


def resize_pictures(pictures: Iterable[Image.Image], config: dict[str, Any]) -> NDArray[np.uint8]:
    """Resize pictures by open_clip's transform for this config, without its normalisation.

    Args:
        pictures: N RGB pictures of any size.
        config: As :func:`read_config` gives it.

    Returns:
        uint8 [N, 3, H, W].
    """
    # The last two steps of the transform make a tensor and normalise it; `normalise` does that for whole batches.
    geometry = image_transform_v2(PreprocessCfg(**config["preprocess_cfg"]), is_train=False).transforms[:-2]
    return np.stack([_pixels(picture, geometry) for picture in pictures])


def _pixels(picture: Any, geometry: Sequence[Callable[[Any], Any]]) -> NDArray[np.uint8]:
    for transform in geometry:
        picture = transform(picture)
    return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)


def normalise(pixels: Tensor, config: dict[str, Any]) -> Tensor:
    """Apply the config's mean and deviation: values 0..255 [B, 3, H, W] to float32 of the same shape."""
    cfg = PreprocessCfg(**config["preprocess_cfg"])
    mean = torch.tensor(cfg.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(cfg.std).view(1, 3, 1, 1) * 255
    return (pixels.float() - mean) / std


def write_checkpoint(folder: Path, model: nn.Module, table: TokenTable, config: dict[str, Any]) -> None:
    """Write a checkpoint folder that open_clip reads by ``local-dir:``; weights in half precision.

    Args:
        folder: An existing folder; the files in it are replaced.
        model: From :func:`build_model`.
        table: The model's token table.
        config: The config that the model was built from.
    """
    learned = {name: value.detach().half().contiguous() for name, value in model.named_parameters()}
    statistics = {name: value.contiguous() for name, value in model.state_dict().items() if name not in learned}
    # Batch norm's running statistics keep their precision.
    (folder / WEIGHTS_FILE).write_bytes(save(learned | statistics))
    config = config_with_vocabulary(config, table.size)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / TOKENS_FILE).write_text(table.to_json(), encoding="utf-8")


def load_clip_weights(folder: Path) -> nn.Module:
    """Read a checkpoint folder as open_clip itself does, in float32 and in evaluation mode.

    Raises:
        FileNotFoundError: The folder holds no weights; open_clip alone would only warn and start from chance.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(f"checkpoint {folder}: no {WEIGHTS_FILE}")
    model: nn.Module = open_clip.create_model(f"local-dir:{folder}")
    return model.eval()


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the files of a checkpoint that decide its vectors: config, weights, token table."""
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE, TOKENS_FILE):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()
