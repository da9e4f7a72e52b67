"""One method, two faces: blocking on `Client`, awaitable on `AsyncClient`.

A resource is `Face[S]`. A method marked `@operation` is a coroutine, and one marked `@feed` gives an asynchronous
generator. Looked up on a `Face[SyncSender]` they are an ordinary function and an iterator; on a `Face[AsyncSender]`
they are what they were written as. Inside a method only `self._sender` and plain coroutines are used, since the face of
another marked method depends on the sender.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from functools import update_wrapper, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from afdc.sdk.sending import AsyncSender, Sender, SyncSender

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Sender)


class Face(Generic[S]):
    """Something with marked methods."""

    def __init__(self, sender: S) -> None:
        self._sender = sender


class operation(Generic[P, T]):
    """Marks a coroutine method."""

    def __init__(self, method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self._method = method
        update_wrapper(self, method)  # type: ignore[arg-type]  # a descriptor that looks like the method in help()

    @overload
    def __get__(self, face: None, owner: type) -> Self: ...

    @overload
    def __get__(self, face: Face[SyncSender], owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, face: Face[AsyncSender], owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, face: Any, owner: type) -> Any:
        if face is None:
            return self
        bound = self._method.__get__(face, owner)
        if isinstance(face._sender, AsyncSender):
            return bound

        @wraps(bound)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> T:
            return cast(T, drive(bound(*args, **kwargs)))

        return blocking


class feed(Generic[P, T]):
    """Marks a method that gives an asynchronous generator."""

    def __init__(self, method: Callable[Concatenate[Any, P], AsyncIterator[T]]) -> None:
        self._method = method
        update_wrapper(self, method)  # type: ignore[arg-type]  # a descriptor that looks like the method in help()

    @overload
    def __get__(self, face: None, owner: type) -> Self: ...

    @overload
    def __get__(self, face: Face[SyncSender], owner: type) -> Callable[P, Iterator[T]]: ...

    @overload
    def __get__(self, face: Face[AsyncSender], owner: type) -> Callable[P, AsyncIterator[T]]: ...

    def __get__(self, face: Any, owner: type) -> Any:
        if face is None:
            return self
        bound = self._method.__get__(face, owner)
        if isinstance(face._sender, AsyncSender):
            return bound

        @wraps(bound)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            return drain(cast(AsyncGenerator[T, None], bound(*args, **kwargs)))

        return blocking


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits.

    Raises:
        RuntimeError: it waited for an event loop.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise RuntimeError("a blocking operation waited for an event loop")


def drain(source: AsyncGenerator[T, None]) -> Iterator[T]:
    """The items of an asynchronous generator that never waits. Leaving the loop early closes it."""
    try:
        while True:
            try:
                item = drive(source.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        drive(source.aclose())
