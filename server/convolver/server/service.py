"""convolver.v1.ConvolutionService over bytes: decode, call the engine, encode. gRPC gets no serialisers, so that what
is wrong with a message is answered by the one table of errors.
"""

from __future__ import annotations

import platform
import time
from functools import cache, lru_cache, partial
from importlib import metadata
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from convolver.core import plan_codec
from convolver.core.errors import InvalidConvolution, LimitExceeded
from convolver.core.plan import Plan, Report
from convolver.core.tensors import to_bytes
from convolver.core.wire import join, split
from convolver.server import metrics
from convolver.server.engine import Replanned
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from convolver.server.calls import Calls
    from convolver.server.engine import Engine, Job
    from convolver.server.scheduler import Scheduler
    from convolver.server.settings import Settings

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ConvolutionService"]

REMEMBERED = 1024
"""Headers whose plans are kept: callers send the same few again and again, and a plan costs more than a tiny sum."""

LONGEST_REMEMBERED = 4096
"""Bytes of a header that is kept; ordinary ones have 200. What does not fit is planned each time."""

LARGEST_HEADER = 2**20
"""Bytes of a message without its data that are parsed: on the event loop, where health has to be answered too."""

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Read = TypeVar("_Read", bound=Message)


class ConvolutionService:
    """The rpcs of this version. Those that the table lacks answer UNIMPLEMENTED."""

    def __init__(self, engine: Engine, scheduler: Scheduler, calls: Calls, settings: Settings) -> None:
        self._engine, self._scheduler, self._calls, self._settings = engine, scheduler, calls, settings
        self._remembered = lru_cache(REMEMBERED)(self._accepted)

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        table: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Convolve": grpc.unary_unary_rpc_method_handler(self.convolve),
            "Plan": grpc.unary_unary_rpc_method_handler(self.plan),
            "GetInfo": grpc.unary_unary_rpc_method_handler(self.get_info),
        }
        return grpc.method_handlers_generic_handler(DESCRIPTOR.full_name, table)

    async def convolve(self, request: bytes, context: _Context) -> bytes:
        """One convolution."""
        self._calls.follow(context)
        received = time.perf_counter()
        metrics.RECEIVED_BYTES.inc(len(request))
        header, entries = split(request)
        accept = self._remembered if len(header) <= LONGEST_REMEMBERED else self._accepted
        job, plan = accept(header)
        accepted = time.perf_counter()

        def computed(job: Job, plan: plan_pb2.Plan, submitted: float) -> Awaitable[bytes]:
            work = partial(self._answer, job, plan, entries, submitted - received, submitted)
            return self._scheduler.run(job.plan.peak_bytes, work)

        try:
            answer = await computed(job, plan, accepted)
        except Replanned as again:  # what was in vain counts as planning
            answer = await computed(again.job, plan_codec.plan_to_proto(again.job.plan), time.perf_counter())
        metrics.SENT_BYTES.inc(len(answer))
        return answer

    async def plan(self, request: bytes, _context: _Context) -> bytes:
        """What `convolve` would do."""
        plan = self._engine.plan(read(pb.PlanRequest, request).convolution)
        return pb.PlanResponse(plan=plan_codec.plan_to_proto(plan)).SerializeToString()

    async def get_info(self, request: bytes, _context: _Context) -> bytes:
        """What this server is and may."""
        read(pb.GetInfoRequest, request)
        settings = self._settings
        limits = pb.Limits(
            max_message_bytes=settings.max_message,
            max_output_elements=settings.max_output_elements,
            max_request_bytes=settings.max_request_bytes,
            max_work=settings.max_work,
            memory_budget_bytes=settings.memory_budget,
        )
        backends = map(plan_codec.capability_to_proto, self._engine.capabilities)
        return pb.GetInfoResponse(versions=versions(), backends=backends, limits=limits).SerializeToString()

    def _accepted(self, header: bytes) -> tuple[Job, plan_pb2.Plan]:
        """All that a request's header decides, and so what a header that came before has decided already."""
        job = self._engine.accept(read(pb.ConvolveRequest, header).convolution)
        self._check_answer(job.plan.output_bytes)
        return job, plan_codec.plan_to_proto(job.plan)

    def _answer(
        self, job: Job, plan: plan_pb2.Plan, entries: Sequence[memoryview], decode: float, accepted: float
    ) -> bytes:
        """Runs in a compute thread: the answer's message, its one copy of the output included."""
        queue = time.perf_counter() - accepted
        outcome = self._engine.run(job, entries)
        done = time.perf_counter()
        seconds = {"decode": decode, "queue": queue, **outcome.seconds}
        report = Report(self._engine.device(job.plan), 1, "disabled", seconds)
        result = plan_pb2.Result(plan=plan, report=plan_codec.report_to_proto(report))
        answer = join(
            pb.ConvolveResponse(result=result).SerializeToString(),
            [to_bytes(array) for array in outcome.outputs.values()],
        )
        self._check_answer(len(answer))
        _count(job.plan, {**seconds, "encode": time.perf_counter() - done})
        return answer

    def _check_answer(self, size: int) -> None:
        """Raises LimitExceeded for an answer that gRPC would not send, and would blame on nobody."""
        limit, setting = int(self._settings.max_message), "--max-message"
        if size > limit:
            text = f"the answer's message would be {size} bytes, above this server's limit of {limit} ({setting})"
            raise LimitExceeded(text, "bytes of the answer's message", limit, size, setting)


def read(kind: type[_Read], data: bytes) -> _Read:
    """The message. Raises InvalidConvolution for what is not one, LimitExceeded for one that would take long."""
    if len(data) > LARGEST_HEADER:
        text = f"the request has {len(data)} bytes beside its data, at most {LARGEST_HEADER} are read"
        raise LimitExceeded(text, "bytes beside the data", LARGEST_HEADER, len(data))
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidConvolution(f"the request is not a {kind.DESCRIPTOR.full_name}: {error}") from error


@cache
def versions() -> dict[str, str]:
    """What is installed of what matters."""
    names = ("convolver", "numpy", "torch", "grpcio", "protobuf")
    found = {name: distribution.version for name in names for distribution in metadata.distributions(name=name)}
    return {**found, "python": platform.python_version()}


def _count(plan: Plan, seconds: dict[str, float]) -> None:
    for phase, spent in seconds.items():
        metrics.PHASE_SECONDS.labels(phase, plan.backend).observe(spent)
    operation = metrics.operation(
        plan.geometry.ndim, transposed=plan.operation.transposed, gradients=plan.wanted is not None
    )
    metrics.MACS.labels(plan.backend, plan.operation.dtype, operation).inc(plan.macs)
