"""`/metrics`: what was done is counted once, and the upstreams' own series have their names."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import CHAT, Serve, Served, Start
from doubles.upstream import DONE, Double, answers, breaks, chunk, event, streams, told
from tropilla.record import Record
from tropilla.server.metrics import merged

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
USAGE = event({"choices": [], "usage": {
    "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
}})  # fmt: skip
NONE = answers(501, b"{}")


async def scraped(tropilla: Served) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, as a scraper reads it; no family stands twice."""
    answer = await tropilla.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(answer.body.decode()))
    names = [one.name for one in families]
    assert len(names) == len(set(names))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for one in families
        for sample in one.samples
    }


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_an_answer_is_counted(gateway: Serve, double: Double) -> None:
    double.on("/metrics", NONE)
    double.on(PATH, streams(chunk("a"), chunk(None, "stop"), USAGE, DONE))
    tropilla = await gateway(double)
    assert (await tropilla.chat(stream=True)).status == 200
    found = await scraped(tropilla)
    assert found[at("tropilla_requests_total", dialect="openai_chat", model="m", status="200")] == 1
    for kind, count in (("read", 7), ("cached", 4), ("written", 3)):
        assert found[at("tropilla_tokens_total", model="m", kind=kind)] == count
    for name in ("request", "queue", "first_token", "token"):
        assert found[at(f"tropilla_{name}_seconds_count", model="m")] == 1
    told_of = {"upstream": double.url, "outcome": "answered"}
    assert found[at("tropilla_upstream_requests_total", **told_of)] == 1
    assert found[at("tropilla_key_tokens_total", key="")] == 10
    assert found[at("tropilla_requests_open")] == 1  # the scrape itself


async def test_what_goes_wrong_is_counted(gateway: Serve, double: Double) -> None:
    double.on("/metrics", NONE)
    double.on(PATH, breaks(chunk("a")))
    tropilla = await gateway(double, failover=False)
    await tropilla.chat(stream=True)
    for name in ("nobody", 'no\n"one\\'):
        await tropilla.chat(model=name)
    raw = await tropilla.connect()
    await raw.post("/completion", {"prompt": "a"})
    exchange = await double.arrives()
    raw.leave()
    await exchange.left()
    found = await scraped(tropilla)
    assert found[at("tropilla_errors_total", kind="upstream_failed")] == 1
    assert found[at("tropilla_errors_total", kind="unknown_model")] == 2
    # What a client calls a model is no label.
    refused = {"dialect": "openai_chat", "model": "other", "status": "404"}
    assert found[at("tropilla_requests_total", **refused)] == 2
    assert found[at("tropilla_clients_left_total")] == 1


async def test_a_retry_is_counted(gateway: Serve, doubles: Start) -> None:
    one, two = await doubles(), await doubles()
    one.on(PATH, breaks())
    for double in (one, two):
        double.on("/metrics", NONE)
    two.on(PATH, streams(*told("a")))
    tropilla = await gateway(one, two)
    while not any(asked.path == PATH for asked in one.requests):
        assert (await tropilla.chat()).status == 200
    assert (await scraped(tropilla))[at("tropilla_retries_total")] == 1


async def test_how_the_herd_is(gateway: Serve, doubles: Start) -> None:
    one = await doubles(slots=3)
    one.on("/metrics", NONE)
    tropilla = await gateway(one)
    raw = await tropilla.connect()
    await raw.post(PATH, CHAT | {"stream": True})
    await one.arrives()
    found = await scraped(tropilla)
    assert found[at("tropilla_upstream_up", upstream=one.url)] == 1
    states = {"leased": 1, "free": 2, "foreign": 0}
    for state, count in states.items():
        assert found[at("tropilla_upstream_slots", upstream=one.url, state=state)] == count


async def test_the_real_engines_series_are_there(gateway: Serve, engine: str) -> None:
    found = await scraped(await gateway(engine))
    assert found[at("tropilla_upstream_scraped", upstream=engine)] == 1
    assert at("llamacpp:prompt_tokens_total", upstream=engine) in found


async def test_an_upstream_that_tells_no_metrics_is_left_out(
    gateway: Serve, doubles: Start
) -> None:
    one, two = await doubles(), await doubles()
    one.on("/metrics", NONE)
    two.on("/metrics", answers(200, b"<html>\xff</html>\nllamacpp:x 1\n"))
    found = await scraped(await gateway(one, two))
    assert found[at("tropilla_upstream_scraped", upstream=one.url)] == 0
    assert found[at("llamacpp:x", upstream=two.url)] == 1


def test_families_of_several_are_merged() -> None:
    one = '# HELP a_total The a.\n# TYPE a_total counter\na_total{x="1}"} 2\n# TYPE h histogram\n'
    two = '# HELP a_total Another.\na_total{x="2",} NaN 123\nh_bucket{le="+Inf"} 1\n'
    lines = list(merged([('u"1', one), ("u2", two + "nonsense{ 1\n# TYPE\n")]))
    assert lines == [
        "# HELP a_total The a.", "# TYPE a_total counter",
        'a_total{upstream="u\\"1",x="1}"} 2', 'a_total{upstream="u2",x="2"} NaN',
        "# TYPE h histogram", 'h_bucket{upstream="u2",le="+Inf"} 1',
    ]  # fmt: skip


async def test_what_gathers_is_counted_as_if_one_by_one(gateway: Serve, double: Double) -> None:
    """Each bucket has what is in it, however many were counted at once."""
    tropilla = await gateway(double)
    book = tropilla.gateway._metrics.book
    for took in (0.005, 0.01, 0.3, 700.0):
        record = Record("req_1", "POST", PATH, 0.0)
        record.model, record.upstream, record.took = "m", double.url, took
        book.begun(record)
        book.over(record)
    double.on("/metrics", NONE)
    found = await scraped(tropilla)
    name = "tropilla_request_seconds"
    for bound, count in (("0.01", 2), ("0.25", 2), ("0.5", 3), ("600.0", 3), ("+Inf", 4)):
        assert found[at(f"{name}_bucket", model="m", le=bound)] == count
    assert found[at(f"{name}_sum", model="m")] == pytest.approx(700.315)


def test_of_a_gateway_that_is_an_upstream_only_its_upstreams_are_told() -> None:
    told = (
        '# TYPE tropilla_upstream_up gauge\ntropilla_upstream_up{upstream="a"} 1\n'
        '# TYPE llamacpp:x gauge\nllamacpp:x{upstream="a",my_upstream="b",z=",upstream="} 1\n'
    )
    line = 'llamacpp:x{upstream="g",exported_upstream="a",my_upstream="b",z=",upstream="} 1'
    assert list(merged([("g", told)])) == ["# TYPE llamacpp:x gauge", line]
