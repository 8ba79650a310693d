"""Whose turn it is: equal shares of time for callers, 8:1 for priorities, and nobody starves."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convolver.server.demand import Demand
from convolver.server.fair_queue import LEAST_SECONDS, MOST_CALLERS, MOST_GONE, SHARES, FairQueue, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from convolver.core.parameters import Priority

SECONDS = st.floats(0.0, 100.0)
ROUNDING = 1e-6


def waiting(
    caller: str = "a", seconds: float = 1.0, priority: Priority = "interactive", key: str | None = None
) -> Waiting:
    return Waiting(Demand(1, seconds, caller, priority), seconds, key)


def some(count: int, caller: str = "a", priority: Priority = "interactive", key: str | None = None) -> list[Waiting]:
    return [waiting(caller, 1.0, priority, key) for _ in range(count)]


def push(queue: FairQueue, several: Iterable[Waiting]) -> None:
    for each in several:
        queue.push(each)


def taken(queue: FairQueue, count: int = 1) -> list[Waiting]:
    heads: list[Waiting] = []
    for _ in range(count):
        head = queue.head()
        assert head is not None
        queue.take(head)
        heads.append(head)
    return heads


def callers(several: Iterable[Waiting]) -> str:
    return "".join(each.demand.caller for each in several)


def kept(queue: FairQueue) -> int:
    """Objects that it keeps, of whatever has waited."""
    return sum(len(each.heap) + len(each.lines) + len(each.idle) for each in queue._classes.values())  # noqa: SLF001  # nothing else shows them


def test_an_empty_queue_has_no_head() -> None:
    queue = FairQueue()
    assert (len(queue), queue.head()) == (0, None)


@given(st.lists(SECONDS, min_size=1))
def test_those_of_one_caller_are_first_in_first_out(seconds: list[float]) -> None:
    queue, them = FairQueue(), [waiting(seconds=each) for each in seconds]
    push(queue, them)
    assert taken(queue, len(them)) == them


@given(st.lists(st.tuples(SECONDS, st.sampled_from(["push", "push", "take", "leave"])), min_size=1), st.data())
def test_and_stay_so_whoever_leaves(steps: list[tuple[float, str]], data: st.DataObject) -> None:
    queue, line = FairQueue(), list[Waiting]()
    for seconds, step in steps:
        if step == "push":
            line.append(waiting(seconds=seconds))
            queue.push(line[-1])
        elif step == "take" and line:
            assert taken(queue) == [line.pop(0)]
        elif line:
            queue.leave(line.pop(data.draw(st.integers(0, len(line) - 1))))
    assert taken(queue, len(line)) == line


def test_one_beside_a_thousand_of_another_waits_for_one_at_most() -> None:
    queue = FairQueue()
    push(queue, [*some(1000), waiting("b")])
    assert callers(taken(queue, 3)) == "aba"


@pytest.mark.parametrize("before", [1, 10, 900])
def test_and_is_the_next_if_it_comes_while_they_are_taken(before: int) -> None:
    queue = FairQueue()
    push(queue, some(1000))
    taken(queue, before)
    queue.push(waiting("b"))
    assert callers(taken(queue)) == "b"


def test_having_been_away_earns_nothing() -> None:
    queue = FairQueue()
    push(queue, [waiting("b"), *some(100)])
    taken(queue, 60)
    push(queue, some(50, "b"))
    assert callers(taken(queue, 40)).count("b") in {20, 21}


def test_what_leaves_costs_its_caller_nothing() -> None:
    queue, gone = FairQueue(), some(100)
    push(queue, gone)
    for each in gone:
        queue.leave(each)
    push(queue, [*some(50, "b"), *some(50)])
    assert callers(taken(queue, 20)).count("a") == 10


@given(st.lists(st.tuples(st.sampled_from("abcd"), SECONDS), min_size=1))
def test_the_seconds_of_callers_that_wait_differ_by_a_turn_of_each(them: list[tuple[str, float]]) -> None:
    """Theorem 1 of Goyal, Vin and Cheng."""
    queue, left, spent = FairQueue(), Counter(caller for caller, _ in them), Counter[str]()
    push(queue, [waiting(caller, seconds) for caller, seconds in them])
    longest = {caller: max(s for c, s in them if c == caller) + ROUNDING for caller in left}
    while all(left.values()):
        (head,) = taken(queue)
        left[head.demand.caller] -= 1
        spent[head.demand.caller] += max(LEAST_SECONDS, head.seconds)  # type: ignore[assignment]  # a Counter adds floats as well
        assert all(spent[a] - spent[b] <= longest[a] + longest[b] for a in left for b in left)


@given(
    st.lists(SECONDS, min_size=1, max_size=40),
    st.lists(SECONDS, min_size=1, max_size=40),
)
def test_interactive_work_has_eight_times_the_seconds_of_bulk(quick: list[float], bulk: list[float]) -> None:
    queue = FairQueue()
    push(queue, [waiting("a", seconds, "bulk") for seconds in bulk])
    push(queue, [waiting("a", seconds) for seconds in quick])
    left, spent = {"interactive": len(quick), "bulk": len(bulk)}, {"interactive": 0.0, "bulk": 0.0}
    apart = max(quick) / SHARES["interactive"] + max(bulk) / SHARES["bulk"] + ROUNDING
    while all(left.values()):
        (head,) = taken(queue)
        priority = head.demand.priority
        left[priority] -= 1
        spent[priority] += max(LEAST_SECONDS, head.seconds)
        assert abs(spent["interactive"] / SHARES["interactive"] - spent["bulk"] / SHARES["bulk"]) <= apart


def bulk_among(several: Sequence[Waiting]) -> int:
    return sum(each.demand.priority == "bulk" for each in several)


def test_bulk_is_one_in_nine_and_never_starves() -> None:
    queue = FairQueue()
    push(queue, [*some(900), *some(100, priority="bulk")])
    turns = taken(queue, 900)
    assert {bulk_among(turns[start : start + 9]) for start in range(0, 900, 9)} == {1}


def test_interactive_work_that_comes_late_is_next_and_has_no_more_than_its_share() -> None:
    queue = FairQueue()
    push(queue, some(500, priority="bulk"))
    taken(queue, 400)
    push(queue, some(90))
    turns = taken(queue, 90)
    assert (bulk_among(turns[:1]), bulk_among(turns)) in {(0, 9), (0, 10)}


def test_so_is_late_bulk_work_and_has_no_more_than_its_own() -> None:
    queue = FairQueue()
    push(queue, some(500))
    taken(queue, 400)
    push(queue, some(50, priority="bulk"))
    turns = taken(queue, 90)
    assert (bulk_among(turns[:2]), bulk_among(turns)) == (1, 10)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["interactive", "bulk"]), SECONDS)), st.data())
def test_each_is_taken_once_or_has_left(them: list[tuple[str, Priority, float]], data: st.DataObject) -> None:
    queue = FairQueue()
    here = [waiting(caller, seconds, priority, caller) for caller, priority, seconds in them]
    push(queue, here)
    while here:
        assert len(queue) == len(here)
        one = data.draw(st.sampled_from(here))
        if data.draw(st.booleans()):
            queue.leave(one)
            queue.leave(one)  # which changes nothing
        else:
            queue.take(one)
        here.remove(one)
        assert {*queue.company(one, 100)} == {each for each in here if each.key == one.key}
        head = queue.head()
        assert head in here if here else head is None


def test_company_is_what_is_alike_in_the_order_of_turns() -> None:
    queue, alike = FairQueue(), some(3, key="k")
    late = waiting("b", key="k")
    push(queue, [*alike, waiting(key="other"), waiting(), late])
    assert [*queue.company(alike[0], 100)] == [late, *alike[1:]]
    assert [*queue.company(alike[0], 2)] == [late, alike[1]]


def test_company_of_the_other_priority_comes_last() -> None:
    queue, alike = FairQueue(), some(3, key="k")
    bulk = some(2, priority="bulk", key="k")
    push(queue, [*bulk, *alike])
    assert [*queue.company(alike[0], 100)] == [*alike[1:], *bulk]
    assert [*queue.company(bulk[0], 100)] == [bulk[1], *alike]


def test_what_has_no_key_has_no_company() -> None:
    queue, alone = FairQueue(), some(2)
    push(queue, alone)
    assert [*queue.company(alone[0], 100)] == []


def test_company_before_its_turn_does_not_put_off_who_comes_then() -> None:
    queue, alike = FairQueue(), some(30, key="k")
    push(queue, [*alike, *some(10, "c")])
    for each in alike:
        queue.take(each)
    queue.push(waiting("b"))
    assert callers(taken(queue, 3)) == "cbc"


def test_nor_a_priority_whose_turn_it_was() -> None:
    queue, bulk = FairQueue(), some(50, priority="bulk", key="k")
    push(queue, [*some(2), *bulk, waiting(priority="bulk")])
    for each in bulk:
        queue.take(each)
    taken(queue, 2)
    push(queue, some(100))
    assert bulk_among(taken(queue, 100)) == 0


def test_company_counts_as_turns_of_its_callers() -> None:
    queue, alike = FairQueue(), some(10, key="k")
    push(queue, [*alike, *some(20, "b")])
    for each in alike:
        queue.take(each)
    push(queue, some(20))
    assert callers(taken(queue, 9)) == "b" * 9


def test_callers_that_come_once_are_forgotten() -> None:
    queue = FairQueue()
    for number in range(3 * MOST_CALLERS):
        queue.push(waiting(f"{number}"))
        taken(queue)
    assert kept(queue) <= MOST_CALLERS + MOST_GONE


def test_what_leaves_behind_one_that_stays_is_forgotten() -> None:
    queue = FairQueue()
    queue.push(waiting())
    for number in range(3 * MOST_CALLERS):
        passing = waiting(f"{number}")
        queue.push(passing)
        queue.leave(passing)
    assert kept(queue) <= MOST_CALLERS + 2 + MOST_GONE + 2
    assert callers(taken(queue)) == "a"
