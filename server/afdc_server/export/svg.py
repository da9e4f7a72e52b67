"""The plots of the report as inline SVG: no script, no font and no network; colours come from the page's CSS variables.

Every function returns one `<svg>` element whose text is escaped. Sizes are in SVG user units (CSS pixels at scale 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from afdc.result import ReliabilityPoint

WIDTH, HEIGHT = 520, 260
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 16, 36
ROW = 26
NAME_WIDTH = 170
NAME_CHARS = 26
MAX_LABELS = 40


@dataclass(frozen=True)
class Series:
    """A line: one value a round, None where there is none. `tone` names a CSS class."""

    name: str
    values: Sequence[float | None]
    tone: str


@dataclass(frozen=True)
class Axes:
    """A plotting area: data in x 0..x_max and y low..high."""

    x_max: float
    low: float
    high: float
    width: int = WIDTH
    height: int = HEIGHT

    def x(self, value: float) -> float:
        return round(LEFT + (self.width - LEFT - RIGHT) * value / self.x_max, 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - BOTTOM - (self.height - TOP - BOTTOM) * share, 1)

    def frame(self, y_ticks: Sequence[tuple[float, str]], x_ticks: Sequence[tuple[float, str]]) -> str:
        """Grid lines with their numbers, and names below."""
        end = self.width - RIGHT
        grid = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{end}" y1="{self.y(v)}" y2="{self.y(v)}"/>'
            + _text(LEFT - 8, self.y(v) + 4, name, "tick", "end")
            for v, name in y_ticks
        )
        return grid + "".join(
            _text(self.x(v), self.height - BOTTOM + 20, name, "tick", "middle") for v, name in x_ticks
        )


def percent(value: float) -> str:
    """0.5 -> "50 %"."""
    return f"{100 * value:.0f} %"


def lines(series: Sequence[Series], reference: float | None, reference_name: str) -> str:
    """Shares by round, with an optional dashed reference line. The y axis starts a little below the lowest value."""
    known = [v for one in series for v in one.values if v is not None] + ([] if reference is None else [reference])
    low = max(0.0, (int(min(known) * 10) - 1) / 10)
    rounds = max(len(one.values) for one in series)
    axes = Axes(rounds, low, 1.0)
    ticks = [(low + i * (1 - low) / 4, percent(low + i * (1 - low) / 4)) for i in range(5)]
    parts = [axes.frame(ticks, _round_ticks(rounds))]
    if reference is not None:
        y = axes.y(reference)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(LEFT + 4, y - 6, f"{reference_name} {percent(reference)}", "tick", "start"))
    parts += [_line(axes, one) for one in series]
    return _svg(WIDTH, HEIGHT, "".join(parts), "accuracy by round")


def _round_ticks(rounds: int) -> list[tuple[float, str]]:
    """Names below a plot by round, thinned out so that they never touch."""
    every = -(-rounds // 16)
    return [(i + 0.5, f"round {i}" if rounds <= 8 else str(i)) for i in range(0, rounds, every)]


def _line(axes: Axes, one: Series) -> str:
    points = [(axes.x(i + 0.5), axes.y(v), v) for i, v in enumerate(one.values) if v is not None]
    path = " ".join(f"{x},{y}" for x, y, _ in points)
    dots = "".join(
        f'<circle class="dot {one.tone}" cx="{x}" cy="{y}" r="4"><title>{escape(one.name)}: {v:.1%}</title></circle>'
        + _text(x, y - 10, f"{100 * v:.1f}", f"value {one.tone}", "middle")
        for x, y, v in points
    )
    return f'<polyline class="line {one.tone}" points="{path}"/>{dots}'


def bars(values: Sequence[float | None], name: str) -> str:
    """Shares by round as columns."""
    high = max([v for v in values if v is not None] + [0.05]) * 1.2
    axes = Axes(len(values), 0.0, high)
    width = axes.x(0.5) - axes.x(0)
    body = "".join(
        _box(axes.x(i + 0.25), axes.y(v), width, axes.y(0) - axes.y(v), "tone-b", f"round {i}: {v:.1%}")
        + _text(axes.x(i + 0.5), axes.y(v) - 6, f"{100 * v:.1f}", "value", "middle")
        for i, v in enumerate(values)
        if v is not None
    )
    ticks = [(high * i / 4, f"{100 * high * i / 4:.0f} %") for i in range(5)]
    return _svg(WIDTH, HEIGHT, axes.frame(ticks, _round_ticks(len(values))) + body, name)


def histogram(kept: Sequence[int], left: Sequence[int], threshold: float) -> str:
    """Confidence of scored rows: kept stacked on those left out, and the threshold as a line."""
    highest = max(map(sum, zip(kept, left, strict=True)), default=0) or 1
    axes = Axes(1.0, 0.0, highest * 1.05)
    n = len(kept)
    width = axes.x(1 / n) - axes.x(0) - 1.5
    ticks = [(highest * i / 4, f"{highest * i / 4:,.0f}") for i in range(5)]
    parts = [axes.frame(ticks, [(i / 5, f"{i / 5:.1f}") for i in range(6)])]
    for i, (k, out) in enumerate(zip(kept, left, strict=True)):
        where = f"confidence {i / n:.2f} to {(i + 1) / n:.2f}"
        for base, count, tone, what in ((0, out, "tone-c", "left out"), (out, k, "tone-a", "kept")):
            if count:
                top = axes.y(base + count)
                tip = f"{where}: {count:,} {what}"
                parts.append(_box(axes.x(i / n) + 0.75, top, width, axes.y(base) - top, tone, tip))
    if threshold > 0:
        x = axes.x(threshold)
        parts.append(f'<line class="reference" x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(_text(x - 5, TOP + 10, f"τ = {threshold:g}", "tick", "end"))
    return _svg(WIDTH, HEIGHT, "".join(parts), "confidence histogram")


def reliability(points: Sequence[ReliabilityPoint]) -> str:
    """Accuracy against confidence; on the diagonal confidence means what it says. Dot area shows the number of rows."""
    axes = Axes(1.0, 0.0, 1.0, width=320, height=300)
    ticks = [(i / 4, percent(i / 4)) for i in range(5)]
    parts = [axes.frame(ticks, ticks)]
    diagonal = f'x1="{axes.x(0)}" y1="{axes.y(0)}" x2="{axes.x(1)}" y2="{axes.y(1)}"'
    parts.append(f'<line class="reference" {diagonal}/>')
    known = [(p.confidence, p.accuracy, p.count) for p in points if p.confidence is not None and p.accuracy is not None]
    parts.append(
        f'<polyline class="line tone-a" points="{" ".join(f"{axes.x(c)},{axes.y(a)}" for c, a, _ in known)}"/>'
    )
    most = max((count for *_, count in known), default=1)
    for c, a, count in known:
        radius = 3 + 8 * (count / most) ** 0.5
        tip = f"confidence {c:.2f}, accuracy {a:.2f}, {count:,} rows"
        parts.append(
            f'<circle class="dot soft tone-a" cx="{axes.x(c)}" cy="{axes.y(a)}" r="{radius:.1f}">'
            f"<title>{tip}</title></circle>"
        )
    return _svg(320, 300, "".join(parts), "reliability diagram")


def funnel(steps: Sequence[tuple[str, int]]) -> str:
    """Counts that shrink from step to step, as centred bars with the share of the step before."""
    widest = max((count for _, count in steps), default=0) or 1
    room = WIDTH - NAME_WIDTH - 90
    height = len(steps) * (ROW + 12) + 8
    parts = []
    for i, (name, count) in enumerate(steps):
        y, width = 4 + i * (ROW + 12), max(2.0, room * count / widest)
        parts.append(_text(NAME_WIDTH - 10, y + 18, _short(name), "name", "end"))
        parts.append(_box(NAME_WIDTH + (room - width) / 2, y, width, ROW, "tone-a", f"{name}: {count:,}"))
        share = f" · {percent(count / steps[i - 1][1])}" if i and steps[i - 1][1] else ""
        parts.append(_text(NAME_WIDTH + room + 8, y + 18, f"{count:,}{share}", "value", "start"))
    return _svg(WIDTH, height, "".join(parts), "selection funnel")


def balance(names: Sequence[str], seeds: Mapping[str, int], kept: Mapping[str, int]) -> str:
    """Rows a label: seeds, then everything that was added. The first 40 labels where there are more."""
    shown = names[:MAX_LABELS]
    widest = max((seeds.get(name, 0) + kept.get(name, 0) for name in shown), default=0) or 1
    room = WIDTH - NAME_WIDTH - 56
    parts = []
    for i, name in enumerate(shown):
        y = 4 + i * ROW
        a, b = room * seeds.get(name, 0) / widest, room * kept.get(name, 0) / widest
        total = seeds.get(name, 0) + kept.get(name, 0)
        parts.append(_text(NAME_WIDTH - 10, y + 14, _short(name), "name", "end"))
        parts.append(_box(NAME_WIDTH, y, a, ROW - 8, "tone-b", f"{name}: {seeds.get(name, 0):,} seeds"))
        parts.append(_box(NAME_WIDTH + a, y, b, ROW - 8, "tone-a", f"{name}: {kept.get(name, 0):,} added"))
        parts.append(_text(NAME_WIDTH + a + b + 8, y + 14, f"{total:,}", "value", "start"))
    return _svg(WIDTH, len(shown) * ROW + 8, "".join(parts), "rows by label")


def _svg(width: int, height: int, body: str, name: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">{body}</svg>'


def _box(x: float, y: float, width: float, height: float, tone: str, tip: str) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0):.1f}"'
    return f'<rect class="{tone}" {size} rx="2"><title>{escape(tip)}</title></rect>'


def _text(x: float, y: float, content: str, tone: str, anchor: str) -> str:
    return f'<text class="{tone}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _short(name: str) -> str:
    """Wide (CJK) characters take about two columns."""
    used = 0
    for i, char in enumerate(name):
        used += 2 if ord(char) > 0x2E80 else 1
        if used > NAME_CHARS:
            return name[: i - 1] + "…"
    return name
