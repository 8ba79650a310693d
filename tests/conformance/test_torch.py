"""torch's op_db and module_db, taken from the installed torch, through the service with torch's own arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conformance.refusals import assert_refused
from tests.conformance.served import Served
from tests.conformance.tolerance import assert_agrees

if TYPE_CHECKING:
    from tests.conformance.torch_samples import Record

torch = pytest.importorskip("torch", reason="torch is not installed: its samples are not to be had")

pytestmark = pytest.mark.timeout(300)  # the first test waits for the samples: 10 s alone, minutes on a busy machine

ROOT = Path(__file__).parents[2]
RANKS = ("1d", "2d", "3d")
FUNCTIONS = [f"{name}{rank}" for name in ("conv", "conv_transpose") for rank in RANKS]
MODULES = [f"{lazy}{name}{rank}" for lazy in ("", "Lazy") for name in ("Conv", "ConvTranspose") for rank in RANKS]
DTYPES = ["bfloat16", "complex128", "complex64", "float16", "float32", "float64", "int64"]

TORCHS_OWN_LIMITS = [
    ("conv3d", "negative padding is not supported"),  # here it crops
    ("conv3d", "padding='same' is not supported for strided convolutions"),  # here it gives ceil(size / stride)
]
"""Error inputs that only torch refuses; conv1d's and conv2d's negative paddings have wrong channels too."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/conformance/torch_samples.py writes."""
    file = tmp_path_factory.mktemp("torch") / "samples.pt"
    subprocess.run([sys.executable, "-m", "tests.conformance.torch_samples", str(file)], cwd=ROOT, check=True)
    written: dict[str, Any] = torch.load(file, weights_only=True)
    return written


def of(samples: list[Record], function: str, dtype: str | None = None) -> list[Record]:
    """Those of one function, and at least one."""
    found = [each for each in samples if each["function"] == function and dtype in (None, each["dtype"])]
    assert found
    return found


def tensors(sample: Record) -> list[Any]:
    return [sample["input"], sample["weight"], sample["bias"]]


def arrays(sample: Record) -> list[Any]:
    """The tensors' values as NumPy's arrays, in a type that NumPy has."""
    return [tensor if tensor is None else wide(tensor) for tensor in tensors(sample)]


def wide(tensor: Any) -> Any:  # noqa: ANN401 - torch.Tensor
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()


def assert_gives_torchs_values(served: Served, sample: Record) -> None:
    """Called as torch is called, with torch's tensors, the service gives torch's values in the input's type."""
    asked, parameters = served.asked(sample["dtype"]), sample["parameters"]
    output = getattr(served.client, sample["function"])(*tensors(sample), backend=asked, **parameters)
    assert output.dtype == sample["input"].dtype
    plan = served.client.plan(
        sample["input"].shape,
        sample["weight"].shape,
        sample["dtype"],
        bias=sample["bias"] is not None,
        backend=asked,
        transposed="transpose" in sample["function"],
        **parameters,
    )
    assert_agrees(plan, wide(output), sample["expected"].numpy(), *arrays(sample))


def test_torch_has_no_convolution_beside_those_known(samples: dict[str, Any]) -> None:
    assert samples["operators"] == dict.fromkeys(FUNCTIONS, DTYPES)
    assert samples["modules"] == MODULES


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_gives_torchs_values(samples: dict[str, Any], served: Served, function: str, dtype: str) -> None:
    for sample in of(samples["functions"], function, dtype):
        assert_gives_torchs_values(served, sample)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_module_gives_torchs_values_in_every_padding_mode(
    samples: dict[str, Any], served: Served, function: str
) -> None:
    for sample in of(samples["of_modules"], function):
        assert_gives_torchs_values(served, sample)


@pytest.mark.parametrize("function", FUNCTIONS[3:])
def test_output_sizes_give_torchs_values(samples: dict[str, Any], served: Served, function: str) -> None:
    for sample in of(samples["output_sizes"], function):
        if "expected" in sample:
            assert_gives_torchs_values(served, sample)


@pytest.mark.parametrize("function", FUNCTIONS[3:])
def test_output_sizes_that_torch_refuses_are_refused(samples: dict[str, Any], served: Served, function: str) -> None:
    refused = [sample for sample in of(samples["output_sizes"], function) if "message" in sample]
    assert len(refused) == 2
    for sample in refused:
        x, w, b = arrays(sample)
        assert_refused(served, x, w, b, {"transposed": True, **sample["parameters"]})


@pytest.mark.parametrize("function", FUNCTIONS[:3])
def test_what_torch_refuses_is_refused(samples: dict[str, Any], served: Served, function: str) -> None:
    for sample in of(samples["refusals"], function):
        if (function, sample["message"]) not in TORCHS_OWN_LIMITS:
            x, w, b = arrays(sample)
            assert_refused(served, x, w, b, sample["parameters"])


@pytest.mark.parametrize(("function", "message"), TORCHS_OWN_LIMITS)
def test_torchs_own_limits_are_none_here(samples: dict[str, Any], served: Served, function: str, message: str) -> None:
    (sample,) = [each for each in of(samples["refusals"], function) if each["message"] == message]
    served.run(*arrays(sample), **sample["parameters"])
