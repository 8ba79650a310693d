"""Whom the functions of convolver.client.scipy call when they are given no client, each time in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import RunningServer

CALLS = """
import json, sys, threading
from convolver.client.scipy import ndimage, signal
from convolver.client._default_client import _CLIENTS, default_client

found = []
threads = [threading.Thread(target=lambda: found.append(signal.convolve([1, 2], [1, 1]).tolist())) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
found.append(ndimage.correlate([1, 2, 4], [1, 1]).tolist())
address, count = default_client().address, len(_CLIENTS)
print(json.dumps({"found": found, "address": address, "clients": count, "modules": list(sys.modules)}))
"""


def run(script: str, address: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CONVOLVER_ADDRESS"}
    if address:
        environment["CONVOLVER_ADDRESS"] = address
    return subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)


def test_one_embedded_server_serves_the_whole_process_and_ends_with_it() -> None:
    ended = run(CALLS)
    said = json.loads(ended.stdout)
    assert said["found"] == [[1, 3, 2]] * 4 + [[2, 3, 6]]
    assert said["clients"] == 1
    assert said["address"].startswith("unix:")
    assert not os.path.lexists(said["address"].removeprefix("unix:"))
    assert ended.stderr == ""


def test_the_address_of_the_environment_is_called_and_no_server_is_started(server: RunningServer) -> None:
    said = json.loads(run(CALLS, server.address).stdout)
    assert said["address"] == server.address
    assert "convolver.client._embedded" not in said["modules"]


def test_importing_loads_neither_scipy_nor_torch_and_starts_nothing() -> None:
    script = "import json, sys, convolver.client.scipy; print(json.dumps(list(sys.modules)))"
    loaded = set(json.loads(run(script).stdout))
    assert loaded & {"scipy", "torch", "convolver.server", "convolver.client._embedded"} == set()
