"""The client in its blocking colour."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

import grpc

from convolver.client import _client_shared as shared
from convolver.client._convolutions import Convolutions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Unpack

    from convolver.client._embedded import EmbeddedServer
    from convolver.client._interchange import AnyArray
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan


class Client(Convolutions):
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
        self._timeout = timeout
        self._given = shared.address_or_none(address)
        self._lock = threading.Lock()
        self._embedded: EmbeddedServer | None = None
        self._channel: grpc.Channel | None = None
        self._process = 0
        self._closed = False

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

    def _call(self, method: str, request: bytes, parameters: Parameters) -> bytes:
        timeout = parameters.get("timeout", self._timeout)
        channel, address = self._connected()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{shared.SERVICE}/{method}")
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
                self._channel = grpc.insecure_channel(address, options=shared.CHANNEL_OPTIONS)
                self._process = os.getpid()
            return self._channel, address

    def _target(self) -> str:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._given is not None:
            return self._given
        if self._embedded is not None and self._embedded.own and not self._embedded.alive:
            self._embedded.release()  # it died, and whoever calls next gets another
            self._embedded = self._channel = None
        if self._embedded is None:
            from convolver.client import _embedded

            self._embedded = _embedded.acquire()
        return self._embedded.address
