"""What counts as a repeated text, in alphabetic and in Chinese writing, and what finding it costs."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afdc.errors import StorageError
from afdc_server.duplicates import SqliteDuplicateIndex, band_shape, jaccard, normal_form, shingle_hashes

THRESHOLD = 0.85
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 2500)]


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SqliteDuplicateIndex]:
    made = SqliteDuplicateIndex(tmp_path / "cache" / "d.db", THRESHOLD)
    yield made
    made.close()


def words(rng: random.Random, n: int) -> list[str]:
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(n)]


def similarity(one: str, other: str) -> float:
    a, b = (set(shingle_hashes(normal_form(text)).tolist()) for text in (one, other))
    return jaccard(a, b)


@pytest.mark.parametrize("other", ["Where is my caf\u00e9?", " Where is\n my  cafe\u0301?"])
def test_unicode_form_and_white_space_do_not_matter(index: SqliteDuplicateIndex, other: str) -> None:
    index.add("c1", "Where is my cafe\u0301?")
    hit = index.find(other)
    assert hit is not None
    assert (hit.id, hit.kind, hit.similarity) == ("c1", "exact", 1.0)


@pytest.mark.parametrize(
    "other", ["where is my card", "WHERE  is my card?!", "\uff37here is my card?", "Where is my card ..."]
)
def test_case_punctuation_and_width_make_a_near_repeat(index: SqliteDuplicateIndex, other: str) -> None:
    index.add("c1", "Where is my card?")
    hit = index.find(other)
    assert hit is not None
    assert (hit.id, hit.kind, hit.similarity) == ("c1", "near", 1.0)


def test_a_short_chinese_text_can_have_near_repeats(index: SqliteDuplicateIndex) -> None:
    index.add("c1", "我要退款谢谢")
    hit = index.find("我要退款谢谢\uff01")
    assert hit is not None
    assert hit.kind == "near"


def test_the_first_of_equal_texts_is_named(index: SqliteDuplicateIndex) -> None:
    index.add("c1", "one and the same text")
    index.add("c2", "One and the same text.")
    hit = index.find("one and the same text!")
    assert hit is not None
    assert hit.id == "c1"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("turn on the light", "turn off the light"),
        ("yes", "no"),
        ("yes", "yet"),
        ("a", "b"),
        ("What is a group of cows called ?", "What is a group of frogs called ?"),
        ("我要退款", "我不要退款"),
        ("好", "坏"),
        ("今天天气很好", "今天天气不好"),
        ("good \U0001f600", "good \U0001f621"),
        ("?!", "..."),
        ("C++", "C"),
        ("C#", "C"),
        ("US", "us"),
        ("Really?", "Really."),
        ("好\uff1f", "好\uff01"),
    ],
)
def test_short_different_texts_are_kept(index: SqliteDuplicateIndex, one: str, other: str) -> None:
    index.add("c1", one)
    assert index.find(other) is None


@pytest.mark.parametrize("script", ["latin", "han"])
def test_near_repeats_are_found_and_others_are_not(index: SqliteDuplicateIndex, script: str) -> None:
    rng = random.Random(7)
    parts, glue = (lambda: words(rng, 24), " ") if script == "latin" else (lambda: rng.choices(HAN, k=60), "")
    found = near = wrong = 0
    for i in range(400):
        original = parts()
        changed = list(original)
        for _ in range(1 + i % 4):
            changed[rng.randrange(len(changed))] = parts()[0]
        index.add(f"c{i}", glue.join(original))
        hit = index.find(glue.join(changed))
        is_near = similarity(glue.join(original), glue.join(changed)) >= THRESHOLD
        near += is_near
        found += is_near and hit is not None and hit.id == f"c{i}"
        wrong += not is_near and hit is not None
    assert near > 100
    assert found / near >= 0.97
    assert wrong == 0


def test_the_most_similar_text_is_named(index: SqliteDuplicateIndex) -> None:
    text = "please send the refund for the kettle that i bought in your shop in the old town last week"
    index.add("far", text + " thank you all")
    index.add("near", text + " thx")
    hit = index.find(text)
    assert hit is not None
    assert (hit.id, hit.kind) == ("near", "near")
    assert hit.similarity == pytest.approx(similarity(text, text + " thx"))


def test_an_index_begins_anew(tmp_path: Path) -> None:
    for _ in range(2):
        index = SqliteDuplicateIndex(tmp_path / "d.db", THRESHOLD)
        assert index.find("one text") is None
        index.add("c1", "one text")
        index.close()


def test_a_damaged_cache_file_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "d.db").write_bytes(b"not a database" * 1000)
    index = SqliteDuplicateIndex(tmp_path / "d.db", THRESHOLD)
    index.add("c1", "one text")
    assert index.find("one text") is not None
    index.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="duplicate index"):
        SqliteDuplicateIndex(tmp_path / "file" / "d.db", THRESHOLD)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.85, 0.95, 1.0])
def test_bands_find_98_percent_at_the_threshold(threshold: float) -> None:
    bands, rows = band_shape(threshold)
    assert bands * rows <= 96
    assert 1 - (1 - threshold**rows) ** bands >= (0.98 if threshold > 0.5 else 0.95)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec=None), max_size=40))
def test_any_text_is_found_again(tmp_path: Path, text: str) -> None:
    index = SqliteDuplicateIndex(tmp_path / "d.db", THRESHOLD)
    assert index.find(text) is None
    index.add("c1", text)
    hit = index.find(text)
    assert hit is not None
    assert hit.kind == "exact"
    index.close()


def test_memory_stays_flat(index: SqliteDuplicateIndex) -> None:
    rng = random.Random(1)
    vocabulary = words(rng, 5000)

    def grow(start: int, n: int) -> int:
        for i in range(start, start + n):
            text = " ".join(rng.choices(vocabulary, k=12))
            if index.find(text) is None:
                index.add(f"c{i}", text)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

    before = grow(0, 10_000)
    after = grow(10_000, 40_000)
    assert after - before < 80, "MiB: more than the 64 MiB page cache"
