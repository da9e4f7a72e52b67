"""Accuracy by method and task: a dot a draw, a tick at the mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afdc.errors import UsageError
from benchmarks.quality.methods import METHODS


def write_plot(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write an SVG or a self-contained HTML page, by the path's suffix.

    Raises:
        UsageError: altair or its converter is not installed.
    """
    try:
        import altair as alt
        import vl_convert  # noqa: F401 # what altair draws SVG with
    except ImportError as exc:
        raise UsageError(f"no plot: {exc}", remedy="scripts/setup.sh bench") from exc
    rows = [
        {"task": one["task"], "method": METHODS[one["method"]].title, "accuracy": one["accuracy"], "draw": one["draw"]}
        for one in records
        if not one["variant"]
    ]
    order = [method.title for method in METHODS.values()]
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=alt.Y("method:N", sort=order, title=None))
    axis = alt.X("accuracy:Q", scale=alt.Scale(zero=False), axis=alt.Axis(format="%"), title="test accuracy")
    dots = base.mark_circle(opacity=0.6, size=50).encode(x=axis, tooltip=["draw:Q", "accuracy:Q"])
    means = base.mark_tick(thickness=2, size=16, color="black").encode(x="mean(accuracy):Q")
    chart = (dots + means).properties(width=420).facet(row=alt.Row("task:N", title=None)).resolve_scale(x="independent")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), inline=True) if path.suffix == ".html" else chart.save(str(path))
