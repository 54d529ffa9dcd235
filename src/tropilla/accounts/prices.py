"""What the tokens of a request cost: whole billionths of whatever money the prices are in.

Sums of whole numbers are exact, whoever adds them and in whatever order, so that a budget, a row of
the ledger and the total of a month cannot differ.
"""

from __future__ import annotations

from tropilla.config import Config, PriceConfig

MONEY = 1_000_000_000
"""One of it, in billionths."""

_TOKENS = 1_000_000
"""A price is for so many."""


def cost(price: PriceConfig | None, prompt: int, cached: int | None, written: int) -> int:
    """What a request costs that read so many tokens and wrote so many, in billionths.

    Of those it read, `cached` were in a cache. It is never less than nothing, and what is less than
    a billionth is one.
    """
    if price is None:
        return 0
    prompt, written = max(0, prompt), max(0, written)
    known = min(max(0, cached or 0), prompt)
    of_cached = price.input if price.cached is None else price.cached
    told = (
        (prompt - known) * billionths(price.input)
        + known * billionths(of_cached)
        + written * billionths(price.output)
    )
    return -(-told // _TOKENS)


def billionths(amount: float) -> int:
    """An amount of money as people write it, in billionths."""
    return round(amount * MONEY)


class Prices:
    """What is to be paid for each model, by every name that it has here."""

    def __init__(self, config: Config) -> None:
        self._by_name: dict[str, PriceConfig | None] = {}
        for name, model in config.models.items():
            for one in (name, *model.aliases):
                self._by_name[one] = model.price
        told = [price for price in self._by_name.values() if price is not None]
        self._highest = _highest(told) if told else None
        self._any_model = config.any_model

    def of(self, model: str | None) -> PriceConfig | None:
        """The price of a model; nothing is to be paid for one that has none.

        A name that is not in the config may be answered by any model (`any_model`), and a request
        without a name by every one: it has the highest price of each kind.
        """
        if model in self._by_name:
            return self._by_name[model]
        return self._highest if model is None or self._any_model else None


def _highest(prices: list[PriceConfig]) -> PriceConfig:
    return PriceConfig(
        input=max(one.input for one in prices),
        cached=max(one.input if one.cached is None else one.cached for one in prices),
        output=max(one.output for one in prices),
    )
