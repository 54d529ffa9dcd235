"""Whether a request may take what it wants: of its key's limits, its team's and its model's.

A request is admitted with what it may come to at most, and has taken what it came to. Both happen
before its client hears the end, so that whoever asks next finds what is left. What it cost is what
the ledger says that it cost: both add the same whole numbers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import msgspec

from tropilla.accounts.keys import Account
from tropilla.accounts.limits import Amount, Hold, Meter, Refused, Scope, Standings, cap
from tropilla.accounts.prices import Prices, billionths, cost
from tropilla.config import BudgetConfig, Config, LimitsConfig, PriceConfig
from tropilla.ir import Audio, Chat, Completion, Image, Malformed, Problem, ProblemError, Request
from tropilla.measures import Counted
from tropilla.record import Record

UNTOLD = 1024
"""Tokens that an answer is expected to have whose length its client does not limit."""
_MOST_UNTOLD = 4096
"""Those that it may have where a budget is to be kept, and nobody knows the context."""
_LEAST_CUT = 16
"""An answer is not cut shorter than this by what is left of a budget."""
_BYTES = 4
"""Of a token, as a rule of thumb; it is never less than one."""
_AROUND = 512
"""Tokens that a template may add to a prompt."""
_LONGEST_NAME = 200
_MARKS = 8
"""Tokens that a server adds to an input of its own."""
_PER_MEDIUM = 4096
"""Tokens that a picture or a sound may be."""


class Need(NamedTuple):
    """What a request may take of its model."""

    likely: int
    """Tokens of its prompt, as a guess, and at most."""
    most: int
    choices: int = 0
    told: int | None = None
    """Tokens of each choice, where its client limits them; and at most, if not."""
    context: int | None = None
    exact: Callable[[], Awaitable[int | None]] | None = None
    """Counts the prompt, where somebody can."""


def need_of(
    request: Request, context: int | None, exact: Callable[[], Awaitable[int | None]]
) -> Need:
    """What a request for text may take; `context` is that of its model, where it is known."""
    size = len(msgspec.json.encode(request.input))
    media = _media(request)
    choices = request.choices
    if isinstance(request.input, Completion) and request.input.best_of:
        choices = max(choices, request.input.best_of * len(request.input.prompts))
    likely = size // _BYTES + 1 if not media else media * UNTOLD
    most = (size + _AROUND) * max(1, request.n) + media * _PER_MEDIUM
    counts = exact if request.n == 1 and choices == 1 else None
    return Need(likely, most, choices, request.max_tokens, context, counts)


def need_of_inputs(counted: Iterable[Counted]) -> Need:
    """What a request for numbers may take."""
    most = sum(
        ((len(one.input) if isinstance(one.input, list) else len(one.input.encode())) + _MARKS)
        * one.times
        for one in counted
    )
    return Need(most // _BYTES + 1, most)


def _media(request: Request) -> int:
    if not isinstance(request.input, Chat):
        return 0
    return sum(
        isinstance(part, Image | Audio)
        for message in request.input.messages
        for part in message.parts
    )


def unknown(model: str | None) -> Problem:
    """That a model is not there, or not for this key: nobody is told which of them."""
    name = str(model)[:_LONGEST_NAME]
    return Problem(
        kind="unknown_model",
        message=f"The model '{name}' does not exist or you do not have access to it.",
        param="model",
    )


class _Open:
    """A request that was admitted."""

    __slots__ = ("counted", "hold")

    def __init__(self, hold: Hold, *, counted: bool) -> None:
        self.hold = hold
        self.counted = counted
        """Whether it takes tokens."""


class Admission:
    """A book that admits requests to what it has seen of them."""

    def __init__(self, config: Config, meter: Meter) -> None:
        self._meter = meter
        self._open: dict[str, _Open] = {}
        self.reload(config)

    def reload(self, config: Config) -> None:
        """Admit as another config says."""
        self._prices = Prices(config)
        self._models: dict[str, Scope] = {}
        for name, model in config.models.items():
            if model.limits != LimitsConfig():
                scope = Scope(f"model/{name}", model.limits)
                self._models |= dict.fromkeys((name, *model.aliases), scope)
        self._limited = tuple(dict.fromkeys(self._models.values()))
        self._known = {one for name, model in config.models.items()
                       for one in (name, *model.aliases)}  # fmt: skip
        self._aliases = {name: model.aliases for name, model in config.models.items()}
        self._any_model = config.any_model
        self._teams = {
            name: _scope(f"team/{name}", team.limits, team.budgets)
            for name, team in config.accounts.teams.items()
        }
        self._of: dict[str, tuple[Account, tuple[Scope, ...]]] = {}

    def _scopes(self, account: Account, model: str | None) -> Sequence[Scope]:
        """Whose limits hold for a request."""
        found = self._of_account(account)
        if not self._models:
            return found
        if model in self._models:
            return (*found, self._models[model])
        if model is None or (self._any_model and model not in self._known):
            # It may be answered by any of them.
            return (*found, *self._limited)
        return found

    def _of_account(self, account: Account) -> tuple[Scope, ...]:
        if account.role != "account":
            return ()
        known = self._of.get(account.id)
        if known is not None and known[0] is account:
            return known[1]
        terms = account.terms
        scopes: tuple[Scope, ...] = (_scope(f"key/{account.id}", terms.limits, terms.budgets),)
        if terms.team is not None:
            none = Scope(f"team/{terms.team}", LimitsConfig())
            scopes += (self._teams.get(terms.team, none),)
        self._of[account.id] = (account, scopes)
        return scopes

    def passes(self, account: Account, model: str | None) -> bool:
        """Whether a request may go on as it is, with nobody counting its tokens."""
        return not any(_weighs(scope) for scope in self._scopes(account, model))

    def names(self, account: Account) -> frozenset[str] | None:
        """The models that an account may ask for, by all of their names; `None` for all."""
        models = account.terms.models
        if models is None:
            return None
        return frozenset(models).union(*(self._aliases.get(one, ()) for one in models))

    def model(self, account: Account, model: str | None, served: Container[str]) -> str | None:
        """The model that an account asks for.

        Raises:
            ProblemError: it may not, or has to say which.
        """
        names = self.names(account)
        if names is None:
            return model
        if model is None:
            if account.terms.models and len(account.terms.models) == 1:
                model = account.terms.models[0]
            else:
                raise Malformed("This key is for some models alone: name one.", param="model")
        # Whatever is served may answer for a name that nobody serves: not for this key.
        if model not in names or (self._any_model and model not in served):
            raise ProblemError(unknown(model))
        return model

    def standing(self, account: Account) -> Mapping[str, str]:
        """The headers that tell how it stands with an account's limits."""
        scopes = self._of_account(account)
        if not any(_is_limited(scope) for scope in scopes):
            return {}
        return _headers(self._meter.look(scopes))

    def levels(self, account: Account) -> Standings:
        """How it stands with the limits of an account, the scarcest of each kind."""
        return self._meter.look(self._of_account(account))

    async def admit(
        self,
        account: Account,
        record: Record,
        model: str | None,
        needs: Callable[[], Need] | None = None,
    ) -> int | None:
        """Let a request take what it needs; one that needs no tokens, a place among the others.

        Where a budget is to be kept, and nobody has said how long the answer may be, it is given
        back how many tokens each choice may have.

        Raises:
            ProblemError: there is not so much.
        """
        scopes = self._scopes(account, model)
        if not scopes:
            return None
        if needs is None or not any(_weighs(scope) for scope in scopes):
            await self._reserve(record, scopes, Amount(1, 0, 0, 0), counted=needs is not None)
            return None
        need = needs()
        if any(scope.caps for scope in scopes):
            return await self._within_budgets(record, scopes, need, self._prices.of(model))
        written = need.choices * (UNTOLD if need.told is None else need.told)
        await self._reserve(record, scopes, Amount(1, need.likely + written, 0, 0), counted=True)
        return None

    async def _within_budgets(
        self, record: Record, scopes: Sequence[Scope], need: Need, price: PriceConfig | None
    ) -> int | None:
        """Set aside what a request may come to at most.

        What that is, is looked at closely only where it does not fit at first sight.
        """
        prompt, each = need.most, need.told
        if each is None and need.choices:
            each = need.context or _MOST_UNTOLD
        exact = False
        while True:
            likely = need.likely + need.choices * min(each or 0, UNTOLD)
            if need.told is not None:
                likely = need.likely + need.choices * need.told
            amount = _amount(likely, prompt, need.choices * (each or 0), price)
            told = await self._meter.reserve(scopes, amount)
            if isinstance(told, Hold):
                self._open[record.id] = _Open(told, counted=True)
                return None if need.told is not None or not need.choices else each
            if told.what != "budget":
                raise ProblemError(_problem(told))
            if not exact and need.exact is not None:
                exact = True
                counted = await need.exact()
                if counted is not None and counted < prompt:
                    prompt = counted
                    continue
            cut = self._cut(told, prompt, need, price)
            if cut is None or each is None or cut >= each:
                raise ProblemError(_problem(told))
            each = cut

    def _cut(self, told: Refused, prompt: int, need: Need, price: PriceConfig | None) -> int | None:
        """How long each choice may be for the request to fit, if its client left that open."""
        if need.told is not None or not need.choices or told.budget is None:
            return None
        if told.budget.money is not None:
            if price is None or not price.output:
                return None
            rest = billionths(told.budget.money) - told.used - _most_of(price, prompt, 0)
            each = (rest - 1) * 1_000_000 // (billionths(price.output) * need.choices)
        else:
            each = ((told.budget.tokens or 0) - told.used - prompt) // need.choices
        return each if each >= _LEAST_CUT else None

    async def _reserve(
        self, record: Record, scopes: Sequence[Scope], amount: Amount, *, counted: bool
    ) -> None:
        told = await self._meter.reserve(scopes, amount)
        if isinstance(told, Refused):
            raise ProblemError(_problem(told))
        self._open[record.id] = _Open(told, counted=counted)

    # As a book.

    def begun(self, record: Record) -> None:
        """Nothing is known of it yet."""

    async def enter(self, record: Record) -> None:
        """What it came to is known."""
        self._settle(record)

    def over(self, record: Record) -> None:
        """It is over, and may have been left before its end."""
        self._settle(record)
        one = self._open.pop(record.id, None)
        if one is not None:
            self._meter.release(one.hold)

    def _settle(self, record: Record) -> None:
        one = self._open.get(record.id)
        if one is None or one.hold.settled:
            return
        failed = record.problem is not None and record.problem.kind not in _ITS_OWN
        requests = int(not failed)
        used = Amount(requests, 0, 0, 0)
        if one.counted:
            tokens = record.prompt + record.written
            price = self._prices.of(record.model)
            money = cost(price, record.prompt, record.cached, record.written)
            used = Amount(requests, tokens, tokens, money)
        self._meter.settle(one.hold, used)


