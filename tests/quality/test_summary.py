"""Gap closed, lines, paired differences, tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afdc.errors import UsageError
from afdc.presets import build_config
from benchmarks.quality.__main__ import ablation_plan, main, parse, shown_arguments
from benchmarks.quality.summary import ablation, gap_closed, standard_error, summarise
from benchmarks.quality.switches import default_switches, parse_variant
from benchmarks.quality.table import ablation_table, goals_table, replace_between, results_table


def record(method: str, draw: int, accuracy: float, variant: str = "", **more: Any) -> dict[str, Any]:
    row = {"task": "t", "method": method, "variant": variant, "draw": draw, "accuracy": accuracy}
    return {**row, "macro_f1": accuracy, "ece": 0.1, "seconds": 1.0, **more}


RECORDS = [
    record("seeds-only", 0, 0.60),
    record("seeds-only", 1, 0.50),
    record("default", 0, 0.70, rounds=[{"round": 0, "flip_rate": None}, {"round": 1, "flip_rate": 0.2}]),
    record("default", 1, 0.80, rounds=[{"round": 1, "flip_rate": 0.4}]),
    record("gold", 0, 0.90),
    record("gold", 1, 0.80),
]


JUDGE = {"kind": "lora", "accuracy": 0.8, "rows": 10}
DATA = {"rows": 5, "precision": 1.0, "coverage": 1.0, "duplicate_share": 0.0, "seed_distance": 0.5}


def goals(records: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of the table of goals."""
    lines = goals_table(summarise(records)).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_gap_is_the_share_of_the_way_from_seeds_to_gold() -> None:
    assert gap_closed(0.75, 0.5, 1.0) == pytest.approx(0.5)
    assert gap_closed(0.4, 0.5, 1.0) == pytest.approx(-0.2)
    assert gap_closed(0.7, 0.8, 0.8) is None


def test_a_line_is_the_mean_over_draws() -> None:
    line = next(one for one in summarise(RECORDS) if one.method == "default")
    assert line.accuracy == pytest.approx(0.75)
    assert line.sd == pytest.approx(0.0707, abs=1e-4)
    assert line.gap == pytest.approx((0.75 - 0.55) / (0.85 - 0.55))
    assert line.worst == pytest.approx(0.1)
    assert line.flips == pytest.approx((0.3,))


def test_gap_uses_the_draws_that_all_three_have() -> None:
    line = next(one for one in summarise(RECORDS[:-1]) if one.method == "default")
    assert line.gap == pytest.approx((0.70 - 0.60) / (0.90 - 0.60))


def test_variants_stay_out_of_the_lines() -> None:
    assert len(summarise([*RECORDS, record("default", 0, 0.1, "select.align")])) == 3


def test_differences_are_paired_by_task_and_draw() -> None:
    records = [record("default", draw, value) for draw, value in enumerate((0.8, 0.6, 0.7))]
    records += [record("default", draw, value, "align") for draw, value in enumerate((0.7, 0.5))]
    own, everything = ablation(records)
    assert (own.task, own.pairs, own.mean) == ("t", 2, pytest.approx(0.1))
    assert everything.task == "all"
    assert own.error == pytest.approx(0.0)
    assert standard_error([0.1, 0.3]) == pytest.approx(0.1)
    assert standard_error([0.1]) is None


def test_tables_name_what_they_show() -> None:
    text = results_table(summarise(RECORDS))
    assert "| AFDC default" in text
    assert "75.0 ± 7.1" in text
    assert "67%" in text
    differences = ablation([record("default", 0, 0.8), record("default", 0, 0.7, "select.align")])
    assert "| select.align | +10.0 | +10.0 |" in ablation_table(differences)


def test_one_draw_has_no_spread_and_a_difference_without_an_error() -> None:
    records = [record("seeds-only", 0, 0.6), record("default", 0, 0.5, data={**DATA, "precision": 0.9}, judge=JUDGE)]
    text = results_table(summarise(records))
    assert "±" not in text
    assert "-10.0" in text
    assert "80.0%" in text  # of the judge


