"""What a request costs, to the billionth."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tropilla.accounts.prices import MONEY, Prices, billionths, cost
from tropilla.config import Config, ModelConfig, PriceConfig, UpstreamConfig

PRICE = PriceConfig(input=0.15, cached=0.02, output=0.6)
MONEYS = st.floats(0, 1_000_000)
TOKENS = st.integers(0, 10**9)


def test_a_million_tokens_cost_what_the_price_says() -> None:
    assert cost(PRICE, 1_000_000, None, 0) == billionths(0.15) == 150_000_000
    assert cost(PRICE, 1_000_000, 1_000_000, 0) == billionths(0.02)
    assert cost(PRICE, 0, None, 1_000_000) == billionths(0.6)
    assert cost(PRICE, 10, 4, 5) == 6 * 150 + 4 * 20 + 5 * 600


def test_what_is_cached_costs_as_much_where_nothing_else_is_said() -> None:
    assert cost(PriceConfig(input=2.0), 10, 10, 0) == cost(PriceConfig(input=2.0), 10, None, 0)


def test_the_smallest_part_is_not_for_free() -> None:
    assert cost(PriceConfig(input=0.000001), 1, None, 0) == 1


def test_what_has_no_price_costs_nothing() -> None:
    assert cost(None, 10**9, None, 10**9) == cost(PriceConfig(), 10**9, 5, 10**9) == 0


@given(MONEYS, st.none() | MONEYS, MONEYS, TOKENS, st.none() | st.integers(-5, 2 * 10**9), TOKENS)
def test_a_cost_is_never_negative_and_never_beyond_all_at_the_highest_price(
    input_: float, cached: float | None, output: float, prompt: int, known: int | None, written: int
) -> None:
    price = PriceConfig(input=input_, cached=cached, output=output)
    found = cost(price, prompt, known, written)
    highest = billionths(max(input_, cached or 0.0, output))
    assert 0 <= found <= (prompt + written) * highest // 1_000_000 + 1


@pytest.mark.parametrize("numbers", [(-1, None, -1), (-(2**63), -5, -1)])
def test_numbers_that_cannot_be_are_nothing(numbers: tuple[int, int | None, int]) -> None:
    assert cost(PRICE, *numbers) == 0


def _config(*, any_model: bool = False) -> Config:
    up = (UpstreamConfig(url="http://h"),)
    models = {
        "dear": ModelConfig(upstreams=up, aliases=("d",), price=PriceConfig(input=9, output=1)),
        "other": ModelConfig(upstreams=up, price=PriceConfig(input=1, cached=8, output=2)),
        "free": ModelConfig(upstreams=up),
    }
    return Config(models=models, any_model=any_model)


def test_a_model_has_one_price_by_all_of_its_names() -> None:
    prices = Prices(_config())
    assert prices.of("dear") == prices.of("d") == PriceConfig(input=9, output=1)
    assert cost(prices.of("free"), MONEY, None, MONEY) == 0
    assert prices.of("unknown") is None


def test_what_may_be_any_model_is_the_dearest() -> None:
    highest = PriceConfig(input=9, cached=9, output=2)
    assert Prices(_config()).of(None) == highest
    assert Prices(_config(any_model=True)).of("unknown") == highest
    assert Prices(Config()).of(None) is None
