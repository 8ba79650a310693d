"""Gradients as a client asks for them: requests and answers as bytes, whatever its colour."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from convolver.client import _client_shared as shared
from convolver.client._interchange import AnyArray, to_array
from convolver.client._requests import Described, Request, described
from convolver.core import gradients, request_codec
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parse import parse
from convolver.core.tensors import header, to_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan, Report

OPERANDS = ("input", "weight")


class Gradients(NamedTuple):
    """The gradients that were asked for, of the input's library (None for the others), with the plan that was followed
    and the report of what happened.
    """

    input: AnyArray
    weight: AnyArray
    bias: AnyArray
    plan: Plan
    report: Report


def wanted(wrt: Sequence[str], *, bias: bool) -> Wanted:
    """What `wrt` and `bias` ask for. Raises InvalidConvolution for another word, or for nothing at all."""
    words = (wrt,) if isinstance(wrt, str) else tuple(wrt)
    for word in words:
        if word not in OPERANDS:
            raise InvalidConvolution(f"wrt has {shown(word)}, which is none of {', '.join(OPERANDS)}", "wrt")
    return Wanted("input" in words, "weight" in words, bias)


def request(input: AnyArray, weight: AnyArray, grad_output: AnyArray, asked: Wanted, parameters: Parameters) -> Request:
    """A request for gradients, without the values that they do not depend on.

    Raises InvalidConvolution, with the server's own words, for what shapes can decide: nothing is sent then.
    """
    arrays = {
        name: to_array(value) for name, value in (("weight", weight), ("input", input), ("grad_output", grad_output))
    }
    headers = [header(array, name) for name, array in arrays.items()]
    known = _described(*headers, asked, shared.Written(parameters))
    sent = {"weight": asked.input, "input": asked.weight, "grad_output": True}
    return Request(known, [to_bytes(arrays[name]) for name, is_sent in sent.items() if is_sent], input)


@lru_cache(shared.REMEMBERED)
def _described(weight: Tensor, input: Tensor, grad_output: Tensor, asked: Wanted, written: shared.Written) -> Described:
    geometry = Geometry.of(parse(input, weight, None, written.parameters))
    gradients.check(geometry, grad_output)
    wanted = (asked, grad_output)
    convolution = request_codec.single_to_proto(input, weight, None, written.parameters, wanted)
    return described(convolution.SerializeToString(), [geometry], wanted)
