"""What a running job tells the database of itself: stage, round, counts, usage, finished rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from afdc.result import RoundResult
from afdc_pipeline.seams import StageKey
from afdc_server.jobs import store
from afdc_server.jobs.planned import Planned, eta_seconds, fraction
from afdc_server.ledger import SqlLedger
from afdc_server.ledger.events import append_event

WRITE_EVERY_S = 2.0
ROUNDS = "rounds"
LATEST = frozenset({"step", "steps", "accuracy", "loss"})
COUNTED = ("prompt_tokens", "completion_tokens", "engine_seconds")


class JobProgress:
    """Implements `afdc_pipeline.seams.Progress`. Writes at most every two seconds, and at each new stage."""

    def __init__(self, ledger: SqlLedger, plan: Planned, told: Callable[[], None]) -> None:
        """`told` is called after each commit that watchers may want to see."""
        self._ledger = ledger
        self._plan = plan
        self._told = told
        self._key: StageKey | None = None
        self._total: int | None = None
        self._done = 0
        self._counts: dict[str, float] = {}
        self._written = 0.0
        self._started = time.monotonic()

    def stage(self, key: StageKey, title: str, total: int | None) -> None:
        """A stage begins: an event, and the job's present stage."""
        self._key, self._total, self._done, self._counts = key, total, 0, {}
        event = {"round": key.round, "stage": key.stage, "title": title, "total": total}
        self._write("stage_started", event)

    def advance(self, done: int, **counts: float) -> None:
        """Add to the counts of the present stage."""
        self._done += done
        for name, value in counts.items():
            self._counts[name] = value if name in LATEST else self._counts.get(name, 0) + value
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self._write("progress", {**self._shown(), "stage": self._key.stage if self._key else ""})

    def note(self, text: str) -> None:
        """Something that a person may want to know."""
        with self._ledger.transaction() as connection:
            append_event(connection, self._ledger.job, "note", {"text": text})
        self._told()

    def _shown(self) -> dict[str, float]:
        return {"done": self._done, **({"total": self._total} if self._total else {}), **self._counts}

    def _write(self, kind: str, payload: dict[str, Any]) -> None:
        self._written = time.monotonic()
        seconds = self._ledger.seconds()
        share = self._fraction(stage for _, stage in seconds)
        reached = {"fraction": round(share, 4), "eta_seconds": eta_seconds(share, self._written - self._started)}
        progress = {**reached, "counts": self._shown()}
        values: dict[str, Any] = {"progress": progress, "usage": _usage(self._ledger.totals(), seconds)}
        if self._key is not None:
            values |= {"stage": self._key.stage, "round": self._key.round}
        with self._ledger.transaction() as connection:
            store.change(connection, self._ledger.job, **values)
            append_event(connection, self._ledger.job, kind, {**payload, **reached})
        self._told()

    def _fraction(self, finished: Iterable[str]) -> float:
        share = self._done / self._total if self._total else 0.0
        if self._counts.get("steps"):
            share = self._counts.get("step", 0.0) / self._counts["steps"]
        return fraction(self._plan, finished, self._key.stage if self._key else "", share)


def usage_of(ledger: SqlLedger) -> dict[str, float]:
    """What the job has spent, over all its starts."""
    return _usage(ledger.totals(), ledger.seconds())


def _usage(totals: Mapping[str, float], seconds: Mapping[tuple[int, str], float]) -> dict[str, float]:
    trained = sum(value for (_, stage), value in seconds.items() if stage.startswith(("train-", "score-e")))
    return {**{name: totals.get(name, 0) for name in COUNTED}, "trainer_seconds": round(trained, 3)}


class RecordedRounds(list[RoundResult]):
    """The loop's history, kept in the ledger too: each round once, with its event, however often the job is started."""

    def __init__(
        self,
        ledger: SqlLedger,
        told: Callable[[], None],
        publish: Callable[[Sequence[RoundResult]], None] = lambda _: None,
    ) -> None:
        """`publish` puts the adapters of the rounds so far where clients find them, before they are told of."""
        super().__init__()
        self._ledger = ledger
        self._told = told
        self._publish = publish

    def append(self, result: RoundResult) -> None:
        """A round is done."""
        super().append(result)
        self._keep()

    def __setitem__(self, index: Any, result: Any) -> None:
        """The last round is told again with the rows that are handed out."""
        super().__setitem__(index, result)
        self._keep()

    def extend(self, results: Iterable[RoundResult]) -> None:
        """Several rounds at once."""
        for result in results:
            self.append(result)

    def _keep(self) -> None:
        """A job that was started again tells of its rounds anew: what is known of later ones stays."""
        self._publish(self)
        known = self._ledger.get_value(ROUNDS) or []
        rounds = [result.model_dump(mode="json") for result in self]
        kept = [*rounds, *known[len(rounds) :]]
        if kept == known:
            return
        self._ledger.set_value(ROUNDS, kept, ("round_finished", rounds[-1]) if len(known) < len(rounds) else None)
        self._told()
