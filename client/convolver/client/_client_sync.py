"""The client in its blocking colour."""

from __future__ import annotations

import os
import re
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar, cast

import grpc

from convolver.client import _answers as answers
from convolver.client import _client_shared as shared
from convolver.client import _composition as composition
from convolver.client import _gradients
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_sync as layers
from convolver.client._composition import Composition, HeldWeights, may_resend, stacked
from convolver.client._connection import PATHS, ClientBase, blocking_channels
from convolver.client._convolutions import Convolutions
from convolver.client._interchange import AnyArray
from convolver.client._layers_sync import Layer, Server, Stack, Wire
from convolver.client._map_sync import Stream
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Unpack

    from convolver.client._channels import BlockingChannels
    from convolver.client._embedded import EmbeddedServer
    from convolver.client._gradients import Gradients
    from convolver.client._held_layers import HeldLayer
    from convolver.client._stack_layers import StackLayer
    from convolver.core.parameters import Parameters, StackParameters
    from convolver.core.plan import Plan

T = TypeVar("T")


class Client(ClientBase, Convolutions[AnyArray]):
    """Calls one Convolver service; may be used from several threads.

    Arrays are NumPy's, torch's, or any that speaks `__array__` or DLPack; a torch tensor as input gives a torch tensor
    back, detached and on the same device. Every method raises convolver.core.errors for what is wrong with a request,
    and convolver.client.errors for what happened on the way; RuntimeError once the client is closed.

    Args:
        address: `host:port`, `unix:/path` or `dns:///host:port`; or several `host:port` with commas between, which take
            turns (names are looked up once). None: CONVOLVER_ADDRESS, and without that a server of
            this process's own (the real one, in a child process on a private unix socket; needs `convolver[server]`).
        timeout: seconds that a call may take, unless it says otherwise; None is for ever.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0) -> None:
        super().__init__(address, timeout=timeout)
        self._lock = threading.Lock()
        self._embedded: EmbeddedServer | None = None
        self._channels: BlockingChannels | None = None
        self._process = 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    @property
    def address(self) -> str:
        """Where calls go. Starts the embedded server if there is no other."""
        with self._lock:
            return self._target()

    def close(self) -> None:
        """Ends the connection, and the embedded server once its last client is closed. Calls in flight fail with
        ServiceUnavailable, later ones with RuntimeError; closing again does nothing.
        """
        with self._lock:
            self._closed = True
            for channel in self._channels.all if self._channels else ():
                channel.close()
            self._channels = None
            if self._embedded is not None:
                self._embedded.release()
            self._embedded = None

    def run(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> answers.Answer:
        """The convolution of `input` (N, C, *S) or (C, *S) with `weight` (O, C/groups, *K), with its plan and report.

        Transposed, the weight is (C, O/groups, *K); `bias` is (O,). All of one dtype. docs/parameters.md explains each
        parameter.
        """
        request = shared.convolve_request(input, weight, bias, parameters)
        return answers.convolve_answer(request, self._call("Convolve", request.message, parameters))

    def convolve(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        """The output of `run`."""
        return self.run(input, weight, bias, **parameters).output

    def gradients(
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
        return answers.gradients_answer(request, self._call("Convolve", request.message, parameters), wanted)

    def plan(
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
        return answers.plan_answer(self._call("Plan", request, parameters))

    def layer(
        self, weight: AnyArray, bias: AnyArray = None, *, resend: bool = True, **parameters: Unpack[Parameters]
    ) -> Layer:
        """A convolution whose weights stay on the servers, prepared: they travel once to each. `weight`, `bias` and the
        parameters are those of `convolve`; the weights are copied now, and nothing is sent yet.

        A server that does not know the layer gets it with the call that needs it; with `resend=False` that raises
        UnknownLayer instead, as where somebody else is to decide what a server holds.
        """
        own, of_call = composition.parted(parameters)
        held = HeldWeights(weight, bias, own, of_call, resend=resend)
        return Layer(self._wire, held, Composition([held], of_call), resend=resend)

    def stack(
        self, layers: Sequence[StackLayer], *, resend: bool = True, **parameters: Unpack[StackParameters]
    ) -> Stack:
        """Layers one after the other, that run in one call: `Conv`, whose weights travel with each call, so that they
        may change between two; layers made by `layer`, whose weights stay; and `Pool`. `resend` is that of `layer`,
        and False where it is for one of the layers, whose own call parameters are refused.
        """
        items = [layer.held if isinstance(layer, Layer) else layer for layer in layers]
        made = stacked(items, cast("Parameters", parameters))
        return Stack(self._wire, made, resend=resend and may_resend(items))

    def layers(self) -> list[HeldLayer]:
        """The layers that the server holds, the latest used first; of several servers, that whose turn it is."""
        return self._of_one(layers.listed, {})

    def held_layer(self, digest: str) -> HeldLayer:
        """The layer of that digest. Raises UnknownLayer where the server does not hold it."""
        return held_layers.get_answer(self._call("GetLayer", held_layers.get_request(digest), {}))

    def delete_layer(self, digest: str) -> None:
        """Lets every server forget a layer; calls that use it finish. Raises UnknownLayer where none holds it."""
        layers.delete(self._servers(), digest)

    def info(self) -> shared.Info:
        """What the server is and may."""
        return shared.info_answer(self._call("GetInfo", shared.info_request(), {}))

    def _of_rank(
        self, ndim: int, input: AnyArray, weight: AnyArray, bias: AnyArray, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        shared.check_rank(weight, ndim, parameters)
        return self.convolve(input, weight, bias, **parameters)

    @property
    def _wire(self) -> Wire:
        return Wire(self._call, self._of_one, self._open_stream, self._put)

    def _of_one(self, ask: Callable[[Server], T], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        channels, _ = self._connected()
        *others, last = channels.in_turn(self._seconds(parameters))
        for channel in others:
            try:
                return ask(self._server(channel))
            except ServiceUnavailable:
                if self._closed:
                    raise
        return ask(self._server(last))

    def _servers(self) -> list[Server]:
        channels, _ = self._connected()
        return list(map(self._server, channels.each))

    def _server(self, channel: grpc.Channel) -> Server:
        return Server(partial(self._call, channel=channel), partial(self._put_on, channel))

    def _call(
        self, method: str, request: bytes, parameters: Parameters, *, channel: grpc.Channel | None = None
    ) -> bytes:
        timeout = self._seconds(parameters)
        channels, address = self._connected()
        chosen = channel or channels.together
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = chosen.unary_unary(PATHS[method])
        with _failures(address, timeout):
            return call(request, timeout=timeout)

    def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        layers.put(self._servers(), held, parameters)

    def _put_on(self, channel: grpc.Channel, held: HeldWeights, parameters: Parameters) -> None:
        timeout = self._seconds(parameters)
        _, address = self._connected()
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(PATHS["PutLayer"])
        with _failures(address, timeout):
            call(held_layers.put_requests(held), timeout=timeout)

    @contextmanager
    def _open_stream(self, requests: Iterator[bytes], composition: Composition) -> Iterator[Stream]:
        timeout = self._seconds(composition.parameters)
        channels, address = self._connected()
        channel = channels.in_turn(timeout)[0] if composition.held else channels.together
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        with _failures(address, timeout):
            call = stream(requests)
            try:
                yield Stream(call, address, timeout, lambda held: self._put_on(channel, held, composition.parameters))
            finally:
                call.cancel()  # which does nothing to one that has ended

    def _connected(self) -> tuple[BlockingChannels, str]:
        """The channels of this process, made when they are first needed and again after a fork, and where they lead."""
        with self._lock:
            address = self._target()
            if self._channels is None or self._process != os.getpid():
                self._channels = blocking_channels(address)
                self._process = os.getpid()
            return self._channels, address

    def _target(self) -> str:
        self._check_open()
        if self._given is not None:
            return self._given
        if self._embedded is not None and self._embedded.own and not self._embedded.alive:
            self._embedded.release()  # it died, and whoever calls next gets another
            self._embedded = self._channels = None
        if self._embedded is None:
            from convolver.client import _embedded

            self._embedded = _embedded.acquire()
        return self._embedded.address


@contextmanager
def _failures(address: str, timeout: float | None) -> Iterator[None]:
    """Raises what a failed call means."""
    try:
        yield
    except grpc.RpcError as failure:
        raise shared.error_of(failure, address, timeout) from failure
    except ValueError as failure:
        if not {"closed", "channel"} <= set(re.findall(r"\w+", str(failure).lower())):
            raise  # the caller's own
        raise RuntimeError("the client is closed") from failure
