"""Rows: what is refused, what a soft target becomes, and the order of training."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from afdc.errors import InputError
from afdc.training import TrainRow
from afdc_trainer.data import encode_row, hard_targets, read_rows, schedule
from tests.trainer.conftest import ROWS, JobMaker, codec_of

pytestmark = pytest.mark.trainer


def test_small_targets_go_and_the_rest_sums_to_one() -> None:
    assert hard_targets({0: 0.5, 1: 0.49, 2: 0.01}) == pytest.approx({0: 0.5 / 0.99, 1: 0.49 / 0.99})
    assert hard_targets({1: 2.0}) == {1: 1.0}
    assert len(hard_targets(dict.fromkeys(range(100), 0.01))) == 1


def test_a_row_counts_its_weight_however_many_tokens_its_labels_have(tiny: Path) -> None:
    codec = codec_of(tiny)
    for row in ROWS:
        example = encode_row(codec, row, 256)
        assert math.isclose(sum(len(b.ids) * b.coef for b in example.branches), row.weight)
        assert all(b.ids[-1] == codec.terminator for b in example.branches)
        assert [*codec.prefix_ids, *example.prompt] == codec.prompt_ids(row.text)


def test_schedule_repeats_gold_and_depends_on_the_seed_alone(tiny: Path, make_job: JobMaker) -> None:
    job = make_job(tiny, epochs=3, gold_repeat=4)
    steps = schedule(ROWS, job)
    assert steps == schedule(ROWS, job)
    assert steps != schedule(ROWS, job.model_copy(update={"seed": 4}))
    assert Counter(i for step in steps for i in step) == {0: 12, 1: 12, 2: 3, 3: 3, 4: 3, 5: 3}
    assert {len(step) for step in steps} == {4}


def test_with_contrast_rows_of_a_label_stand_in_pairs_and_none_is_lost(tiny: Path, make_job: JobMaker) -> None:
    rows = [TrainRow(text=f"{label} {number}", targets={label: 1.0}) for label in range(40) for number in range(5)]
    job = make_job(tiny, epochs=2, config={"contrastive": 1.0, "batch_size": 8})
    steps = schedule(rows, job)
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(200), 2)
    assert steps[:25] != steps[25:]
    order = [row // 5 for step in steps[:25] for row in step]
    repeats = sum(a == b for a, b in pairwise(order))
    assert repeats >= 80  # two pairs a label of five rows; a plain shuffle of 40 labels has four or so


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "rows.jsonl:1: not a training row"),
        ('{"text": "a", "targets": {"9": 1}}', "no distribution over 4 labels"),
        ('{"text": "a", "targets": {"0": -1, "1": 2}}', "no distribution over 4 labels"),
        ('{"text": "a", "targets": {"0": 1}, "weight": 0}', "no row with a positive weight"),
        ('{"text": "a", "targets": {"0": NaN}}', "rows.jsonl:1: "),
        ('{"text": "a", "targets": {"0": 1e999}}', "rows.jsonl:1: "),
        ('{"text": "a", "targets": {"0": 1}, "weight": Infinity}', "rows.jsonl:1: "),
        ("\udcff", "cannot be read"),
    ],
)
def test_bad_rows_are_refused_by_line(tiny: Path, make_job: JobMaker, line: str, says: str) -> None:
    job = make_job(tiny)
    job.rows.write_bytes(line.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=says):
        read_rows(job)


def test_a_row_that_is_too_long_is_named(tiny: Path) -> None:
    row = TrainRow(text="word " * 300, targets={0: 1.0})
    with pytest.raises(InputError, match="256 fit"):
        encode_row(codec_of(tiny), row, 256)
