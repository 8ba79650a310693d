"""What the process logs, and how."""

from __future__ import annotations

import logging

GRPC = "grpc._cython.cygrpc"
"""The logger of gRPC's own loop. By its name: it is set up before gRPC is loaded, and where gRPC never is."""

MESSAGE, ERROR = "ExecuteBatchError raised in core", 'Failed "execute_batch": '
"""How the record of an unsent answer begins, and its error. Of what gRPC's core would not even take, through a mistake
of gRPC's own, the error reads otherwise.
"""


def set_up(level: str, name: str = "%(name)s") -> None:
    """Logs this level and above to standard error; `name` is how a line says whose it is."""
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s")
    logging.getLogger(GRPC).addFilter(lowered)


def lowered(record: logging.LogRecord) -> bool:
    """Whether it is logged. That an answer could not be sent becomes DEBUG: its caller has left, which is no failure of
    the server's. gRPC means to be silent then, but often hears of the failure before it hears of the caller.
    """
    if not _is_unsent(record):
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def _is_unsent(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return record.getMessage().startswith(MESSAGE) and str(error).startswith(ERROR)
