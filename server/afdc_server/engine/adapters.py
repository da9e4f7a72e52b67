"""Which adapters are live, who uses them, and the checks before one goes live."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from afdc.adapter import WEIGHTS_FILE, AdapterManifest, largest_probe_gap, verify_adapter
from afdc.errors import AdapterError
from afdc_server.engine.backend import AdapterSlot

TINY_MARGIN = 0.05  # probability; below it the order of the two best labels may change with the rounding
MALFORMED = (ValueError, LookupError, OverflowError, TypeError, AttributeError, struct.error)  # of files from outside
EXPONENT_MASKS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}


@dataclass
class LiveAdapter:
    """An active adapter, how many requests use it, and how many engines ended while they took it back."""

    slot: AdapterSlot
    manifest: AdapterManifest
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    draining: bool = False
    deaths: int = 0

    def __post_init__(self) -> None:
        self.idle.set()


class AdapterTable:
    """The adapters of one engine, by name. Numbers are never used twice, and a name stands for one folder's weights."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._live: dict[str, LiveAdapter] = {}
        self._dropped: dict[str, str] = {}
        self._taken = 0
        self._next = 1

    def entries(self) -> list[LiveAdapter]:
        """Adapters that requests may be using, for the engine that replaces a dead one."""
        return list(self._live.values())

    def find(self, name: str) -> LiveAdapter | None:
        return self._live.get(name)

    @contextmanager
    def reserve(self, name: str, folder: Path) -> Iterator[AdapterSlot]:
        """Hold one of the engine's slots while an adapter is loaded and checked.

        Raises:
            AdapterError: all slots are taken.
        """
        if self._taken >= self._limit:
            raise AdapterError(
                f"all {self._limit} adapter slots are taken ({', '.join(self._live)})",
                remedy="Unload one, or raise engine.max_loras",
            )
        self._taken += 1
        self._next += 1
        slot = AdapterSlot(name, self._next - 1, folder)
        try:
            yield slot
        finally:
            if not self._holds(slot):
                self._taken -= 1

    def activate(self, slot: AdapterSlot, manifest: AdapterManifest) -> None:
        self._live[slot.name] = LiveAdapter(slot, manifest)
        self._dropped.pop(slot.name, None)

    @contextmanager
    def use(self, name: str | None) -> Iterator[AdapterSlot | None]:
        """The slot of an active adapter (None: the base model), kept from being unloaded for the length of the block.

        Raises:
            AdapterError: no active adapter has this name.
        """
        if name is None:
            yield None
            return
        entry = self._live.get(name)
        if entry is None or entry.draining:
            raise self._missing(name)
        entry.users += 1
        entry.idle.clear()
        try:
            yield entry.slot
        finally:
            entry.users -= 1
            if entry.users == 0:
                entry.idle.set()

    def confirm(self, slot: AdapterSlot | None) -> None:
        """See that a slot in use still is the engine's: a restart may have dropped its adapter.

        Raises:
            AdapterError: says why it was dropped.
        """
        if slot is not None and not self._holds(slot):
            raise self._missing(slot.name)

    def _holds(self, slot: AdapterSlot) -> bool:
        entry = self._live.get(slot.name)
        return entry is not None and entry.slot == slot

    def _missing(self, name: str) -> AdapterError:
        if name in self._dropped:
            return AdapterError(
                f"adapter {name!r} is no longer served: the engine was restarted and refused it: {self._dropped[name]}",
                remedy="Mend its folder and load it again",
            )
        return AdapterError(f"no adapter {name!r} is loaded", remedy="Load its folder first")

    def drop(self, slot: AdapterSlot, reason: str) -> None:
        """Give up an adapter that a new engine did not take back; requests that name it hear the reason."""
        self._dropped[slot.name] = reason
        self.free(slot)

    async def drain(self, name: str) -> AdapterSlot | None:
        """Refuse new users, wait for the present ones, and return the slot to free. None for unknown names.

        The adapter stays active when the wait is cancelled.
        """
        entry = self._live.get(name)
        if entry is None:
            return None
        entry.draining = True
        try:
            await entry.idle.wait()
        except BaseException:  # whatever ends the wait, a cancellation too, nobody unloads it now
            entry.draining = False
            raise
        return entry.slot if self._holds(entry.slot) else None

    def free(self, slot: AdapterSlot) -> None:
        """Give back the place of an adapter that the engine has let go of."""
        if self._holds(slot):
            del self._live[slot.name]
            self._taken -= 1


