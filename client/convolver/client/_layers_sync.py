"""Layers that stay and stacks, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from convolver.client import _answers as answers
from convolver.client import _client_shared as shared
from convolver.client import _gradients
from convolver.client._composition import Asked, Composition, HeldWeights
from convolver.client._interchange import AnyArray
from convolver.client._map_sync import mapped
from convolver.client._stack_layers import Conv, Pool
from convolver.core.errors import UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from convolver.client._gradients import Gradients
    from convolver.client._map_sync import OpenStream
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan
    from convolver.core.stack_plan import StackPlan


Call = Callable[[str, bytes, "Parameters"], bytes]
"""A call of the method of that name."""


class Wire(NamedTuple):
    """What a client lends to its layers: a call, what asks one server by calls that all go to it, a stream, and the
    putting of a layer.
    """

    call: Call
    of_one: Callable[[Callable[[Call], tuple[shared.Request, bytes]]], tuple[shared.Request, bytes]]
    open_stream: OpenStream
    put: Callable[[HeldWeights, Parameters], None]


class _Calls:
    """What layers and stacks have in common."""

    def __init__(self, wire: Wire, composition: Composition, *, resend: bool) -> None:
        self._wire, self._composition, self._resend = wire, composition, resend

    def map(self, frames: Iterable[AnyArray], *, in_flight: int = 16) -> Generator[AnyArray]:
        """The outputs of many inputs, in their order, over one stream: while one is computed, others travel. At most
        `in_flight` of them are on their way or wait to be taken, and no frame is asked for before there is room.

        The first error ends it, at the place of its frame.

        Leaving the loop early cancels what is in flight, once the generator is closed or forgotten.
        """
        return mapped(self._wire.open_stream, self._composition, frames, in_flight=in_flight, resend=self._resend)

    def _answered(self, make: Callable[..., shared.Request]) -> tuple[shared.Request, bytes]:
        """A request, as `make` makes it, and its answer."""
        return self._wire.of_one(partial(self._answered_by_one, make))

    def _answered_by_one(self, make: Callable[..., shared.Request], call: Call) -> tuple[shared.Request, bytes]:
        """With digests; where the server does not know one, the same with the layers, to that server."""
        request = make()
        try:
            return request, call("Convolve", request.message, self._composition.parameters)
        except UnknownLayer:
            if not self._resend:
                raise
        request = make(whole=True)
        return request, call("Convolve", request.message, self._composition.parameters)


class Layer(_Calls):
    """A convolution whose weights stay on the servers; `Client.layer` makes it. Calls name it by its digest, and a
    server that does not know it is sent it with the same call, unless `resend` is False: then UnknownLayer is raised.
    """

    def __init__(self, wire: Wire, held: HeldWeights, composition: Composition, *, resend: bool) -> None:
        super().__init__(wire, composition, resend=resend)
        self._held = held

    def __call__(self, input: AnyArray) -> AnyArray:
        """The convolution of `input` (N, C, *S) or (C, *S)."""
        return self.run(input).output

    def __repr__(self) -> str:
        return repr(self._held)

    @property
    def digest(self) -> str:
        """The layer's name on every server: "sha256:" and 64 hexadecimal digits."""
        return self._held.digest

    @property
    def held(self) -> HeldWeights:
        """What `Client.stack` takes of it."""
        return self._held

    def run(self, input: AnyArray) -> answers.Answer:
        """The same with its plan and report."""
        return answers.convolve_answer(*self._answered(partial(self._composition.request, input)))

    def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> Gradients:
        """As `Client.gradients`."""
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request, response = self._answered(partial(self._composition.request, input, asked))
        return answers.gradients_answer(request, response, asked.wanted)

    def plan(self, input_shape: Sequence[int]) -> Plan:
        """What `run` would do with an input of that shape, and its cost."""
        request = self._composition.plan_request(input_shape, None)
        return answers.plan_answer(self._wire.call("Plan", request, self._composition.parameters))

    def put(self) -> None:
        """Sends the layer now, in pieces, to the server whose turn it is, so that no call has to."""
        self._wire.put(self._held, self._composition.parameters)


class Stack(_Calls):
    """Layers one after the other, in one call; `Client.stack` makes it."""

    def __call__(self, input: AnyArray) -> AnyArray:
        """The output for an `input` (N, C, *S) or (C, *S)."""
        return self.run(input).output

    def __repr__(self) -> str:
        return f"Stack({list(self.layers)})"

    @property
    def layers(self) -> tuple[Conv | Pool | HeldWeights, ...]:
        """Its layers."""
        return self._composition.items

    def run(self, input: AnyArray) -> answers.StackAnswer:
        """The same with its plan and report."""
        return answers.stack_answer(*self._answered(partial(self._composition.request, input)))

    def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> answers.StackGradients:
        """The gradients of a scalar with respect to the stack's input, and to the weight and bias of each convolution,
        given that with respect to the output; one call, which computes forward and backward.
        """
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request, response = self._answered(partial(self._composition.request, input, asked))
        return answers.stack_gradients_answer(request, response, asked.wanted)

    def plan(self, input_shape: Sequence[int], dtype: str | None = None) -> StackPlan:
        """What `run` would do with an input of that shape (and that dtype, where all weights are shapes; by default
        float32), layer by layer and in all.
        """
        request = self._composition.plan_request(input_shape, dtype)
        return answers.stack_plan_answer(self._wire.call("Plan", request, self._composition.parameters))
