"""The data-set card, `job.yaml` and `task.json`: what a reader and a second run need to know.

Texts and labels come from users and from a language model: they are escaped before they enter Markdown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from afdc.config import RunConfig
from afdc.files import canonical_json, sha256_bytes
from afdc.presets import config_hash
from afdc.result import EvalSummary, TokenF1
from afdc.task import Task
from afdc.version import afdc_version
from afdc_pipeline.learning import learns_from_all

CONFIG_FOLDERS = {
    "default": "data",
    "messages": "messages",
    "prompt_completion": "prompt_completion",
    "rejected": "rejected",
}
SIZE_STEPS = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SAMPLE_CHARS = 160
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class CardFacts:
    """What the papers say besides the rows.

    Attributes:
        model: base model, as it is named in result.json.
        adapter: name of the adapter M*; "" where none was trained.
        dropped: generated texts that never became candidates, counted by reason.
        title: heading of the card.
        unlabeled: the run was given texts without labels.
    """

    task: Task
    config: RunConfig
    job: str
    model: str
    model_revision: str = ""
    adapter: str = ""
    eval: EvalSummary = field(default_factory=EvalSummary)
    dropped: Mapping[str, int] = field(default_factory=dict)
    title: str = ""
    unlabeled: bool = False

    def identity(self) -> str:
        """Hash of the task and of every setting that changes the result."""
        task = self.task.model_dump(mode="json")
        return sha256_bytes(canonical_json([task, config_hash(self.config), self.model, self.model_revision]))

    def pinned_model(self) -> str:
        """What `--model` has to be given to get the same weights: a hub id with its commit, everything else by name."""
        is_hub = HUB_ID.fullmatch(self.model) and HUB_COMMIT.fullmatch(self.model_revision)
        return f"{self.model}@{self.model_revision}" if is_hub else self.model

    def provenance(self) -> dict[str, str]:
        """Where the data set comes from, for the manifest."""
        return {
            "afdc_version": afdc_version(),
            "job": self.job,
            "config_hash": config_hash(self.config),
            "model": self.model,
            "model_revision": self.model_revision,
            "adapter": self.adapter,
        }


@dataclass(frozen=True)
class DataCounts:
    """Counts over all rows and a few rows to show."""

    rows: int
    rejected: int
    per_label: Mapping[str, int]
    per_source: Mapping[str, int]
    reasons: Mapping[str, int]
    samples: Sequence[Mapping[str, Any]]
    content: str = ""


def escape_markdown(text: str) -> str:
    """`text` as one line of Markdown that renders as itself, in tables too: no markup, no HTML, no links.

    For use inside a line: what is markup only at a line's start ("-", "1.") is left alone.
    """
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]()#!|~$])", r"\\\1", line)
    return line.replace("://", "&#58;//").replace("www.", "www&#46;")


def job_yaml(facts: CardFacts) -> str:
    """The resolved job and, as a comment, the command and the files that make the same data set again."""
    run = {"task": "task.json", **facts.config.model_dump(mode="json"), "model": facts.pinned_model()}
    given = {"--seeds SEEDS": True, "--eval GOLD": facts.eval.n > 0, "--unlabeled TEXTS": facts.unlabeled}
    command = " ".join(["afdc run --config job.yaml", *(flag for flag, was_given in given.items() if was_given)])
    note = f"# With the same files this makes the same data set again:\n#   {command} --out NEW\n"
    document = {"run": run, "made_by": facts.provenance()}
    return note + str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def task_json(task: Task) -> str:
    """The task, in the form that `--task` reads."""
    return json.dumps(task.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def render_card(facts: CardFacts, counts: DataCounts) -> str:
    """The whole README.md: YAML front matter, then Markdown."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts, counts), sort_keys=False, allow_unicode=True)}---",
        f"# {escape_markdown(_title(facts))}",
        _what_it_is(facts, counts),
        "## Load it\n\n" + _how_to_load(counts.rejected > 0, is_open=facts.task.is_open),
        "## Contents\n\n" + _contents(counts),
        "## Examples\n\n" + _samples(counts.samples, is_open=facts.task.is_open),
        "## How it was made\n\n" + _how_made(facts, counts),
        "## Limitations\n\n" + _limitations(facts),
        "## Licence\n\n" + _licence(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts, counts: DataCounts) -> dict[str, Any]:
    configs: list[dict[str, Any]] = [
        {
            "config_name": name,
            # `datasets` caches by folder name and these entries: without the hash, runs would load each other's rows
            "description": f"content {counts.content[:16]}",
            "data_files": [{"split": "train", "path": f"{folder}/train-*.parquet"}],
        }
        for name, folder in CONFIG_FOLDERS.items()
        if name != "rejected" or counts.rejected  # `datasets` cannot load a split without rows
    ]
    configs[0]["default"] = True
    return {
        "pretty_name": _title(facts),
        "task_categories": ["text-generation" if facts.task.is_open else "text-classification"],
        "annotations_creators": ["machine-generated"],
        "size_categories": [next((name for limit, name in SIZE_STEPS if counts.rows < limit), "n>1M")],
        "tags": ["synthetic", "afdc"],
        "configs": configs,
    }


