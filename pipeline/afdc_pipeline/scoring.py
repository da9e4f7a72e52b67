"""From label log-probabilities to distributions, and what can be read off a distribution.

Arrays are float64 [n_texts, n_labels] unless a docstring says otherwise. A text that the engine rejected is a row of
NaN, and stays one through every function here. All functions are pure and work on a chunk of the pool as well as on all
of it; where a mean over the pool is needed, `PriorAccumulator` and `alignment_weights` take it chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afdc_pipeline.seams import FloatArray

IntArray = NDArray[np.int32]
Votes = Sequence[NDArray[np.bool_]] | NDArray[np.bool_]

TINY = 1e-12
ALIGN_STEPS = 200
ALIGN_TOLERANCE = 1e-4
TEMPERATURE_RANGE = (0.05, 20.0)


def normalise(logprobs: FloatArray) -> FloatArray:
    """Softmax over the label set of the log-probabilities of whole label sequences.

    A label with -inf gets probability 0. A row with a NaN, or without one finite entry, becomes NaN.
    """
    top = logprobs.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, np.nan)
    weights = np.exp(logprobs - top)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def labels(probs: FloatArray) -> IntArray:
    """argmax_y of each row, int32 [n]; the first of equals; -1 for a row of NaN."""
    return np.where(np.isnan(probs).any(axis=1), -1, probs.argmax(axis=1)).astype(np.int32)


def confidence(probs: FloatArray) -> FloatArray:
    """c = max_y p(y), [n], in 1/n_labels..1."""
    return np.asarray(probs.max(axis=1))


def margin(probs: FloatArray) -> FloatArray:
    """Difference between the two largest probabilities, [n], in 0..1 (Scheffer et al. 2001)."""
    top_two = np.partition(probs, probs.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(top_two[:, 1] - top_two[:, 0])


def entropy(probs: FloatArray) -> FloatArray:
    """Shannon entropy in nats, [n], in 0..ln(n_labels); 0 ln 0 counts as 0."""
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    # Where no log was taken the term is 0 x 0, except NaN x 0, which keeps the rejected row NaN.
    return np.asarray(np.maximum(-(probs * logs).sum(axis=1), 0.0))


def ensemble(members: Sequence[FloatArray], votes: Votes | None = None) -> FloatArray:
    """Mean of the members' distributions; one member is returned as it is. A row that a voter lacks is NaN.

    Args:
        votes: a bool [n] a member, whether it has a say on each row; None: it has on all. Where none has one, all have.
    """
    if not members:
        raise ValueError("an ensemble needs at least one member")
    if len(members) == 1:
        return members[0]
    counts = np.ones((len(members), len(members[0])), dtype=np.bool_) if votes is None else np.array(votes)
    counts[:, ~counts.any(axis=0)] = True
    total = np.zeros_like(members[0])
    for member, count in zip(members, counts, strict=True):
        total += np.where(count[:, None], member, 0.0)
    return np.asarray(total / counts.sum(axis=0)[:, None])


@dataclass(frozen=True)
class Witnesses:
    """What each kind of labeller says of a chunk. Members of a kind err alike: their mean is one witness.

    Attributes:
        means: distributions [n, n_labels] a kind, the `ensemble` of its members.
        heard: bool [n_kinds, n]: who has a say on a row; a kind has where one of its members has, and all have where
            none has.
    """

    means: tuple[FloatArray, ...]
    heard: NDArray[np.bool_]

    @classmethod
    def of(cls, members: Sequence[FloatArray], votes: Sequence[NDArray[np.bool_]], kinds: Sequence[str]) -> Witnesses:
        """Group members by kind; `votes` as of `ensemble`."""
        groups = [[at for at, other in enumerate(kinds) if other == kind] for kind in dict.fromkeys(kinds)]
        means = [ensemble([members[at] for at in group], [votes[at] for at in group]) for group in groups]
        heard: NDArray[np.bool_] = np.stack([np.stack([votes[at] for at in group]).any(axis=0) for group in groups])
        heard[:, ~heard.any(axis=0)] = True
        return cls(tuple(means), heard)

    def mean(self) -> FloatArray:
        """Mean of the witnesses, [n, n_labels].

        A product would take them for independent, and be surer than it is right. Where calibrated witnesses agree their
        mean is right as often as it says (docs/decisions/0011).
        """
        return ensemble(self.means, self.heard)

    def divided(self) -> NDArray[np.bool_]:
        """Whether two witnesses give a row different labels, [n]."""
        chosen = np.stack([labels(mean) for mean in self.means])
        highest = np.where(self.heard, chosen, -1).max(axis=0)
        return np.asarray((self.heard & (chosen != highest)).any(axis=0))


def jensen_shannon(members: Sequence[FloatArray]) -> FloatArray:
    """Disagreement of a committee in nats, [n]: entropy of the mean minus mean of the entropies.

    The mean KL divergence of the members to their mean, which query by committee maximises (McCallum and Nigam 1998);
    0 for one member, at most ln(min(n_members, n_labels)). Members that lack a row do not count for it.
    """
    known = [np.asarray(~np.isnan(member).any(axis=1)) for member in members]
    present = np.sum(known, axis=0)
    inside = np.sum([np.where(has, entropy(one), 0.0) for has, one in zip(known, members, strict=True)], axis=0)
    inside = np.divide(inside, present, out=np.full(len(inside), np.nan), where=present > 0)
    return np.asarray(np.maximum(entropy(ensemble(members, known)) - inside, 0.0))


def vote_entropy(members: Sequence[FloatArray]) -> FloatArray:
    """Entropy of the members' hard votes in nats, [n] (Dagan and Engelson 1995). Blind to how sure a member is."""
    votes = np.zeros_like(members[0])
    for member in members:
        chosen = labels(member)
        has = np.flatnonzero(chosen >= 0)
        votes[has, chosen[has]] += 1.0
    total = votes.sum(axis=1, keepdims=True)
    return entropy(np.divide(votes, total, out=np.full_like(votes, np.nan), where=total > 0))


