"""What the log is silent about, and that it is silent about nothing else."""

from __future__ import annotations

import itertools
import logging
import time
from typing import TYPE_CHECKING

import grpc.aio
import numpy as np
import pytest
from tests.contract import SERVICE, convolution, request
from tests.wait import until

from convolver.server import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

SECONDS = 7.0
AT_ONCE = 20
IMAGE, KERNELS = np.ones((1, 1, 160, 160), np.float32), np.ones((32, 1, 1, 1), np.float32)
BIG = request(convolution(IMAGE.shape, KERNELS.shape), KERNELS, IMAGE)
"""Its answer has 3.3 MB, so that sending it takes a while, in which its caller can leave."""

UNSENT = 'Failed "execute_batch": (<grpc._cython.cygrpc.SendInitialMetadataOperation object at 0x7f>,)'
RAISED = "ExecuteBatchError raised in core by servicer method [/convolver.v1.ConvolutionService/Convolve]"


def leave_during_answers(channel: grpc.Channel, after: int) -> None:
    """Calls at once, all left when so many have their answers; then one that is not left, so that the next begin with
    an idle server.
    """
    behaviour: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Convolve")
    calls = [behaviour.future(BIG, timeout=60) for _ in range(AT_ONCE)]
    until(lambda: sum(call.done() for call in calls) >= after, "the first answers")
    for call in calls:
        call.cancel()
    behaviour(BIG, timeout=60)


@pytest.mark.parametrize("workers", [1, 2])
def test_callers_who_leave_while_they_are_answered_are_no_errors(serve: Serve, workers: int) -> None:
    running = serve("--backend=reference", f"--workers={workers}")
    end, after = time.monotonic() + SECONDS, itertools.cycle((1, 2, 3, 5))
    with grpc.insecure_channel(running.address) as channel:
        while time.monotonic() < end:
            leave_during_answers(channel, next(after))
    assert running.stop() == 0
    assert not [line for line in running.lines if "Traceback" in line or "ExecuteBatchError" in line]


@pytest.fixture
def grpc_logger() -> Iterator[logging.Logger]:
    """gRPC's, as the server sets it up."""
    logger = logging.getLogger(logs.GRPC)
    logger.addFilter(logs.lowered)
    yield logger
    logger.removeFilter(logs.lowered)


def log(logger: logging.Logger, message: str, error: Exception) -> None:
    """As gRPC does: the error is the one being handled."""
    try:
        raise error
    except type(error):
        logger.exception(message)


def test_an_unsent_answer_is_told_to_those_who_debug(
    grpc_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        log(grpc_logger, RAISED, grpc.aio.InternalError(UNSENT))
    assert not caplog.records
    with caplog.at_level(logging.DEBUG):
        log(grpc_logger, RAISED, grpc.aio.InternalError(UNSENT))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [("DEBUG", RAISED)]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (RAISED, grpc.aio.InternalError("Failed grpc_call_start_batch: 8")),
        ("Failed sending error status from server", grpc.aio.InternalError(UNSENT)),
        ("Unexpected [ValueError] raised by servicer method [/a/b]", ValueError("a mistake")),
    ],
)
def test_all_other_errors_of_grpc_are_logged(
    grpc_logger: logging.Logger, caplog: pytest.LogCaptureFixture, message: str, error: Exception
) -> None:
    log(grpc_logger, message, error)
    grpc_logger.error("an error without an exception")
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert [record.getMessage() for record in caplog.records] == [message, "an error without an exception"]