def _title(facts: CardFacts) -> str:
    return facts.title or f"Fine-tuning data for {'free answers' if facts.task.is_open else 'text classification'}"


def _what_it_is(facts: CardFacts, counts: DataCounts) -> str:
    if facts.task.is_open:
        return (
            f"{counts.rows:,} texts with an answer in free text, constructed by AFDC from "
            f"{counts.per_source.get('seed', 0)} hand-written pairs. The task, word for word: "
            f"{escape_markdown(facts.task.instruction)}"
        )
    labels = ", ".join(escape_markdown(name) for name in facts.task.names[:20])
    more = f" and {len(facts.task.names) - 20} more" if len(facts.task.names) > 20 else ""
    return (
        f"{counts.rows:,} texts labelled with {len(facts.task.names)} classes ({labels}{more}), constructed by AFDC "
        f"from {counts.per_source.get('seed', 0)} hand-labelled examples. The task, word for word: "
        f"{escape_markdown(facts.task.instruction)}"
    )


def _how_to_load(has_rejected: bool, *, is_open: bool) -> str:
    uses = [
        ("rows", "", "every row with its whole history"),
        ("chat", ', "messages"', "system, user and assistant turns, and a weight"),
        ("pairs", ', "prompt_completion"', "conversational pairs, as TRL's SFTTrainer takes them"),
        ("left_out", ', "rejected"', "what was left out, and why"),
    ]
    calls = [(f'{name} = load_dataset("PATH/OF/THIS/FOLDER"{config})', why) for name, config, why in uses]
    lines = [f"{call:<66} # {why}" for call, why in calls[: 4 if has_rejected else 3]]
    code = "\n".join(["```python", "from datasets import load_dataset", "", *lines, "```"])
    if is_open:
        return f"{code}\n\n`answer` is the completion; `agreement` is how far sampled answers agree with it, 0 to 1."
    return f"{code}\n\n`distribution` holds one probability a label, in the order of `labels` in `manifest.json`."


def _contents(counts: DataCounts) -> str:
    blocks = [_table(("label", "rows"), counts.per_label.items())] if counts.per_label else []
    blocks.append(_table(("source", "rows"), counts.per_source.items()))
    if counts.reasons:
        blocks += [
            f"{counts.rejected:,} rows are in `rejected`:",
            _table(("why a row was left out", "rows"), _readable(counts.reasons)),
        ]
    return "\n\n".join(blocks)


def _samples(samples: Sequence[Mapping[str, Any]], *, is_open: bool) -> str:
    if not samples:
        return "All rows are seeds."
    lines = [f"| text | {'answer' if is_open else 'label'} | confidence |", "|---|---|---:|"]
    for row in samples:
        text = row["text"] if len(row["text"]) <= SAMPLE_CHARS else row["text"][: SAMPLE_CHARS - 1] + "…"
        confidence = "" if row["confidence"] is None else f"{row['confidence']:.2f}"
        lines.append(f"| {escape_markdown(text)} | {escape_markdown(str(row['label']))} | {confidence} |")
    return "\n".join(lines)


