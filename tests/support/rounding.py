"""Tolerances that follow from float32 arithmetic, so that a test passes on any x86-64 and any number of threads."""

from __future__ import annotations

import math

UNIT = 2.0**-24  # half the distance of float32 numbers around 1: the largest relative error of one operation
_PRODUCTS_PER_LAYER = 6  # query, key, value, output, and the two of the feed-forward part
_DEVIATIONS = 5  # of some thousand entries, the largest lies within five standard deviations


def encoder_tolerance(*, layers: int, widest: int, dim: int) -> float:
    """Largest difference of an entry between two ways to compute one transformer's vector of length about 1.

    Kernels add the terms of an inner product in an order that depends on the instruction set, on the threads and on
    the size of the batch. Two orders of K terms differ by about sqrt(K) units, and the products of all layers add up
    like a random walk. The error spreads over the entries of the vector.

    Args:
        layers: Of the transformer.
        widest: Terms of its longest inner product, K.
        dim: Entries of the vector.
    """
    product = math.sqrt(widest) * UNIT
    whole = math.sqrt(_PRODUCTS_PER_LAYER * layers) * product
    return _DEVIATIONS * whole / math.sqrt(dim)


# all-MiniLM-L6-v2: 6 layers, 1,536 wide, 384 entries: 3.6e-6. A vector that read one padded token differs by 1e-2.
MINILM = encoder_tolerance(layers=6, widest=1536, dim=384)

# The tiny CLIP of tiny_clip.py: one layer, 192 numbers per patch of a picture, 16 entries: 2.5e-6.
TINY_CLIP = encoder_tolerance(layers=1, widest=192, dim=16)
