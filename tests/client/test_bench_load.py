from __future__ import annotations

import threading
import time

import pytest

from convolver.client.bench import Cell, Load, Round, Usage, Workload, offer

SMALL = Workload("small", (1, 3, 4, 4), (2, 3, 3, 3), padding=1)


def nothing() -> None:
    """A call that is over at once."""


def test_every_caller_calls_at_least_once_where_there_is_no_time() -> None:
    assert len(offer([nothing] * 5, 0.0, ()).latencies) == 5


def test_callers_run_side_by_side() -> None:
    together = threading.Barrier(3)
    assert len(offer([lambda: together.wait(10)] * 3, 0.0, ()).latencies) == 3


def test_a_caller_goes_on_until_the_time_is_over() -> None:
    load = offer([lambda: time.sleep(0.001)], 0.1, ())
    assert len(load.latencies) > 1
    assert load.seconds >= 0.1
    assert sum(load.latencies) <= load.seconds


def test_errors_are_counted_by_what_they_say_and_have_no_times() -> None:
    def refused() -> None:
        raise KeyError("full")

    load = offer([refused, nothing], 0.0, (KeyError,))
    assert load.errors == {"KeyError: 'full'": 1}
    assert len(load.latencies) == 1


def test_other_errors_are_raised() -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        offer([broken, nothing], 0.0, (KeyError,))


def of(latencies: list[float], seconds: float, usage: Usage | None = None, **errors: int) -> Round:
    usage = usage or Usage()
    return Round(Load(seconds, latencies, errors), usage, usage)


def test_a_cell_is_all_its_rounds() -> None:
    rounds = [
        of([0.1] * 50, 5.0, Usage(1.0, 10, 30)),
        of([0.2] * 47 + [0.3] * 2 + [0.7], 15.0, Usage(3.0, 20, 25), refused=2),
    ]
    cell = Cell.of(SMALL, [4, 8], 4, rounds)
    assert (cell.requests, cell.requests_per_second) == (100, 5.0)
    assert cell.gigabytes_per_second == 5.0 * (48 + 32) * 4 / 1e9
    assert cell.median == pytest.approx(0.15)
    assert cell.p99 == 0.3
    assert (cell.client_cpu, cell.server_peak) == (0.04, 30)
    assert cell.spread == pytest.approx(0.1 / 0.15)
    assert cell.errors == {"refused": 2}


def test_a_cell_without_answers_has_no_times_and_shows_its_errors() -> None:
    cell = Cell.of(SMALL, [1], 1, [of([], 1.0, refused=3)])
    assert (cell.median, cell.p99, cell.client_cpu, cell.client_peak) == (None, None, None, None)
    assert (cell.requests, cell.errors) == (0, {"refused": 3})
