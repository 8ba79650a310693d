"""The shared conformance cases through a service, for the runner that lies beside them:

    CONVOLVER_ADDRESS=127.0.0.1:50051 python ../shared/conformance/replay.py \\
        --conv tests.conformance.shared_case:conv --grad tests.conformance.shared_case:conv_grad

CONFORMANCE_BACKEND names the back end (reference, torch, torch:cuda:0 ...; auto without it): types that it does not
compute go where the chooser puts them. A suite's own words for padding, its sizes and its layout are passed on where
the service has them, so that it is the service that resolves them, or refuses.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray
from tests.conformance.served import Served

from convolver.client import Client
from convolver.core.parameters import PaddingWord

Array = NDArray[Any]

_OTHER_NAMES = {"same_upper": "same"}
_RESOLVED = {"explicit", "output_shape", "transpose_same", "transpose_valid"}
"""Not words of this service: the numbers stand beside them."""


class Case(Protocol):
    """What is used of convcases.Case; its docstring says what each field means."""

    suite: str
    op: str
    ndim: int
    must_fail: bool
    params: dict[str, Any]

    def array(self, name: str) -> Array | None:
        """An array in the suite's own layout, None where there is none."""

    def from_canonical(self, y: Array) -> Array:
        """An output (N, C, *S) in the suite's own layout."""


class Request(NamedTuple):
    """A case as `Client.run` takes it; `native` when its layout is one of the service's."""

    input: Array
    weight: Array
    bias: Array | None
    parameters: dict[str, Any]
    native: bool


def conv(case: Case) -> Array:
    """The case's output in its own layout, from the service at CONVOLVER_ADDRESS.

    Raises NotImplementedError for what is not served, and whatever the client raises for what is refused.
    """
    return convolved(_served(os.environ.get("CONFORMANCE_BACKEND", "auto")), case)


def conv_grad(case: Case) -> dict[str, Array]:
    """The gradients of the case's input, weight and bias in its own layouts, as `conv`; of doubles, as the suites have
    them.
    """
    return differentiated(_served(os.environ.get("CONFORMANCE_BACKEND", "auto")), case)


@cache
def _served(backend: str) -> Served:
    return Served.by(Client(), backend)


def convolved(served: Served, case: Case) -> Array:
    """`conv`, from this service."""
    if case.op == "separable_conv":
        return _separable(served, case)
    request = requested(case)
    output = called(served, case, request)
    return output if request.native else case.from_canonical(output)


def differentiated(served: Served, case: Case) -> dict[str, Array]:
    """`conv_grad`, from this service."""
    request = requested(case)
    spatial, channels = _letters(case)
    given = case.params["layout"]
    order = {name: given[name] if request.native else "NC" + spatial for name in ("input", "output")}
    order["weight"] = given["weight"] if request.native else channels + spatial
    g = _present(case, "grad_output")
    if not request.native:
        g = _ordered(g, given["output"], "NC", spatial)
    wide = "complex128" if request.input.dtype.kind == "c" else "float64"
    operands = (each.astype(wide) for each in (request.input, request.weight, g))
    grads = served.client.gradients(*operands, bias=True, backend=served.asked(wide), **request.parameters)
    weight = np.conj(grads.weight) if case.params["conj"] else grads.weight
    return {
        "grad_input": _turned(grads.input, order["input"], given["input"]),
        "grad_weight": _turned(weight, order["weight"], given["weight"]),
        "grad_bias": grads.bias,
    }


def called(served: Served, case: Case, request: Request) -> Array:
    """The output of `conv1d` ... `conv_transpose3d`, whichever has the case's rank: it refuses weights of another."""
    parameters = dict(request.parameters)
    name = "conv_transpose" if parameters.pop("transposed") else "conv"
    function = getattr(served.client, f"{name}{case.ndim}d")
    asked = served.asked(request.input.dtype.name)
    output: Array = function(request.input, request.weight, request.bias, backend=asked, **parameters)
    return output


def _separable(served: Served, case: Case) -> Array:
    """A depthwise convolution, then a 1x1 over its channels: two calls. What is no 1x1 is refused here, since to the
    service it is a convolution like others.
    """
    request, pointwise = requested(case), _present(case, "pointwise")
    if pointwise.shape[:-2] != (1,) * case.ndim:
        raise ValueError(f"pointwise {pointwise.shape} is not 1 in all its spatial dimensions")
    between = called(served, case, request)
    layout = request.parameters["layout"]
    weight = pointwise if layout == "channels_last" else np.moveaxis(pointwise, (-1, -2), (0, 1))
    output: Array = served.run(between, weight, layout=layout).output
    return output if request.native else case.from_canonical(output)


