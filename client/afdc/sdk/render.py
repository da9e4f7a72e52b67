"""Jobs and their results in words and in HTML. Text from anyone acts neither as markup nor on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from afdc.wire.datasets import Dataset
from afdc.wire.jobs import Job
from afdc.wire.models import Adapter
from afdc.wording import duration, one_line

CELL = 'style="text-align:left;padding:2px 12px 2px 0"'


def job_line(job: Job) -> str:
    """Where a job stands: "running · train, round 1 · 43 % · 3 min 2 s left · kept 20"."""
    stage = one_line(job.stage, 40)
    parts = [job.status, f"{stage}, round {job.round}" if stage and job.round is not None else stage]
    if not job.is_terminal:
        parts.append(f"{job.progress.fraction:.0%}" if job.progress.fraction else "")
        parts.append(f"{duration(job.progress.eta_seconds)} left" if job.progress.eta_seconds is not None else "")
        parts += [f"{one_line(name, 30).replace('_', ' ')} {n:,.4g}" for name, n in job.progress.counts.items() if n]
    parts.append(one_line(job.error.message, 200) if job.error else "")
    return " · ".join(filter(None, parts))


def job_html(job: Job) -> str:
    """A table for notebooks: state, progress bar, results, error."""
    accuracy = job.accuracy.final if job.accuracy else None
    rows = [
        ("status", job_line(job)),
        ("preset", job.preset),
        ("model", job.model),
        ("rows", "" if job.rows is None else f"{job.rows:,}"),
        ("accuracy", "" if accuracy is None else f"{accuracy:.1%}"),
        ("data set", job.dataset or ""),
        ("adapter", job.adapter or ""),
        ("stopped", job.stop_reason),
    ]
    done = min(max(job.progress.fraction, 0.0), 1.0)
    bar = "" if job.is_terminal else f'<progress value="{done:.4f}" max="1" style="width:24em"></progress>'
    return _box(f"{job.name} ({job.id})" if job.name else job.id, rows, bar)


def dataset_html(dataset: Dataset) -> str:
    """A table for notebooks: size, labels, files."""
    labels = ", ".join(f"{name} {count:,}" for name, count in dataset.per_label.items())
    rows = [
        ("job", dataset.job),
        ("version", str(dataset.version)),
        ("rows", f"{dataset.rows:,}"),
        ("rejected", f"{dataset.rejected:,}"),
        ("labels", labels),
        ("files", _files(file.bytes for file in dataset.files)),
    ]
    return _box(dataset.id, rows)


def adapter_html(adapter: Adapter) -> str:
    """A table for notebooks: where it comes from and what it goes on."""
    rows = [
        ("job", f"{adapter.job}, round {adapter.round}"),
        ("base model", f"{adapter.base_model} @ {adapter.base_revision}"),
        ("rank", str(adapter.rank)),
        ("files", _files(file.bytes for file in adapter.files)),
    ]
    return _box(adapter.name, rows)


def _files(sizes: Iterable[int]) -> str:
    found = list(sizes)
    return f"{len(found)} ({sum(found) / 1e6:,.1f} MB)"


def _box(title: str, rows: Iterable[tuple[str, str]], extra: str = "") -> str:
    cells = "".join(
        f"<tr><th {CELL}>{escape(name)}</th><td {CELL}>{escape(one_line(value, 2000))}</td></tr>"
        for name, value in rows
        if value
    )
    return f"<div><strong>{escape(one_line(title, 300))}</strong>{extra}<table>{cells}</table></div>"
