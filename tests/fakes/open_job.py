"""An open task for the tests: the answer to a note is its longest word, which the fake engine mostly gives."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from afdc.config import RunConfig
from afdc.presets import build_config
from afdc.task import Example, Task, text_id
from afdc_pipeline.rows import Seed
from tests.fakes.engine import WORDS, FakeEngine, stable_rng
from tests.fakes.job import FakeJob, KillSwitch, make_job

OPEN_TASK = Task(instruction="Give the longest word of the note.", labels=None)


def pairs(count: int, kind: str) -> list[tuple[str, str]]:
    """Made-up notes and their longest words, all different."""
    made = []
    for number in range(count):
        words = stable_rng(kind, number).choice(WORDS, size=6)
        text = " ".join([*words, str(number), f"{kind}{'x' * 10}{number}"])
        made.append((text, f"{kind}{'x' * 10}{number}"))
    return made


def open_seeds(count: int = 8, holdout: int = 0) -> tuple[Seed, ...]:
    """Seeds of which the first `holdout` are held out."""
    made = enumerate(pairs(count, "seed"))
    return tuple(Seed(text_id("s_", text, answer), text, answer, n < holdout) for n, (text, answer) in made)


def open_gold(count: int = 6) -> tuple[Example, ...]:
    return tuple(Example(id=f"e{n}", text=text, label=answer) for n, (text, answer) in enumerate(pairs(count, "gold")))


def open_config(preset: str = "default", **sections: dict[str, Any]) -> RunConfig:
    """A job of a few seconds; `sections` override it."""
    base: dict[str, Any] = {
        "augment": {"variants": 4, "rounds": 1, "context_seeds": 3},
        "loop": {"rounds": 2, "members": 2, "folds": 0, "min_flip_rate": 0.0},
        "answer": {"samples": 3},
    }
    return build_config(preset, base, sections)


def make_open_job(
    root: Path, config: RunConfig | None = None, *, engine: FakeEngine | None = None, **more: Any
) -> FakeJob:
    """As `make_job`, on the open task."""
    fields = {"seeds": open_seeds(), "task": OPEN_TASK, **more}
    return make_job(root, config or open_config(), engine=engine, **fields)


def main() -> None:
    """Run the job and die at the chosen durable step (`tests.fakes.job.KillSwitch`)."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--kill-at", type=int, required=True)
    given = parser.parse_args()
    job = make_open_job(given.root)
    KillSwitch(given.kill_at).arm(job)
    job.run()


if __name__ == "__main__":
    main()
