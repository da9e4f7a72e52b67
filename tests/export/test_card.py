"""The card: valid front matter, honest text, and nothing from a model that acts as markup."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from afdc.presets import build_config
from afdc_server.export.card import CardFacts, escape_markdown
from afdc_server.export.dataset import write_dataset


@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)>", "[click](http://evil.example)", "a | b", "`code`", "# head\n\n- list", "**bold**"],
)
def test_markup_is_escaped(text: str) -> None:
    escaped = escape_markdown(text)
    assert "<" not in escaped
    assert "\n" not in escaped
    assert "://" not in escaped
    for mark in "[]()|`*":
        assert escaped.count(mark) == escaped.count("\\" + mark)


@given(st.text() | st.text(alphabet="<>&[]()!*_`|~#$\\\\/:.-+= \nawht1"))
def test_escaped_text_renders_as_itself(text: str) -> None:
    """CommonMark with GitHub's tables and strike-through shows the text itself and makes no element of it."""
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    line = " ".join(text.split())
    rendered = markdown.render(f"| a |\n|---|\n| x{escape_markdown(text)}x |")
    cell = rendered.split("<td>")[1].split("</td>")[0]
    assert "<" not in cell
    assert html.unescape(cell).replace("\ufffd", "\0") == f"x{line}x".replace("\ufffd", "\0")


def test_card_says_what_it_is(
    tmp_path: Path, rows: list[dict[str, Any]], facts: CardFacts, row: Callable[..., dict[str, Any]]
) -> None:
    hostile = row(1, text="---\n<script>alert(1)</script> | x")
    write_dataset(tmp_path / "dataset", [*rows[:6], hostile], rows[:1], facts)
    card = (tmp_path / "dataset" / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert [config["config_name"] for config in front["configs"]] == [
        "default",
        "messages",
        "prompt_completion",
        "rejected",
    ]
    assert "license" not in front, "the licence is the user's to choose"
    assert "<script" not in card
    assert "80.0 %" in card
    assert "exact duplicate" in card
    for heading in ("## Load it", "## How it was made", "## Limitations", "## Licence"):
        assert heading in card


def test_card_says_what_the_adapter_learnt_from(tmp_path: Path, rows: list[dict[str, Any]], facts: CardFacts) -> None:
    said = {}
    for name, soft in (("all", True), ("selected", False)):
        config = build_config("default", {"select": {"soft_targets": soft}})
        write_dataset(tmp_path / name, rows[:6], rows[:1], replace(facts, config=config))
        said[name] = (tmp_path / name / "README.md").read_text()
    assert "trained on the seeds and on the distributions of all scored texts" in said["all"]
    assert "trained on them" in said["selected"]
