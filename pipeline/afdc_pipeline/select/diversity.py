"""Diversity: rows far from each other first: greedy k-center (Gonzalez 1985; core-set, Sener and Savarese 2018)."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline.select.columns import Columns, Float32, Rows, sorted_by

# Either all features, [n, dims], or a function that makes them for some rows: a large pool only needs its shortlist.
Features = Float32 | Callable[[Rows], Float32]

PAIRS = 2**24  # distances computed at most, over all labels
SHORTEST = 32
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)  # odd 64-bit constants of xxHash


def hashed_features(texts: Sequence[str], dims: int = 256) -> Float32:
    """Signed counts of hashed character 1-, 2- and 3-grams, each row of length 1, [n, dims].

    Works on code points after case folding, so it needs no tokeniser and no language (feature hashing: Weinberger et
    al. 2009). An empty text is a row of zeros.
    """
    features = np.zeros((len(texts), dims), dtype=np.float32)
    for row, text in zip(features, texts, strict=True):
        hashes = _gram_hashes(unicodedata.normalize("NFKC", text).casefold())
        signs = np.where(hashes & np.uint64(1), 1.0, -1.0)
        row[:] = np.bincount((hashes >> np.uint64(33)) % np.uint64(dims), weights=signs, minlength=dims)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(norms, np.float32(1e-9)), dtype=np.float32)


def _gram_hashes(text: str) -> NDArray[np.uint64]:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    grams = []
    for size in (1, 2, 3):
        mixed = np.full(max(len(points) - size + 1, 0), size, dtype=np.uint64)
        for offset in range(size):
            mixed = (mixed ^ points[offset : offset + len(mixed)]) * np.uint64(MULTIPLIERS[offset])
            mixed ^= mixed >> np.uint64(29)
        grams.append(mixed)
    return np.concatenate(grams)


def farthest_first(features: Float32) -> Rows:
    """Order in which each row is the farthest from all before it, starting with row 0; [n] indices.

    Distance is 1 - cosine for features of length 1; of equally far rows the earlier one comes first.
    """
    order = np.empty(len(features), dtype=np.int64)
    nearest = np.full(len(features), np.inf, dtype=np.float32)
    pick = 0
    for step in range(len(features)):
        order[step] = pick
        np.minimum(nearest, 1.0 - features @ features[pick], out=nearest)
        nearest[pick] = -np.inf
        pick = int(nearest.argmax())
    return order


def most_diverse(columns: Columns, rows: Rows, n_labels: int, features: Features) -> Rows:
    """Farthest-first within each label, labels taking turns; then, by confidence, what no shortlist held.

    A label's shortlist is its most confident sqrt(PAIRS / n_labels) rows, which bounds the distances at PAIRS in all.
    """
    length = max(math.isqrt(PAIRS // n_labels), SHORTEST)
    position = np.empty(len(rows))
    for label in np.unique(columns.label[rows]):
        mine = np.flatnonzero(columns.label[rows] == label)
        mine = mine[np.lexsort((columns.tie[rows[mine]], -columns.confidence[rows[mine]]))]
        short = mine[:length]
        order = farthest_first(_features_of(features, rows[short]))
        position[short[order]] = np.arange(len(short))
        position[mine[length:]] = np.arange(length, len(mine))
    return sorted_by(columns, rows, position)


def _features_of(features: Features, rows: Rows) -> Float32:
    return features(rows) if callable(features) else features[rows]
