"""Item encoders behind one protocol, and the identity of the semantic basis that they make (ADR 0004).

Importing this module loads no model library: a run without new items needs only the digest of the weights.
Axes: N items or texts, D embedding size.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lte_models.encoders.base import EncoderConfig, EncoderError, ItemEncoder

# Raise one of these when the results of `aggregate` or `item_text` change: old and new vectors must not share a basis.
AGGREGATION_VERSION = 1
ITEM_TEXT_VERSION = 1
VERSION_DIGITS = 16


def basis_version(config: EncoderConfig) -> str:
    """Name the basis that an encoder makes, without loading its model.

    Returns:
        Hex digits of a hash over encoder, content of the weights, preprocessing and aggregation. It does not depend on
        where the weights are, on batch size, threads or machine.

    Raises:
        EncoderError: The weights cannot be found or read.
    """
    return _version(_module(config).encoder_identity(config))


def load_encoder(config: EncoderConfig, expected_version: str | None = None) -> ItemEncoder:
    """Return this process's encoder; only the first call loads the weights.

    Args:
        config: Names the encoder.
        expected_version: The basis that the vectors are for; None accepts any weights.

    Raises:
        EncoderError: The encoder cannot be built, or its weights make another basis than expected.
    """
    with _LOAD_LOCK:  # on an engine in one process, several partitions ask at once
        expected = expected_version or basis_version(config)
        if (config, expected) not in _LOADED:
            _require_version(config, expected)
            _LOADED.clear()  # one encoder per process, because weights can be large
            _LOADED[config, expected] = _module(config).load(config)
        return _LOADED[config, expected]


_LOAD_LOCK = threading.Lock()
_LOADED: dict[tuple[EncoderConfig, str], ItemEncoder] = {}


def _require_version(config: EncoderConfig, expected: str) -> None:
    found = basis_version(config)
    if found != expected:
        raise EncoderError(f"{config.encoder} weights {config.weights!r} make basis {found} here, not {expected}")


def _version(identity: Mapping[str, Any]) -> str:
    whole = {**identity, "aggregation": AGGREGATION_VERSION, "item_text": ITEM_TEXT_VERSION}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:VERSION_DIGITS]


def _module(config: EncoderConfig) -> ModuleType:
    """The module of one encoder: ``encoder_identity(config)`` reads files only, ``load(config)`` the model."""
    if config.encoder == "minilm":
        from lte_models.encoders import minilm as encoder_minilm

        return encoder_minilm
    from lte_models.encoders import open_clip as encoder_clip

    return encoder_clip
