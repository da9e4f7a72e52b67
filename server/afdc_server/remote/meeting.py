"""Getting to know the server before it gets any work: is it there, and is its model the wanted one?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afdc.errors import EngineDiedError, EngineError, ModelError
from afdc_server.engine.tasks import all_or_none
from afdc_server.models import HUB_ID
from afdc_server.remote.http import HttpClient, Reply
from afdc_server.remote.replies import ModelCard, ModelList, TokenizeReply, VersionReply, parse
from afdc_server.remote.server import API_KEY_VARIABLE

UNAUTHORISED = (401, 403)
KEY_REMEDY = f"Set {API_KEY_VARIABLE} to the key that the server was started with"
SAMPLE = "Grüße, it's 12:30 - naïve café?\n\tx = {'y': [1, 2.5]}; 你好"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The base model that the server should have.

    Attributes:
        name: as the user names it; path: its folder here.
        served_name: its name there; "" looks for `name` and `path`.
        sample_ids: ids of SAMPLE with the tokenizer that is used here, nothing added.
    """

    name: str
    path: Path
    served_name: str
    sample_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What the server says of itself. `model`: what requests call its base model. `max_model_len`: tokens."""

    model: str
    max_model_len: int | None
    version: str


async def meet(client: HttpClient, url: str, wanted: Wanted) -> ServerFacts:
    """Ask the server who it is.

    Raises:
        EngineDiedError: it is away, or not ready yet.
        EngineError: it wants another key, or is no vLLM. ModelError: it does not serve the wanted model.
    """
    paths = "/health", "/v1/models", "/version"
    health, listed, version = await all_or_none(client.ask(path) for path in paths)
    _expect(health, url, "/health", missing_is_fine=True)
    cards = parse(ModelList, _expect(listed, url, "/v1/models").content, f"{url}/v1/models").data
    card = pick_card(cards, wanted, url)
    known = _expect(version, url, "/version", missing_is_fine=True).status == 200
    return ServerFacts(
        card.id,
        card.max_model_len,
        parse(VersionReply, version.content, f"{url}/version").version if known else "of unknown version",
    )


def _expect(reply: Reply, url: str, path: str, *, missing_is_fine: bool = False) -> Reply:
    """The reply, when it is a good one. A gateway may not have every path of vLLM."""
    if reply.status == 200 or (missing_is_fine and reply.status in (404, 405)):
        return reply
    if reply.status in UNAUTHORISED:
        raise EngineError(f"{url} refuses our key: {reply.message}", remedy=KEY_REMEDY)
    if reply.status >= 500 or reply.status in (408, 429):
        raise EngineDiedError(f"{url}{path} answers {reply.status}: {reply.message}")
    raise EngineError(
        f"{url}{path} answers {reply.status}: {reply.message}", remedy="Is it the root of a `vllm serve`?"
    )


def pick_card(cards: Sequence[ModelCard], wanted: Wanted, url: str) -> ModelCard:
    """The entry of the wanted base model.

    Raises:
        ModelError: it is not among them.
    """
    bases = [card for card in cards if not card.parent]
    for card in bases:
        if card.id == wanted.served_name or (not wanted.served_name and _is_same(card, wanted)):
            return card
    names = ", ".join(f"{card.id} ({card.root})" if card.root != card.id else card.id for card in bases) or "no model"
    raise ModelError(
        f"{url} serves {names}, and not {wanted.served_name or wanted.name}",
        remedy="Name the model that it serves; where it only goes by another name there, name that one, too",
    )


def _is_same(card: ModelCard, wanted: Wanted) -> bool:
    """By id or by what was loaded: the hub id (a pinned revision aside), the folder, or a folder of its name."""
    named = {wanted.name.partition("@")[0] if HUB_ID.match(wanted.name) else wanted.name, str(wanted.path)}
    served = {card.id, card.root or card.id}
    return bool(named & served) or any(Path(one).is_absolute() and Path(one).name == wanted.path.name for one in served)


async def check_tokenizer(client: HttpClient, url: str, model: str, wanted: Wanted) -> None:
    """Token ids go over the wire: both sides must mean the same by them.

    Raises:
        ModelError: they do not.
    """
    body = {"model": model, "prompt": SAMPLE, "add_special_tokens": False}
    reply = _expect(await client.ask("/tokenize", body), url, "/tokenize", missing_is_fine=True)
    if reply.status == 200 and parse(TokenizeReply, reply.content, f"{url}/tokenize").tokens != wanted.sample_ids:
        raise ModelError(
            f"{url} tokenises text otherwise than {wanted.path}: its model {model} is another one",
            remedy="Use the model folder or hub id that the server was started with",
        )
