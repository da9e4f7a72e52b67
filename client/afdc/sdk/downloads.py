"""Files from the server: resumed after a cut, checked against their hash, and in place only when they are whole."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from afdc.errors import AfdcError
from afdc.files import check_target, user_path
from afdc.sdk.core import Call, Raw, check_status, file_route, get, no_body
from afdc.sdk.exceptions import ApiError, DownloadError, ReplyError, UnreachableError
from afdc.sdk.parts import Part, inside, is_there
from afdc.sdk.sending import Answer, Sender
from afdc.wire.datasets import StoredFile

SHA256 = re.compile(r"[0-9a-f]{64}")
RANGE_NOT_SATISFIABLE = 416
EXPORT_PATIENCE_S = 600.0


async def download_folder(
    sender: Sender, base: str, files: Iterable[StoredFile], folder: str | Path, include: str = "*"
) -> Path:
    """Download the files whose path matches the shell pattern `include` into `folder`; those that are there stay.

    Raises:
        DownloadError: a path that leaves the folder, or a file that is not the one that was listed.
        StorageError: the disk cannot be written.
    """
    root = user_path(folder)
    wanted = [(file, inside(root, file.path)) for file in files if fnmatchcase(file.path, include)]
    for file, target in wanted:
        await download_file(sender, file_route(base, file.path), file, target)
    return root


async def download_file(sender: Sender, path: str, file: StoredFile, target: Path) -> None:
    """Download one file. What an earlier call left in `.part` is used; if the whole is wrong then, it is fetched anew.

    Raises:
        DownloadError: what arrived is not what was listed; nothing of it is kept.
    """
    if not SHA256.fullmatch(file.sha256):
        raise DownloadError(f"the server lists {file.path!r} without a SHA-256")
    if await sender.offload(partial(is_there, target, file.bytes, file.sha256)):
        return
    await sender.offload(partial(check_target, target))
    part = Part(target)
    had_before = await sender.offload(part.size) > 0
    is_right = await _fill_rightly(sender, path, file, part)
    if not is_right and had_before:
        is_right = await _fill_rightly(sender, path, file, part)
    if not is_right:
        raise DownloadError(f"{target}: what arrived has another SHA-256 than the server lists", remedy="Try again")
    await sender.offload(part.publish)


async def _fill_rightly(sender: Sender, path: str, file: StoredFile, part: Part) -> bool:
    """Whether the filled part is the file; if not, it is dropped."""
    await _fill(sender, path, file, part)
    is_right = await sender.offload(partial(part.has, file.sha256))
    if not is_right:
        await sender.offload(part.drop)
    return is_right


async def _fill(sender: Sender, path: str, file: StoredFile, part: Part) -> None:
    """Fetch until the part is as long as the file. Attempts that bring bytes cost nothing."""
    failures = 0
    while not await sender.offload(partial(part.is_full, file.bytes)):
        have = await sender.offload(part.size)
        offset = have if have < file.bytes else 0
        error = await _attempt(sender, path, file, part, offset)
        if error is None:
            continue
        failures = 1 if await sender.offload(part.size) > offset else failures + 1
        await _pause(sender, error, failures)


async def _attempt(sender: Sender, path: str, file: StoredFile, part: Part, offset: int) -> AfdcError | None:
    """Fetch once; what went wrong, if another attempt can help."""
    try:
        await _fetch(sender, _range_call(path, offset, file.sha256), part, offset, file.bytes)
    except (UnreachableError, ApiError) as exc:
        return await _retryable(sender, exc, part)
    if await sender.offload(partial(part.is_full, file.bytes)):
        return None
    return UnreachableError(f"{file.path}: the server sent less than the file")


async def _retryable(sender: Sender, error: AfdcError, part: Part) -> AfdcError:
    """The error, if another attempt can help; a part that the server cannot continue is dropped."""
    if isinstance(error, ApiError) and error.status == RANGE_NOT_SATISFIABLE:
        await sender.offload(part.drop)
        return error
    if isinstance(error, ApiError) and not error.retryable:
        raise error
    return error


async def _pause(sender: Sender, error: AfdcError, failures: int) -> None:
    delay = sender.retry.delay(error, failures)
    if delay is None:
        raise error
    await sender.sleep(delay)


def _range_call(path: str, offset: int, sha256: str) -> Call[None]:
    """A GET of what is missing: if the file is another one by now, the server sends all of it."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": f'"{sha256}"'}
    return get(no_body, path, headers=headers)


async def _fetch(
    sender: Sender, call: Call[None], part: Part, offset: int, size: int | None, *, attached: bool = False
) -> str | None:
    """One request into the part. Returns the ETag without quotes.

    Args:
        attached: the server names the file (RFC 6266); an answer without a name is of somebody else.

    Raises:
        ReplyError: an answer that is no file of an AFDC server.
        DownloadError: more bytes than the file has.
    """
    async with sender.open(call) as answer:
        at = await _start(answer, sender, offset)
        if attached and "content-disposition" not in answer.headers:
            remedy = "Check that the address is that of an AFDC server"
            raise ReplyError("the server's answer is no exported file", remedy=remedy)
        await sender.offload(partial(part.begin, at))
        try:
            async for piece in answer.pieces():
                at += len(piece)
                if size is not None and at > size:
                    await sender.offload(part.drop)
                    raise DownloadError(f"{part.target}: the server sends more than the {size:,} bytes that it listed")
                await sender.offload(partial(part.write, piece))
        finally:
            await sender.offload(part.end)
        return answer.headers.get("etag", "").strip('"') or None


async def _start(answer: Answer, sender: Sender, offset: int) -> int:
    """Where in the file the body begins."""
    if answer.status == 200:
        return 0
    if answer.status != 206:
        check_status(Raw(answer.status, answer.headers, await answer.read()), sender.clock.utc())
    found = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
    if answer.status != 206 or found is None or int(found[1]) != offset:
        raise ReplyError(f"the server answered a request for bytes from {offset} with status {answer.status} of others")
    return offset


async def download_export(sender: Sender, call: Call[None], path: str | Path) -> Path:
    """Download what the server makes on request; after a cut it begins anew. Checked where the ETag is a SHA-256.

    Raises:
        DownloadError: it is not what the ETag says.
        StorageError: the disk cannot be written.
    """
    target = user_path(path)
    await sender.offload(partial(check_target, target))
    part = Part(target)
    etag, failures = None, 0
    while True:
        try:
            etag = await _fetch(sender, call, part, 0, None, attached=True)
            break
        except (UnreachableError, ApiError) as exc:
            failures += 1
            try:
                await _pause(sender, await _retryable(sender, exc, part), failures)
            except AfdcError:
                await sender.offload(part.drop)  # the next one begins anew
                raise
    if etag and SHA256.fullmatch(etag) and not await sender.offload(partial(part.has, etag)):
        await sender.offload(part.drop)
        raise DownloadError(f"{target}: what arrived has another SHA-256 than the server says", remedy="Try again")
    await sender.offload(part.publish)
    return target
