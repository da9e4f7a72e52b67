"""Adapters of all jobs in the engine's few slots: loaded when asked for, the one not used for longest makes room.

Everything here runs on the engine's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from afdc.adapter import AdapterManifest
from afdc.errors import AdapterError
from afdc_pipeline.seams import Engine


@dataclass
class Entry:
    """An adapter that jobs may name. `users`: requests that it must stay loaded for. `used_at`: epoch seconds."""

    folder: Path
    manifest: AdapterManifest | None = None
    loaded: bool = False
    users: int = 0
    used_at: float = 0.0


class AdapterPool:
    """Names and folders of any number of adapters over an engine with `slots` places."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self.slots = slots
        self._engine = engine
        self._entries: dict[str, Entry] = {}
        self._changed = asyncio.Condition()

    def entries(self) -> dict[str, Entry]:
        """Every adapter that is known, by name."""
        return dict(self._entries)

    async def add(self, folder: Path, name: str = "") -> AdapterManifest:
        """Verify, load and probe an adapter; from then on its name can be used, loaded or not.

        Args:
            name: the adapter's own, where its folder has another one.

        Raises:
            AdapterError: it failed; another one of this name, if there is any, is untouched.
        """
        name = name or folder.name
        known = self._entries.get(name)
        if known is None:
            self._entries[name] = Entry(folder)
        elif known.folder != folder:
            raise AdapterError(f"another adapter is known under the name {name}")
        try:
            async with self.hold([name]):
                manifest = self._entries[name].manifest
        except BaseException:
            if known is None:
                self._entries.pop(name, None)
            raise
        assert manifest is not None  # noqa: S101 - `hold` has loaded it
        return manifest

    async def remove(self, name: str) -> None:
        """Forget an adapter once its requests are done. Unknown names are ignored."""
        entry = self._entries.pop(name, None)
        if entry is not None and entry.loaded:
            await self._engine.unload_adapter(name)
            entry.loaded = False
            async with self._changed:
                self._changed.notify_all()

    @asynccontextmanager
    async def hold(self, names: Iterable[str | None]) -> AsyncIterator[None]:
        """Keep adapters loaded for the length of the block. Takes all or none: two holders never wait for each other.

        Raises:
            AdapterError: an unknown name, one that cannot be loaded, or more of them than there are slots.
        """
        wanted = {name for name in names if name is not None}
        if len(wanted) > self.slots:
            raise AdapterError(f"{len(wanted)} adapters at once, and the engine has {self.slots} slots")
        async with self._changed:
            while not self._fits(wanted):
                await self._changed.wait()
            for name in sorted(wanted):
                self._entry(name).users += 1  # before loading: one that is on its way in makes room for no other
            try:
                for name in sorted(wanted):
                    await self._load(name)
            except BaseException:
                self._release(wanted)
                self._changed.notify_all()
                raise
        try:
            yield
        finally:
            self._release(wanted)
            async with self._changed:
                self._changed.notify_all()

    def _fits(self, wanted: set[str]) -> bool:
        """Whether all wanted ones can be in, with what is in use."""
        busy = {name for name, entry in self._entries.items() if entry.users}
        for name in wanted:
            self._entry(name)
        return len(busy | wanted) <= self.slots

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise AdapterError(f"no adapter {name!r} is loaded", remedy="Load its folder first")
        return entry

    async def _load(self, name: str) -> None:
        entry = self._entry(name)
        entry.used_at = time.time()
        if entry.loaded:
            return
        await self._make_room()
        entry.manifest = await self._engine.load_adapter(entry.folder)
        entry.loaded = True

    async def _make_room(self) -> None:
        loaded = [(entry.used_at, name) for name, entry in self._entries.items() if entry.loaded]
        while len(loaded) >= self.slots:
            oldest = min(pair for pair in loaded if not self._entries[pair[1]].users)
            loaded.remove(oldest)
            await self._engine.unload_adapter(oldest[1])
            self._entries[oldest[1]].loaded = False

    def _release(self, names: set[str]) -> None:
        for name in names:
            if name in self._entries:
                self._entries[name].users -= 1
