"""Accuracy and data quality of every method on labelled tasks (docs/quality.md)."""