def _learnt(facts: CardFacts) -> str:
    if learns_from_all(facts.config, facts.task):
        return "the seeds and on the distributions of all scored texts, those in `rejected` among them,"
    return "them"


def _how_made(facts: CardFacts, counts: DataCounts) -> str:
    config = facts.config
    model = escape_markdown(facts.model)
    steps = [
        f"1. {model} wrote {config.augment.variants or 'several'} variants of each seed in {config.augment.rounds} "
        "round(s); exact and near-duplicates, malformed texts and anything close to the evaluation set were removed.",
        f"2. {_how_judged(facts)}",
        f"3. Rows were selected by the strategy `{config.select.strategy}` with threshold {config.select.threshold}.",
        f"4. A LoRA adapter was trained on {_learnt(facts)} and relabelled them, "
        f"{config.loop.rounds} round(s) at most. "
        + (f"The adapter handed out is {escape_markdown(facts.adapter)}." if facts.adapter else "No adapter was kept."),
    ]
    blocks = [
        "\n".join(steps),
        "`job.yaml` and `task.json` hold every setting; `manifest.json` the hash of every file.",
    ]
    if facts.eval.final is not None:
        blocks.append(_accuracies(facts.eval, "exact match" if facts.task.is_open else "accuracy"))
    if facts.eval.token_f1 is not None:
        blocks.append(_accuracies(facts.eval, "token F1", facts.eval.token_f1))
    if facts.dropped:
        ordered = sorted(_readable(facts.dropped), key=lambda item: (-item[1], item[0]))
        blocks.append(_table(("generated texts dropped before scoring", "texts"), ordered))
    return "\n\n".join(blocks)


def _how_judged(facts: CardFacts) -> str:
    if facts.task.is_open:
        return (
            f"Each text was answered {facts.config.answer.samples} times by every labeller. The answer of the row is "
            "the one that agrees most with the others; its confidence is that agreement times its probability a token."
        )
    return "Each text was scored: the probability of every label's whole token sequence, normalised over the labels."


def _accuracies(evaluation: EvalSummary, metric: str, values: EvalSummary | TokenF1 | None = None) -> str:
    shown = values or evaluation
    named = [("base model", shown.base), ("seeds only", shown.seeds_only), ("final", shown.final)]
    rows = [(name, "" if value is None else f"{100 * value:.1f} %") for name, value in named]
    return _table((f"{metric} on {evaluation.n} gold examples", ""), rows)


def _limitations(facts: CardFacts) -> str:
    model = escape_markdown(facts.model)
    answers = "answers" if facts.task.is_open else "labels"
    return (
        f"- Rows with source `generated` were written by {model}; they carry its errors, biases and style, and may "
        "state things that are false.\n"
        f"- Their {answers} are the model's own. `confidence` is its opinion and not a measured accuracy: check a "
        f"sample {'' if facts.task.is_open else 'of each label '}before you rely on it.\n"
        "- The seeds set the range: a kind of text that no seed shows is probably missing.\n"
        "- Generated text may repeat private details that stand in the seeds."
    )


def _licence(facts: CardFacts) -> str:
    return (
        "None is declared: whoever publishes this folder chooses one. It depends on the rights in the seeds and "
        f"in any unlabelled text, and on the terms of {escape_markdown(facts.model)} for its output."
    )


def _readable(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons as words: "label_cap" reads "label cap"."""
    return [(reason.replace("_", " "), count) for reason, count in counts.items()]


def _table(header: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---:|"]
    for name, value in rows:
        shown = f"{value:,}" if isinstance(value, int) else str(value)
        lines.append(f"| {escape_markdown(name) or '(none)'} | {shown} |")
    return "\n".join(lines)
