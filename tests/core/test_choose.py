"""Who runs a request: the cheapest that can, the one that is named, or nobody, with the reasons."""

from __future__ import annotations

from typing import Any

import pytest

from convolver.core import cost
from convolver.core.choose import Capability, choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import Unsupported
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Tensor
from convolver.core.parse import parse
from convolver.core.plan import Plan

FLOATS = frozenset(name for name, row in TABLE.items() if not row.exact)
REFERENCE = Capability("reference", "cpu", 2, 2**30, frozenset(TABLE))
TORCH = Capability("torch:cpu", "cpu", 2, 2**30, FLOATS)
CUDA = Capability("torch:cuda:0", "cuda:0", 132, 2**37, FLOATS)
SECOND = Capability("torch:cuda:1", "cuda:1", 132, 2**37, FLOATS)
ALL = [REFERENCE, TORCH, CUDA, SECOND]


def geometry(
    input: tuple[int, ...] = (1, 1, 64, 64), weight: tuple[int, ...] = (1, 1, 3, 3), dtype: DTypeName = "float32"
) -> Geometry:
    return Geometry.of(parse(Tensor(dtype, input), Tensor(dtype, weight), None, {}))


def planned(made: Geometry, capabilities: list[Capability], **execution: Any) -> Plan:  # noqa: ANN401 - Execution's words
    return choose(made, Execution(**execution), capabilities)


SHAPES = [
    ((1, 1, 8), (1, 1, 3)),
    ((1, 1, 1024, 1024), (1, 1, 3, 3)),
    ((1, 1, 1024, 1024), (1, 1, 31, 31)),
    ((16, 64, 56, 56), (64, 64, 3, 3)),
    ((1, 3, 1024, 1024), (8, 3, 3, 3)),
    ((1, 8, 16, 64, 64), (8, 8, 3, 3, 3)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_auto_takes_the_cheapest_in_whatever_order_they_stand(shapes: Any, order: int) -> None:  # noqa: ANN401 - two shapes
    made = geometry(*shapes)
    seconds = {c.name: cost.estimate(made, c.name, c.threads).seconds for c in ALL}
    plan = planned(made, ALL[::order])
    assert seconds[plan.backend] == min(seconds.values())


def test_tiny_work_stays_on_the_cpu_and_large_work_goes_to_the_device() -> None:
    assert planned(geometry((1, 1, 8), (1, 1, 3)), ALL).backend == "reference"
    assert planned(geometry((16, 256, 56, 56), (256, 256, 3, 3)), ALL).backend.startswith("torch:cuda")


def test_many_channels_go_to_torch_and_one_channel_to_the_reference() -> None:
    assert planned(geometry((16, 64, 56, 56), (64, 64, 3, 3)), [REFERENCE, TORCH]).backend == "torch:cpu"
    assert planned(geometry((1, 1, 1024, 1024), (1, 1, 3, 3)), [REFERENCE, TORCH]).backend == "reference"


NAMES = {
    "reference": {"reference"},
    "torch": {"torch:cpu", "torch:cuda:0", "torch:cuda:1"},
    "torch:cpu": {"torch:cpu"},
    "torch:cuda": {"torch:cuda:0", "torch:cuda:1"},
    "torch:cuda:1": {"torch:cuda:1"},
    "auto": {"reference", "torch:cpu", "torch:cuda:0", "torch:cuda:1"},
    "torch:c": set(),
    "tor": set(),
    "Reference": set(),
    "ray": set(),
    "torch:cuda:2": set(),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_means_itself_and_what_is_below_it(name: str) -> None:
    assert {c.name for c in ALL if c.answers_to(name)} == NAMES[name]


@pytest.mark.parametrize("name", ["reference", "torch:cpu", "torch:cuda:1"])
def test_a_back_end_that_is_named_is_taken_whatever_it_costs(name: str) -> None:
    for shapes in SHAPES:
        assert planned(geometry(*shapes), ALL, backend=name).backend == name


@pytest.mark.parametrize("name", ["ray", "torch:cuda:7", "torch:c"])
def test_an_unknown_back_end_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(Unsupported) as caught:
        planned(geometry(), ALL, backend=name)
    assert repr(name) in caught.value.message
    assert "reference, torch:cpu, torch:cuda:0, torch:cuda:1" in caught.value.message


def test_integers_go_to_the_reference_even_where_torch_is_cheaper() -> None:
    assert planned(geometry((16, 64, 56, 56), (64, 64, 3, 3), "int8"), ALL).backend == "reference"


def test_a_type_that_the_named_back_end_lacks_is_refused_with_each_reason() -> None:
    with pytest.raises(Unsupported, match=r"torch:cpu does not compute int32; torch:cuda:0 does not compute int32"):
        planned(geometry(dtype="int32"), ALL, backend="torch")


def test_fft_asked_for_is_refused_where_no_back_end_has_it() -> None:
    with pytest.raises(Unsupported) as caught:
        planned(geometry(), ALL, algorithm="fft")
    for capability in ALL:
        assert f"{capability.name} has no fft algorithm" in caught.value.message


@pytest.mark.parametrize(("dtype", "deterministic"), [("int32", False), ("bool", False), ("float32", True)])
def test_fft_is_never_exact_and_never_deterministic(dtype: DTypeName, *, deterministic: bool) -> None:
    able = Capability("reference", "cpu", 2, 2**30, frozenset(TABLE), ("direct", "fft"))
    with pytest.raises(Unsupported, match="neither exact nor deterministic"):
        planned(geometry(dtype=dtype), [able], algorithm="fft", deterministic=deterministic)
    assert planned(geometry(dtype=dtype), [able], deterministic=deterministic).algorithm == "direct"


def test_torch_takes_transposed_strides_up_to_its_limit_and_not_one_more() -> None:
    tensors = Tensor("float32", (1, 1, 2)), Tensor("float32", (1, 1, 3))
    largest, beyond = (
        Geometry.of(parse(*tensors, None, {"transposed": True, "stride": stride})) for stride in (2**15 - 1, 2**15)
    )
    assert planned(largest, [TORCH]).backend == "torch:cpu"
    with pytest.raises(Unsupported, match="torch:cpu takes transposed strides up to 32767"):
        planned(beyond, [TORCH])


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
def test_the_direct_sum_is_what_there_is(algorithm: str) -> None:
    plan = planned(geometry(), ALL, algorithm=algorithm)
    assert plan.algorithm == "direct"
    assert plan.execution.algorithm == algorithm


def test_no_back_end_at_all_is_refused() -> None:
    with pytest.raises(Unsupported, match="backend is 'auto'"):
        planned(geometry(), [])


@pytest.mark.parametrize("capability", ALL, ids=lambda c: c.name)
def test_the_plan_says_who_runs_it_on_how_many_threads_at_what_cost(capability: Capability) -> None:
    made = geometry((2, 3, 16, 16), (4, 3, 3, 3))
    plan = planned(made, [capability])
    threads = capability.threads if capability.name.startswith("torch:cuda") else 1  # so few products are one thread's
    assert (plan.backend, plan.threads) == (capability.name, threads)
    assert plan.work == plan.macs == 2 * 4 * 14 * 14 * 27
    assert plan.workspace_bytes == cost.estimate(made, capability.name, threads).workspace_bytes


def test_a_large_sum_has_all_threads_of_torch_and_a_small_one_a_single_one() -> None:
    small, large = geometry((1, 16, 28, 28), (16, 16, 3, 3)), geometry((1, 64, 56, 56), (64, 64, 3, 3))
    assert [planned(each, [TORCH]).threads for each in (small, large)] == [1, TORCH.threads]
