from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from convolver.client.bench import WORKLOADS, callers_for

if TYPE_CHECKING:
    from convolver.client import Client


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_knows_its_output(client: Client, name: str) -> None:
    workload = WORKLOADS[name]
    plan = client.plan(
        workload.input, workload.weight, padding=workload.padding, stride=workload.stride, groups=workload.groups
    )
    assert plan.output_shape == workload.output


def test_bytes_are_those_of_the_input_and_the_output() -> None:
    assert WORKLOADS["tiny"].bytes == 4 * (3 * 32 * 32 + 16 * 32 * 32)


def test_as_many_callers_run_as_were_asked_for() -> None:
    assert callers_for(WORKLOADS["tiny"], [64, 1, 4, 4]) == {1: [1], 4: [4], 64: [64]}


def test_large_requests_have_fewer_callers_which_run_once_for_all_that_asked_for_more() -> None:
    found = callers_for(WORKLOADS["big"], [1, 4, 16, 64])
    assert found == {1: [1], 4: [4], 5: [16, 64]}
    assert max(found) * WORKLOADS["big"].bytes <= 1 << 30
