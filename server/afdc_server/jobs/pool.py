"""Adapters of all jobs in the engine's few slots: loaded when asked for, the one not used for longest makes room.

Who waits for room is served in order: those that keep an adapter busy by turns never keep another one out. Everything
here runs on the engine's loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from afdc.adapter import AdapterManifest, read_manifest
from afdc.errors import AdapterError
from afdc_pipeline.seams import Engine
from afdc_server.engine.tasks import see_through


@dataclass(eq=False)
class Entry:
    """An adapter that jobs may name.

    Attributes:
        folders: where it lies: a job's own, and the published copy that clients ask for.
        manifest: None until it was loaded for the first time.
        users: requests that it must stay loaded for.
        used_at: epoch seconds.
        adding: callers that are about to add it; without any, one that was never loaded is forgotten.
        in_doubt: a request met an error over its adapter: an engine that was restarted may have dropped it.
        source: the folder that the engine has it from; None: one of them, or it is not loaded.
        draining: callers that take it out of the engine: nobody begins to use it meanwhile.
        idle: set while it has no users.
    """

    name: str
    folders: list[Path]
    manifest: AdapterManifest | None = None
    loaded: bool = False
    users: int = 0
    used_at: float = 0.0
    adding: int = 0
    in_doubt: bool = False
    source: Path | None = None
    draining: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()


@dataclass(eq=False)
class _Waiter:
    entries: Sequence[Entry]
    turn: asyncio.Future[None]


class AdapterPool:
    """Names and folders of any number of adapters over an engine with `slots` places."""

    def __init__(self, engine: Engine, slots: int) -> None:
        self.slots = slots
        self._engine = engine
        self._entries: dict[str, Entry] = {}
        self._leaving: list[Entry] = []  # removed by name, and still in the engine or in use
        self._waiting: deque[_Waiter] = deque()
        self._changing = asyncio.Lock()  # held while the engine loads or unloads

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
        entry = self._entries.setdefault(name, Entry(name, [folder]))
        if folder not in entry.folders:
            if not any(_same_files(known, folder) for known in entry.folders):
                raise AdapterError(f"another adapter is known under the name {name}")
            entry.folders.append(folder)
        entry.adding += 1
        try:
            async with self._use([entry]):
                assert entry.manifest is not None  # noqa: S101 - `_use` has loaded it
                return entry.manifest
        finally:
            entry.adding -= 1
            if entry.manifest is None and not entry.adding and self._entries.get(name) is entry:
                self._dismiss(entry)

    async def remove(self, name: str, folder: Path | None = None) -> None:
        """Forget an adapter once its requests are done. Unknown names are ignored.

        Where the wait is cancelled, its place is free for the next one all the same.

        Args:
            folder: forget this one alone: whoever has added the adapter from another one keeps it.
        """
        entry = self._entries.get(name)
        if entry is None or (folder is not None and folder not in entry.folders):
            return
        if folder is not None and len(entry.folders) > 1:
            entry.folders.remove(folder)
            if entry.loaded and entry.source in (None, folder):
                await self._drain(entry)  # the engine may read the folder again; the next use loads from another
            return
        self._dismiss(entry)
        await entry.idle.wait()
        async with self._changing:
            await self._take_out(entry)

    async def unload(self, name: str) -> bool:
        """Take an adapter out of the engine once its requests are done; its name stays known, and brings it back.

        Returns whether it was there.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.loaded:
            return False
        await self._drain(entry)
        return True

    async def _drain(self, entry: Entry) -> None:
        """Take it out of the engine once its requests are done. Later ones wait, and load it again."""
        entry.draining += 1
        try:
            while entry.loaded:
                await entry.idle.wait()
                async with self._changing:
                    if not entry.users:
                        await self._take_out(entry)
        finally:
            entry.draining -= 1
            self._let_in()

    @asynccontextmanager
    async def hold(self, names: Iterable[str | None]) -> AsyncIterator[None]:
        """Keep adapters loaded for the length of the block. Takes all or none: two holders never wait for each other.

        Raises:
            AdapterError: an unknown name, one that cannot be loaded, or more of them than there are slots.
        """
        wanted = sorted({name for name in names if name is not None})
        if len(wanted) > self.slots:
            raise AdapterError(f"{len(wanted)} adapters at once, and the engine has {self.slots} slots")
        async with self._use([self._entry(name) for name in wanted]):
            yield

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None:
            raise AdapterError(f"no adapter {name!r} is loaded", remedy="Load it first: POST /v1/engine/adapters")
        return entry

    @asynccontextmanager
    async def _use(self, entries: Sequence[Entry]) -> AsyncIterator[None]:
        await self._admit(entries)
        try:
            for entry in entries:
                if not entry.loaded or entry.in_doubt:
                    await self._load(entry)
            with _doubting(entries):
                yield
        finally:
            self._release(entries)

    async def _admit(self, entries: Sequence[Entry]) -> None:
        """Wait until all can be in, behind those that came before. What needs no slot waits for nothing."""
        if not entries:
            return
        if not self._waiting and self._fits(entries):
            self._take(entries)
            return
        waiter = _Waiter(entries, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._release(entries)  # it was let in at the same moment
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self._fits(self._waiting[0].entries):
            waiter = self._waiting.popleft()
            if not waiter.turn.done():
                self._take(waiter.entries)
                waiter.turn.set_result(None)

    def _dismiss(self, entry: Entry) -> None:
        """Nobody begins to use it or to wait for it, and who waits already is told."""
        del self._entries[entry.name]
        if entry.users or entry.loaded:
            self._leaving.append(entry)
        for waiter in [one for one in self._waiting if entry in one.entries]:
            self._waiting.remove(waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(AdapterError(f"adapter {entry.name!r} was removed"))
        self._let_in()

    def _fits(self, entries: Sequence[Entry]) -> bool:
        """Whether all of them can be in, with what is in use."""
        if any(entry.draining for entry in entries):
            return False
        busy = {entry for entry in (*self._entries.values(), *self._leaving) if entry.users}
        namesakes = {entry.name for entry in self._leaving if entry.users}
        return len(busy | set(entries)) <= self.slots and namesakes.isdisjoint(entry.name for entry in entries)

    def _take(self, entries: Sequence[Entry]) -> None:
        """Before loading: what is on its way in makes room for no other."""
        for entry in entries:
            entry.users += 1
            entry.used_at = time.time()
            entry.idle.clear()

    def _release(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            entry.users -= 1
            entry.used_at = time.time()
            if not entry.users:
                entry.idle.set()
                self._forget_gone(entry)
        self._let_in()

    def _forget_gone(self, entry: Entry) -> None:
        if entry in self._leaving and not entry.users and not entry.loaded:
            self._leaving.remove(entry)

    async def _load(self, entry: Entry) -> None:
        async with self._changing:
            if entry.loaded and not entry.in_doubt:
                return
            if not entry.loaded:
                await self._make_room(entry)
            try:
                entry.manifest, source = await self._load_from(entry.folders)
            except AdapterError:
                entry.loaded = False
                raise
            entry.source = None if entry.loaded else source  # of a live adapter the engine has done nothing
            entry.loaded, entry.in_doubt = True, False

    async def _load_from(self, folders: Sequence[Path]) -> tuple[AdapterManifest, Path]:
        """From the first folder that the engine takes: one copy may be damaged. Of a live adapter nothing is done."""
        for folder in folders[:-1]:
            with suppress(AdapterError):
                return await self._engine.load_adapter(folder), folder
        return await self._engine.load_adapter(folders[-1]), folders[-1]

    async def _make_room(self, entry: Entry) -> None:
        """Take out what is leaving under the same name, then as many idle ones as have to go."""
        for namesake in [one for one in self._leaving if one.name == entry.name]:
            await self._take_out(namesake)
        while len(loaded := [one for one in (*self._leaving, *self._entries.values()) if one.loaded]) >= self.slots:
            idle = (one for one in loaded if not one.users)
            await self._take_out(min(idle, key=lambda one: (one not in self._leaving, one.used_at)))

    async def _take_out(self, entry: Entry) -> None:
        """Unload it. Whoever asks for it from now on waits for `_changing` and loads it again."""
        was_loaded, entry.loaded = entry.loaded, False
        self._forget_gone(entry)
        if was_loaded:
            await see_through(self._engine.unload_adapter(entry.name))


def _same_files(known: Path, other: Path) -> bool:
    """Whether two folders hold the same adapter, as their manifests list it. What is loaded is verified besides."""
    try:
        return read_manifest(known).files == read_manifest(other).files
    except AdapterError:
        return False


@contextmanager
def _doubting(entries: Sequence[Entry]) -> Iterator[None]:
    """After an error over an adapter the next one to use it sees first that the engine has it."""
    try:
        yield
    except AdapterError:
        for entry in entries:
            entry.in_doubt = True
        raise
