"""Who comes in, and what it is let do: its key, its rights, its models, its limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import parse_qs

import msgspec

from tropilla.accounts.admission import Admission, Need, unknown
from tropilla.accounts.keys import Account, Keys
from tropilla.accounts.keys.rights import authorize
from tropilla.accounts.keys.ring import known
from tropilla.accounts.limits import Meter
from tropilla.config import Config
from tropilla.ir import Malformed, Problem, ProblemError
from tropilla.server.accounts import Accounts
from tropilla.server.bodies import json_object
from tropilla.server.http import Call
from tropilla.server.models import Serving
from tropilla.server.routes import Action, is_public, right_of
from tropilla.upstream.fleet import Fleet

_STALE = Problem(
    kind="unavailable",
    message="The store of the keys cannot be read: nobody knows whether this one is still good.",
    code="keys_unavailable",
    retry_after=5,
)
_UNCOUNTED = Problem(
    kind="forbidden",
    message="What is asked here is passed on as it is, and nobody counts its tokens: it is not for "
    "a key, a team or a model with a budget or a limit of tokens.",
)
_UNSEEN = Problem(
    kind="forbidden",
    message="This key is for some models alone, and nobody sees what this body asks for.",
)


class Door:
    """The door of a gateway; `meter` is where it is counted what is taken."""

    def __init__(
        self, config: Config, fleet: Fleet, accounts: Accounts | None, meter: Meter
    ) -> None:
        if accounts is not None:
            accounts.changed = self._take_keys
        self._config = config
        self._fleet = fleet
        self._accounts = accounts
        self.admission = Admission(config, meter)
        """The book of what everybody may take."""
        self._take_keys()

    def reload(self, config: Config) -> None:
        """Let in whom another config lets in."""
        self._config = config
        if self._accounts is not None:
            self._accounts.config = config
        self.admission.reload(config)
        self._take_keys()

    def _take_keys(self) -> None:
        """Read the keys of the config and of the store anew."""
        accounts, config = self._accounts, self._config
        secret = None if accounts is None else accounts.ring.told
        self._keys = Keys(config.api_keys, config.accounts, secret)
        if accounts is not None:
            self._keys.stored(known(accounts.stored), closed=bool(accounts.stored))
            self._keys.stale = accounts.stale
        self._fleet.pool.priorities = self._keys.priorities()

    async def enter(self, call: Call, action: Action | None) -> None:
        """Find out whose request it is, and whether that one may do such a thing.

        Raises:
            ProblemError: nobody knows, or not.
        """
        found = self._keys.find(call.headers, time.time())
        if found is None:
            if is_public(action):
                return
            raise ProblemError(_unauthenticated(call.headers, self._keys))
        if found.stored and self._keys.stale:
            raise ProblemError(_STALE)
        call.account = found
        call.owner = call.record.key = found.id
        if found.role == "account":
            call.reply.more = partial(self.admission.standing, found)
        if action is not None and not is_public(action):
            authorize(found, right_of(action))

    def who(self, key: str) -> Account | None:
        """Whose key this is, if it is one that is still good."""
        told = key.encode("utf-8", "replace")
        found = self._keys.find({b"x-api-key": told}, time.time()) if self._keys else None
        return None if found is not None and found.stored and self._keys.stale else found

    @property
    def open(self) -> bool:
        """Whether anybody may ask: there is no key, and never was one."""
        return not self._keys

    def serving(self, call: Call) -> Serving:
        """What this client may ask for, and who serves it."""
        serving, names = self._fleet.serving(), self.admission.names(call.account)
        if names is None:
            return serving
        return {name: upstreams for name, upstreams in serving.items() if name in names}

    def model(self, call: Call, model: str | None) -> str | None:
        """The model that a client asks for.

        Raises:
            ProblemError: it may not, or has to say which.
        """
        if call.account.terms.models is None:
            return model
        call.record.model = model
        return self.admission.model(call.account, model, self.serving(call))

    async def admit(
        self, call: Call, model: str | None, needs: Callable[[], Need] | None = None
    ) -> int | None:
        """Let a request take what it needs; how many tokens each choice may have, if that is said.

        Raises:
            ProblemError: there is not so much.
        """
        record = call.record
        record.model = model
        try:
            return await self.admission.admit(call.account, record, model, needs)
        finally:
            record.admitted = time.perf_counter() - record.began

    def passed(self, call: Call, body: bytes, *, counted: bool) -> tuple[bytes, str | None]:
        """What of a request is passed on as it is, and the model that it is for.

        For a key of some models alone it is one of these, whoever reads the request: it is named
        once, or twice alike, and JSON is written anew, so that no name stands twice in it. What
        takes tokens that are not `counted` is not for those who may take so many.

        Raises:
            ProblemError: it is for none that this client may ask for.
        """
        named = parse_qs(call.head.query, keep_blank_values=True).get("model", [])
        model = named[0] if named else None
        if body.lstrip().startswith(b"{"):
            told = json_object(body)
            if type(told.get("model")) is str:
                named.append(told["model"])
                model = model or told["model"]
            if call.account.terms.models is not None:
                body = msgspec.json.encode(told)
        if call.account.terms.models is not None:
            if len(set(named)) != 1:
                raise Malformed("This key is for some models alone: name one.", param="model")
            if body and not body.startswith(b"{"):
                raise ProblemError(_UNSEEN)
            model = self.model(call, model)
        if not counted and not self.admission.passes(call.account, model):
            raise ProblemError(_UNCOUNTED)
        return body, model

    def told(self, call: Call, problem: Problem) -> Problem:
        """A problem as this client may hear it: not what there is beside its own models."""
        if problem.kind != "unknown_model" or call.account.terms.models is None:
            return problem
        return unknown(call.record.model)


def _unauthenticated(headers: Mapping[bytes, bytes], keys: Keys) -> Problem:
    if keys.mistyped(headers):
        message = "Incorrect API key provided: it is mistyped, for its checksum does not fit."
    elif any(name in headers for name in (b"authorization", b"x-api-key", b"api-key")):
        message = "Incorrect API key provided."
    else:
        message = (
            "You didn't provide an API key. Send it in an Authorization header: "
            "Authorization: Bearer YOUR_KEY."
        )
    return Problem(kind="unauthenticated", message=message)