def test_a_method_of_fewer_draws_than_others_says_so() -> None:
    text = results_table(
        summarise([*RECORDS, record("unlabeled", 1, 0.7, data={**DATA, "precision": 0.9}, judge=JUDGE)])
    )
    assert "**t**, 2 draws" in text
    assert text.count("| AFDC default + unlabelled texts, 1 draw |") == 2
    assert "| AFDC default  " in text


def test_differences_to_the_seeds_stand_in_the_table_with_their_error() -> None:
    line = next(one for one in summarise(RECORDS) if one.method == "default")
    assert (line.lift, line.lift_error) == (pytest.approx(0.2), pytest.approx(0.1))
    assert "+20.0 ± 10.0" in results_table([line])


def test_goals_say_what_is_met_missed_and_not_measured() -> None:
    def of(task: str, *accuracies: float) -> list[dict[str, Any]]:
        methods = ("seeds-only", "default", "gold", "setfit")
        return [record(name, 0, value, task=task) for name, value in zip(methods, accuracies, strict=True)]

    records = [*of("trec", 0.7, 0.9, 0.9, 0.6), *of("sst2", 0.8, 0.75, 0.9, 0.6)]
    rows = {tuple(row[:2]): row[2:] for row in goals(records)}
    assert rows["gap closed", "trec"] == ["≥ 80%", "100%", "1", "met"]
    assert rows["gap closed", "sst2"] == ["≥ 50%", "-50%", "1", "**missed**"]
    assert rows["worst draw, points over seeds only", "sst2"] == ["≥ -1.0", "-5.0", "1", "**missed**"]
    assert rows["calibration error", "trec"] == ["≤ 0.050", "0.100", "1", "**missed**"]
    assert rows["gap closed", "banking77"][1:] == ["", "0", "not measured"]
    assert rows["points over SetFit", "all"][1:] == ["", "0", "not measured"]  # a task lacks
    whole = [*records, *of("banking77", 0.7, 0.7, 0.8, 0.6)]
    row = next(row for row in goals(whole) if row[0] == "points over SetFit")
    assert row[2:] == ["> 0", "+18.3", "1", "met"]


def test_a_loss_of_exactly_one_point_is_one_point() -> None:
    records = [record("seeds-only", 0, 0.892, task="trec"), record("default", 0, 0.882, task="trec")]
    row = next(row for row in goals(records) if row[0].startswith("worst draw"))
    assert row[3:] == ["-1.0", "1", "met"]


def test_a_judge_below_the_target_decides_nothing() -> None:
    records = [record("default", 0, 0.5, task="trec", data={**DATA, "precision": 0.96}, judge=JUDGE)]
    row = next(row for row in goals(records) if row[0] == "rows with the right label")
    assert row[2:] == ["≥ 95.0%", "96.0%", "1", "the judge has 80.0% right"]


def test_methods_are_compared_on_the_draws_that_both_have() -> None:
    records = [record("default", 0, 0.7, task="trec"), record("paper", 0, 0.6, task="trec")]
    records.append(record("paper", 1, 0.9, task="trec"))
    row = next(row for row in goals(records) if row[0] == "points over AFDC paper")
    assert row[3:] == ["+10.0", "1", "met"]


@pytest.mark.parametrize("method", ["default", "seeds-only", "gold"])
def test_a_goal_is_marked_where_any_part_of_it_is_of_other_code(method: str) -> None:
    values = {"seeds-only": 0.5, "default": 0.6, "gold": 0.7}
    records = [record(name, 0, value, task="trec", earlier=name == method) for name, value in values.items()]
    row = next(row for row in goals(records) if row[:2] == ["gap closed", "trec"])
    assert row[3] == "50%†"
    text = results_table(summarise(records))
    assert text.endswith("† made by an earlier version of the code.")
    assert ("AFDC default†" in text) == (method == "default")


