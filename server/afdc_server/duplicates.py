"""Texts seen so far, on disk, and whether a new one repeats one of them.

Exact repeats agree in NFC form up to white space; letter case and punctuation count ("C#" is not "C"). Near repeats are
judged without case and punctuation, and only where a text is long enough to tell. They are found by MinHash signatures
cut into LSH bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3) and confirmed by
the exact Jaccard similarity of their character shingles, so a false alarm of the signatures costs time and no text.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import sys
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afdc.errors import StorageError
from afdc_pipeline.seams import DuplicateHit

UintArray = NDArray[np.uint64]

CACHE_KIB = 64 * 1024
COMMIT_EVERY = 20_000
MAX_BANDS = 12
MAX_ROWS = 8
MAX_CANDIDATES = 64
RECALL = 0.98
MISSES = 1e-9  # keeps the logarithm finite at a threshold of 1
LONG, SHORT = 4, 2
MIN_NEAR_WIDTH = 12  # Chinese, Japanese and Korean characters count twice: "yes" and "Yes!" may be two answers
CJK_RANGES = ((0x2E80, 0xA000), (0xAC00, 0xD7B0), (0xF900, 0xFB00), (0x20000, 0x40000))
SCHEMA = """
CREATE TABLE texts (n INTEGER PRIMARY KEY, id TEXT NOT NULL, form TEXT NOT NULL);
CREATE TABLE exact (key INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (key, n)) WITHOUT ROWID;
CREATE TABLE bands (key INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (key, n)) WITHOUT ROWID;
"""
SETTINGS = f"""
PRAGMA page_size = 8192; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{CACHE_KIB}; PRAGMA temp_store = MEMORY;
"""
PUNCTUATION = {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "P"}


class SqliteDuplicateIndex:
    """A DuplicateIndex in one SQLite file. The file is a cache: it is begun anew each time and needs no durability.

    Memory is bounded by the page cache (64 MiB). One caller at a time, from any thread.

    Args:
        path: of the cache file; what is there is deleted.
        threshold: Jaccard similarity of shingle sets, 0..1, at which two texts count as one. Recall at the threshold
            is about 98 % and rises quickly above it; below about 0.5 it falls, because the number of bands is bounded.

    Raises:
        StorageError: the file cannot be written.
    """

    def __init__(self, path: Path, threshold: float) -> None:
        self._path = path
        self._threshold = threshold
        self._bands, self._rows = band_shape(threshold)
        self._hashes = _hash_family(self._bands * self._rows)
        self._last: tuple[str, str, UintArray] = ("", "", np.empty(0, np.uint64))
        self._count = 0
        self._question = f"SELECT n FROM bands WHERE key IN ({', '.join('?' * self._bands)}) " + (
            "GROUP BY n ORDER BY count(*) DESC, n LIMIT ?"
        )
        try:
            for name in (path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))):
                name.unlink(missing_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.executescript(SETTINGS + SCHEMA)
            self._db.execute("BEGIN")
        except (OSError, sqlite3.Error) as exc:
            raise self._failure(exc) from exc

    def find(self, text: str) -> DuplicateHit | None:
        """The earlier text that `text` repeats: an exact one, or else the most similar near one."""
        form, shingles = self._prepare(text)
        try:
            return self._find_exact(form) or (self._find_near(shingles) if len(shingles) else None)
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def add(self, id: str, text: str) -> None:
        """Remember a text under its id."""
        form, shingles = self._prepare(text)
        n = self._count = self._count + 1
        keys = self._band_keys(shingles) if len(shingles) else []
        try:
            self._db.execute("INSERT INTO texts VALUES (?, ?, ?)", (n, id, form))
            self._db.execute("INSERT INTO exact VALUES (?, ?)", (_form_key(form), n))
            self._db.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(key, n) for key in keys])
            if n % COMMIT_EVERY == 0:
                self._db.execute("COMMIT")
                self._db.execute("BEGIN")
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def close(self) -> None:
        """Release the file; it stays until the next index is made there."""
        self._db.close()

    def _prepare(self, text: str) -> tuple[str, UintArray]:
        """Exact form, and the shingles of a text that can have near repeats; `add` after `find` does not repeat it."""
        if self._last[0] != text or not self._last[1]:
            self._last = (text, exact_form(text), _near_shingles(text))
        return self._last[1], self._last[2]

    def _find_exact(self, form: str) -> DuplicateHit | None:
        query = "SELECT id FROM exact JOIN texts USING (n) WHERE key = ? AND form = ? ORDER BY n LIMIT 1"
        row = self._db.execute(query, (_form_key(form), form)).fetchone()
        return DuplicateHit(row[0], "exact", 1.0) if row else None

    def _find_near(self, shingles: UintArray) -> DuplicateHit | None:
        rows = self._db.execute(self._question, (*self._band_keys(shingles), MAX_CANDIDATES)).fetchall()
        best: tuple[float, int] = (self._threshold, 0)
        mine = set(shingles.tolist())
        for (n,) in rows:
            (form,) = self._db.execute("SELECT form FROM texts WHERE n = ?", (n,)).fetchone()
            similarity = jaccard(mine, set(_near_shingles(form).tolist()))
            if similarity > best[0] or (similarity == best[0] and best[1] == 0):
                best = (similarity, n)
        if not best[1]:
            return None
        (id,) = self._db.execute("SELECT id FROM texts WHERE n = ?", (best[1],)).fetchone()
        return DuplicateHit(id, "near", best[0])

    def _band_keys(self, shingles: UintArray) -> list[int]:
        """One signed 64-bit key a band: a hash of the band's MinHash values and its number."""
        multipliers, offsets = self._hashes
        signature = (shingles[:, None] * multipliers + offsets).min(axis=0).reshape(self._bands, self._rows)
        keys = _mix((signature * WEIGHTS[: self._rows]).sum(axis=1) + np.arange(self._bands, dtype=np.uint64))
        return keys.view(np.int64).tolist()  # type: ignore[no-any-return]  # numpy types tolist() of any shape as Any

    def _failure(self, exc: Exception) -> StorageError:
        return StorageError(
            f"the duplicate index {self._path} cannot be used: {exc}",
            remedy="Free space, then run the same command again: the index is rebuilt",
        )


