"""OpenAI's Responses beyond one answer: what is kept, gone on from, shown and deleted.

An answer is kept before its client hears of its end: whoever goes on from it at once finds it.
One that failed, or that the client left, is not kept: there is nothing to go on from. Who says that
it is to be kept is refused before it is made where the store takes nothing. Where it is made and
cannot be kept it is told all the same, and says itself that it is not: its `store` is false.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import parse_qs

import msgspec

from tropilla import log
from tropilla.accounts.store import Store
from tropilla.accounts.stored import Keeper, Kept
from tropilla.config import ResponsesConfig
from tropilla.dialects import Dialect, Stamp, openai_responses
from tropilla.dialects._fields import invalid
from tropilla.dialects.openai_responses.items import no_item
from tropilla.dialects.openai_responses.render import Renderer, whole
from tropilla.ir import Answer, Json, JsonObject, Malformed, Problem, ProblemError, Request
from tropilla.telling import Reply

NAME = openai_responses.NAME
_KEPT = ("completed", "incomplete")
_MOST_ITEMS = 100
_PREFIXES = {
    "message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco",
    "custom_tool_call": "ctc", "custom_tool_call_output": "ctco",
}  # fmt: skip
_ITEM = re.compile(r"[a-z]+_([0-9a-f]{32})_(?:in)?\d{1,9}")
"""An item's id tells whose it is: `resp_` and the same."""

What = Literal["get", "delete", "items", "cancel"]


class Turn(NamedTuple):
    """A request with all that led to it, and where its answer goes."""

    front: Dialect
    request: Request
    reply: Reply