def disagreement(members: Sequence[FloatArray], *, votes: bool = False) -> FloatArray:
    """Committee disagreement of each text, nats, [n]: Jensen-Shannon, or the entropy of hard votes."""
    return vote_entropy(members) if votes else jensen_shannon(members)


class PriorAccumulator:
    """Running mean of the distributions of a pool that is read in chunks. Rows of NaN are not counted."""

    def __init__(self, n_labels: int) -> None:
        self._sum = np.zeros(n_labels)
        self.count = 0

    def add(self, probs: FloatArray) -> None:
        known = ~np.isnan(probs).any(axis=1)
        self._sum += probs[known].sum(axis=0)
        self.count += int(known.sum())

    def mean(self) -> FloatArray:
        """Mean prediction, [n_labels]; uniform before the first row."""
        if not self.count:
            return np.full(len(self._sum), 1.0 / len(self._sum))
        return np.asarray(self._sum / self.count)


def label_prior(mean: FloatArray) -> FloatArray:
    """A mean prediction as a prior that can be divided by: every label at least 1e-12, sum 1, [n_labels]."""
    floored = np.maximum(np.nan_to_num(mean), TINY)
    return np.asarray(floored / floored.sum())


def reweight(probs: FloatArray, weights: FloatArray) -> FloatArray:
    """p(y) w(y), renormalised. A row that the weights would leave empty stays as it is.

    Args:
        weights: [n_labels], the same for every row, or [n, n_labels].
    """
    scaled = probs * weights
    total = scaled.sum(axis=1, keepdims=True)
    empty = total <= 0
    return np.asarray(np.where(empty, probs, scaled / np.where(empty, 1.0, total)))


def alignment_weights(read_pool: Callable[[], Iterable[FloatArray]], target: FloatArray) -> FloatArray:
    """Weights w, [n_labels], such that the mean of `reweight(pool, w)` is `target`.

    One step is the distribution alignment of ReMixMatch (Berthelot et al. 2020): divide by the mean prediction, times
    the target mix. A single step misses the target, because rows are renormalised afterwards; repeated, it is
    iterative proportional fitting, which converges where every row gives every label some probability. It ends within
    ALIGN_TOLERANCE of the target, where the weights stand still, or after ALIGN_STEPS passes over the pool.

    Args:
        read_pool: called once a step; yields the pool's distributions in chunks of any size.
        target: wanted label mix, [n_labels], non-negative. A label whose mean prediction is 0 keeps weight 1.
    """
    wanted = np.asarray(target, dtype=np.float64) / np.sum(target)
    weights = np.ones(len(wanted))
    for _ in range(ALIGN_STEPS):
        seen = PriorAccumulator(len(wanted))
        for probs in read_pool():
            seen.add(reweight(probs, weights))
        mean = seen.mean()
        if np.abs(mean - wanted).max() <= ALIGN_TOLERANCE:
            break
        step = np.divide(wanted, mean, out=np.ones_like(mean), where=mean > TINY)
        before, weights = weights, _bounded(weights * step)
        if np.abs(np.log(weights / before)).max() <= ALIGN_TOLERANCE:
            break  # as near as this pool allows
    return weights


