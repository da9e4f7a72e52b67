"""Selection: one small file an idea, and the selector that composes them."""

from afdc_pipeline.select.columns import REASONS, Columns, Reason, Selection, tie_break
from afdc_pipeline.select.diversity import Features, hashed_features
from afdc_pipeline.select.selector import select
from afdc_pipeline.select.trust import Trust

__all__ = [
    "REASONS",
    "Columns",
    "Features",
    "Reason",
    "Selection",
    "Trust",
    "hashed_features",
    "scaled",
    "select",
    "tie_break",
]
