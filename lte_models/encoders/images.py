"""Reads pictures of a catalogue, which can come from anybody: each fault has a name, and no picture causes a crash."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_IMAGE_BYTES = 64 * 1024 * 1024
MAX_IMAGE_PIXELS = 50_000_000

# Pillow keeps three colours of a pixel in four bytes.
BYTES_PER_PIXEL = 4

# A long thin strip is another kind of decompression bomb, because the shorter edge is scaled up to the model's size.
MAX_ASPECT_RATIO = 50
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
REASONS = ("missing", "outside_landing", "too_large", "unreadable")


class ImageError(ValueError):
    """A picture that cannot be used.

    Attributes:
        reason: One of ``REASONS``.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def image_bytes(image: bytes | None, image_path: str | None, folder: Path) -> bytes | None:
    """Get an item's encoded picture: its bytes, or else the content of the file that the item names.

    Args:
        image: Encoded picture.
        image_path: File, relative to ``folder``.
        folder: The landing folder; files outside it are not read.

    Returns:
        The encoded picture, or None if the item has no picture.

    Raises:
        ImageError: The item names a file that cannot be read.
    """
    if image:
        return image
    return _file_bytes(image_path, folder) if image_path else None


def decode_image(encoded: bytes) -> Image.Image:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to RGB: the whole picture, upright, transparent parts on white.

    Raises:
        ImageError: The picture is cut off, of another format, or larger than the limits above.
    """
    if len(encoded) > MAX_IMAGE_BYTES:
        raise ImageError("too_large", f"{len(encoded)} bytes, at most {MAX_IMAGE_BYTES}")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            _check_size(picture.size)  # before a pixel is decoded
            return _as_rgb(picture)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Exception as error:  # Pillow's decoders raise many kinds on malformed input; the reason is kept and counted
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from error


def decoded_bytes(encoded: bytes) -> int:
    """Bytes that a decoded picture takes, from its header: four bytes per pixel.

    Raises:
        ImageError: The header cannot be read.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as picture:
            return BYTES_PER_PIXEL * picture.size[0] * picture.size[1]
    except Image.DecompressionBombError as error:
        raise ImageError("too_large", str(error)) from error
    except Exception as error:  # as in decode_image
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    """Bring a picture to RGB as a shop's page shows it."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        return Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:  # the colour under transparent pixels has no meaning and is often black
        coloured = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")
    return picture.convert("RGB")


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_IMAGE_PIXELS:
        raise ImageError("too_large", f"{width} x {height} pixels, at most {MAX_IMAGE_PIXELS}")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise ImageError("too_large", f"{width} x {height} pixels, sides at most {MAX_ASPECT_RATIO} to 1")


def _file_bytes(image_path: str, folder: Path) -> bytes:
    root = folder.resolve()
    try:
        path = (root / image_path).resolve()
        if not path.is_relative_to(root):
            raise ImageError("outside_landing", f"{image_path} is not below the landing folder")
        if not path.is_file():  # reading a pipe could wait for ever
            raise ImageError("missing", f"{image_path} is no file")
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ImageError("too_large", f"{image_path} has {path.stat().st_size} bytes, at most {MAX_IMAGE_BYTES}")
        return path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # a null character in the name; a link back to itself
        if isinstance(error, ImageError):
            raise
        raise ImageError("missing", f"{image_path}: {error}") from error
