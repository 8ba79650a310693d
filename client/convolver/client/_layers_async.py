"""Layers that stay and stacks, of the asynchronous client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from convolver.client import _answers as answers
from convolver.client import _client_shared as shared
from convolver.client import _gradients
from convolver.client._composition import Asked, Composition, HeldWeights
from convolver.client._interchange import AnyArray
from convolver.client._map_async import Frames, mapped
from convolver.client._stack_layers import Conv, Pool
from convolver.core.errors import UnknownLayer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from convolver.client._gradients import Gradients
    from convolver.client._map_async import OpenStream
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan
    from convolver.core.stack_plan import StackPlan


Call = Callable[[str, bytes, "Parameters"], Awaitable[bytes]]
"""A call of the method of that name."""


class AsyncWire(NamedTuple):
    """What a client lends to its layers: a call, what asks one server by calls that all go to it, a stream, and the
    putting of a layer.
    """

    call: Call
    of_one: Callable[
        [Callable[[Call], Awaitable[tuple[shared.Request, bytes]]]], Awaitable[tuple[shared.Request, bytes]]
    ]
    open_stream: OpenStream
    put: Callable[[HeldWeights, Parameters], Awaitable[None]]


class _Calls:
    """What layers and stacks have in common."""

    def __init__(self, wire: AsyncWire, composition: Composition, *, resend: bool) -> None:
        self._wire, self._composition, self._resend = wire, composition, resend

    def map(self, frames: Frames, *, in_flight: int = 16) -> AsyncGenerator[AnyArray]:
        """The outputs of many inputs, in their order, over one stream: while one is computed, others travel. At most
        `in_flight` of them are on their way or wait to be taken, and no frame is asked for before there is room.

        The first error ends it, at the place of its frame.

        The frames are iterated over with or without `async`. Who leaves the loop early closes the generator
        (contextlib.aclosing), which cancels what is in flight.
        """
        return mapped(self._wire.open_stream, self._composition, frames, in_flight=in_flight, resend=self._resend)

    async def _answered(self, make: Callable[..., shared.Request]) -> tuple[shared.Request, bytes]:
        """A request, as `make` makes it, and its answer."""
        return await self._wire.of_one(partial(self._answered_by_one, make))

    async def _answered_by_one(self, make: Callable[..., shared.Request], call: Call) -> tuple[shared.Request, bytes]:
        """With digests; where the server does not know one, the same with the layers, to that server."""
        request = make()
        try:
            return request, await call("Convolve", request.message, self._composition.parameters)
        except UnknownLayer:
            if not self._resend:
                raise
        request = make(whole=True)
        return request, await call("Convolve", request.message, self._composition.parameters)


class AsyncLayer(_Calls):
    """A convolution whose weights stay on the servers; `AsyncClient.layer` makes it. Calls name it by its digest, and a
    server that does not know it is sent it with the same call, unless `resend` is False: then UnknownLayer is raised.
    """

    def __init__(self, wire: AsyncWire, held: HeldWeights, composition: Composition, *, resend: bool) -> None:
        super().__init__(wire, composition, resend=resend)
        self._held = held

    async def __call__(self, input: AnyArray) -> AnyArray:
        """The convolution of `input` (N, C, *S) or (C, *S)."""
        return (await self.run(input)).output

    def __repr__(self) -> str:
        return f"Async{self._held}"

    @property
    def digest(self) -> str:
        """The layer's name on every server: "sha256:" and 64 hexadecimal digits."""
        return self._held.digest

    @property
    def held(self) -> HeldWeights:
        """What `AsyncClient.stack` takes of it."""
        return self._held

    async def run(self, input: AnyArray) -> answers.Answer:
        """The same with its plan and report."""
        return answers.convolve_answer(*await self._answered(partial(self._composition.request, input)))

    async def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> Gradients:
        """As `AsyncClient.gradients`."""
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request, response = await self._answered(partial(self._composition.request, input, asked))
        return answers.gradients_answer(request, response, asked.wanted)

    async def plan(self, input_shape: Sequence[int]) -> Plan:
        """What `run` would do with an input of that shape, and its cost."""
        request = self._composition.plan_request(input_shape, None)
        return answers.plan_answer(await self._wire.call("Plan", request, self._composition.parameters))

    async def put(self) -> None:
        """Sends the layer now, in pieces, to the server whose turn it is, so that no call has to."""
        await self._wire.put(self._held, self._composition.parameters)


class AsyncStack(_Calls):
    """Layers one after the other, in one call; `AsyncClient.stack` makes it."""

    async def __call__(self, input: AnyArray) -> AnyArray:
        """The output for an `input` (N, C, *S) or (C, *S)."""
        return (await self.run(input)).output

    def __repr__(self) -> str:
        return f"AsyncStack({list(self.layers)})"

    @property
    def layers(self) -> tuple[Conv | Pool | HeldWeights, ...]:
        """Its layers."""
        return self._composition.items

    async def run(self, input: AnyArray) -> answers.StackAnswer:
        """The same with its plan and report."""
        return answers.stack_answer(*await self._answered(partial(self._composition.request, input)))

    async def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> answers.StackGradients:
        """The gradients of a scalar with respect to the stack's input, and to the weight and bias of each convolution,
        given that with respect to the output; one call, which computes forward and backward.
        """
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request, response = await self._answered(partial(self._composition.request, input, asked))
        return answers.stack_gradients_answer(request, response, asked.wanted)

    async def plan(self, input_shape: Sequence[int], dtype: str | None = None) -> StackPlan:
        """What `run` would do with an input of that shape (and that dtype, where all weights are shapes; by default
        float32), layer by layer and in all.
        """
        request = self._composition.plan_request(input_shape, dtype)
        return answers.stack_plan_answer(await self._wire.call("Plan", request, self._composition.parameters))