def _bounded(weights: FloatArray) -> FloatArray:
    """Weights matter only by their ratios; kept in a range that neither overflows nor wipes a label out."""
    return np.asarray(np.clip(weights / weights.max(), TINY, 1.0))


def align(probs: FloatArray, target: FloatArray) -> FloatArray:
    """Correct a labeller's prior: the pool's mean prediction becomes `target` (see `alignment_weights`)."""
    return reweight(probs, alignment_weights(lambda: [probs], target))


def apply_temperature(probs: FloatArray, temperature: float) -> FloatArray:
    """p(y)^(1/T), renormalised: T > 1 softens, T < 1 sharpens, and the argmax stays."""
    with np.errstate(divide="ignore"):
        return normalise(np.log(probs) / temperature)


def fit_temperature(logprobs: FloatArray, gold: NDArray[np.integer] | FloatArray, *, prior_rows: float = 1.0) -> float:
    """Temperature that minimises the negative log-likelihood of gold labels (Guo et al. 2017).

    A few rows that are all right would drive T to 0, so `prior_rows` x (ln T)^2 is added to the summed loss: worth
    about that many rows, nothing against thousands. Golden-section search over ln T inside TEMPERATURE_RANGE.

    Args:
        logprobs: [n, n_labels], any constant added to a row makes no difference.
        gold: label index of each row, or its distribution [n, n_labels]; rows with -1, with a NaN or with NaN scores
            are left out. Without any row the answer is 1.
    """
    wanted = one_hot(gold, logprobs.shape[1]) if gold.ndim == 1 else gold
    usable = ~np.isnan(wanted).any(axis=1) & ~np.isnan(logprobs).any(axis=1)
    if not usable.any():
        return 1.0
    logits = np.maximum(logprobs[usable] - logprobs[usable].max(axis=1, keepdims=True), -1e3)
    right = (logits * wanted[usable]).sum(axis=1)

    def loss(log_t: float) -> float:
        scale = float(np.exp(-log_t))
        partition = np.log(np.exp(logits * scale).sum(axis=1))
        return float((partition - right * scale).sum()) + prior_rows * log_t**2

    low, high = np.log(TEMPERATURE_RANGE)
    return float(np.exp(_golden_section(loss, float(low), float(high))))


def one_hot(gold: NDArray[Any], n_labels: int) -> FloatArray:
    """Distributions [n, n_labels] that are sure of each row's label index; NaN for -1."""
    found = np.zeros((len(gold), n_labels))
    known = np.asarray(gold) >= 0
    found[np.flatnonzero(known), np.asarray(gold)[known]] = 1.0
    found[~known] = np.nan
    return found


def _golden_section(loss: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """Minimiser of a unimodal function on [low, high]; each step shrinks the interval by 0.618."""
    ratio = (5**0.5 - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    loss_a, loss_b = loss(a), loss(b)
    for _ in range(steps):
        if loss_a <= loss_b:
            high, b, loss_b = b, a, loss_a
            a = high - ratio * (high - low)
            loss_a = loss(a)
        else:
            low, a, loss_a = a, b, loss_b
            b = low + ratio * (high - low)
            loss_b = loss(b)
    return (low + high) / 2


def agree(probs: FloatArray, intended: NDArray[np.integer], reliability: float | FloatArray) -> FloatArray:
    """Product of the scored distribution and the label that a text was generated for, [n, n_labels].

    q(y) ~ p(y) x P(intended | y), where the generator hits the wanted label with probability `reliability` and any
    other label equally often otherwise: the two signals as independent witnesses.

    Args:
        intended: label index of each row; -1 is unknown, and leaves the row as it is.
        reliability: share of generated texts that carry their intended label, 0..1; one number, or one for each label.
    """
    n_labels = probs.shape[1]
    known = np.flatnonzero(np.asarray(intended) >= 0)
    chosen = np.asarray(intended)[known]
    hit = np.broadcast_to(np.asarray(reliability, dtype=np.float64), (n_labels,))
    # P(intended = i | y = i) is hit[i]; every other y shares what is left of it.
    witness = np.repeat(((1.0 - hit) / max(n_labels - 1, 1))[chosen][:, None], n_labels, axis=1)
    witness[np.arange(len(known)), chosen] = hit[chosen]
    joint = probs.copy()
    joint[known] = reweight(probs[known], witness)
    return joint