def requested(case: Case) -> Request:
    """The case in this service's words. Raises NotImplementedError for what is not served."""
    if case.op not in ("conv", "conv_transpose", "separable_conv"):
        raise NotImplementedError(case.op)
    if not 1 <= case.ndim <= 3:
        raise NotImplementedError(f"{case.ndim} spatial dimensions")
    x, w, bias = _present(case, "input"), _present(case, "weight"), case.array("bias")
    layout = _own_layout(case)
    if layout is None:
        x, w = _channels_first(case, x, w)
    if case.params["conj"]:
        w = np.conj(w)
    if not case.must_fail:
        common = np.result_type(x.dtype, w.dtype)  # as the suites that mix types have it
        x, w, bias = x.astype(common), w.astype(common), None if bias is None else bias.astype(common)
    parameters = _parameters(case) | {"layout": layout or "channels_first"}
    if x.dtype.kind in "iu":
        parameters["overflow"] = "wrap"  # as the suites' libraries do
    return Request(x, w, bias, parameters, native=layout is not None)


def _present(case: Case, name: str) -> Array:
    array = case.array(name)
    assert array is not None, name
    return array


def _letters(case: Case) -> tuple[str, str]:
    """The letters of the spatial dimensions, in the weight's order, and those of the weight's channels."""
    spatial = "".join(letter for letter in case.params["layout"]["weight"] if letter not in "OI")
    return spatial, "IO" if case.params["transposed"] else "OI"


def _own_layout(case: Case) -> str | None:
    """The service's word for the case's layout, if it has one."""
    spatial, channels = _letters(case)
    layouts = {
        ("NC" + spatial, channels + spatial): "channels_first",
        ("N" + spatial + "C", spatial + channels[::-1]): "channels_last",
    }
    given = case.params["layout"]
    batched = given["input"] if given["input"].startswith("N") else "N" + given["input"]
    same_output = case.must_fail or given["output"] == given["input"]
    return layouts.get((batched, given["weight"])) if same_output else None


def _channels_first(case: Case, x: Array, w: Array) -> tuple[Array, Array]:
    spatial, channels = _letters(case)
    given = case.params["layout"]
    return _ordered(x, given["input"], "NC", spatial), _ordered(w, given["weight"], channels, spatial)


def _ordered(array: Array, letters: str, leading: str, spatial: str) -> Array:
    """(*leading, *spatial), of size 1 where the suite leaves one out; as it is where its rank is not the layout's."""
    if array.ndim != len(letters):
        return array
    for letter in reversed(leading):
        if letter not in letters:
            array, letters = array[np.newaxis], letter + letters
    own = [letter for letter in letters if letter not in leading]
    order = [*leading, *(spatial if set(own) == set(spatial) else own)]
    return np.transpose(array, [letters.index(letter) for letter in order])


def _turned(array: Array, letters: str, wanted: str) -> Array:
    """The dimensions in the wanted order, without those of size 1 that are not wanted."""
    array = array.squeeze(tuple(i for i, letter in enumerate(letters) if letter not in wanted))
    left = [letter for letter in letters if letter in wanted]
    return array.transpose([left.index(letter) for letter in wanted])


def _parameters(case: Case) -> dict[str, Any]:
    p = case.params
    parameters = {name: p[name] for name in ("stride", "dilation", "groups", "flip", "transposed")}
    parameters |= {"padding": _padding(case), "algorithm": "direct"}  # whose tolerance is the runner's
    if p["transposed"]:
        wanted = p.get("output_shape")
        return parameters | ({"output_size": wanted} if wanted else {"output_padding": p["output_padding"]})
    parameters |= {name: p[name] for name in ("padding_mode", "input_dilation", "batch_groups")}
    return parameters | ({"padding_value": float(p["pad_value"])} if p["padding_mode"] == "constant" else {})


def _padding(case: Case) -> Any:  # noqa: ANN401 - Padding, or a word that there is not
    """The suite's word, known here or not; numbers where it gave numbers, and for SciPy's own centring of `same`."""
    given = case.params["pad_spec"]
    word = _OTHER_NAMES.get(given, given)
    scipys = case.suite == "scipy-signal" and word in get_args(PaddingWord) and not case.must_fail
    if word in _RESOLVED or scipys:
        return list(zip(case.params["pad_begin"], case.params["pad_end"], strict=True))
    return word
