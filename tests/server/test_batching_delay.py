"""With a delay a request waits for company while something runs, though a thread is free."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.server.crowds import WEIGHT, Busy, assert_right, crowd, image, launched, ran_as_one
from tests.wait import until

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer


class Delayed:
    """A server of two threads, and a client of it."""

    def __init__(self, serve: Callable[..., RunningServer], *flags: str) -> None:
        self.server = serve("--threads=2", "--backend=reference", "--queue-seconds=1000", *flags)
        self.client = Client(self.server.address)

    def calls(self, count: int) -> list[Callable[[], object]]:
        return [partial(self.client.run, image(seed), WEIGHT) for seed in range(count)]


@pytest.fixture(scope="module")
def patient(serve: Callable[..., RunningServer]) -> Iterator[Delayed]:
    """That waits an hour for a company of three."""
    delayed = Delayed(serve, "--max-delay=3600", "--max-batch=3")
    with delayed.client:
        yield delayed


def test_with_a_delay_two_wait_though_a_thread_is_free_and_a_third_completes_them(patient: Delayed) -> None:
    third: list[object] = []

    def join(busy: Busy) -> None:
        third.append(patient.client.run(image(2), WEIGHT))
        until(lambda: launched(patient.server) == (busy.launched[0] + 1, busy.launched[1] + 3), "the three to run")

    found = crowd(patient.server, patient.calls(2), join)
    found = found._replace(outcomes=[*found.outcomes, *third])
    assert ran_as_one(found)
    assert_right(found, [image(seed) for seed in range(3)])


def test_with_a_delay_nothing_waits_on_when_nothing_runs(patient: Delayed) -> None:
    found = crowd(patient.server, patient.calls(2))
    assert ran_as_one(found)
    answer = patient.client.run(image(0), WEIGHT)
    assert (answer.report.batch_size, answer.report.unbatched) == (1, "alone")


def test_with_a_delay_what_has_no_company_does_not_wait(patient: Delayed) -> None:
    x = image(0)

    def alone(_: Busy) -> None:
        assert patient.client.run(x, WEIGHT, deterministic=True).report.unbatched == "deterministic"

    assert crowd(patient.server, patient.calls(1), alone).reasons == ["alone"]


def test_after_the_delay_a_request_runs_without_company(serve: Callable[..., RunningServer]) -> None:
    delayed = Delayed(serve, "--max-delay=0.05")
    with delayed.client, Busy(delayed.server):
        answer = delayed.client.run(image(0), WEIGHT)
    assert (answer.report.batch_size, answer.report.unbatched) == (1, "alone")
    assert delayed.server.stop() == 0
