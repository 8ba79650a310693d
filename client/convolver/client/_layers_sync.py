"""Layers that stay and stacks, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from convolver.client import _answers as answers
from convolver.client import _gradients
from convolver.client import _held_layers as held_layers
from convolver.client._composition import Asked, Composition, HeldWeights
from convolver.client._interchange import AnyArray
from convolver.client._map_sync import OpenStream, mapped
from convolver.client._requests import Reply, Request
from convolver.client._resending import Repeats
from convolver.client._stack_layers import Conv, Pool, StackLayer
from convolver.core.errors import ConvolverError, UnknownLayer
from convolver.core.parameters import Parameters

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from convolver.client._gradients import Gradients
    from convolver.client._held_layers import HeldLayer
    from convolver.core.plan import Plan
    from convolver.core.stack_plan import StackPlan


Call = Callable[[str, bytes, Parameters], bytes]
"""A call of the method of that name."""

Exchange = Callable[[Request, Parameters], Reply]
"""The answer to a request, whichever way both take."""


class Server(NamedTuple):
    """One server: a call, the computing of a request, and the putting of a layer."""

    call: Call
    exchange: Exchange
    put: Callable[[HeldWeights, Parameters], None]


class Wire(NamedTuple):
    """What a client lends to its layers: a call, the computing of a request, what asks one server, a stream, and the
    putting of a layer on every server.
    """

    call: Call
    exchange: Exchange
    of_one: Callable[[Callable[[Server], Reply], Parameters], Reply]
    open_stream: OpenStream
    put: Callable[[HeldWeights, Parameters], None]


class _Calls:
    """What layers and stacks have in common."""

    def __init__(self, wire: Wire, composition: Composition, *, resend: bool) -> None:
        self._wire, self._composition, self._resend = wire, composition, resend

    def map(self, frames: Iterable[AnyArray], *, in_flight: int = 16) -> Generator[AnyArray]:
        """The outputs of many inputs, in their order, over one stream: while one is computed, others travel. At most
        `in_flight` of them are on their way or wait to be taken, and no frame is asked for before there is room.

        The first error ends it, at the place of its frame. Where a server goes away, what is in flight is sent again,
        to another or to the same one once it is back; three times in a row without an answer to the oldest end it.

        A frame may be overwritten once the next one is asked for. One that is too large for a message of the stream, or
        whose output is, goes as `run` sends it, and is waited for before the next one is asked for.

        Outputs that are there are given before the next frame is asked for, in the caller's thread: frames that wait
        for an output may wait for ever. Leaving the loop early cancels what is in flight, once the generator is closed
        or forgotten.
        """
        return mapped(
            self._wire.open_stream,
            self._answered,
            self._composition,
            frames,
            in_flight=in_flight,
            resend=self._resend,
        )

    def _answered(self, request: Request) -> Reply:
        """The answer to it."""
        parameters = self._composition.parameters
        if self._composition.held:
            return self._wire.of_one(partial(self._answered_by, request), parameters)
        return self._wire.exchange(request, parameters)

    def _answered_by(self, request: Request, server: Server) -> Reply:
        """With digests; where the server does not know one, again with the layers, or behind them."""
        parameters = self._composition.parameters
        repeats = Repeats(self._composition, request, self._composition.whole, resend=self._resend)
        while True:
            try:
                return server.exchange(request, parameters)
            except UnknownLayer as unknown:
                put, request = repeats.after(unknown)
            if put is not None:
                server.put(put, parameters)


class Layer(_Calls, StackLayer):
    """A convolution whose weights stay on the servers; `Client.layer` makes it. Calls name it by its digest, and a
    server that does not know it is sent it with the same call, unless `resend` is False: then UnknownLayer is raised.
    """

    def __init__(self, wire: Wire, held: HeldWeights, composition: Composition, *, resend: bool) -> None:
        super().__init__(wire, composition, resend=resend)
        self._held = held

    def __call__(self, input: AnyArray, *, out: AnyArray = None) -> AnyArray:
        """The convolution of `input` (N, C, *S) or (C, *S), written to `out` as by `convolve` where that is given."""
        return self.run(input, out=out).output

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

    def run(self, input: AnyArray, *, out: AnyArray = None) -> answers.Answer:
        """The same with its plan and report."""
        request = self._composition.request(input, out=out)
        return answers.convolve_answer(request, self._answered(request))

    def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> Gradients:
        """As `Client.gradients`."""
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request = self._composition.request(input, asked)
        return answers.gradients_answer(request, self._answered(request), asked.wanted)

    def plan(self, input_shape: Sequence[int]) -> Plan:
        """What `run` would do with an input of that shape, and its cost."""
        request = self._composition.plan_request(input_shape, None)
        return answers.plan_answer(self._wire.call("Plan", request, self._composition.parameters))

    def put(self) -> None:
        """Sends the layer now, in pieces, to every server, so that no call has to. Each gets it that can; the first
        error is raised.
        """
        self._wire.put(self._held, self._composition.parameters)


class Stack(_Calls):
    """Layers one after the other, in one call; `Client.stack` makes it."""

    def __call__(self, input: AnyArray, *, out: AnyArray = None) -> AnyArray:
        """The output for an `input` (N, C, *S) or (C, *S), written to `out` as by `convolve` where that is given."""
        return self.run(input, out=out).output

    def __repr__(self) -> str:
        return f"Stack({list(self.layers)})"

    @property
    def layers(self) -> tuple[Conv | Pool | HeldWeights, ...]:
        """Its layers."""
        return self._composition.items

    def run(self, input: AnyArray, *, out: AnyArray = None) -> answers.StackAnswer:
        """The same with its plan and report."""
        request = self._composition.request(input, out=out)
        return answers.stack_answer(request, self._answered(request))

    def gradients(
        self, input: AnyArray, grad_output: AnyArray, *, wrt: Sequence[str] = ("input", "weight"), bias: bool = False
    ) -> answers.StackGradients:
        """The gradients of a scalar with respect to the stack's input, and to the weight and bias of each convolution,
        given that with respect to the output; one call, which computes forward and backward.
        """
        asked = Asked(_gradients.wanted(wrt, bias=bias), grad_output)
        request = self._composition.request(input, asked)
        return answers.stack_gradients_answer(request, self._answered(request), asked.wanted)

    def plan(self, input_shape: Sequence[int], dtype: str | None = None) -> StackPlan:
        """What `run` would do with an input of that shape (and that dtype, where all weights are shapes; by default
        float32), layer by layer and in all.
        """
        request = self._composition.plan_request(input_shape, dtype)
        return answers.stack_plan_answer(self._wire.call("Plan", request, self._composition.parameters))


def listed(server: Server) -> list[HeldLayer]:
    """All pages of one server: no other knows what its tokens mean."""
    found, token = held_layers.list_answer(server.call("ListLayers", held_layers.list_request(""), {}))
    while token:
        more, token = held_layers.list_answer(server.call("ListLayers", held_layers.list_request(token), {}))
        found += more
    return found


def put(servers: Sequence[Server], held: HeldWeights, parameters: Parameters) -> None:
    """Puts a layer on each that can take it. Raises the first error."""
    failures = _failures(partial(server.put, held, parameters) for server in servers)
    if failures:
        raise failures[0]


def delete(servers: Sequence[Server], digest: str) -> None:
    """Deletes a layer from each. Raises the first error, and UnknownLayer where none holds it."""
    request = held_layers.delete_request(digest)
    failures = _failures(partial(server.call, "DeleteLayer", request, {}) for server in servers)
    others = [failure for failure in failures if not isinstance(failure, UnknownLayer)]
    if others or len(failures) == len(servers):
        raise (others or failures)[0]


def _failures(calls: Iterable[Callable[[], object]]) -> list[ConvolverError]:
    """What went wrong, of calls one after the other."""
    failures = []
    for call in calls:
        try:
            call()
        except ConvolverError as failure:
            failures.append(failure)
    return failures
