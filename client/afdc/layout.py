"""Where everything of a run lies under its output folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run; nothing is created by asking.

    DIR/
    ├── dataset/          the data set, a valid Hugging Face data-set folder
    ├── adapter/          M*, a PEFT adapter folder
    ├── report.html       plots
    ├── result.json       the numbers
    └── state/            everything needed to resume: ledger.db, chunks/, adapters/, rounds/, logs/
    """

    root: Path

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.db"

    @property
    def chunks(self) -> Path:
        """Content-addressed row files."""
        return self.state / "chunks"

    @property
    def adapters(self) -> Path:
        return self.state / "adapters"

    @property
    def rounds(self) -> Path:
        """One folder a training run: job.json, rows.jsonl, result.json, checkpoints."""
        return self.state / "rounds"

    @property
    def logs(self) -> Path:
        return self.state / "logs"
