"""What every item encoder has in common: configuration, protocol, the text of an item, unit vectors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from lte_models.arrays import Float32Array

ENCODERS = ("minilm", "open_clip")
_CHUNK_BYTES = 1 << 20


class EncoderError(ValueError):
    """An encoder that cannot be built, or a vector that cannot be used; the message names the encoder or vector."""


@dataclass(frozen=True)
class EncoderConfig:
    """All values that a worker process needs to build an encoder.

    Attributes:
        encoder: ``minilm`` or ``open_clip``.
        model: Architecture that open_clip knows, for example ``ViT-B-32``. A checkpoint folder names its own.
        weights: For open_clip a checkpoint folder (open_clip's ``local-dir:`` layout), a ``.safetensors`` file or a
            pretrained tag. For minilm a folder like the packaged one; empty for the packaged one.
        batch_size: Texts or pictures in one forward pass; vectors do not depend on it.
        threads: Torch threads of one worker process.
    """

    encoder: str
    model: str = ""
    weights: str = ""
    batch_size: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse an unknown encoder or impossible sizes."""
        if self.encoder not in ENCODERS:
            raise EncoderError(f"encoder {self.encoder!r}: use one of {', '.join(ENCODERS)}")
        if self.batch_size < 1 or self.threads < 1:
            raise EncoderError(f"batch_size {self.batch_size}, threads {self.threads}: both must be at least 1")

    @property
    def reads_images(self) -> bool:
        """Whether the encoder has a picture tower."""
        return self.encoder == "open_clip"


class ItemEncoder(Protocol):
    """Methods that the basis needs from an encoder; the vectors do not yet have unit length."""

    dim: int

    def encode_texts(self, texts: Sequence[str]) -> Float32Array:
        """Encode N texts to float32 [N, D]."""

    def encode_images(self, images: Sequence[Image.Image]) -> Float32Array:
        """Encode N pictures to float32 [N, D].

        Raises:
            EncoderError: The encoder reads text only.
        """


def item_text(
    title: str | None, description: str | None = None, category: str | None = None, brand: str | None = None
) -> str:
    """Write the text by which an item is encoded: those of title, description, category and brand that exist.

    White space is collapsed. A part is left out if the text already holds its words in a row, in any letter case.

    Returns:
        The parts, joined by ``". "``; empty if all parts are empty.
    """
    text = ""
    for part in (title, description, category, brand):
        words = " ".join((part or "").split())
        if words and not re.search(rf"(?<!\w){re.escape(words.casefold())}(?!\w)", text.casefold()):
            text = f"{text}. {words}" if text else words
    return text


def unit_rows(vectors: Float32Array, names: Sequence[str]) -> Float32Array:
    """Scale each row to length 1.

    Args:
        vectors: float [N, D].
        names: Name of each row, for the error.

    Returns:
        float32 [N, D].

    Raises:
        EncoderError: A row has a value that is not finite, or length zero.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if bad.size:
        shown = ", ".join(f"{names[row]} (length {lengths[row]})" for row in bad[:5])
        raise EncoderError(f"{bad.size} of {len(lengths)} vectors cannot be scaled to length 1: {shown}")
    return np.asarray(vectors / lengths[:, None], dtype=np.float32)


def aggregate(image: Float32Array | None, text: Float32Array | None, names: Sequence[str]) -> Float32Array:
    """Make one unit vector per item from its picture and its text (ADR 0004).

    Both vectors are scaled to length 1 and averaged, and the mean is scaled to length 1. If only one of the two exists,
    it is scaled to length 1 and used alone.

    Args:
        image: float32 [N, D], or None where the items have no pictures.
        text: float32 [N, D], or None where the items have no text.
        names: Item ids, for the error.

    Returns:
        float32 [N, D], rows of length 1.

    Raises:
        EncoderError: There is neither a picture nor a text, or a vector is zero or not finite.
    """
    parts = [unit_rows(part, names) for part in (image, text) if part is not None]
    if not parts:
        raise EncoderError(f"items {list(names[:5])}: neither a picture nor a text to encode")
    return parts[0] if len(parts) == 1 else unit_rows((parts[0] + parts[1]) / np.float32(2), names)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces.

    Raises:
        EncoderError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise EncoderError(f"encoder file {path}: {error.strerror}") from error
    return digest.hexdigest()
