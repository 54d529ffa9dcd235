"""Who may do what: one function, which everything that is done asks first.

What a route needs is a right, and each right has those who have it; what is not here nobody may.
Keys are given by whoever has the admin key, or can write the store himself, and by nobody else: no
client can change what it may do, nor make a key that may do more.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from tropilla.accounts.keys import Account, Role
from tropilla.config import BudgetConfig, ConfigError, TermsConfig, read_moment
from tropilla.ir import Malformed, Problem, ProblemError

Right: TypeAlias = Literal["ask", "look", "operate", "give"]
"""To have an upstream work; to see what is served, and what one has used; to see, or to change,
how the herd is; to give, change and take keys."""

_MAY: dict[Right, frozenset[Role]] = {
    "ask": frozenset({"anybody", "static", "account"}),
    "look": frozenset({"anybody", "static", "account", "admin"}),
    "operate": frozenset({"anybody", "static", "admin"}),
    "give": frozenset({"admin"}),
}
_WHY: dict[Right, str] = {
    "ask": "The admin key gives keys, and asks for nothing: ask with one of them.",
    "look": "This key may not look at this.",
    "operate": "This is for those who run the gateway: it wants the admin key, or one of api_keys.",
    "give": "Keys are given with the admin key (accounts.admin_key), and with no other.",
}
_MOST_TEXT = 256
_MOST_WORDS = 1000

OPERATOR = Account(role="admin", id="operator")
"""Whoever can write the store himself."""


def authorize(actor: Account, right: Right, terms: TermsConfig | None = None) -> None:
    """Let somebody do something; and, where keys are given, with these terms.

    Raises:
        ProblemError: it is not for him, or such terms cannot be.
    """
    if actor.role not in _MAY[right]:
        raise ProblemError(Problem(kind="forbidden", message=_WHY[right]))
    if terms is not None:
        _check(terms)


def _check(terms: TermsConfig) -> None:
    """Only numbers that a sum can be made of, only budgets of one thing, only words."""
    numbers: dict[str, float | None] = {
        "limits.requests": terms.limits.requests,
        "limits.tokens": terms.limits.tokens,
        "limits.concurrent": terms.limits.concurrent,
    }
    for at, budget in enumerate(terms.budgets):
        _check_budget(budget, f"budgets.{at}")
        numbers[f"budgets.{at}.tokens"] = budget.tokens
        numbers[f"budgets.{at}.money"] = budget.money
    for name, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number >= 0):
            raise Malformed(f"'{name}' must be a finite number that is not negative.", param=name)
    for name, words in (("models", terms.models), ("tags", terms.tags), ("team", (terms.team,))):
        if words is not None and len(words) > _MOST_WORDS:
            raise Malformed(f"'{name}' has more than {_MOST_WORDS} names.", param=name)
        for word in words or ():
            if word is not None:
                check_word(word, name)
    if terms.expires is not None:
        try:
            read_moment(terms.expires)
        except ConfigError as error:
            raise Malformed(f"'expires': {error}", param="expires") from None


def _check_budget(budget: BudgetConfig, name: str) -> None:
    if (budget.tokens is None) == (budget.money is None):
        raise Malformed(f"'{name}' must have tokens or money, and not both.", param=name)


def check_word(word: str, name: str) -> None:
    """A name that can be shown anywhere.

    Raises:
        Malformed: it cannot.
    """
    if not 0 < len(word) <= _MOST_TEXT or not word.isprintable() or word != word.strip():
        raise Malformed(
            f"'{name}' must have 1 to {_MOST_TEXT} characters that can be printed.", param=name
        )
