"""`--max-concurrent-streams`: what is above waits at its sender, and is not lost."""

from __future__ import annotations

from threading import Semaphore
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.contract import IMAGE, KERNEL, convolution, request
from tests.server.busy_calls import IN_FLIGHT, begin, busy, short
from tests.server.layer_calls import metric
from tests.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

MOST, CROWD, TOTAL = 3, 50, 2000


def started(running: RunningServer) -> float:
    """Calls of Convolve that have come."""
    labels = 'grpc_method="Convolve",grpc_service="convolver.v1.ConvolutionService",grpc_type="unary"'
    return metric(running, f"grpc_server_started_total{{{labels}}}")


def own_channel(running: RunningServer) -> grpc.Channel:
    """One whose connection nobody shares."""
    return grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)])


def test_more_calls_than_a_connection_may_carry_wait_at_their_sender(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--threads=1", f"--max-concurrent-streams={MOST}")
    asked = health_pb2.HealthCheckRequest()
    with own_channel(running) as full, own_channel(running) as other, busy(running, full) as heavy:
        calls = [begin(full, short(), None) for _ in range(2 * MOST)]
        until(lambda: metric(running, IN_FLIGHT) == MOST, "as many to come as may")
        behind: Any = HealthStub(full)  # whose stubs lack its methods
        check = behind.Check.future(asked, timeout=60)
        beside: Any = HealthStub(other)
        assert beside.Check(asked, timeout=60).status == health_pb2.HealthCheckResponse.SERVING
        assert (started(running), check.done()) == (MOST, False)
        heavy.cancel()
        assert all(call.result() for call in calls)
        assert check.result().status == health_pb2.HealthCheckResponse.SERVING
    assert started(running) == 1 + 2 * MOST


def test_none_of_a_crowd_on_one_connection_is_refused(serve: Callable[..., RunningServer]) -> None:
    """gRPC would refuse a call that its caller may send while another is over and not yet forgotten."""
    running = serve("--backend=reference", "--threads=1", f"--max-concurrent-streams={MOST}")
    room, message, calls = Semaphore(CROWD), request(convolution(), KERNEL, IMAGE), []
    with own_channel(running) as channel:
        for _ in range(TOTAL):
            assert room.acquire(timeout=60)
            calls.append(begin(channel, message, None))
            calls[-1].add_done_callback(lambda _: room.release())
        assert all(call.result() for call in calls)
    assert started(running) == TOTAL
