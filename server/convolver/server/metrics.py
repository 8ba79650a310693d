"""Every metric of the server, declared once. docs/metrics.md says what each is good for.

The registry is our own: other libraries of one process register the grpc_server_* names in the default one.
Labels are of fixed sets: never a shape, a digest or a word that a caller made up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from convolver.core.errors import InvalidConvolution, LimitExceeded, Overloaded, UnknownLayer, Unsupported
from convolver.core.joint import Unbatched

if TYPE_CHECKING:
    from collections.abc import Iterable

disable_created_metrics()  # type: ignore[no-untyped-call]  # as shipped. They would nearly double each scrape.

REGISTRY = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
"""Bounds of the buckets: a tiny request takes some 100 us, the largest that `max_work` lets in about a minute."""

PHASES = ("decode", "queue", "copy_in", "compute", "copy_out", "encode")
_FORWARD = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_KINDS = (*_FORWARD, "stack")
OPERATIONS = (*_KINDS, *(f"{name}_gradients" for name in _KINDS))
REASONS = tuple(error.reason for error in (InvalidConvolution, Unsupported, LimitExceeded, Overloaded, UnknownLayer))
UNBATCHED_REASONS = get_args(Unbatched)

_METHOD = ("grpc_type", "grpc_service", "grpc_method")

STARTED = Counter(
    "grpc_server_started_total", "Total number of RPCs started on the server.", _METHOD, registry=REGISTRY
)
HANDLED = Counter(
    "grpc_server_handled_total",
    "Total number of RPCs completed on the server, regardless of success or failure.",
    (*_METHOD, "grpc_code"),
    registry=REGISTRY,
)
HANDLING_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Seconds from the start of an RPC until the server has done with it.",
    _METHOD,
    buckets=SECONDS,
    registry=REGISTRY,
)
MESSAGES_RECEIVED = Counter(
    "grpc_server_msg_received_total", "Total number of messages received on the server.", _METHOD, registry=REGISTRY
)
MESSAGES_SENT = Counter(
    "grpc_server_msg_sent_total", "Total number of messages sent by the server.", _METHOD, registry=REGISTRY
)

PHASE_SECONDS = Histogram(
    "convolver_phase_seconds",
    "Seconds that a request spent in each phase, by the back end that ran it.",
    ("phase", "backend"),
    buckets=SECONDS,
    registry=REGISTRY,
)
RECEIVED_BYTES = Counter(
    "convolver_received_bytes_total", "Bytes of request messages of the convolution services.", registry=REGISTRY
)
SENT_BYTES = Counter(
    "convolver_sent_bytes_total", "Bytes of response messages of the convolution services.", registry=REGISTRY
)
MACS = Counter(
    "convolver_macs_total",
    "Multiply-accumulates of the convolutions that were computed, as their plans count them.",
    ("backend", "dtype", "operation"),
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("convolver_in_flight", "Requests that were admitted and are not yet answered.", registry=REGISTRY)
MEMORY_BYTES = Gauge(
    "convolver_memory_bytes",
    "Bytes that the plans of the requests in flight hold of the memory budget.",
    registry=REGISTRY,
)
REFUSED = Counter(
    "convolver_refused_total",
    "Requests refused before anything was computed, by reason.",
    ("reason",),
    registry=REGISTRY,
)

QUEUE_SECONDS = Histogram(
    "convolver_queue_seconds",
    "Seconds that work waited for a compute thread, once its memory was admitted.",
    buckets=SECONDS,
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "convolver_batch_size",
    "Requests that ran together.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
    registry=REGISTRY,
)
UNBATCHED = Counter(
    "convolver_unbatched_total", "Requests that ran alone, by the reason why.", ("reason",), registry=REGISTRY
)
BACKLOG_SECONDS = Gauge(
    "convolver_backlog_seconds", "Estimated seconds of the work that was accepted and is not done.", registry=REGISTRY
)
SAVED_SECONDS = Counter(
    "convolver_saved_seconds_total",
    "Estimated seconds of computing that was not done, since nobody waited for it any more, by what it did then: wait "
    "for memory or for a thread (queue), or run.",
    ("where",),
    registry=REGISTRY,
)

REPLANNED = Counter(
    "convolver_replanned_total",
    "Requests planned as FFT whose values did not allow it, so that they were planned again as direct sums.",
    registry=REGISTRY,
)

LAYERS = Gauge("convolver_layers", "Layers that are held.", registry=REGISTRY)
LAYER_BYTES = Gauge(
    "convolver_layer_bytes", "Bytes of the layers that are held, their prepared forms included.", registry=REGISTRY
)
LAYERS_EVICTED = Counter(
    "convolver_layers_evicted_total", "Layers that were let go of to make room for others.", registry=REGISTRY
)

SHARED_REGIONS = Gauge(
    "convolver_shared_regions", "Regions of memory that callers share, or have offered.", registry=REGISTRY
)
SHARED_REGION_BYTES = Gauge("convolver_shared_region_bytes", "Bytes of these regions.", registry=REGISTRY)


def expect(backends: Iterable[str]) -> None:
    """Show zeros for what these back ends will count, so that a rate sees the first request too."""
    for backend in backends:
        for phase in PHASES:
            PHASE_SECONDS.labels(phase=phase, backend=backend)
    for reason in REASONS:
        REFUSED.labels(reason=reason)
    for reason in UNBATCHED_REASONS:
        UNBATCHED.labels(reason=reason)
    for where in ("memory", "queue", "running"):
        SAVED_SECONDS.labels(where=where)


def operation(ndim: int, *, transposed: bool, gradients: bool = False) -> str:
    """The label of a convolution with `ndim` spatial dimensions, of a stack for 0 of them, or of the gradients of
    these, one of OPERATIONS.
    """
    kind = f"{'conv_transpose' if transposed else 'conv'}{ndim}d" if ndim else "stack"
    return f"{kind}{'_gradients' if gradients else ''}"
