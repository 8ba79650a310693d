"""The client in its asynchronous colour, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import grpc

from convolver.client import _answers as answers
from convolver.client import _client_shared as shared
from convolver.client import _composition as composition
from convolver.client import _gradients
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_async as layers
from convolver.client._composition import Composition, HeldWeights, may_resend, stacked
from convolver.client._connection import PATHS, ClientBase, asynchronous_channels, targets_of
from convolver.client._convolutions import Convolutions
from convolver.client._interchange import AnyArray
from convolver.client._layers_async import AsyncLayer, AsyncServer, AsyncStack, AsyncWire
from convolver.client._map_async import Stream
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from typing_extensions import Unpack

    from convolver.client._channels import AsynchronousChannels
    from convolver.client._embedded import EmbeddedServer
    from convolver.client._gradients import Gradients
    from convolver.client._held_layers import HeldLayer
    from convolver.client._stack_layers import StackLayer
    from convolver.core.parameters import Parameters, StackParameters
    from convolver.core.plan import Plan

T = TypeVar("T")


class AsyncClient(ClientBase, Convolutions[Coroutine[Any, Any, AnyArray]]):
    """Calls one Convolver service from asyncio: `Client`, with `await`. It belongs to the event loop that it is first
    used in; another raises RuntimeError.

    Arrays, errors and arguments are those of `Client`. To cancel a call is to cancel it on the server.

    Args:
        address: `host:port`, `unix:/path` or `dns:///host:port`; or several `host:port` with commas between, which take
            turns (names are looked up once). None: CONVOLVER_ADDRESS, and without that a server of
            this process's own (the real one, in a child process on a private unix socket; needs `convolver[server]`).
        timeout: seconds that a call may take, unless it says otherwise; None is for ever.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0) -> None:
        super().__init__(address, timeout=timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Future[EmbeddedServer] | None = None
        self._channels: AsynchronousChannels | None = None
        self._address = ""

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Closes it."""
        await self.close()

    @property
    async def address(self) -> str:
        """Where calls go. Starts the embedded server if there is no other."""
        self._check_open()
        self._check_loop()
        if self._given is not None:
            return self._given
        if self._start is None or _failed(self._start):
            self._start = asyncio.get_running_loop().run_in_executor(None, _server_instead_of, self._start)
        server = await asyncio.shield(self._start)  # others may wait for it too
        self._check_open()
        return server.address

    async def close(self) -> None:
        """Ends the connection, and the embedded server once its last client is closed. Calls in flight fail with
        ServiceUnavailable, later ones with RuntimeError; closing again does nothing.
        """
        if self._closed:
            return
        self._check_loop()
        self._closed = True
        for channel in self._channels.all if self._channels else ():
            await channel.close()
        self._channels = None
        if self._start is not None:
            await asyncio.wait([self._start])
            if not self._start.exception():
                await asyncio.to_thread(self._start.result().release)

    async def run(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> answers.Answer:
        """The convolution of `input` (N, C, *S) or (C, *S) with `weight` (O, C/groups, *K), with its plan and report.

        Transposed, the weight is (C, O/groups, *K); `bias` is (O,). All of one dtype. docs/parameters.md explains each
        parameter.
        """
        request = shared.convolve_request(input, weight, bias, parameters)
        return answers.convolve_answer(request, await self._call("Convolve", request.message, parameters))

    async def convolve(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        """The output of `run`."""
        return (await self.run(input, weight, bias, **parameters)).output

    async def gradients(
        self,
        input: AnyArray,
        weight: AnyArray,
        grad_output: AnyArray,
        *,
        wrt: Sequence[str] = ("input", "weight"),
        bias: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Gradients:
        """The gradients of a scalar with respect to `input`, `weight` and bias, given its gradient with respect to the
        output: `grad_output`, of the output's shape and dtype. `wrt` names what is wanted of "input" and "weight",
        `bias` asks for the bias's, whether there is one or not; the others are None.

        Floats and complex numbers (by torch's convention); an activation is refused, and so is `algorithm="fft"`.
        """
        wanted = _gradients.wanted(wrt, bias=bias)
        request = _gradients.request(input, weight, grad_output, wanted, parameters)
        return answers.gradients_answer(request, await self._call("Convolve", request.message, parameters), wanted)

    async def plan(
        self,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        dtype: str = "float32",
        *,
        bias: bool = False,
        **parameters: Unpack[Parameters],
    ) -> Plan:
        """What `run` would do with tensors of these shapes, and its cost; `bias` says whether there is one."""
        request = shared.plan_request(input_shape, weight_shape, dtype, parameters, bias=bias)
        return answers.plan_answer(await self._call("Plan", request, parameters))

    def layer(
        self, weight: AnyArray, bias: AnyArray = None, *, resend: bool = True, **parameters: Unpack[Parameters]
    ) -> AsyncLayer:
        """A convolution whose weights stay on the servers, prepared: they travel once to each. `weight`, `bias` and the
        parameters are those of `convolve`; the weights are copied now, and nothing is sent yet.

        A server that does not know the layer gets it with the call that needs it; with `resend=False` that raises
        UnknownLayer instead, as where somebody else is to decide what a server holds.
        """
        own, of_call = composition.parted(parameters)
        held = HeldWeights(weight, bias, own, of_call, resend=resend)
        return AsyncLayer(self._wire, held, Composition([held], of_call), resend=resend)

    def stack(
        self, layers: Sequence[StackLayer], *, resend: bool = True, **parameters: Unpack[StackParameters]
    ) -> AsyncStack:
        """Layers one after the other, that run in one call: `Conv`, whose weights travel with each call, so that they
        may change between two; layers made by `layer`, whose weights stay; and `Pool`. `resend` is that of `layer`,
        and False where it is for one of the layers, whose own call parameters are refused.
        """
        items = [layer.held if isinstance(layer, AsyncLayer) else layer for layer in layers]
        made = stacked(items, cast("Parameters", parameters))
        return AsyncStack(self._wire, made, resend=resend and may_resend(items))

    async def layers(self) -> list[HeldLayer]:
        """The layers that the server holds, the latest used first; of several servers, that whose turn it is."""
        return await self._of_one(layers.listed, {})

    async def held_layer(self, digest: str) -> HeldLayer:
        """The layer of that digest. Raises UnknownLayer where the server does not hold it."""
        return held_layers.get_answer(await self._call("GetLayer", held_layers.get_request(digest), {}))

    async def delete_layer(self, digest: str) -> None:
        """Lets every server forget a layer; calls that use it finish. Raises UnknownLayer where none holds it."""
        await layers.delete(await self._servers(), digest)

    async def info(self) -> shared.Info:
        """What the server is and may."""
        return shared.info_answer(await self._call("GetInfo", shared.info_request(), {}))

    async def _of_rank(
        self, ndim: int, input: AnyArray, weight: AnyArray, bias: AnyArray, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        shared.check_rank(weight, ndim, parameters)
        return await self.convolve(input, weight, bias, **parameters)

    @property
    def _wire(self) -> AsyncWire:
        return AsyncWire(self._call, self._of_one, self._open_stream, self._put)

    async def _of_one(self, ask: Callable[[AsyncServer], Awaitable[T]], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        channels, _ = await self._connected()
        *others, last = await channels.in_turn(self._seconds(parameters))
        for channel in others:
            try:
                return await ask(self._server(channel))
            except ServiceUnavailable:
                if self._closed:
                    raise
        return await ask(self._server(last))

    async def _servers(self) -> list[AsyncServer]:
        channels, _ = await self._connected()
        return list(map(self._server, channels.each))

    def _server(self, channel: grpc.aio.Channel) -> AsyncServer:
        return AsyncServer(partial(self._call, channel=channel), partial(self._put_on, channel))

    async def _call(
        self, method: str, request: bytes, parameters: Parameters, *, channel: grpc.aio.Channel | None = None
    ) -> bytes:
        timeout = self._seconds(parameters)
        channels, address = await self._connected()
        chosen = channel or channels.together
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = chosen.unary_unary(PATHS[method])
        with self._failures(address, timeout):
            return await call(request, timeout=timeout)

    async def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        await layers.put(await self._servers(), held, parameters)

    async def _put_on(self, channel: grpc.aio.Channel, held: HeldWeights, parameters: Parameters) -> None:
        timeout = self._seconds(parameters)
        _, address = await self._connected()
        call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(PATHS["PutLayer"])
        with self._failures(address, timeout):
            await call(held_layers.put_requests(held), timeout=timeout)

    @asynccontextmanager
    async def _open_stream(self, composition: Composition) -> AsyncIterator[Stream]:
        timeout = self._seconds(composition.parameters)
        channels, address = await self._connected()
        channel = (await channels.in_turn(timeout))[0] if composition.held else channels.together
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        with self._failures(address, timeout):
            call = stream()
            try:
                yield Stream(call, address, timeout, lambda held: self._put_on(channel, held, composition.parameters))
            finally:
                call.cancel()  # which does nothing to one that has ended

    @contextmanager
    def _failures(self, address: str, timeout: float | None) -> Iterator[None]:
        """Raises what a failed call means."""
        try:
            yield
        except grpc.RpcError as failure:
            raise shared.error_of(failure, address, timeout) from failure
        except asyncio.CancelledError:
            if self._closed and not _is_cancelled():
                raise ServiceUnavailable(f"{address}: the client was closed") from None
            raise

    async def _connected(self) -> tuple[AsynchronousChannels, str]:
        """The channels, made when they are first needed and again for another embedded server, and where they lead."""
        address = await self.address
        if self._channels is not None and self._address == address:
            return self._channels, address
        targets = await asyncio.to_thread(targets_of, address) if "," in address else targets_of(address)
        self._check_open()
        if self._channels is None or self._address != address:  # another task was not faster
            self._channels, self._address = asynchronous_channels(targets), address
        return self._channels, address

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop: each loop needs an AsyncClient of its own")


def _server_instead_of(ended: asyncio.Future[EmbeddedServer] | None) -> EmbeddedServer:
    from convolver.client import _embedded

    if ended is not None and not ended.exception():
        ended.result().release()
    return _embedded.acquire()


def _failed(start: asyncio.Future[EmbeddedServer]) -> bool:
    """Whether it has led to no server, or to one that died."""
    return start.done() and (start.exception() is not None or not start.result().alive)


def _is_cancelled() -> bool:
    """Whether somebody cancels the running task; else it is gRPC that has cancelled the call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
