"""Fourier transforms behind the service: chosen from shapes, and given up where the values do not allow them."""

from __future__ import annotations

from http.client import HTTPConnection
from typing import TYPE_CHECKING

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from convolver.client import Client
from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

KERNEL = (1, 1, 31, 31)
each_backend = pytest.mark.parametrize("backend", ["reference", "torch:cpu"])


def image(size: int = 200) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((1, 1, size, size), np.float32)


def kernel() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal(KERNEL, np.float32)


@each_backend
def test_a_large_kernel_is_planned_and_run_as_fft(client: Client, backend: str) -> None:
    x, w = image(), kernel()
    planned = client.plan(x.shape, w.shape, padding="same", backend=backend)
    answer = client.run(x, w, padding="same", backend=backend)
    assert planned.algorithm == answer.plan.algorithm == "fft"
    assert answer.plan.work == planned.work < answer.plan.macs
    direct = client.run(x, w, padding="same", backend=backend, algorithm="direct")
    assert direct.plan.algorithm == "direct"
    scale = np.max(client.conv2d(np.abs(x), np.abs(w), padding="same", algorithm="direct"))
    assert np.max(np.abs(answer.output - direct.output)) <= 5 * (31 * 31 + 4) * 2.0**-24 * scale


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@each_backend
def test_one_that_is_not_finite_stays_where_it_belongs(client: Client, backend: str, value: float) -> None:
    x, w = image(), kernel()
    x[0, 0, 100, 150] = value
    answer = client.run(x, w, backend=backend)
    assert answer.plan.algorithm == "direct"
    assert answer.plan.execution.algorithm == "auto"
    touched = ~np.isfinite(answer.output[0, 0])
    assert touched.sum() == 31 * 31
    assert touched[70:101, 120:151].all()
    weights = client.run(image(), np.where(w == w.max(), np.float32(value), w), backend=backend)
    assert weights.plan.algorithm == "direct"
    assert not np.isfinite(weights.output).any()


@each_backend
def test_fft_by_name_refuses_what_is_not_finite(client: Client, backend: str) -> None:
    x = image()
    x[0, 0, 3, 7] = np.nan
    with pytest.raises(InvalidConvolution, match=r"input\[0, 0, 3, 7\] is nan") as caught:
        client.run(x, kernel(), algorithm="fft", backend=backend)
    assert caught.value.field == "input"
    x[0, 0, 3, 7] = 0
    w = kernel()
    w[0, 0, 30, 2] = np.inf
    with pytest.raises(InvalidConvolution, match=r"weight\[0, 0, 30, 2\] is inf"):
        client.run(x, w, algorithm="fft", backend=backend)


@each_backend
def test_sums_beyond_the_range_of_a_transform_are_found_by_direct_sums(client: Client, backend: str) -> None:
    x, w = np.full((1, 1, 200, 200), 1e36, np.float32), np.zeros(KERNEL, np.float32)
    w[0, 0, 3, 4] = 1
    answer = client.run(x, w, backend=backend)
    assert answer.plan.algorithm == "direct"
    np.testing.assert_array_equal(answer.output, np.full((1, 1, 170, 170), 1e36, np.float32))
    with pytest.raises(InvalidConvolution, match="range of float32"):
        client.run(x, w, backend=backend, algorithm="fft")


@pytest.mark.parametrize("parameters", [{"deterministic": True}, {"dtype": "int32"}], ids=str)
def test_what_must_be_exact_or_the_same_never_goes_through_one(client: Client, parameters: dict[str, object]) -> None:
    dtype = str(parameters.pop("dtype", "float32"))
    assert client.plan((1, 1, 200, 200), KERNEL, dtype, **parameters).algorithm == "direct"  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="neither exact nor deterministic"):
        client.plan((1, 1, 200, 200), KERNEL, dtype, algorithm="fft", **parameters)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def limited(serve: Callable[..., RunningServer]) -> Iterator[Client]:
    """A server that may do the transforms and not the direct sums."""
    running = serve("--max-work=20000000")
    with Client(running.address) as client:
        yield client
    assert running.stop() == 0


def test_direct_sums_that_cost_too_much_are_refused_with_the_index_and_both_costs(limited: Client) -> None:
    x, w = image(), kernel()
    plan = limited.plan(x.shape, w.shape)
    assert limited.run(x, w).plan == plan
    x[0, 0, 3, 7] = np.inf
    with pytest.raises(LimitExceeded) as caught:
        limited.run(x, w)
    assert caught.value.setting == "--max-work"
    assert caught.value.value == plan.macs
    for said in ("input[0, 0, 3, 7] is inf", f"work {plan.work}", str(plan.macs), "20000000", "--max-work"):
        assert said in str(caught.value)


def test_both_admissions_give_their_memory_back(client: Client, server: RunningServer) -> None:
    x = image()
    x[0, 0, 0, 0] = np.nan
    client.run(x, kernel())
    counted = scraped(server)
    assert counted["convolver_replanned_total"] >= 1
    assert counted["convolver_memory_bytes"] == 0
    assert counted["convolver_in_flight"] == 0


def scraped(server: RunningServer) -> dict[str, float]:
    """The metrics that have no labels."""
    connection = HTTPConnection(server.http.removeprefix("http://").partition("/")[0], timeout=30)
    connection.request("GET", "/metrics")
    families = text_string_to_metric_families(connection.getresponse().read().decode())
    connection.close()
    return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}
