"""`engine.label_floor` for an engine that reads whole paths: first all first tokens, then the likely labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

Path = tuple[int, ...]


def likely_paths(paths: Sequence[Path], heads: Mapping[Path, float], floor: float) -> list[int]:
    """Numbers of the labels whose first token has at least `floor` of the probability on all first tokens.

    `heads`: log-prob of each first token, as a path of one.
    """
    lowest = np.logaddexp.reduce(list(heads.values())) + np.log(floor)
    return [label for label, path in enumerate(paths) if heads[path[:1]] >= lowest]


def share_rest(
    paths: Sequence[Path], heads: Mapping[Path, float], likely: Sequence[int], found: Sequence[float]
) -> list[float]:
    """Log-probs of all labels: those found, and for the others an equal share of what their first token has."""
    crowds = Counter(path[:1] for path in paths)
    row = [heads[path[:1]] - float(np.log(crowds[path[:1]])) for path in paths]
    for label, value in zip(likely, found, strict=True):
        row[label] = value
    return row
