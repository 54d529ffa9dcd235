"""What gateways share in Valkey: limits that hold for all together, and what an outage does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.test_admission import says
from conftest import CHAT, Answer, Serve, Served, Start
from doubles import databases
from doubles.upstream import Double, answers
from serving import DEADLINE
from tropilla.accounts import valkey as valkey_module
from tropilla.accounts.limits import Amount, Hold, Refused, Scope, Spending, Spent, cap
from tropilla.accounts.meters.memory import Memory
from tropilla.accounts.meters.valkey import Shared
from tropilla.accounts.valkey import Valkey, ValkeyError
from tropilla.accounts.valkey.wire import IncompleteError, RefusedError, Wire, read
from tropilla.config import (
    AccountsConfig,
    BudgetConfig,
    Config,
    ConfigError,
    KeyConfig,
    LimitsConfig,
)
from tropilla.server.sharing import Sharing

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy takes no server for gone, but where one is stopped on purpose."""
    if "away" not in request.node.name:
        monkeypatch.setattr(valkey_module, "_PATIENCE_SECONDS", DEADLINE)


MINE = {"Authorization": "Bearer mine"}
ONE = Amount(1, 10, 100, 0)


# The wire.


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"+OK\r\n", b"OK"),
        (b":-7\r\n", -7),
        (b"$5\r\na\r\nb!\r\n", b"a\r\nb!"),
        (b"$0\r\n\r\n", b""),
        (b"$-1\r\n", None),
        (b"*3\r\n:1\r\n*1\r\n$1\r\nx\r\n$-1\r\n", [1, [b"x"], None]),
    ],
)
def test_an_answer_is_read_once_all_of_it_is_there(data: bytes, answer: Any) -> None:
    for end in range(len(data)):
        with pytest.raises(IncompleteError):
            read(data[:end], 0)
    assert read(b"??" + data + b"+more", 2) == (answer, len(data) + 2)


def test_a_refusal_is_one() -> None:
    told, _ = read(b"-WRONGPASS no\r\n", 0)
    assert isinstance(told, RefusedError)
    with pytest.raises(ValueError, match="H"):
        read(b"HTTP/1.1 400\r\n", 0)


async def test_commands_are_answered_in_their_order(valkey: databases.Valkey) -> None:
    wire = await Wire.open(valkey.database())
    answers = [wire.send("INCR", "n") for _ in range(500)]
    wrong = wire.send("NO-SUCH-THING")
    last = wire.send("GET", "n")
    assert await asyncio.gather(*answers) == list(range(1, 501))
    with pytest.raises(RefusedError, match="unknown command"):
        await wrong
    assert await last == b"500"
    wire.close()
    await wire.lost
    with pytest.raises(ValkeyError, match="lost"):
        await wire.send("PING")


@pytest.mark.parametrize("url", ["valkey://127.0.0.1:1", "unix:///nowhere", "redis://no.invalid"])
async def test_a_server_that_is_not_there_is_told_of(url: str) -> None:
    config = Config(accounts=AccountsConfig(store="none", shared=url))
    with pytest.raises(ConfigError, match=r"accounts\.shared: .*(1|nowhere|invalid)"):
        await Sharing.open(config, None)


