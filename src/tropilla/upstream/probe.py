"""What kind of server is this, and can it serve? Asked cheaply, without generating a token.

A probe reads a few documents and believes none of them: a server is whatever answered. What a
server says of its build is taken; of one that says nothing, the oldest build is assumed that
fits what it shows. Where only a refusal tells what a server can do, it is asked something that
it must refuse.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import msgspec

from tropilla.dialects import _problems, afs
from tropilla.ir import (
    Json,
    JsonObject,
    Problem,
    ProblemError,
    Tokenizer,
    Traits,
    UpstreamDialect,
)
from tropilla.upstream.http import Link

Asked: TypeAlias = UpstreamDialect | Literal["auto"]

_SECONDS = 5.0
_LIFE_SECONDS = 3.0
"""For `/health`, which costs a server nothing."""
_SLOTS_SECONDS = 2.0
"""For what is only good to know."""
NO_LIFE = "no_sign_of_life"
"""The code of a problem: not even `/health` is answered."""
_EMPTY, _BROKEN = b"{}", b"{"
_OF_JSON = {"Content-Type": "application/json"}


class _Document(NamedTuple):
    """The answer to a question: an empty object where it was none."""

    status: int
    json: JsonObject


async def probe(link: Link, dialect: Asked = "auto", known: Traits | None = None) -> Traits:
    """Learn what a live server serves; `known` is what the last probe learned of it.

    Raises:
        ProblemError: it cannot serve, or is not a server of models at all.
    """
    if dialect == "auto":
        dialect = afs.dialect_at(link.url) or "auto"
    if dialect == "afs":
        return await _probe_afs(link)
    if dialect == "openai":
        return await _probe_openai(link)
    health = await _alive(link)
    models, props = await _read(link, "/v1/models"), await _read(link, "/props")
    if props.status in {401, 403} or models.status in {401, 403}:
        raise ProblemError(_refused(link))
    if dialect == "auto":
        old = await _old_model(link, props.json) if not _cards(models.json) else None
        if not (old or _looks_like_llamacpp(models, props)):
            return await _probe_openai(link, maybe=True)
    return await _probe_llamacpp(link, health, models, props, known)


def _refused(link: Link) -> Problem:
    message = (
        f"The upstream {link.url} refuses the API key that it was shown: mend --upstream-api-key, "
        "or its api_key in the config."
        if link.shows_key
        else f"The upstream {link.url} wants an API key: give it with --upstream-api-key, or as "
        "its api_key in the config."
    )
    return Problem(kind="upstream_failed", message=message)


def _redirected(link: Link) -> Problem:
    message = f"{link.url} only redirects: give the address that it redirects to."
    return Problem(kind="upstream_failed", message=message)


def _strange(link: Link, what: str = "a llama.cpp server") -> Problem:
    return Problem(
        kind="upstream_failed",
        message=f"{link.url} answers, but not as {what} does: is the address right?",
    )


async def _read(link: Link, path: str) -> _Document:
    status, body = await link.ask("GET", path, seconds=_SECONDS)
    try:
        document: Json = msgspec.json.decode(body) if status == 200 else None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _Document(0, {})
    return _Document(status, document if type(document) is dict else {})


async def _provoke(link: Link, path: str, body: bytes) -> tuple[int, bytes]:
    """Ask for something that no server can do, to hear how it refuses."""
    async with link.send("POST", path, body, _OF_JSON, seconds=_SECONDS) as answer:
        return answer.status, await answer.whole()


# llama.cpp.


async def _alive(link: Link) -> int:
    """Return if the server can serve, with the status of its `/health`.

    Servers before b1809 have no `/health`: any HTTP answer but 503 is a sign of life.

    Raises:
        ProblemError: it cannot; of kind `loading` while it loads its model.
    """
    try:
        status, body = await link.ask("GET", "/health", seconds=_LIFE_SECONDS)
    except ProblemError as error:
        if error.problem.kind != "timeout":
            raise
        # Whatever else it does, a server answers this at once; but before b3599 not while it loads.
        raise ProblemError(msgspec.structs.replace(error.problem, code=NO_LIFE)) from None
    # From b2178 to b2213 a server without a free slot says 503 too.
    if status == 503 and b"no slot available" not in body:
        problem = _problems.parse(status, body)
        raise ProblemError(msgspec.structs.replace(problem, kind="loading", retryable=True))
    if status in {401, 403}:
        raise ProblemError(_refused(link))
    if 300 <= status < 400:
        raise ProblemError(_redirected(link))
    if status >= 500 and status != 503:
        raise ProblemError(_problems.parse(status, body))
    return status


def _looks_like_llamacpp(models: _Document, props: _Document) -> bool:
    """Every llama-server has /props; a proxy may hide it, and the list of models names its kind."""
    owners = {card.get("owned_by") for card in _cards(models.json).values()}
    return bool(props.json) or "llamacpp" in owners or (models.status == 200 and not owners)


async def _probe_llamacpp(
    link: Link, health: int, models: _Document, props: _Document, known: Traits | None
) -> Traits:
    cards = _cards(models.json)
    if not cards:
        old = await _old_model(link, props.json)
        if old is None and models.status != 200 and not props.json:
            raise ProblemError(_strange(link))
        cards = {old or "default": {}}
    settings = props.json.get("default_generation_settings")
    settings = settings if type(settings) is dict else {}
    modalities = props.json.get("modalities")
    modalities = modalities if type(modalities) is dict else {}
    traits = Traits(
        models=cards,
        chat=models.status == 200,
        build=await _build(link, health, models.status, props.json),
        build_info=_text(props.json.get("build_info")),
        router=props.json.get("role") == "router",
        n_ctx=_number(settings.get("n_ctx")),
        slots=_number(props.json.get("total_slots")),
        template=_text(props.json.get("chat_template")),
        eos=_text(props.json.get("eos_token")),
        vision=_flag(modalities.get("vision")),
        audio=_flag(modalities.get("audio")),
    )
    if known is not None and _same(known, traits):
        abilities = {name: getattr(known, name) for name in _ASKED_FOR}
    else:
        abilities = await _abilities(link, traits)
    return msgspec.structs.replace(traits, **abilities)


def _same(known: Traits, traits: Traits) -> bool:
    names = ("models", "build_info", "n_ctx", "slots", "template")
    ids = [{**{n: getattr(one, n) for n in names}, "models": list(one.models)}
           for one in (known, traits)]  # fmt: skip
    return ids[0] == ids[1]


_SHOWN_BY = (
    # A key of /props, and the build that brought it.
    ("is_sleeping", 7492),
    ("modalities", 5331),
    ("bos_token", 4599),
    ("build_info", 4383),
    ("model_path", 4285),
    ("chat_template", 3328),
    ("total_slots", 2086),
    ("default_generation_settings", 2067),
)
_NUMBER_OF_BUILD = re.compile(r"b(\d{3,9})\b")


async def _build(link: Link, health: int, models: int, props: JsonObject) -> int:
    """The oldest build that a server can be."""
    told = _NUMBER_OF_BUILD.match(_text(props.get("build_info")) or "")
    if told:
        return int(told[1])
    if props.get("role") == "router":
        return 7218
    shown = next((build for key, build in _SHOWN_BY if key in props), 0)
    if shown >= 2400:
        return shown
    if models != 200:
        return 0
    status, body = await link.ask("GET", "/no-such-path", seconds=_SECONDS)
    if status == 404 and body.lstrip().startswith(b"{"):
        return 2400  # errors are JSON
    return max(shown, 1809 if health != 404 else 1561)


_ASKED_FOR = ("tools", "embeddings", "rerank", "infill")


async def _abilities(link: Link, traits: Traits) -> dict[str, bool | None]:
    """What a server can do beside chat, by how it refuses a request that asks for nothing.

    Servers before b4383 may take such a request seriously: of them only their age is known.

    Raises:
        ProblemError: it wants a key.
    """
    found: dict[str, bool | None] = dict.fromkeys(_ASKED_FOR)
    # With tools, a server before b7170 has to be started with --jinja.
    found["tools"] = True if traits.build >= 7170 else None if traits.build >= 4599 else False
    if traits.router:
        return found
    if traits.build < 4383:
        found["rerank"] = None if traits.build >= 3838 else False
        if traits.chat and traits.build < 3898:
            # Only what generates is locked there (since b1643), and looks at the key first.
            status, _ = await _provoke(link, "/completion", _BROKEN)
            if status == 401:
                raise ProblemError(_refused(link))
        return found
    for name, path in _REFUSING.items():
        status, _ = await _provoke(link, path, _EMPTY)
        if status in {400, 501}:
            found[name] = status == 400
    return found


_REFUSING = {"embeddings": "/v1/embeddings", "rerank": "/v1/rerank", "infill": "/infill"}


async def _old_model(link: Link, props: JsonObject) -> str | None:
    """The model's file name: `/props` has it since b4285, `/model.json` had it before b2084."""
    path = _text(props.get("model_path"))
    if path is None:
        path = _text((await _read(link, "/model.json")).json.get("model"))
    if path is None:
        return None
    name = path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf")
    return name or None