def exact_form(text: str) -> str:
    """NFC text in which white space is single spaces."""
    return " ".join(unicodedata.normalize("NFC", _storable(text)).split())


def normal_form(text: str) -> str:
    """Casefolded NFKC text in which punctuation and white space are single spaces. Text of nothing else stays."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _storable(text)).casefold())
    return " ".join(folded.translate(PUNCTUATION).split()) or folded


def shingle_hashes(form: str) -> UintArray:
    """64-bit hashes [n] of the distinct shingles, one at each character but the last few.

    A shingle has two characters where it begins with a Chinese, Japanese or Korean one, and four elsewhere. A shorter
    text is one shingle.
    """
    codes = _codes(form)
    cjk = _is_cjk(codes)
    n = max(len(codes) - (SHORT if cjk[-LONG:].any() else LONG) + 1, 1)
    padded = np.zeros(n + LONG - 1, np.uint64)
    padded[: len(codes)] = codes[: len(padded)]
    head = padded[:n] * WEIGHTS[0] + padded[1 : n + 1] * WEIGHTS[1]
    tail = padded[2 : n + 2] * WEIGHTS[2] + padded[3 : n + 3] * WEIGHTS[3]
    tail[np.flatnonzero(cjk[:n])] = 0
    return np.unique(_mix(head + tail))


def jaccard(one: set[int], other: set[int]) -> float:
    """|A and B| / |A or B|; 1 for two empty sets."""
    both = len(one & other)
    return both / (len(one) + len(other) - both) if one or other else 1.0


def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, rows a band): the most rows, hence the fewest false alarms, that find 98 % of pairs at the threshold."""
    for rows in range(MAX_ROWS, 1, -1):
        bands = math.ceil(math.log(1 - RECALL) / math.log(1 - threshold**rows + MISSES))
        if bands <= MAX_BANDS:
            return bands, rows
    return MAX_BANDS, 2


def _near_shingles(text: str) -> UintArray:
    """Shingles of the normal form; none where it is too short for a near repeat."""
    form = normal_form(text)
    width = len(form) + int(_is_cjk(_codes(form)).sum()) if len(form) < MIN_NEAR_WIDTH else len(form)
    return shingle_hashes(form) if width >= MIN_NEAR_WIDTH else np.empty(0, np.uint64)


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair cannot be stored


def _codes(form: str) -> UintArray:
    return np.frombuffer(form.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)


def _is_cjk(codes: UintArray) -> NDArray[np.bool_]:
    inside = np.zeros(len(codes), np.bool_)
    if len(codes) and codes.max() >= CJK_RANGES[0][0]:
        for first, end in CJK_RANGES:
            inside |= (codes >= first) & (codes < end)
    return inside


def _mix(values: UintArray) -> UintArray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_family(size: int) -> tuple[UintArray, UintArray]:
    """Odd multipliers and offsets of `size` functions x -> a x + b mod 2**64, the same in every run."""
    stream = _mix(np.arange(2 * size, dtype=np.uint64))
    return stream[:size] | np.uint64(1), stream[size:]


def _form_key(form: str) -> int:
    digest = hashlib.blake2b(form.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


WEIGHTS = _mix(np.arange(MAX_ROWS, dtype=np.uint64)) | np.uint64(1)