def test_fits_of_different_precision_are_marked_where_they_are_compared() -> None:
    engines = {"seeds-only": "bfloat16", "default": "float32", "encoder": "float32"}
    records = [record(name, 0, 0.5, engine=["torch", "5", "cpu", dtype]) for name, dtype in engines.items()]
    lines = {line.method: line for line in summarise(records)}
    assert lines["default"].paired.mixed
    assert not lines["encoder"].paired.mixed  # fits no adapter
    assert "+0.0‡" in results_table([lines["default"]])


def test_a_table_is_of_one_setting_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for number, value in enumerate((3, 4)):
        one = {**record("default", 0, 0.7), "overrides": {"loop": {"members": value}}, "code": "old"}
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"kind": "ablate", "command": "x", "records": [one]}))
    assert main(["table", str(files[0])]) == 0
    capsys.readouterr()
    assert main(["table", *map(str, files)]) != 0
    assert "different settings" in capsys.readouterr().err


def test_a_document_gets_its_tables_with_the_marks_of_today(tmp_path: Path) -> None:
    records = [{**record("default", 0, 0.7, task="trec"), "overrides": {}, "code": "old"}]
    sweep, page = tmp_path / "sweep.json", tmp_path / "page.md"
    sweep.write_text(json.dumps({"kind": "run", "command": "--task trec", "records": records}))
    page.write_text("".join(f"<!-- begin: {name} -->\n<!-- end: {name} -->\n" for name in ("goals", "results")))
    assert main(["table", str(sweep), "--docs", str(page)]) == 0
    text = page.read_text()
    assert "    python -m benchmarks.quality --task trec" in text
    assert "AFDC default†" in text
    assert "not measured" in text


def test_a_document_keeps_all_but_its_table(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- begin: results -->\nold\n<!-- end: results -->\nafter\n")
    for _ in range(2):
        replace_between(path, {"results": "new"})
    assert path.read_text() == "before\n<!-- begin: results -->\nnew\n<!-- end: results -->\nafter\n"
    with pytest.raises(UsageError, match="begin: ablation"):
        replace_between(path, {"results": "newer", "ablation": "new"})
    assert "newer" not in path.read_text()


def test_every_switch_changes_the_default_preset() -> None:
    switches = default_switches()
    default = build_config()
    assert {"select.unanimous", "encoder.labeller", "loop.min_flip_rate"} <= set(switches)
    assert all(build_config("default", override) != default for override in switches.values())


def test_variants_are_checked_settings() -> None:
    assert parse_variant("hot:augment.temperature=1.3,loop.rounds=1") == (
        "hot",
        {"augment": {"temperature": 1.3}, "loop": {"rounds": 1}},
    )
    for wrong in ("select.align=false", "x:select.aline=false"):
        with pytest.raises(UsageError):
            parse_variant(wrong)


def test_documents_name_no_local_folders() -> None:
    assert shown_arguments(["--task", "/data/trec", "runs/x", "--set", "a.b=1"]) == [
        *("--task", "trec", "runs/x", "--set", "a.b=1")
    ]
    assert parse(["--task", "x"]).command == "run"
    assert parse(["ablate", "--task", "x", "--draws", "2"]).draws == 2


def test_an_ablation_takes_all_switches_some_or_none() -> None:
    plan = ["ablate", "--task", "x", "--draws", "1", "--variant", "more:augment.variants=40"]
    names = [
        [cell.variant for cell in ablation_plan(parse([*plan, *only]))]
        for only in ([], ["--only", "select.trust"], ["--only"])
    ]
    assert names == [["", *default_switches(), "more"], ["", "select.trust", "more"], ["", "more"]]


def test_settings_lie_beneath_every_variant() -> None:
    plan = ["ablate", "--task", "x", "--draws", "1", "--only", "train.contrastive", "--set", "train.dtype=float32"]
    whole, without = ablation_plan(parse(plan))
    assert whole.overrides == {"train": {"dtype": "float32"}}
    assert without.overrides == {"train": {"dtype": "float32", "contrastive": 0.0}}


def test_an_unknown_switch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["ablate", "--task", "x", "--only", "select.magic"])
    assert "select.magic" in capsys.readouterr().err
