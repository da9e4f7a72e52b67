"""What the user's files may hold, and what each fault in them says."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afdc.errors import InputError
from afdc.inputs import ReadExample, iter_texts, read_examples, read_task
from afdc.seeds import check_seeds, infer_task
from afdc.task import Example, Label, Task, text_id

Write = Callable[[str, bytes | str], Path]
TASK = Task(labels=(Label(name="Bug"), Label(name="question"), Label(name="投诉")))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, data: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return make


def line(text: object = "hello", label: object = "Bug", **more: object) -> str:
    return json.dumps({"text": text, "label": label, **more}, ensure_ascii=False) + "\n"


def fault(path: Path, task: Task | None = TASK) -> InputError:
    with pytest.raises(InputError) as caught:
        read_examples(path, task)
    return caught.value


def test_jsonl_with_byte_order_mark_blank_lines_and_ids(write: Write) -> None:
    data = b"\xef\xbb\xbf" + (line(" caf\u0065\u0301 ", id="a7") + "\n\r\n" + line("退款", "投诉", id=4)).encode()
    first, second = read_examples(write("s.jsonl", data), TASK)
    assert (first.text, first.id, first.line) == ("café", "a7", 1)
    assert (second.text, second.label, second.id, second.line) == ("退款", "投诉", "4", 4)
    assert first.model_dump() == {"id": "a7", "text": "café", "label": "Bug"}


def test_csv_with_quotes_newlines_and_column_order(write: Write) -> None:
    data = 'Label,text\r\nBug,"one, ""two""\r\nthree"\r\n\r\nquestion,四\r\n'
    first, second = read_examples(write("s.csv", data), TASK)
    assert first.text == 'one, "two"\r\nthree'
    assert (first.line, second.line) == (2, 5)


@pytest.mark.parametrize(("name", "data"), [("s", line()), ("s.dat", "text,label\nhello,Bug\n"), ("s.JSONL", line())])
def test_format_is_seen_from_suffix_or_content(write: Write, name: str, data: str) -> None:
    assert read_examples(write(name, data), TASK)[0].text == "hello"


def test_label_in_another_case_or_form_is_the_tasks_label(write: Write) -> None:
    path = write("s.jsonl", line(label="bug") + line("b", label=" \uff31UESTION "))
    assert [example.label for example in read_examples(path, TASK)] == ["Bug", "question"]


@pytest.mark.parametrize(
    ("data", "at", "says"),
    [
        (line() + '{"text": "x", \n', 2, "broken JSON at column"),
        (line() + "[1]\n", 2, "not a JSON object but a list"),
        (line() + '{"label": "Bug"}\n', 2, "no text"),
        (line() + '{"text": "x"}\n', 2, "no label"),
        (line(text=3), 1, "text must be a string, and it is a number"),
        (line(label=["Bug"]), 1, "label must be a string, and it is a list"),
        (line(text=" \u200b\n"), 1, "the text is empty"),
        (line(label=""), 1, "the label is empty"),
        ('{"text": "a \\ud800 b", "label": "Bug"}\n', 1, "surrogate"),
        (line(text="a\0b"), 1, "NUL"),
        (line(label="Bgu"), 1, "(did you mean 'Bug'?). The labels are: Bug, question, 投诉"),
        (line(lable="Bug"), 1, "unknown key 'lable'"),
        (line(text="x" * 100_001), 1, "100,001 characters"),
        ('{"text": "a", "text": "b", "label": "Bug"}', 1, "key 'text' is given twice"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('{"text": ' + "9" * 5000 + "}", 1, "broken JSON"),
        (line(id=True), 1, "id must be a string"),
        ("x" * (1 << 20) + "xx", 1, "longer than 1,048,576 bytes"),
        (
            line().encode() + b'{"text": "caf\xe9"}\n',
            2,
            "(0xe9). Save the file as UTF-8",
        ),
        (b"\xff\xfe{\x00", 1, "not UTF-8 at byte 0"),
    ],
)
def test_bad_lines_are_named(write: Write, data: bytes | str, at: int, says: str) -> None:
    path = write("s.jsonl", data)
    error = fault(path)
    assert says in str(error)
    assert str(error).startswith(f"{path}:{at}: ")
    assert error.line == at


@pytest.mark.parametrize(
    ("data", "at", "says"),
    [
        ('text,label\n"open,Bug\n', 2, "broken CSV"),
        ("text,label\nx,Bug\na,b,c\n", 3, "3 fields under a header of 2"),
        ("text;label\nx;Bug\n", 1, "no column named text; it has: text;label"),
        ("text,text\nx,Bug\n", 1, "names column 'text' twice"),
        ("\nx,Bug\n", 1, "does not begin with a header"),
        ("text,label\n" + "x" * 200_000 + ",Bug\n", 2, "field larger than field limit"),
        (b"text,label\nok,Bug\n\xff,Bug\n", 3, "not UTF-8 at byte 18"),
        ("text,label,note\nx,Bug,y\n", 2, "unknown key 'note'"),
        ("text,label\nx,\n", 2, "the label is empty"),
    ],
)
def test_bad_csv_is_named(write: Write, data: bytes | str, at: int, says: str) -> None:
    error = fault(write("s.csv", data))
    assert (says in str(error), error.line) == (True, at), str(error)


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e"])
@pytest.mark.parametrize("data", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_an_error(write: Write, name: str, data: str) -> None:
    assert fault(write(name, data)).exit_code == 5
    assert "no examples" in str(fault(write("h.csv", "text,label\n")))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "no such file" in str(fault(tmp_path / "none.jsonl"))
    assert "this is a folder" in str(fault(tmp_path))


def test_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jsonl")
    with pytest.raises(InputError, match=r"p\.jsonl: not a regular file"):
        next(iter_texts(tmp_path / "p.jsonl"))
    assert fault(Path("/dev/zero")).message.endswith("not a regular file")


def test_faults_are_collected_up_to_twenty(write: Write) -> None:
    error = fault(write("s.jsonl", line() + "{\n" * 30))
    assert error.line == 2
    assert str(error).count("broken JSON") == 20
    assert "\n  line 21: " in str(error)


def test_a_huge_line_needs_little_memory(write: Write) -> None:
    path = write("s.jsonl", b'{"text": "' + b"x" * 100_000_000)
    tracemalloc.start()
    assert "longer than" in str(fault(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_labels_may_be_left_out_where_they_are_not_needed(write: Write) -> None:
    path = write("s.jsonl", '{"text": "a"}\n{"text": "b", "label": null}\n' + line("c"))
    assert [example.label for example in read_examples(path, TASK, require_label=False)] == [None, None, "Bug"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("u.jsonl", '{"text": "a", "other": 1}\n\n{"text": "b"}\n'),
        ("u.csv", "n,text\n1,a\n\n2,b\n"),
        ("u.txt", "a\n\nb"),
        ("u.log", "a\n\nb"),
    ],
)
def test_unlabelled_texts_stream(write: Write, name: str, data: str) -> None:
    assert list(iter_texts(write(name, data))) == [(1 + name.endswith("csv"), "a"), (3 + name.endswith("csv"), "b")]


def test_unlabelled_faults_come_where_they_are(write: Write) -> None:
    texts = iter_texts(write("u.jsonl", '{"text": "a"}\n{"txt": "b"}\n'))
    assert next(texts) == (1, "a")
    with pytest.raises(InputError, match=r":2: the example has no text"):
        next(texts)
    with pytest.raises(InputError, match="there are no texts"):
        list(iter_texts(write("e.txt", "\n")))


def test_a_task_is_read_and_normalised(write: Write) -> None:
    path = write(
        "t.json", '\ufeff{"instruction": "Sort.", "labels": [" e\u0301 ", {"name": "b", "description": "B!"}]}'
    )
    assert read_task(path) == Task(instruction="Sort.", labels=(Label(name="é"), Label(name="b", description="B!")))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ('{"labels": ["a", "b"],\n "x"}', ":2: broken JSON"),
        ('{"labels": ["a", "b"], "instructions": ""}', "instructions: is not a key that a task has"),
        ('{"labels": ["a"]}', "a task needs at least two labels, and this one has 1"),
        ('{"labels": ["a", "a "]}', "labels given twice: a"),
        ('{"labels": ["a", " "]}', "a label is empty"),
        ('{"instruction": "x"}', "labels: Field required"),
        (r'{"instruction": "\ud800", "labels": ["a", "b"]}', "instruction: Input should be a valid string"),
        (r'{"labels": [{"name": "a", "description": "x \udc00"}, "b"]}', "half of a surrogate pair"),
        (r'{"labels": ["a", {"name": "b", "description": "\u0000"}]}', "the description of 'b' holds a NUL character"),
        (b'{"labels": ["a",\n"\xff"]}', ":2: not UTF-8 at byte 18"),
        ("[" * 100_000, "broken JSON"),
        ('["a", "b"]', "not a JSON object"),
        ('{"labels": "a, b"}', "labels: must be a list of labels, or null"),
        ('{"labels": [1, 2]}', "labels.0: must be a name in quotes or an object"),
        ('{"labels": ["a", "b"], "labels": ["c", "d"]}', "key 'labels' is given twice"),
        ('{"instruction": "  ", "labels": ["a", "b"]}', "the instruction is blank"),
        (r'{"labels": ["a", "b\u001b[31m"]}', r"a label holds a line break or a control character ('\x1b')"),
        (r'{"labels": ["a", "b\nc"]}', "a label holds a line break"),
        ("labels: [a, b]", "broken JSON"),
        ("", "broken JSON"),
    ],
)
def test_a_bad_task_is_explained(write: Write, data: bytes | str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read_task(write("t.json", data))
    assert says in str(caught.value)


def test_inferred_labels_keep_their_order() -> None:
    examples = [Example(text="1", label="z"), Example(text="2", label="a"), Example(text="3", label="z")]
    assert infer_task(examples).names == ("z", "a")


def test_labels_that_cannot_be_inferred(write: Write) -> None:
    with pytest.raises(InputError, match="only one label: a"):
        infer_task([Example(text="1", label="a")])
    with pytest.raises(InputError, match=r"s\.jsonl:2: label 'bug' looks like 'Bug'"):
        infer_task(read_examples(write("s.jsonl", line() + line("b", "bug"))))
    with pytest.raises(InputError, match="1,100 different labels"):
        infer_task([Example(text=str(i), label=f"l{i}") for i in range(1100)])


def seeds(*pairs: tuple[str, str]) -> list[Example]:
    return [ReadExample(text=t, label=y, path="s.jsonl", line=i) for i, (t, y) in enumerate(pairs, 1)]


def test_seeds_are_counted_named_and_cleaned() -> None:
    report = check_seeds(
        seeds(("a b", "Bug"), ("a\n b ", "bug"), ("q", "question"), ("t", "投诉"), ("A b", "Bug")), TASK
    )
    assert report.counts == {"Bug": 2, "question": 1, "投诉": 1}
    assert report.duplicates == 1
    assert [example.text for example in report.examples] == ["a b", "q", "t", "A b"]
    assert report.examples[0].id == text_id("s_", "a b", "Bug")


@pytest.mark.parametrize(
    ("examples", "says"),
    [
        ([], "there are no seeds"),
        (seeds(("a", "Bug"), ("b", "question")), "1 of 3 labels have no seed: 投诉. Add at least one"),
        (seeds(("a", "Bug"), ("a ", "question")), "s.jsonl:2: the text has label 'question' here and 'Bug' on line 1"),
        (seeds(("a", "Bug"), ("b", "quesiton")), "s.jsonl:2: unknown label 'quesiton' (did you mean 'question'?)"),
        ([Example(text="a")], "the example has no label"),
    ],
)
def test_seeds_that_cannot_be_used(examples: list[Example], says: str) -> None:
    with pytest.raises(InputError) as caught:
        check_seeds(examples, TASK)
    assert says in str(caught.value)


PIECES = st.sampled_from(
    [b'{"text": "a", "label": "Bug"}', b"{", b'"', b",", b"\n", b"\r", b"text,label\n", b"\0", b"\xff"]
)
BYTES = st.one_of(st.binary(max_size=200), st.lists(PIECES, max_size=12).map(b"".join))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=BYTES, suffix=st.sampled_from([".jsonl", ".csv", ".txt", ""]))
def test_no_bytes_end_in_anything_but_an_input_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"f{suffix}"
    path.write_bytes(data)
    for read in (lambda: read_examples(path, TASK), lambda: list(iter_texts(path)), lambda: read_task(path)):
        with suppress(InputError):
            read()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("".join(line(text) for text in texts), encoding="utf-8")
    assert [example.line for example in read_examples(path, TASK)] == list(range(1, len(texts) + 1))