def check_files(folder: Path, model: str, revision: str, max_rank: int) -> AdapterManifest:
    """Everything that an adapter's files tell without a tokenizer or an engine; safe in any thread.

    Raises:
        AdapterError: damaged, made for another model, of too high a rank, or with weights not finite.
    """
    try:
        return _check_files(folder, model, revision, max_rank)
    except (*MALFORMED, OSError) as exc:
        raise AdapterError(f"{folder} is damaged: {type(exc).__name__}: {exc}") from exc


def _check_files(folder: Path, model: str, revision: str, max_rank: int) -> AdapterManifest:
    manifest = verify_adapter(folder)
    if manifest.base_revision != revision:
        raise AdapterError(
            f"{folder} was trained on {manifest.base_model} at {manifest.base_revision}, "
            f"and the engine serves {model} at {revision}"
        )
    if manifest.rank > max_rank:
        raise AdapterError(
            f"{folder} has rank {manifest.rank} and the engine takes {max_rank}", remedy="Raise engine.max_lora_rank"
        )
    check_finite(folder / WEIGHTS_FILE)
    return manifest


def check_template(manifest: AdapterManifest, template_hash: str) -> None:
    """Refuse an adapter that was trained on other prompts than those of `template_hash`. Raises AdapterError."""
    if template_hash != manifest.template_hash:
        raise AdapterError(f"adapter {manifest.name} was trained on other prompts than the engine builds (template)")


def check_finite(path: Path) -> None:
    """Refuse weights with NaN or infinity: in each IEEE format these are the values whose exponent bits are all ones.

    Raises:
        AdapterError: names the tensor.
    """
    with path.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8))[0]
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in EXPONENT_MASKS:
            raise AdapterError(f"{path}: tensor {name!r} has the unsupported type {entry['dtype']}")
        kind, mask = EXPONENT_MASKS[entry["dtype"]]
        start, end = entry["data_offsets"]
        bits = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length + start, shape=(end - start,)).view(kind)
        if bool(((bits & mask) == mask).any()):
            raise AdapterError(f"{path}: tensor {name!r} holds NaN or infinity")


def check_probes(manifest: AdapterManifest, served: NDArray[np.float64], tolerance: float) -> None:
    """Compare what the engine serves with what the trainer saw.

    Args:
        manifest: its probes hold the trainer's label log-probs.
        served: float64 [n_probes, n_labels], the engine's.
        tolerance: largest difference in probability, 0..1.

    Raises:
        AdapterError: the adapter does not behave as it did in the trainer, or its probes are malformed.
    """
    try:
        gap = largest_probe_gap(manifest, served.tolist())
    except MALFORMED as exc:
        raise AdapterError(f"adapter {manifest.name} has malformed probes: {exc}") from exc
    if not gap <= tolerance:  # also true for NaN
        raise AdapterError(
            f"adapter {manifest.name} answers its probes differently here than in the trainer: "
            f"probabilities differ by up to {gap:.3g}, and {tolerance:g} is allowed"
        )
    margin = max(TINY_MARGIN, tolerance)  # a difference that is allowed above may also change the order
    for probe, row in zip(manifest.probes, served, strict=True):
        best = int(np.argmax(row))
        expected = np.exp(np.asarray(probe.logprobs))
        if expected.max() - expected[best] > margin:
            raise AdapterError(
                f"adapter {manifest.name} gives the probe {probe.text[:60]!r} another label than in the trainer"
            )
