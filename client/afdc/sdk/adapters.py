"""`client.adapters`: the LoRA adapters that jobs have made."""

from __future__ import annotations

from pathlib import Path

from afdc.sdk.core import get, reply_as, route
from afdc.sdk.downloads import download_folder
from afdc.sdk.faces import Face, S, operation
from afdc.sdk.render import adapter_html
from afdc.sdk.sending import Sender, send
from afdc.wire.models import Adapter


class Adapters(Face[S]):
    """LoRA adapters in the layout of PEFT, with a manifest."""

    @operation
    async def get(self, id: str) -> AdapterHandle[S]:
        """One adapter."""
        return AdapterHandle(self._sender, await read_adapter(self._sender, id))

    @operation
    async def download(self, id: str, folder: str | Path, *, include: str = "*") -> Path:
        """Download the adapter folder; returns it. Called again, it goes on where it was cut off.

        Args:
            include: shell pattern of the paths that are wanted.

        Raises:
            DownloadError: a file whose SHA-256 is not the listed one, or whose path leaves the folder.
            StorageError: the disk cannot be written.
        """
        return await download_adapter(self._sender, await read_adapter(self._sender, id), folder, include)


class AdapterHandle(Face[S]):
    """One adapter: `adapter` is what the server says of it."""

    def __init__(self, sender: S, adapter: Adapter) -> None:
        super().__init__(sender)
        self.adapter = adapter

    @property
    def id(self) -> str:
        return self.adapter.id

    @operation
    async def download(self, folder: str | Path, *, include: str = "*") -> Path:
        """As `Adapters.download`."""
        return await download_adapter(self._sender, self.adapter, folder, include)

    def __repr__(self) -> str:
        return f"<AdapterHandle {self.id}: {self.adapter.name}>"

    def _repr_html_(self) -> str:
        return adapter_html(self.adapter)


async def read_adapter(sender: Sender, id: str) -> Adapter:
    """`GET /adapters/{id}`."""
    return await send(sender, get(reply_as(Adapter), route("adapters", id)))


async def download_adapter(sender: Sender, adapter: Adapter, folder: str | Path, include: str = "*") -> Path:
    """Download its files."""
    return await download_folder(sender, route("adapters", adapter.id), adapter.files, folder, include)