async def test_who_ends_while_it_joins_leaves_no_connection(
    valkey: databases.Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = asyncio.get_running_loop().create_future()
    open_ = Wire.open

    async def opens(url: str) -> Wire:
        opened.set_result(await open_(url))
        wire: Wire = opened.result()
        return wire

    monkeypatch.setattr(Wire, "open", opens)
    valkey.pause()
    try:
        joining = asyncio.create_task(Valkey.open(valkey.database().partition("?")[0]))
        async with asyncio.timeout(DEADLINE):
            wire = await opened
            joining.cancel()
            await asyncio.wait({joining})
            await wire.lost
    finally:
        valkey.go_on()


async def test_a_server_that_wants_another_password_is_told_of(valkey: databases.Valkey) -> None:
    url = valkey.database()
    admin = await Wire.open(url)
    await admin.send("CONFIG", "SET", "requirepass", "p@ss/w")
    try:
        path, _, number = url.removeprefix("unix://").partition("?")
        (await Wire.open(f"unix://:p%40ss%2Fw@{path}?{number}")).close()
        with pytest.raises(ValkeyError, match=r"socket: WRONGPASS") as told:
            await Wire.open(f"unix://:wrong@{path}")
        assert ":wrong" not in str(told.value)
    finally:
        await admin.send("CONFIG", "SET", "requirepass", "")
        admin.close()


# The meter.


async def nothing() -> Spending:
    return ()


class Stage:
    """Gateways' meters on one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.open: list[Valkey] = []

    async def meter(self, spent: Callable[[], Awaitable[Spending]] | None = None) -> Shared:
        one = await Valkey.open(self.url, spent)
        self.open.append(one)
        return Shared(one, spent or nothing)

    async def close(self) -> None:
        for one in self.open:
            await one.close()

    async def wire(self, *command: str) -> Any:
        wire = await Wire.open(self.url)
        try:
            return await wire.send(*command)
        finally:
            wire.close()


@pytest.fixture
async def stage(valkey: databases.Valkey) -> AsyncIterator[Stage]:
    one = Stage(valkey.database())
    yield one
    await one.close()


def scope(name: str = "key/a", *budgets: BudgetConfig, **limits: int) -> Scope:
    return Scope(name, LimitsConfig(**limits), tuple(cap(one) for one in budgets))


async def reserved(meter: Shared, *scopes: Scope, amount: Amount = ONE) -> Hold:
    told = await meter.reserve(scopes, amount)
    assert isinstance(told, Hold), told
    return told


async def refused(meter: Shared, *scopes: Scope, amount: Amount = ONE) -> Refused:
    told = await meter.reserve(scopes, amount)
    assert isinstance(told, Refused), told
    return told


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)


SCOPES = (
    scope("key/a", BudgetConfig(tokens=300, per="day"), requests=8, tokens=200, concurrent=3),
    scope("key/b", BudgetConfig(money=0.0000005, per="total")),
    scope("team/t", BudgetConfig(tokens=900, per="month"), tokens=260, concurrent=4),
    scope("model/m", concurrent=2),
)
AMOUNTS = st.builds(Amount, st.just(1), *(st.integers(0, 90) for _ in range(3)))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_it_decides_as_the_memory_does(valkey: databases.Valkey, data: st.DataObject) -> None:
    """Whatever is asked, in whatever order, by whichever of two gateways."""

    async def play(stage: Stage) -> None:
        memory = Memory()
        meters = [await stage.meter(), await stage.meter()]
        held: list[tuple[Hold, Hold, Shared]] = []
        for _ in range(data.draw(st.integers(1, 25))):
            which = data.draw(st.sampled_from(["ask", "ask", "settle", "release"]))
            meter = data.draw(st.sampled_from(meters))
            if which == "ask":
                scopes = data.draw(st.lists(st.sampled_from(SCOPES), min_size=1, unique=True))
                amount = data.draw(AMOUNTS)
                here = await memory.reserve(scopes, amount)
                there = await meter.reserve(scopes, amount)
                if isinstance(here, Hold):
                    assert isinstance(there, Hold), (there, amount)
                    held.append((here, there, meter))
                else:
                    assert isinstance(there, Refused), (here, amount)
                    assert there._replace(after=None) == here._replace(after=None)
                    assert (there.after is None) == (here.after is None)
                    assert there.after == pytest.approx(here.after, abs=1.1)
                for name, one in memory.look(scopes).items():
                    told = meter.look(scopes)[name]
                    assert (told.limit, told.remaining) == (one.limit, one.remaining)
            elif held:
                here, there, meter = data.draw(st.sampled_from(held))
                if which == "settle":
                    used = data.draw(AMOUNTS)
                    memory.settle(here, used)
                    meter.settle(there, used)
                else:
                    held.remove((here, there, meter))
                    memory.release(here)
                    meter.release(there)
                # What is told takes its way; the next question from another gateway waits for it.
                await meter._valkey.ask("beat")

    async def staged() -> None:
        stage = Stage(valkey.database())
        try:
            await play(stage)
        finally:
            await stage.close()

    asyncio.run(staged())


async def test_a_scope_is_shared_by_all(stage: Stage) -> None:
    one, other = await stage.meter(), await stage.meter()
    mine = scope(requests=3, concurrent=2)
    first = await reserved(one, mine)
    await reserved(other, mine)
    assert (await refused(one, mine)).what == "concurrent"
    one.settle(first, Amount(1, 0, 0, 0))
    one.release(first)
    await one._valkey.ask("beat")
    third = await reserved(other, mine)
    other.settle(third, Amount(0, 0, 0, 0))  # it failed, and does not count
    other.release(third)
    await other._valkey.ask("beat")
    await reserved(one, mine)
    assert other.look([mine])["requests"].remaining == 1


async def test_what_a_dead_gateway_held_is_free_again(stage: Stage) -> None:
    one, other = await stage.meter(), await stage.meter()
    mine = scope("key/a", BudgetConfig(tokens=150), concurrent=1)
    await reserved(one, mine)
    assert (await refused(other, mine)).what == "concurrent"
    assert one._valkey._life is not None
    one._valkey._life.cancel()
    await stage.wire("ZADD", "{tropilla}:gateways", "0", one._valkey._me)
    await reserved(other, mine)
    assert await stage.wire("HLEN", "{tropilla}:o:key/a") == 1


async def test_a_gateway_that_was_taken_for_dead_holds_what_it_holds(stage: Stage) -> None:
    one, other = await stage.meter(), await stage.meter()
    mine = scope("key/a", BudgetConfig(tokens=250), concurrent=2)
    hold = await reserved(one, mine)
    was = one._valkey._me
    await stage.wire("ZREM", "{tropilla}:gateways", was)
    await until(lambda: one._valkey.up and one._valkey._me != was)
    await one._valkey.ask("beat")
    second = await reserved(other, mine)
    assert (await refused(other, mine)).what == "concurrent"
    one.settle(hold, Amount(1, 0, 60, 0))
    one.release(hold)
    other.release(second)
    await one._valkey.ask("beat")
    await other._valkey.ask("beat")
    told = await refused(
        other, scope("key/a", BudgetConfig(tokens=250)), amount=Amount(1, 0, 191, 0)
    )
    assert (told.used, told.spent) == (60, True)


async def test_who_leaves_while_it_is_asked_holds_nothing(
    stage: Stage, valkey: databases.Valkey
) -> None:
    one, mine = await stage.meter(), scope(concurrent=1)
    valkey.pause()
    try:
        task = asyncio.create_task(one.reserve([mine], ONE))
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    finally:
        valkey.go_on()
    await one._valkey.ask("beat")
    await reserved(one, mine)


async def test_who_has_no_limits_waits_for_nobody_and_counts_all_the_same(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, nobody = await stage.meter(), scope()
    asked: list[str] = []
    with monkeypatch.context() as watched:
        watched.setattr(one._valkey, "do", lambda what, **_: asked.append(what))
        hold = await reserved(one, nobody)
    assert asked == []
    one.settle(hold, Amount(1, 0, 70, 0))
    one.release(hold)
    for per in ("day", "month", "total"):
        later = scope("key/a", BudgetConfig(tokens=100, per=per))
        assert (await refused(one, later)).used == 70


async def test_the_first_gateway_tells_what_was_spent(stage: Stage) -> None:
    async def spent() -> Spending:
        return [
            Spent("key/a", 10, 1, month=False, day=False),
            Spent("key/a", 20, 2, month=True, day=False),
            Spent("key/a", 40, 4, month=True, day=True),
        ]

    async def wrong() -> Spending:
        raise AssertionError

    one = await stage.meter(spent)
    other = await stage.meter(wrong)
    for per, used in (("day", 40), ("month", 60), ("total", 70)):
        mine = scope("key/a", BudgetConfig(tokens=100, per=per))  # type: ignore[arg-type]
        told = await refused(other, mine, amount=Amount(1, 0, 101, 0))
        assert (told.used, told.spent) == (used, True)
    # Once nobody is left the next one tells it anew.
    await one._valkey.close()
    await other._valkey.close()
    third = await stage.meter(nothing)
    told = await refused(third, mine, amount=Amount(1, 0, 101, 0))
    assert told.used == 0


# Outages.


async def test_while_it_is_away_each_gives_its_part(stage: Stage, valkey: databases.Valkey) -> None:
    ledger = {"key/a": 0}

    async def spent() -> Spending:
        return [Spent(name, tokens, 0, month=True, day=True) for name, tokens in ledger.items()]

    meters = [await stage.meter(spent) for _ in range(3)]
    mine = scope("key/a", BudgetConfig(tokens=5000), requests=30)
    before = await reserved(meters[0], mine)
    await until(lambda: all(one._valkey.many == 3 for one in meters))
    valkey.stop()
    try:
        given_, holds = Counter[int](), list[tuple[Shared, Hold]]()
        for number, meter in enumerate(meters):
            while isinstance(told := await meter.reserve([mine], ONE), Hold):
                holds.append((meter, told))
                given_[number] += 1
        assert given_ == {0: 10, 1: 10, 2: 10}
        for meter, hold in holds:
            ledger["key/a"] += 7
            meter.settle(hold, Amount(1, 0, 7, 0))
            meter.release(hold)
    finally:
        valkey.start()
    await until(lambda: all(one._valkey.up for one in meters))
    # It held nothing any more: the ledger has told it, and what is still served is held again.
    meters[0].settle(before, Amount(1, 0, 1, 0))
    meters[0].release(before)
    await meters[0]._valkey.ask("beat")
    told = await refused(meters[1], mine, amount=Amount(1, 0, 5000, 0))
    assert (told.used, told.spent) == (30 * 7 + 1, True)


async def test_what_was_spent_while_it_was_away_is_told_later(
    stage: Stage, valkey: databases.Valkey
) -> None:
    one, other = await stage.meter(), await stage.meter()
    mine = scope("key/a", BudgetConfig(tokens=1000))
    first = await reserved(one, mine)
    epoch = one._valkey.epoch
    valkey.pause()
    try:
        second = await reserved(one, mine)  # after a second nobody waits for it any more
        assert not one._valkey.up
        for hold in (first, second):
            one.settle(hold, Amount(1, 0, 30, 0))
        one.release(first)
    finally:
        valkey.go_on()
    await until(lambda: one._valkey.up and other._valkey.up)
    one.release(second)
    await one._valkey.ask("beat")
    assert one._valkey.epoch == epoch
    told = await refused(other, mine, amount=Amount(1, 0, 1000, 0))
    assert told.used == 60
    assert not one._owned
    assert not one._open


async def test_who_was_given_nothing_because_its_part_is_small_may_come_again(
    stage: Stage, valkey: databases.Valkey
) -> None:
    meters = [await stage.meter(), await stage.meter()]
    await until(lambda: all(one._valkey.many == 2 for one in meters))
    valkey.stop()
    try:
        told = [await one.reserve([scope(concurrent=1)], ONE) for one in meters]
    finally:
        valkey.start()
    assert [type(one) for one in told].count(Hold) == 1
    (no,) = [one for one in told if isinstance(one, Refused)]
    assert no.after is not None


# Gateways.


def shared(url: str, **terms: Any) -> AccountsConfig:
    return AccountsConfig(store="none", shared=url, keys={"alice": KeyConfig(key="mine", **terms)})


async def chat(tropilla: Served, **fields: Any) -> Answer:
    return await tropilla.ask("POST", PATH, CHAT | fields, MINE)


async def test_sixty_a_minute_are_sixty_of_all_gateways(
    gateway: Serve, double: Double, valkey: databases.Valkey
) -> None:
    double.on(PATH, says(5, 5))
    told = shared(valkey.database(), limits=LimitsConfig(requests=60))
    gateways = [await gateway(double, accounts=told) for _ in range(3)]

    async def client(number: int) -> list[Answer]:
        return [await chat(gateways[number % 3]) for _ in range(8)]

    answers = [one for some in await asyncio.gather(*map(client, range(16))) for one in some]
    assert Counter(one.status for one in answers) == {200: 60, 429: 68}


async def test_a_budget_for_twenty_is_for_twenty_of_all_gateways(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    # Each takes 60 tokens, and may come to 60 at most: what it is, is counted.
    one = await doubles(slots=64)
    one.on(PATH, says(10, 50))
    one.on("/v1/chat/completions/input_tokens", answers(200, b'{"input_tokens":10}'))
    told = shared(valkey.database(), budgets=(BudgetConfig(tokens=20 * 60),))
    gateways = [await gateway(one, accounts=told) for _ in range(2)]
    served = 0
    while True:
        asked = (chat(gateways[number % 2], max_tokens=50) for number in range(60))
        round_ = await asyncio.gather(*asked)
        done = sum(answer.status == 200 for answer in round_)
        served += done
        if not done:
            break
    assert served == 20
    assert {answer.error["code"] for answer in round_} == {"insufficient_quota"}


# Slots and sessions.


async def test_a_slot_is_given_once_by_all_gateways(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    one = await doubles(slots=2)
    told = shared(valkey.database())
    gateways = [await gateway(one, accounts=told) for _ in range(3)]
    asked = [asyncio.create_task(chat(gateways[number % 3])) for number in range(9)]
    served = 0
    while served < 9:
        exchanges = [await one.arrives() for _ in range(min(2, 9 - served))]
        await asyncio.gather(*(each.fleet._others.look([]) for each in gateways))  # type: ignore[union-attr]
        # Nobody else came meanwhile: the others wait, wherever they are.
        assert one._arrived.empty()
        assert sum(each.fleet.upstreams[0].leases for each in gateways) <= 2
        assert sum(each.fleet.pool.waiting for each in gateways) >= 9 - served - 4
        for exchange in exchanges:
            await says(5, 5)(exchange)
        served += len(exchanges)
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 9


async def test_who_is_faster_elsewhere_is_made_way_for(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    """Each of two gateways thinks that a slot is free: one of them finds another upstream."""
    upstreams = [await doubles(slots=1), await doubles(slots=1)]
    told = shared(valkey.database())
    gateways = [await gateway(*upstreams, accounts=told) for _ in range(2)]
    asked = [asyncio.create_task(chat(each)) for each in gateways]
    for one in upstreams:
        await says(5, 5)(await one.arrives())
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200]


async def test_who_leaves_while_a_slot_is_asked_for_has_none(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    one = await doubles(slots=1)
    tropilla = await gateway(one, accounts=shared(valkey.database()))
    others = tropilla.fleet._others
    assert others is not None
    valkey.pause()
    try:
        raw = await tropilla.connect()
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
        raw.writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer mine\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await tropilla.has(lambda: bool(others._held))
        raw.leave()
        await tropilla.has(lambda: not others._held)
    finally:
        valkey.go_on()
    one.on(PATH, says(5, 5))
    assert (await chat(tropilla)).status == 200


async def test_a_session_follows_to_any_gateway(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    upstreams = [await doubles(slots=4) for _ in range(3)]
    for one in upstreams:
        one.on(PATH, says(5, 5))
    told = shared(valkey.database())
    gateways = [await gateway(*upstreams, accounts=told) for _ in range(3)]
    for session in range(6):
        headers = MINE | {"x-session-id": f"s{session}"}
        went = [
            (await each.ask("POST", PATH, CHAT, headers)).headers["x-tropilla-upstream"]
            for each in gateways
        ]
        assert len(set(went)) == 1, went
    # They are not all at one of them.
    assert sum(bool(one.requests) for one in upstreams) > 1


async def test_while_it_is_away_everybody_is_served(
    gateway: Serve, doubles: Start, valkey: databases.Valkey
) -> None:
    one = await doubles(slots=2)
    one.on(PATH, says(5, 5))
    told = shared(valkey.database())
    gateways = [await gateway(one, accounts=told) for _ in range(2)]
    valkey.stop()
    try:
        answers = await asyncio.gather(*(chat(gateways[number % 2]) for number in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
    finally:
        valkey.start()
    for each in gateways:
        others = each.fleet._others
        assert others is not None
        await until(lambda others=others: others._valkey.up)  # type: ignore[misc]
    assert (await chat(gateways[0])).status == 200
    assert not gateways[0].fleet._others._held  # type: ignore[union-attr]