async def busy_slots(link: Link) -> int | None:
    """How many slots of a llama.cpp server are at work; `None` if it does not say.

    `/slots` told a `state` of each once, and tells `is_processing` now; an operator can close it.

    Raises:
        ProblemError: it does not answer: it is asked between two batches, which may take long.
    """
    status, body = await link.ask("GET", "/slots", seconds=_SLOTS_SECONDS)
    try:
        told: Json = msgspec.json.decode(body) if status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if type(told) is not list or not all(type(one) is dict for one in told):
        return None
    return len([1 for one in told if one.get("is_processing") is True or one.get("state") == 1])


# Others.


async def _probe_openai(link: Link, *, maybe: bool = False) -> Traits:
    """A server that speaks OpenAI's API alone; `maybe` says that this is a guess."""
    traits = Traits(dialect="openai", chat=True, tokenizes=False, strict=_is_strict(link.url))
    for v1, path in ((True, "/v1/models"), (False, "/models")):
        status, body = await link.ask("GET", path, seconds=_SECONDS)
        if status in {401, 403}:
            raise ProblemError(_refused(link))
        if status == 503 or status >= 500:
            raise ProblemError(_problems.parse(status, body))
        document = await _read(link, path) if status == 200 else _Document(status, {})
        cards = _cards(document.json)
        if cards:
            tokenizer = _tokenizer_of(cards)
            return msgspec.structs.replace(traits, models=cards, v1=v1, tokenizer=tokenizer)
    if maybe:
        raise ProblemError(_strange(link))
    # Some have no list of models: what the config names is served, below a path if it has one.
    return msgspec.structs.replace(traits, v1="/" not in link.url.partition("://")[2])