_ITS_OWN = frozenset({"malformed", "context_exceeded", "unsupported", "too_large", "unknown_model"})
"""Problems that are the request's: it counts as one."""


def _scope(name: str, limits: LimitsConfig, budgets: Iterable[BudgetConfig]) -> Scope:
    return Scope(name, limits, tuple(cap(one) for one in budgets))


def _weighs(scope: Scope) -> bool:
    """Whether it matters how many tokens a request takes."""
    return bool(scope.caps) or scope.limits.tokens is not None


def _is_limited(scope: Scope) -> bool:
    return scope.limits.requests is not None or scope.limits.tokens is not None


def _amount(likely: int, prompt: int, written: int, price: PriceConfig | None) -> Amount:
    return Amount(1, likely, prompt + written, _most_of(price, prompt, written))


def _most_of(price: PriceConfig | None, prompt: int, written: int) -> int:
    """What it may cost at most, whatever is in a cache."""
    return max(cost(price, prompt, None, written), cost(price, prompt, prompt, written))


# What a client hears.


_EXPOSED = ", ".join(
    f"x-ratelimit-{what}-{name}"
    for name in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
"""What a browser may read of these from another origin."""


def _headers(told: Standings) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, one in told.items():
        headers[f"x-ratelimit-limit-{name}"] = str(one.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(one.remaining)
        headers[f"x-ratelimit-reset-{name}"] = span(one.reset)
    if headers:
        headers["access-control-expose-headers"] = _EXPOSED
    return headers


def span(seconds: float) -> str:
    """A time as OpenAI tells it: `120ms`, `1.5s`, `6m0s`, `1h0m3s`."""
    thousandths = ceil(seconds * 1000)
    if thousandths < 1000:
        return f"{thousandths}ms" if thousandths else "0s"
    whole, rest = divmod(thousandths, 1000)
    minutes, last = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    told = f"{last + rest / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{told}"
    return f"{minutes}m{told}" if minutes else told


def _problem(told: Refused) -> Problem:
    """Why there is nothing, in words like OpenAI's."""
    kind, _, name = told.scope.name.partition("/")
    whose = {"key": "this key", "team": f"the team '{name}'", "model": f"the model '{name}'"}[kind]
    limits = told.scope.limits
    match told.what:
        case "requests":
            text = f"on requests per minute: Limit {limits.requests}, Used {told.used}"
        case "tokens":
            text = (
                f"on tokens per minute: Limit {limits.tokens}, Used {told.used}, "
                f"Requested {told.wanted}"
            )
        case "concurrent":
            text = f"on requests at once: Limit {limits.concurrent}"
        case "budget":
            return _over_budget(told, whose)
    if told.after is None:
        return Problem(
            kind="limited",
            message=f"Request too large for {whose} {text}. It never fits: ask for less.",
            extras={"type": told.what},
        )
    return Problem(
        kind="limited",
        message=f"Rate limit reached for {whose} {text}. Please try again in {span(told.after)}.",
        retry_after=told.after,
        extras={"type": told.what},
    )


def _over_budget(told: Refused, whose: str) -> Problem:
    assert told.budget is not None, "it is the budget that refuses"  # noqa: S101
    budget = told.budget
    what = f"{budget.tokens} tokens" if budget.money is None else f"{budget.money:g} of money"
    per = "in all" if budget.per == "total" else f"a {budget.per}"
    if told.spent:
        return Problem(
            kind="limited",
            message=f"The budget of {whose} ({what} {per}) has not enough left for this request.",
            code="insufficient_quota",
            extras={"type": "insufficient_quota"},
        )
    return Problem(
        kind="limited",
        message=f"What is left of the budget of {whose} ({what} {per}) is set aside for requests "
        "that are being served. Please try again in 1s.",
        retry_after=told.after,
        extras={"type": "budget"},
    )
