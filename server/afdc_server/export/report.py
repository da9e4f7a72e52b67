"""report.html: one file that opens anywhere, without a network and without scripts.

All text that comes from users or models is escaped, and the page forbids scripts and requests by its own policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from afdc.files import write_bytes
from afdc.result import Evaluation, RoundResult, RunResult
from afdc.wording import loss
from afdc_server.export import svg
from afdc_server.export.facts import ReportFacts, SampleRow

SHOWN_REASONS = 12
SHOWN_CHARS = 400
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

Cell = str | int | float | None


def write_report(path: Path, result: RunResult, facts: ReportFacts) -> None:
    """Write the report of a run.

    Raises:
        StorageError: `path` cannot be written.
    """
    write_bytes(path, render_report(result, facts).encode())


def render_report(result: RunResult, facts: ReportFacts) -> str:
    """The whole page. Sections without data are left out."""
    answer = "label" if result.labels else "answer"
    sections = [
        _header(result, facts),
        _cards(result),
        _section("Accuracy by round", _learning(result)),
        _section("From generated to kept", _selection(result, facts)),
        _section("Confidence", _confidence(facts)),
        _section("Labels", _labels(result, facts)),
        _section("Rounds", _round_table(result.rounds)),
        _section("Rows that were kept", _samples(facts.kept, "why kept", answer)),
        _section("Rows that were left out", _samples(facts.rejected, "why left out", answer)),
        _section("What to do next", _next_steps(result)),
        _section("Cost", _cost(result)),
    ]
    style = files("afdc_server.export").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>AFDC {escape(result.job)}</title><style>\n{style}</style></head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _header(result: RunResult, facts: ReportFacts) -> str:
    labels = f"{len(result.labels)} labels" if result.labels else "free answers"
    status = (
        "" if result.status == "succeeded" else f'<p class="mark">{escape(result.status)}: {escape(result.error)}</p>'
    )
    return (
        f"<h1>{escape(facts.instruction or 'Fine-tuning data')}</h1>"
        f'<p class="lead">{escape(result.model)} · {labels} · {result.seeds} seeds · preset {escape(result.preset)} · '
        f"<code>{escape(result.job)}</code></p>{status}"
    )


def _cards(result: RunResult) -> str:
    evaluation = result.eval
    accuracies = [
        ("base model", evaluation.base),
        ("trained on the seeds only", evaluation.seeds_only),
        ("final adapter", evaluation.final),
    ]
    what = "exact match, " if evaluation.token_f1 else ""
    shown = [
        _card(f"{100 * value:.1f} %", f"{what}{name}, n = {evaluation.n}", name == "final adapter")
        for name, value in accuracies
        if value is not None
    ]
    if evaluation.token_f1 and evaluation.token_f1.final is not None:
        shown.append(_card(f"{100 * evaluation.token_f1.final:.1f} %", "token F1, final adapter"))
    if result.rounds:
        shown.append(_card(f"{result.rounds[-1].candidates:,}", "texts scored"))
    if result.dataset:
        shown.append(_card(f"{result.dataset.rows:,}", "rows in the data set"))
    return f'<div class="cards">{"".join(shown)}</div>'


def _card(value: str, name: str, main: bool = False) -> str:
    return f'<div class="card{" main" if main else ""}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'


def _learning(result: RunResult) -> str:
    rounds = result.rounds
    candidates = [
        svg.Series("eval", [_accuracy(one.eval) for one in rounds], "tone-a"),
        svg.Series("held-out seeds", [_accuracy(one.holdout) for one in rounds], "tone-b"),
    ]
    series = [one for one in candidates if any(value is not None for value in one.values)]
    panels = []
    if series:
        legend = _legend([(one.name, one.tone) for one in series])
        title = "Exact match" if result.eval.token_f1 else "Accuracy"
        panels.append(_panel(title, legend + svg.lines(series, result.eval.base, "base model")))
    flips = [one.flip_rate for one in rounds]
    if any(value is not None for value in flips):
        note = '<p class="note">Share of texts whose label changed since the round before.</p>'
        panels.append(_panel("Label flips", note + svg.bars(flips, "flips by round")))
    stop = f'<p class="note">Stopped: {escape(result.stop_reason)}.</p>' if panels and result.stop_reason else ""
    return _grid(panels) + stop


def _accuracy(evaluation: Evaluation | None) -> float | None:
    return evaluation.accuracy if evaluation else None


def _selection(result: RunResult, facts: ReportFacts) -> str:
    panels = []
    if facts.funnel:
        panels.append(_panel("Funnel", svg.funnel([(step.name, step.count) for step in facts.funnel])))
    lost: dict[str, int] = {}
    for step in facts.funnel:
        for reason, count in step.lost.items():
            lost[reason] = lost.get(reason, 0) + count
    reasons = sorted((lost or result.dropped).items(), key=lambda item: (-item[1], item[0]))
    if reasons:
        more = len(reasons) - SHOWN_REASONS
        note = f'<p class="note">and {more} rarer reasons: see result.json</p>' if more > 0 else ""
        shown = [(name.replace("_", " "), count) for name, count in reasons[:SHOWN_REASONS]]
        panels.append(_panel("Why texts were left out", _table(("reason", "texts"), shown) + note))
    return _grid(panels)


def _confidence(facts: ReportFacts) -> str:
    panels = []
    if any(facts.confidence_kept) or any(facts.confidence_left):
        legend = _legend([("kept", "tone-a"), ("left out", "tone-c")])
        plot = svg.histogram(facts.confidence_kept, facts.confidence_left, facts.threshold)
        panels.append(_panel("Confidence of scored texts", legend + plot))
    if any(point.count for point in facts.reliability):
        note = '<p class="note">Accuracy on gold at each confidence; on the dashed line confidence can be trusted.</p>'
        panels.append(_panel("Reliability", note + svg.reliability(facts.reliability)))
    return _grid(panels)


def _labels(result: RunResult, facts: ReportFacts) -> str:
    if not result.labels or not (facts.seed_counts or facts.kept_counts):
        return ""
    legend = _legend([("seeds", "tone-b"), ("added", "tone-a")])
    hidden = len(result.labels) - svg.MAX_LABELS
    note = f'<p class="note">and {hidden} more labels: see the card of the data set</p>' if hidden > 0 else ""
    plot = svg.balance(result.labels, facts.seed_counts, facts.kept_counts)
    return _panel("Rows of each label", legend + plot + note)


def _round_table(rounds: Sequence[RoundResult]) -> str:
    if not rounds:
        return ""
    rows = [
        (
            one.round,
            one.candidates,
            one.selected,
            _share(one.flip_rate),
            _share(one.agreement),
            _share(one.mean_confidence),
            _share(_accuracy(one.holdout)),
            loss(one.holdout),
            _encoder(one),
            _share(_accuracy(one.eval)),
            f"{sum(one.seconds.values()):,.0f}",
            _adapter_note(one),
        )
        for one in rounds
    ]
    header = (
        "round",
        "scored",
        "kept",
        "flips",
        "agreement",
        "mean confidence",
        "held-out",
        "held-out log loss",
        "encoder, held-out",
        "eval",
        "seconds",
        "adapter",
    )
    return _table(header, rows)


def _encoder(one: RoundResult) -> str:
    return _share(_accuracy(one.encoder)) + (", not tuned" if one.encoder_tuned is False else "")


def _adapter_note(one: RoundResult) -> str:
    parts = [one.adapter or "base model", "" if one.activated else "not activated", one.note]
    return ", ".join(filter(None, parts))


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _samples(rows: Sequence[SampleRow], reason: str, answer: str) -> str:
    if not rows:
        return ""
    cells = [
        (
            _clip(row.text),
            row.label,
            row.intended,
            "" if row.confidence is None else f"{row.confidence:.2f}",
            row.reason,
        )
        for row in rows
    ]
    return _table(("text", answer, "written for", "confidence", reason), cells)


def _clip(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


def _next_steps(result: RunResult) -> str:
    lines = []
    if result.adapter:
        lines.append(f'afdc predict --adapter {result.adapter.path} "a new text"')
    if result.dataset:
        lines.append(f'python -c "from datasets import load_dataset; print(load_dataset({result.dataset.path!r}))"')
    commands = f"<pre><code>{escape(chr(10).join(lines))}</code></pre>" if lines else ""
    return "".join(f"<p>{escape(one)}</p>" for one in result.advice) + commands


def _cost(result: RunResult) -> str:
    usage = result.usage
    rows: list[tuple[Cell, ...]] = [
        ("wall time", f"{usage.wall_seconds:,.0f} s"),
        ("engine", f"{usage.engine_seconds:,.0f} s"),
        ("engine start", f"{usage.startup_seconds:,.0f} s"),
        ("trainer", f"{usage.trainer_seconds:,.0f} s"),
        ("encoder", f"{usage.encoder_seconds:,.0f} s"),
        ("prompt tokens", f"{usage.prompt_tokens:,}"),
        ("of them from the prefix cache", f"{usage.cached_tokens:,}"),
        ("generated tokens", f"{usage.completion_tokens:,}"),
    ]
    return f'<div class="narrow">{_table(("", "total"), rows)}</div>'


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{body}" if body else ""


def _panel(title: str, body: str) -> str:
    return f'<div class="panel"><h3>{escape(title)}</h3>{body}</div>'


def _grid(panels: Sequence[str]) -> str:
    return f'<div class="grid2">{"".join(panels)}</div>' if panels else ""


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    marks = "".join(f'<i style="background:var(--{tone[-1]})"></i>{escape(name)}' for name, tone in entries)
    return f'<p class="legend">{marks}</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A table whose number-like columns are right-aligned. The first column of a sample table is text."""
    body = [list(row) for row in rows]
    numeric = [all(_is_number(row[i]) for row in body) for i in range(len(header))]
    kinds = ["n" if numeric[i] else "text" if name in {"text", "reason"} else "" for i, name in enumerate(header)]
    head = "".join(f'<th class="{kind}">{escape(name)}</th>' for kind, name in zip(kinds, header, strict=True))
    lines = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{_cell(v)}</td>' for kind, v in zip(kinds, row, strict=True)) + "</tr>"
        for row in body
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _is_number(value: Cell) -> bool:
    if not isinstance(value, str):
        return True
    return not value or value.removesuffix(" %").removesuffix(" s").replace(",", "").replace(".", "").isdigit()


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
