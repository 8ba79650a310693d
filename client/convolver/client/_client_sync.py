"""The client in its blocking colour."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

import grpc

from convolver.client import _client_shared as shared
from convolver.client import _gradients
from convolver.client._connection import SERVICE, ClientBase, blocking_channel
from convolver.client._convolutions import Convolutions
from convolver.client._interchange import AnyArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from convolver.client._embedded import EmbeddedServer
    from convolver.client._gradients import Gradients
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan


class Client(ClientBase, Convolutions[AnyArray]):
    """Calls one Convolver service; may be used from several threads.

    Arrays are NumPy's, torch's, or any that speaks `__array__` or DLPack; a torch tensor as input gives a torch tensor
    back, detached and on the same device. Every method raises convolver.core.errors for what is wrong with a request,
    and convolver.client.errors for what happened on the way; RuntimeError once the client is closed.

    Args:
        address: `host:port`, `unix:/path` or `dns:///host:port`. None: CONVOLVER_ADDRESS, and without that a server of
            this process's own (the real one, in a child process on a private unix socket; needs `convolver[server]`).
        timeout: seconds that a call may take, unless it says otherwise; None is for ever.
    """

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0) -> None:
        super().__init__(address, timeout=timeout)
        self._lock = threading.Lock()
        self._embedded: EmbeddedServer | None = None
        self._channel: grpc.Channel | None = None
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
            if self._channel is not None:
                self._channel.close()
            self._channel = None
            if self._embedded is not None:
                self._embedded.release()
            self._embedded = None

    def run(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> shared.Answer:
        """The convolution of `input` (N, C, *S) or (C, *S) with `weight` (O, C/groups, *K), with its plan and report.

        Transposed, the weight is (C, O/groups, *K); `bias` is (O,). All of one dtype. docs/parameters.md explains each
        parameter.
        """
        request = shared.convolve_request(input, weight, bias, parameters)
        return shared.convolve_answer(request, self._call("Convolve", request.message, parameters))

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
        request = _gradients.request(input, weight, grad_output, _gradients.wanted(wrt, bias=bias), parameters)
        return _gradients.answer(request, self._call("Convolve", request.message, parameters))

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
        return shared.plan_answer(self._call("Plan", request, parameters))

    def info(self) -> shared.Info:
        """What the server is and may."""
        return shared.info_answer(self._call("GetInfo", shared.info_request(), {}))

    def _of_rank(
        self, ndim: int, input: AnyArray, weight: AnyArray, bias: AnyArray, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        shared.check_rank(weight, ndim, parameters)
        return self.convolve(input, weight, bias, **parameters)

    def _call(self, method: str, request: bytes, parameters: Parameters) -> bytes:
        timeout = self._seconds(parameters)
        channel, address = self._connected()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            return call(request, timeout=timeout)
        except grpc.RpcError as failure:
            raise shared.error_of(failure, address, timeout) from failure
        except ValueError as failure:  # gRPC's word for a channel that another thread has just closed
            raise RuntimeError("the client is closed") from failure

    def _connected(self) -> tuple[grpc.Channel, str]:
        """The channel of this process, made when it is first needed and again after a fork, and where it leads."""
        with self._lock:
            address = self._target()
            if self._channel is None or self._process != os.getpid():
                self._channel = blocking_channel(address)
                self._process = os.getpid()
            return self._channel, address

    def _target(self) -> str:
        self._check_open()
        if self._given is not None:
            return self._given
        if self._embedded is not None and self._embedded.own and not self._embedded.alive:
            self._embedded.release()  # it died, and whoever calls next gets another
            self._embedded = self._channel = None
        if self._embedded is None:
            from convolver.client import _embedded

            self._embedded = _embedded.acquire()
        return self._embedded.address
