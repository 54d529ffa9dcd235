"""The herd as a state machine: each rule of its design, then any order of everything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from tropilla.herd.pool import (
    Ask,
    Assign,
    Blame,
    Effect,
    FailureRules,
    Pool,
    Probe,
    Quarantine,
    Queue,
    Reject,
    Rules,
    Seen,
)

ASK = Ask(model="m")


def seen(slots: int | None = 2, state: Any = "ready", *models: str, **more: Any) -> Seen:
    return Seen(state=state, slots=slots, models=dict.fromkeys(models or ("m",), 1.0), **more)


def herd(*upstreams: Seen, **rules: Any) -> Pool:
    pool = Pool(Rules(**rules))
    for number, one in enumerate(upstreams):
        assert pool.on_join(number) == [Probe(upstream=number)]
        pool.on_probe(number, one, 0.0)
    return pool


def given_to(effects: list[Effect]) -> dict[int, int]:
    """Which request has which upstream now."""
    return {one.request: one.upstream for one in effects if isinstance(one, Assign)}


def refused(effects: list[Effect]) -> dict[int, str]:
    return {one.request: one.why for one in effects if isinstance(one, Reject)}


# Rules 1 to 6: who fits.


def test_rule_1_a_model_that_nobody_serves() -> None:
    pool = herd(seen())
    assert refused(pool.on_request(1, Ask(model="x"), 0.0)) == {1: "unknown_model"}
    assert given_to(pool.on_request(2, Ask(), 0.0)) == {2: 0}


def test_rule_1_who_is_still_starting_may_serve_it() -> None:
    pool = herd(seen())
    pool.on_join(1)
    assert pool.on_request(1, Ask(model="x"), 0.0) == [Queue(request=1, place=1)]
    assert given_to(pool.on_probe(1, seen(1, "ready", "x"), 1.0)) == {1: 1}


def test_rule_2_who_drains_gets_nothing_new() -> None:
    pool = herd(seen(), seen())
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    pool.on_drain(0, 0.0)
    pool.on_drain(1, 0.0)
    assert refused(pool.on_request(2, ASK, 0.0)) == {2: "unavailable"}
    assert pool.held(0) == 1, "what it has goes on"


def test_rule_2_who_waits_for_it_alone_is_told() -> None:
    pool = herd(seen(1))
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 0.0)
    assert refused(pool.on_drain(0, 0.0)) == {2: "unavailable"}


def test_rule_2_who_is_resumed_gets_what_waits() -> None:
    pool = herd(seen(1), seen(1))
    pool.on_request(1, ASK, 0.0)
    pool.on_drain(1, 0.0)
    pool.on_request(2, ASK, 0.0)
    assert given_to(pool.on_resume(1, 1.0)) == {2: 1}


def test_a_pick_can_be_told_again_however_things_are_later() -> None:
    pool = herd(seen(1), seen(1), seen(1, "down"), seen(1, "ready", "x"))
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 0.0)
    told = pool.weighed(2)
    pool.on_drain(1, 1.0)
    verdicts = [one.verdict for one in told.reasons()]
    assert verdicts == ["full", "free", "down", "other_model"]
    assert [one.taken for one in told.reasons()] == [False, True, False, False]
    assert [one.load for one in told.reasons()][:2] == [1.0, 0.0]


def test_rule_3_a_slot_that_becomes_free_is_given_at_once() -> None:
    pool = herd(seen(1))
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    assert pool.on_request(2, ASK, 1.0) == [Queue(request=2, place=1)]
    assert pool.on_request(3, ASK, 1.0) == [Queue(request=3, place=2)]
    (assigned,) = pool.on_done(1, 4.0)
    assert assigned == Assign(request=2, upstream=0, waited=3.0, expected=0.0)
    assert given_to(pool.on_cancel(2, 5.0)) == {3: 0}


def test_rule_3_a_request_waits_rather_than_go_back_to_who_failed_it() -> None:
    pool = herd(seen(1), seen(1))
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    assert given_to(pool.on_request(2, ASK, 0.0)) == {2: 1}
    pool.on_failure(1, "failed", 1.0)
    again = Ask(model="m", avoid=frozenset({0}), since=0.0)
    assert pool.on_request(1, again, 1.0) == [Queue(request=1, place=1)]
    assert given_to(pool.on_done(2, 2.0)) == {1: 1}
    # With nobody else there it is better than nothing.
    pool.on_probe(1, seen(1, "down"), 3.0)
    pool.on_cancel(1, 3.0)
    assert given_to(pool.on_request(4, again, 3.0)) == {4: 0}


def test_rule_4_who_cannot_is_not_asked() -> None:
    pool = herd(seen(lacks=frozenset({"tools"})), seen())
    asks = Ask(model="m", needs=("tools",))
    assert given_to(pool.on_request(1, asks, 0.0)) == {1: 1}
    pool.on_leave(1, 0.0)
    assert refused(pool.on_request(2, asks, 0.0)) == {2: "incapable"}


@pytest.mark.parametrize("state", ["starting", "loading"])
def test_rule_5_who_is_not_ready_is_waited_for(state: Any) -> None:
    pool = herd(seen(1, state), patience_seconds=10.0)
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 5.0)
    assert refused(pool.on_tick(9.9)) == {}
    assert refused(pool.on_tick(10.0)) == {1: "loading"}
    assert given_to(pool.on_probe(0, seen(1), 11.0)) == {2: 0}


def test_rule_5_nobody_waits_for_the_dead() -> None:
    pool = herd(seen(1, "loading"))
    pool.on_request(1, ASK, 0.0)
    assert refused(pool.on_probe(0, seen(1, "down"), 1.0)) == {1: "unavailable"}
    assert refused(pool.on_request(2, ASK, 1.0)) == {2: "unavailable"}


def test_rule_6_what_others_take_counts() -> None:
    pool = herd(seen(3))
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    pool.on_look(0)
    pool.on_probe(0, seen(3, busy=3), 1.0)
    assert given_to(pool.on_request(2, ASK, 1.0)) == {}
    pool.on_look(0)
    assert given_to(pool.on_probe(0, seen(3, busy=2), 2.0)) == {2: 0}


def test_rule_6_what_is_ours_is_not_taken_for_anothers() -> None:
    pool = herd(seen(4))
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, Ask(model="m", slots=2), 0.0)
    pool.on_look(0)
    pool.on_done(1, 0.1)
    pool.on_request(3, ASK, 0.1)
    pool.on_probe(0, seen(4, busy=4), 0.2)
    assert pool.candidate(0, 0.2).foreign == 0, "all of these were ours while it looked"
    pool.on_look(0)
    pool.on_probe(0, seen(4, busy=4), 0.2)
    assert pool.candidate(0, 0.2).foreign == 1


def test_rule_6_a_server_that_was_not_free_after_all() -> None:
    pool = herd(seen(1))
    pool.on_request(1, ASK, 0.0)
    pool.on_failure(1, "busy", 0.0)
    assert pool.on_request(1, Ask(model="m", since=0.0), 0.0) == [Queue(request=1, place=1)]
    assert given_to(pool.on_probe(0, seen(1), 1.0)) == {1: 0}


def test_rule_6_without_known_slots_there_is_no_limit() -> None:
    pool = herd(seen(None))
    for request in range(100):
        assert given_to(pool.on_request(request, ASK, 0.0)) == {request: 0}


def test_rule_6_what_takes_no_slot_needs_none() -> None:
    pool = herd(seen(1))
    pool.on_request(1, ASK, 0.0)
    light = Ask(model="m", slots=0)
    assert given_to(pool.on_request(2, light, 0.0)) == {2: 0}
    assert pool.held(0) == 1
    pool.on_done(2, 0.0)
    assert pool.held(0) == 1


# Rule 7: the score.

CHAT, OTHER = tuple(range(100)), tuple(range(1000, 1100))


def test_rule_7_a_conversation_stays_with_its_server() -> None:
    pool = herd(seen(4), seen(4))
    assert given_to(pool.on_request(1, Ask(model="m", chain=OTHER), 0.0)) == {1: 0}
    pool.on_done(1, 0.0)
    for turn in range(2, 9):
        chat = Ask(model="m", chain=CHAT[: turn * 10])
        assert given_to(pool.on_request(turn, chat, 0.0)) == {turn: 1}, "the one that served less"
        pool.on_done(turn, 0.0)
    (assigned,) = pool.on_request(9, Ask(model="m", chain=CHAT), 0.0)
    assert isinstance(assigned, Assign)
    assert assigned.expected == 0.8


def test_rule_7_a_beginning_that_all_share_does_not_melt_one_server() -> None:
    pool = herd(seen(8), seen(8))
    given: list[int] = []
    for request in range(12):
        chain = (*range(60), *range(request * 1000, request * 1000 + 40))
        given += given_to(pool.on_request(request, Ask(model="m", chain=chain), 0.0)).values()
    assert 3 <= given.count(0) <= 9, given


def test_rule_7_a_session_is_a_hint() -> None:
    pool = herd(seen(4), seen(4))
    hinted = Ask(model="m", session=7, chain=OTHER)
    assert given_to(pool.on_request(1, hinted, 0.0)) == {1: 0}
    pool.on_done(1, 0.0)
    again = Ask(model="m", session=7, chain=CHAT)
    assert given_to(pool.on_request(2, again, 0.0)) == {2: 0}


def test_rule_7_what_has_died_has_no_cache() -> None:
    pool = herd(seen(4), seen(4))
    chat = Ask(model="m", chain=CHAT)
    pool.on_request(1, chat, 0.0)
    pool.on_failure(1, "died", 0.0)
    pool.on_probe(0, seen(4), 20.0)
    (assigned,) = pool.on_request(2, chat, 20.0)
    assert isinstance(assigned, Assign)
    assert assigned.expected == 0.0


# Rules 8 and 9: the queue.


def test_rule_8_the_queue_is_bounded() -> None:
    pool = herd(seen(1), queue=2)
    pool.on_request(0, ASK, 0.0)
    assert [refused(pool.on_request(n, ASK, 0.0)) for n in (1, 2, 3)] == [{}, {}, {3: "queue_full"}]


def test_rule_8_aliases_share_a_queue() -> None:
    pool = herd(seen(1, "ready", "m", "alias"), seen(1, "ready", "other"), queue=1)
    for request, model in enumerate(["m", "other", "alias"]):
        pool.on_request(request, Ask(model=model), 0.0)
    assert refused(pool.on_request(3, ASK, 0.0)) == {3: "queue_full"}
    assert refused(pool.on_request(4, Ask(model="other"), 0.0)) == {}


def test_rule_8_who_waits_too_long_is_told() -> None:
    pool = herd(seen(1), queue_seconds=60.0)
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 10.0)
    assert refused(pool.on_tick(69.9)) == {}
    assert refused(pool.on_tick(70.0)) == {2: "late"}
    assert pool.waiting == 0


def test_rule_8_who_floods_the_queue_makes_room() -> None:
    pool = herd(seen(1), queue=4)
    for request in range(5):
        pool.on_request(request, Ask(model="m", key="flood"), float(request))
    other = Ask(model="m", key="other")
    told = pool.on_request(5, other, 5.0)
    assert told == [Reject(request=4, why="queue_full"), Queue(request=5, place=1)]
    assert refused(pool.on_request(6, other, 6.0)) == {3: "queue_full"}
    # Now both have two: who comes next is the one too many.
    assert refused(pool.on_request(7, other, 7.0)) == {7: "queue_full"}
    assert refused(pool.on_request(8, Ask(model="m", key="third"), 8.0)) == {2: "queue_full"}
    assert pool.waiting == 4


def test_rule_9_keys_take_turns() -> None:
    pool = herd(seen(1))
    pool.on_request(0, Ask(model="m", key="flood"), 0.0)
    for request in range(1, 10):
        pool.on_request(request, Ask(model="m", key="flood"), 0.0)
    pool.on_request(10, Ask(model="m", key="a"), 1.0)
    pool.on_request(11, Ask(model="m", key="b"), 2.0)
    order, now = [0], 3.0
    while effects := pool.on_done(order[-1], now):
        order += given_to(effects)
        now += 1
    assert order == [0, 10, 11, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_rule_9_a_place_in_the_queue_is_one_by_turns() -> None:
    pool = herd(seen(1))
    pool.on_request(1, Ask(model="m", key="a"), 0.0)
    for request in (2, 3, 4):
        pool.on_request(request, Ask(model="m", key="a"), 0.0)
    assert pool.on_request(5, Ask(model="m", key="b"), 1.0) == [Queue(request=5, place=1)]
    pool.on_request(6, Ask(model="m", key="b"), 1.0)
    told = {request: pool.place(request) for request in range(1, 7)}
    assert told == {1: 0, 2: 3, 3: 4, 4: 5, 5: 1, 6: 2}
    assert given_to(pool.on_done(1, 2.0)) == {5: 0}
    assert [pool.place(request) for request in (2, 3, 6, 4)] == [1, 2, 3, 4]


def test_rule_9_a_higher_priority_comes_first() -> None:
    pool = herd(seen(1))
    pool.priorities = {"high": 5, "low": -1}
    pool.on_request(0, Ask(model="m", key="high"), 0.0)
    for request, key in enumerate(["low", "b", "c", "high", "b", "high"], 1):
        pool.on_request(request, Ask(model="m", key=key), 0.0)
    assert [pool.place(request) for request in (4, 6, 2, 3, 5, 1)] == [1, 2, 3, 4, 5, 6]
    order, now = [0], 1.0
    while effects := pool.on_done(order[-1], now):
        order += given_to(effects)
        now += 1
    assert order == [0, 4, 6, 2, 3, 5, 1]


def test_rule_9_who_holds_less_is_next() -> None:
    pool = herd(seen(3))
    for request, key in enumerate(["a", "a", "b"]):
        pool.on_request(request, Ask(model="m", key=key), 0.0)
    pool.on_request(3, Ask(model="m", key="a"), 0.0)
    pool.on_request(4, Ask(model="m", key="b"), 1.0)
    assert given_to(pool.on_done(1, 2.0)) == {3: 0}, "one each, and a's turn was before b's"
    assert given_to(pool.on_done(0, 3.0)) == {4: 0}


def test_rule_9_a_turn_long_ago_does_not_make_up_for_what_is_held() -> None:
    pool = herd(seen(4))
    for request, key in enumerate(["a", "a", "b", "c"]):
        pool.on_request(request, Ask(model="m", key=key), 0.0)
    pool.on_request(4, Ask(model="m", key="a"), 1.0)
    pool.on_request(5, Ask(model="m", key="b"), 2.0)
    assert given_to(pool.on_done(3, 3.0)) == {5: 0}


def test_rule_9_a_request_that_comes_again_keeps_its_age() -> None:
    pool = herd(seen(1), seen(1))
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 0.0)
    pool.on_request(3, ASK, 1.0)
    assert given_to(pool.on_failure(1, "failed", 2.0)) == {3: 0}
    pool.on_request(4, ASK, 2.0)
    pool.on_request(1, Ask(model="m", avoid=frozenset({0}), since=0.0), 2.0)
    assert given_to(pool.on_done(2, 3.0)) == {1: 1}


# Rules 10 to 14: what goes wrong.


def fail(pool: Pool, request: int, now: float, blame: Blame = "failed") -> list[Effect]:
    assert given_to(pool.on_request(request, ASK, now)) == {request: 0}
    return pool.on_failure(request, blame, now)


def test_rule_10_failures_in_a_row_take_an_upstream_out() -> None:
    pool = herd(seen(4), seen(0))
    fail(pool, 1, 0.0)
    fail(pool, 2, 0.0)
    pool.on_request(3, ASK, 0.0)
    pool.on_done(3, 0.0)
    assert [fail(pool, n, 0.0) for n in (4, 5)] == [[], []], "an answer between them forgets them"
    (out,) = fail(pool, 6, 0.0)
    assert isinstance(out, Quarantine)
    assert 0.9 <= out.seconds <= 1.1
    assert pool.on_request(7, ASK, 0.1) == [Queue(request=7, place=1)]
    pool.on_cancel(7, 0.1)
    pool.on_probe(1, seen(0, "down"), 0.2)
    assert given_to(pool.on_request(8, ASK, 0.2)) == {8: 0}, "better than nothing"


def test_rule_10_each_time_for_longer() -> None:
    pool, now, told = herd(seen(4)), 0.0, []
    for _ in range(10):
        effects: list[Effect] = []
        while not effects:
            effects = fail(pool, 1, now)
        assert isinstance(effects[0], Quarantine)
        told.append(effects[0].seconds)
        now += 100
        pool.on_probe(0, seen(4), now)
        now += 100
    assert all(0.9 * 2**n <= one <= 1.1 * 2**n for n, one in enumerate(told[:6]))
    assert all(54 <= one <= 66 for one in told[6:])
    assert len(set(told)) > 8, "never all at the same moment"


def test_rule_11_a_probe_brings_it_back_and_then_slowly() -> None:
    pool = herd(seen(10), seen(0))
    for request in range(3):
        fail(pool, request, 0.0)
    pool.on_request(9, ASK, 0.1)
    assert given_to(pool.on_probe(0, seen(10), 0.5)) == {}, "not before its time"
    assert pool.on_tick(2.0) == [Probe(upstream=0)]
    assert given_to(pool.on_probe(0, seen(10), 2.0)) == {9: 0}
    assert pool.candidate(0, 2.0).slots == 1
    assert pool.candidate(0, 7.0).slots == 5
    assert pool.candidate(0, 12.0).slots == 10


def test_rule_10_two_gateways_do_not_come_back_at_once() -> None:
    ends = set()
    for seed in range(20):
        pool = Pool(Rules(), seed=seed)
        pool.on_join(0)
        pool.on_probe(0, seen(rules=FailureRules(failures=1)), 0.0)
        pool.on_request(1, ASK, 0.0)
        (told,) = [one for one in pool.on_failure(1, "failed", 0.0) if isinstance(one, Quarantine)]
        assert 0.9 <= told.seconds <= 1.1
        ends.add(told.seconds)
    assert len(ends) > 10


def test_rule_11_a_slot_that_comes_with_time_is_for_who_waits() -> None:
    pool = herd(seen(2, "down"))
    pool.on_probe(0, seen(2), 0.0)
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    pool.on_request(2, ASK, 1.0)
    assert given_to(pool.on_request(3, ASK, 9.0)) == {2: 0}


def test_rules_10_and_11_may_be_an_upstreams_own() -> None:
    own = FailureRules(failures=1, quarantine_seconds=5, most_quarantine_seconds=5, slow_seconds=0)
    pool = herd(seen(2, rules=own), seen(2))
    pool.on_request(1, ASK, 0.0)
    (quarantined, *_) = pool.on_failure(1, "failed", 0.0)
    assert isinstance(quarantined, Quarantine)
    assert 4.5 <= quarantined.seconds <= 5.5
    pool.on_probe(0, seen(2, rules=own), 6.0)
    assert pool.candidate(0, 6.0).slots == 2, "all at once"
    pool.on_request(2, Ask(model="m", avoid=frozenset({0})), 6.0)
    assert not any(isinstance(one, Quarantine) for one in pool.on_failure(2, "failed", 6.0))


def test_rule_11_after_it_was_down_too() -> None:
    pool = herd(seen(10))
    assert pool.candidate(0, 0.0).slots == 10, "not at the start"
    pool.on_probe(0, seen(10, "down"), 1.0)
    pool.on_probe(0, seen(10), 2.0)
    assert pool.candidate(0, 2.0).slots == 1


def test_rule_12_retries_are_few() -> None:
    pool = herd(seen(None), retries_per_second=0.3)
    again = Ask(model="m", avoid=frozenset({5}))
    for request in range(3):
        assert pool.may_retry(0.0)
        pool.on_request(request, again, 0.0)
    assert not pool.may_retry(9.0)
    assert pool.may_retry(10.0), "ten seconds later it is forgotten"
    for request in range(100, 200):
        pool.on_request(request, ASK, 11.0)
    for request in range(12):
        assert pool.may_retry(11.0)
        pool.on_request(request, again, 11.0)
    assert not pool.may_retry(11.0), "a tenth of all"


def test_rule_13_what_upstreams_die_of_is_refused() -> None:
    pool = herd(seen(4), seen(4))
    bad = Ask(model="m", body=666)
    assert given_to(pool.on_request(1, bad, 0.0)) == {1: 0}
    pool.on_failure(1, "died", 0.0)
    assert given_to(pool.on_request(1, bad, 1.0)) == {1: 1}
    pool.on_failure(1, "died", 1.0)
    assert refused(pool.on_request(1, bad, 2.0)) == {1: "poison"}
    assert refused(pool.on_request(2, bad, 600.0)) == {2: "poison"}
    pool.on_probe(0, seen(4), 601.0)
    assert given_to(pool.on_request(3, bad, 601.0)) == {3: 0}


def test_rule_13_one_death_counts_once_and_an_answer_clears() -> None:
    pool = herd(seen(4), seen(4))
    body = Ask(model="m", body=5)
    for request in (1, 2, 3):
        pool.on_request(request, body, 0.0)
    gone = [request for request in (1, 2, 3) if pool._held[request].upstream == 0]
    assert len(gone) == 2
    for request in gone:
        pool.on_failure(request, "died", 0.0)
    assert given_to(pool.on_request(4, body, 1.0)) == {4: 1}, "both saw the same one die"
    pool.on_done(4, 1.0)
    pool.on_failure(3 if gone == [1, 2] else 2, "died", 2.0)
    pool.on_probe(0, seen(4), 3.0)
    assert given_to(pool.on_request(5, body, 3.0)) == {5: 0}, "it was served in between"


def test_rule_14_the_end() -> None:
    pool = herd(seen(1))
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 0.0)
    assert refused(pool.on_end()) == {2: "ending"}
    assert refused(pool.on_request(3, ASK, 0.0)) == {3: "ending"}
    assert pool.on_done(1, 1.0) == []
    assert pool.held(0) == 0


def test_why_is_told() -> None:
    pool = herd(seen(1), seen(1, "down"), seen(1, "ready", "x"), seen(2))
    pool.on_request(1, ASK, 0.0)
    verdicts = [(one.verdict, one.taken) for one in pool.explain(ASK, 0.0)]
    told = ["full", "down", "other_model", "free"]
    assert verdicts == [(verdict, verdict == "free") for verdict in told]


# Rule 17: those in the middle of their answers.

HURRIED = Ask(model="m", avoid=frozenset({1}), since=0.0, hurries=True)


def test_rule_17_who_hurries_comes_first_and_does_not_wait_for_long() -> None:
    pool = herd(seen(1), seen(1, "starting"), queue=1, hurry_seconds=0.5)
    pool.on_request(1, ASK, 0.0)
    pool.on_request(2, ASK, 0.0)
    assert pool.on_request(3, HURRIED, 1.0) == [Queue(request=3, place=1)]
    pool.on_request(4, HURRIED, 1.1)
    assert given_to(pool.on_done(1, 1.2)) == {3: 0}
    assert refused(pool.on_tick(1.5)) == {}
    assert refused(pool.on_tick(1.6)) == {4: "late"}
    assert given_to(pool.on_done(3, 2.0)) == {2: 0}


def test_rule_17_who_hurries_waits_for_nobody_who_is_not_ready() -> None:
    pool = herd(seen(1, "loading"), seen(1, "starting"))
    assert refused(pool.on_request(1, HURRIED, 0.0)) == {1: "unavailable"}


# Rule 15, and the others, in any order of everything.

MODELS = ("m", "x")
QUEUE = 4


# Rule 16: the other processes of the gateway.


def test_rule_16_what_a_sibling_holds_is_taken() -> None:
    pool = herd(seen(2))
    pool.on_siblings(0, 1)
    assert given_to(pool.on_request(1, ASK, 0.0)) == {1: 0}
    assert pool.on_request(2, ASK, 0.0) == [Queue(request=2, place=1)]
    pool.on_siblings(0, 0)
    assert given_to(pool.on_tick(1.0)) == {2: 0}


def test_rule_16_a_sibling_is_no_stranger() -> None:
    pool = herd(seen(4))
    pool.on_siblings(0, 2)
    pool.on_look(0)
    pool.on_siblings(0, 1)  # one of them ended while it was looked
    pool.on_probe(0, seen(4, busy=2), 0.0)
    assert pool.candidate(0, 0.0).foreign == 1, "what the sibling has, and nothing else"


def test_rule_16_what_a_sibling_has_read_is_cached() -> None:
    pool = herd(seen(), seen())
    ask = Ask(model="m", chain=tuple(range(20)))
    assert given_to(pool.on_request(1, ask, 0.0)) == {1: 0}
    pool.on_done(1, 0.0)
    # Of two that are equally free it would be the first one's turn.
    assert given_to(pool.on_request(9, Ask(model="m"), 0.5)) == {9: 1}
    pool.on_done(9, 0.5)
    other = Ask(model="m", chain=tuple(range(100, 120)), session=7)
    pool.on_sibling_assigned(1, other.seen())
    pool.on_sibling_assigned(9, other.seen())  # it has left meanwhile
    assert given_to(pool.on_request(2, other, 1.0)) == {2: 1}


def alike(ask: Ask) -> tuple[object, ...]:
    """Requests of which this is the same can be served by the same upstreams."""
    return ask.model, ask.needs, ask.avoid, ask.slots > 0, ask.hurries


class Herd(RuleBasedStateMachine):
    """Whatever happens, in whatever order."""

    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(Rules(queue=QUEUE, queue_seconds=20, patience_seconds=5))
        self.now = 0.0
        self.next = 0
        self.upstreams: dict[int, Seen] = {}
        self.draining: set[int] = set()
        self.holds: dict[int, int] = {}
        self.waits: dict[int, Ask] = {}
        self.order: dict[int, float] = {}
        self.asks: dict[int, Ask] = {}
        self.turns: dict[str, int] = {}
        self.ended: set[int] = set()

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Assign(request=request, upstream=upstream):
                    assert request not in self.ended
                    assert request not in self.holds
                    ask = self.waits.pop(request)
                    self.fits(ask, upstream)
                    self.is_its_turn(request, ask)
                    self.turns[ask.key] = len(self.turns) and max(self.turns.values()) + 1
                    self.holds[request] = upstream
                case Queue(request=request):
                    assert request in self.waits
                case Reject(request=request):
                    del self.waits[request]
                    self.ended.add(request)
                case Probe(upstream=upstream) | Quarantine(upstream=upstream):
                    assert upstream in self.upstreams

    def fits(self, ask: Ask, upstream: int) -> None:
        one = self.upstreams[upstream]
        assert upstream not in self.draining
        assert one.state == "ready"
        assert ask.model in one.models
        assert not set(ask.needs) & one.lacks

    def is_its_turn(self, request: int, ask: Ask) -> None:
        """Of those who could as well have had what it is given, none came before it."""

        def standing(key: str) -> tuple[int, int]:
            held = sum(self.asks[one].key == key for one in self.holds)
            return held, self.turns.get(key, -1)

        for other, waits in self.waits.items():
            if alike(waits) != alike(ask):
                continue
            if waits.key == ask.key or ask.hurries:
                assert (self.order[request], request) < (self.order[other], other)
            else:
                assert standing(ask.key) <= standing(waits.key)

    def end(self, request: int) -> None:
        self.holds.pop(request, None)
        self.waits.pop(request, None)
        self.ended.add(request)

    @rule(
        number=st.integers(0, 3),
        state=st.sampled_from(["ready", "ready", "ready", "loading", "starting", "down"]),
        models=st.sampled_from([("m",), ("x",), MODELS]),
        slots=st.none() | st.integers(1, 3),
        busy=st.integers(0, 3),
        lacks=st.sampled_from([frozenset(), frozenset({"tools"})]),
    )
    def probe(
        self, number: int, state: Any, models: Any, slots: Any, busy: int, lacks: Any
    ) -> None:
        if number not in self.upstreams:
            self.upstreams[number] = Seen(state="starting")
            self.do(self.pool.on_join(number))
        found = seen(slots, state, *models, busy=busy, lacks=lacks)
        self.pool.on_look(number)
        self.upstreams[number] = found
        self.do(self.pool.on_probe(number, found, self.now))

    @rule(number=st.integers(0, 3), leaves=st.booleans())
    def drain(self, number: int, leaves: bool) -> None:  # noqa: FBT001
        if number not in self.upstreams:
            return
        if leaves:
            del self.upstreams[number]
            self.draining.discard(number)
            self.do(self.pool.on_leave(number, self.now))
            self.holds = {r: u if u != number else -1 for r, u in self.holds.items()}
        else:
            self.draining.add(number)
            self.do(self.pool.on_drain(number, self.now))

    @rule(
        target=requests,
        model=st.sampled_from(MODELS),
        key=st.sampled_from("abc"),
        needs=st.sampled_from([(), ("tools",)]),
        chain=st.lists(st.integers(0, 3), max_size=3).map(tuple),
        session=st.none() | st.integers(0, 2),
        slots=st.integers(0, 2),
        body=st.integers(0, 3),
        seconds=st.sampled_from([0, 0, 0.1, 4]),
    )
    def request(self, seconds: float, **fields: Any) -> int:
        self.now += seconds
        self.next += 1
        self.ask(self.next, Ask(**fields))
        return self.next

    def ask(self, request: int, ask: Ask) -> None:
        self.waits[request] = self.asks[request] = ask
        self.order[request] = self.now if ask.since is None else ask.since
        self.do(self.pool.on_request(request, ask, self.now))

    @rule(request=consumes(requests))
    def cancel(self, request: int) -> None:
        self.end(request)
        self.do(self.pool.on_cancel(request, self.now))

    @rule(request=consumes(requests), cached=st.none() | st.floats(0, 1))
    def done(self, request: int, cached: float | None) -> None:
        if request in self.holds:
            self.end(request)
        self.do(self.pool.on_done(request, self.now, cached))

    @rule(
        target=requests,
        request=consumes(requests),
        blame=st.sampled_from(["gone", "died", "failed", "loading", "busy"]),
        again=st.sampled_from([None, "waits", "hurries"]),
    )
    def failure(self, request: int, blame: Blame, again: str | None) -> int:
        upstream = self.holds.pop(request, None)
        held = self.pool._held.get(request)
        if upstream in self.upstreams and blame in {"gone", "died", "loading"}:
            state: Any = "loading" if blame == "loading" else "starting"
            known = self.upstreams[upstream]
            if known.state == "ready" or blame == "loading":
                fields = {n: getattr(known, n) for n in ("models", "lacks", "slots", "busy")}
                self.upstreams[upstream] = Seen(state=state, **fields)
        self.do(self.pool.on_failure(request, blame, self.now))
        if held is None or upstream is None:
            return request
        self.ended.add(request)
        if again is not None:
            self.next += 1
            avoid = frozenset({upstream})
            since = self.order[request]
            fields = {n: getattr(held.ask, n) for n in ("model", "key", "needs", "chain", "body")}
            hurries = again == "hurries"
            self.ask(self.next, Ask(avoid=avoid, since=since, hurries=hurries, **fields))
            return self.next
        return request

    @rule(seconds=st.floats(0, 30))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.pool.on_tick(self.now))

    @rule(number=st.integers(0, 3))
    def comes_back(self, number: int) -> None:
        """It was down, and has one slot at first: more of them come with time alone."""
        for state in ("down", "ready"):
            self.probe(number, state, MODELS, slots=3, busy=0, lacks=frozenset())

    @rule(number=st.integers(0, 3), taken=st.integers(0, 3))
    def siblings(self, number: int, taken: int) -> None:
        self.pool.on_siblings(number, taken)
        self.do(self.pool.on_tick(self.now))

    def teardown(self) -> None:
        """Whoever is still there at the end is told so, or served, and nothing is left."""
        self.do(self.pool.on_end())
        assert not self.waits
        for request in list(self.holds):
            self.end(request)
            self.do(self.pool.on_done(request, self.now))
        assert not self.pool.waiting
        assert not self.pool._held
        assert not self.pool._running
        assert not any(self.pool.held(number) for number in self.upstreams)

    @invariant()
    def leases_are_what_was_given(self) -> None:
        for number in self.upstreams:
            held = [request for request, upstream in self.holds.items() if upstream == number]
            taken = [self.pool._held[request].ask.slots > 0 for request in held]
            assert self.pool.held(number) == sum(taken)

    @invariant()
    def everybody_is_somewhere(self) -> None:
        assert self.pool.waiting == len(self.waits)
        assert not self.holds.keys() & self.waits.keys()
        assert self.pool._running.keys() == {held.ask.key for held in self.pool._held.values()}

    @invariant()
    def nobody_waits_for_a_free_slot(self) -> None:
        for request, entry in self.pool._waiting.items():
            told = self.pool.explain(entry.ask, self.now)
            for one in told:
                if one.verdict == "free":
                    assert one.upstream in entry.ask.avoid, request
                    others = [other for other in told if other.upstream not in entry.ask.avoid]
                    assert any(other.verdict == "full" for other in others)

    @invariant()
    def the_queue_is_bounded(self) -> None:
        waiting = self.pool._waiting.values()
        groups = [entry.group for entry in waiting if not entry.ask.hurries]
        assert all(groups.count(group) <= QUEUE for group in groups)


class MoreLeases(Herd):
    """Never more leases than slots, as long as no probe says that there are fewer than before."""

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Assign):
                member = self.pool._members[effect.upstream]
                slots = self.pool._slots(member, self.now)
                if slots is not None and self.pool._held[effect.request].ask.slots:
                    assert member.held + member.foreign + member.siblings <= slots
        super().do(effects)


HOW = settings(max_examples=250)
TestAnyOrder = MoreLeases.TestCase
TestAnyOrder.settings = HOW