class Responses:
    """What a gateway keeps.

    `store` is that of the accounts, where there are some; `memory` is that of what is kept no
    longer than the gateway lasts.
    """

    def __init__(self, config: ResponsesConfig, store: Store | None, memory: Store) -> None:
        where: Store | str = config.store
        if where == "auto":
            where = store or memory
        self._keeper = Keeper(config, memory if where == "memory" else where)

    async def close(self) -> None:
        """Let go of the store, if it is its own."""
        await self._keeper.close()

    async def read(self, body: JsonObject, path: str, owner: str) -> Request:
        """A client's request, with all that led to it.

        Raises:
            Malformed: it is none, or what it goes on from is not there.
        """
        earlier = await self._earlier(body.get("previous_response_id"), owner)
        given = body.get("input")
        if type(given) is list:
            said = [await self._referred(item, index, owner) for index, item in enumerate(given)]
            body["input"] = said
        return openai_responses.parse_request(body, path, earlier)

    async def turn(
        self, body: JsonObject, path: str, owner: str, reply: Reply, unique: str
    ) -> Turn:
        """A request for an answer, which is kept unless it is said not to.

        Raises:
            Malformed: it is none, or what it goes on from is not there.
            ProblemError: it is to be kept, and cannot be.
        """
        request = await self.read(body, path, owner)
        match request.extras.get("store"):
            case False:
                return Turn(cast("Dialect", openai_responses), request, reply)
            case True:
                await self._keeper.works(f"resp_{unique}")
        front = _Front()
        keeping = _Keeping(front, reply, self._keeper)
        keeping.asked = Kept(
            id=f"resp_{unique}",
            owner=owner,
            previous=request.extras.get("previous_response_id"),
            items=_own_items(body.get("input"), unique),
            response={},
        )
        return Turn(cast("Dialect", front), request, keeping)

    async def _earlier(self, previous: Json, owner: str) -> list[JsonObject]:
        if type(previous) is not str:
            return []
        led, missing = await self._keeper.chain(previous, owner)
        if missing is not None:
            why = "" if missing == previous else f", which '{previous}' goes on from,"
            raise Malformed(
                f"Previous response with id '{missing}'{why} not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return [item for kept in led for item in (*kept.items, *kept.response["output"])]

    async def _referred(self, item: Json, index: int, owner: str) -> Json:
        """The item that a reference names; itself, if it is none."""
        match item:
            case {"type": "item_reference", "id": str(id_)}:
                pass
            case {"id": str(id_)} if item.get("type") is None and "role" not in item:
                pass
            case _:
                return item
        found = _ITEM.fullmatch(id_)
        kept = await self._keeper.find(f"resp_{found[1]}", owner) if found else None
        if kept is not None:
            for one in (*kept.items, *kept.response["output"]):
                if one.get("id") == id_:
                    return one
        raise no_item(id_, f"input.{index}.id")

    async def answer(self, what: What, id_: str, query: str, owner: str, reply: Reply) -> None:
        """Show a response or its input, or delete it.

        Raises:
            ProblemError: it is not there, or what is asked cannot be done.
        """
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        if what == "delete":
            if not await self._keeper.forget(id_, owner):
                raise ProblemError(_not_found(id_))
            told: JsonObject = {"id": id_, "object": "response", "deleted": True}
            await reply.whole(200, msgspec.json.encode(told), {})
            return
        kept = await self._keeper.find(id_, owner)
        if kept is None:
            raise ProblemError(_not_found(id_))
        match what:
            case "get":
                if asked.get("stream") == "true":
                    raise Malformed(
                        "'stream' is not supported here: what is kept is the whole response.",
                        param="stream",
                        code="unsupported_parameter",
                        kind="unsupported",
                    )
                told = kept.response
            case "items":
                told = _listed(kept.items, asked)
            case _:
                raise Malformed(
                    "Only a response that is made in the background can be cancelled, and none is.",
                    param="response_id",
                    code="unsupported_value",
                )
        await reply.whole(200, msgspec.json.encode(told), {})


def _not_found(id_: str) -> Problem:
    return Problem(
        kind="not_found",
        message=f"Response with id '{id_}' not found.",
        param="response_id",
        code="response_not_found",
        extras={"type": "invalid_request_error"},
    )


def _own_items(given: Json, unique: str) -> tuple[JsonObject, ...]:
    """The items of an input as they are kept: each has a type and an id."""
    if type(given) is str:
        given = [{"role": "user", "content": given}]
    given = given or ()
    return tuple(_own_item(item, f"{unique}_in{number}") for number, item in enumerate(given))


def _own_item(item: JsonObject, id_: str) -> JsonObject:
    kind = item.get("type") or "message"
    given = item.get("id")
    id_ = given if type(given) is str and given else f"{_PREFIXES.get(kind, 'item')}_{id_}"
    own = item | {"type": kind, "id": id_}
    if kind == "message" and type(own.get("content")) is str:
        said = "output_text" if own["role"] == "assistant" else "input_text"
        more: JsonObject = {"annotations": [], "logprobs": []} if said == "output_text" else {}
        own["content"] = [{"type": said, "text": own["content"], **more}]
    return {"status": "completed"} | own


def _listed(items: Sequence[JsonObject], asked: Mapping[str, str]) -> JsonObject:
    """One page of the items, as OpenAI lists things: the newest first, unless it is said."""
    limit, order = asked.get("limit", "20"), asked.get("order", "desc")
    if not limit.isdecimal() or len(limit) > 9 or not 1 <= int(limit) <= _MOST_ITEMS:
        raise invalid("limit", f"expected a whole number from 1 to {_MOST_ITEMS}.")
    if order not in {"asc", "desc"}:
        raise invalid("order", f"'{order}'. Supported values are: 'asc', and 'desc'.")
    items = items if order == "asc" else items[::-1]
    after = asked.get("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise invalid("after", f"there is no item with id '{after}' in this list.")
        items = items[ids.index(after) + 1 :]
    page = items[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(page) < len(items),
    }


class _Front:
    """The dialect, and the response that it told last."""

    def __init__(self) -> None:
        self._renderer: Renderer | None = None
        self._whole: JsonObject | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(openai_responses, name)

    @property
    def response(self) -> JsonObject | None:
        """The response, once it has ended."""
        return self._renderer.response if self._renderer is not None else self._whole

    def stream_renderer(self, request: Request, stamp: Stamp) -> Renderer:
        self._renderer = openai_responses.stream_renderer(request, stamp)
        return self._renderer

    def render_answer(self, answer: Answer, request: Request, stamp: Stamp) -> bytes:
        self._whole = whole(answer, request, stamp)
        return msgspec.json.encode(self._whole)

    def unkept(self, told: bytes) -> bytes:
        """What has told the end of the response, as it says that it is not kept."""
        if self._renderer is not None:
            return self._renderer.unkept(told)
        return msgspec.json.encode((self._whole or {}) | {"store": False})


class _Keeping:
    """A reply that has its answer kept before its end goes out."""

    asked: Kept

    def __init__(self, front: _Front, reply: Reply, keeper: Keeper) -> None:
        self._front = front
        self._reply = reply
        self._keeper = keeper
        self._looked = False

    @property
    def started(self) -> bool:
        return self._reply.started

    @property
    def ended(self) -> bool:
        return self._reply.ended

    async def start(
        self, status: int, content_type: str, headers: Mapping[str, str], first: bytes = b""
    ) -> None:
        await self._reply.start(status, content_type, headers, await self._keep(first))

    async def write(self, data: bytes) -> None:
        await self._reply.write(await self._keep(data))

    def push(self, data: bytes) -> bool:
        return self._reply.push(data)

    async def sent(self) -> None:
        await self._reply.sent()

    async def end(self) -> None:
        await self._reply.end()

    async def whole(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        await self._reply.whole(status, await self._keep(body), headers)

    async def _keep(self, told: bytes) -> bytes:
        """What goes out; with the end of the answer in it once that is kept, or says it is not."""
        response = self._front.response
        if self._looked or response is None or response["status"] not in _KEPT:
            return told
        self._looked = True
        why = "it is larger than all that may be kept."
        try:
            if await self._keeper.keep(msgspec.structs.replace(self.asked, response=response)):
                return told
        except (ProblemError, RecursionError) as error:
            why = str(error)
        # The answer is worth more than the way back to it.
        log.error(
            "response.lost", "{response} could not be kept: {error}",
            response=self.asked.id, error=why,
        )  # fmt: skip
        return self._front.unkept(told)