_STRICT = ("openai.com", "azure.com")


def _is_strict(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".")
    return any(host == name or host.endswith(f".{name}") for name in _STRICT)


def _tokenizer_of(cards: dict[str, JsonObject]) -> Tokenizer | None:
    """Whose way to count tokens a server has, by what its list of models says of itself.

    It is not asked whether it really has it: where it has not, it says so when it is needed.
    """
    match next(iter(cards.values())):
        case {"owned_by": "vllm" | "sglang"}:
            return "vllm"
        case {"owned_by": "me", "permissions": []}:
            return "llama-cpp-python"
    return None


async def _probe_afs(link: Link) -> Traits:
    """A deployment of AFS: it has neither `/health` nor a list of models."""
    for chat, path in ((True, afs.CONVERSATION), (False, afs.GENERATE)):
        status, body = await _provoke(link, path, _EMPTY)
        if status in {401, 403}:
            message = (
                f"AFS at {link.url} refused the key ({status}): its api_key in the config has "
                "to be the key of this service (X-API-KEY)."
            )
            raise ProblemError(Problem(kind="upstream_failed", message=message))
        if status >= 500:
            raise ProblemError(_problems.parse(status, body))
        if status not in {404, 405} and not 300 <= status < 400:
            if body.lstrip().startswith(b"<"):
                break
            return Traits(dialect="afs", chat=chat, tokenizes=False, rerank=False)
    raise ProblemError(_strange(link, "AFS"))


def kind_of(traits: Traits) -> str:
    """What kind of server it is, in words."""
    if traits.dialect == "openai":
        return "OpenAI-compatible"
    if traits.dialect == "afs":
        return "AFS"
    if traits.router:
        return "llama.cpp router"
    if traits.build == 0:
        return "llama.cpp before b1561 (2023)"
    return f"llama.cpp {traits.build_info or f'b{traits.build} or later'}"


# Reading.


def _cards(models: JsonObject) -> dict[str, JsonObject]:
    """Every model of the list by its name, and by each of its aliases."""
    cards: dict[str, JsonObject] = {}
    data = models.get("data")
    for card in data if type(data) is list else ():
        match card:
            case {"id": str(name)}:
                aliases = card.get("aliases")
                names = [name, *(aliases if type(aliases) is list else ())]
                cards |= {alias: card for alias in names if type(alias) is str and alias}
    return cards


def _text(value: Json) -> str | None:
    return value if type(value) is str and value else None


def _number(value: Json) -> int | None:
    return value if type(value) is int and value > 0 else None


def _flag(value: Json) -> bool | None:
    return value if type(value) is bool else None
