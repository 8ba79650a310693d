"""The server that a process has of its own: one for all its clients, and gone with them. Each test is a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGINNING = """
import json, os, sys
from pathlib import Path
import numpy as np
from convolver.client import Client, ServiceUnavailable

def children(task):
    try:
        return (task / "children").read_text().split()
    except FileNotFoundError:  # the thread has just ended
        return []

def servers():
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in children(task)]

def say(**found):
    print(json.dumps(found), flush=True)

def total(client):
    return float(client.conv2d(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)).sum())

"""


def command(script: str) -> list[str]:
    return [sys.executable, "-c", BEGINNING + script]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Ours, without our settings; what is made in the folder for temporary files is seen."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CONVOLVER_")}
    return plain | {"TMPDIR": str(folder), "CONVOLVER_BACKEND": "reference"} | more


def told(script: str, folder: Path, **more: str) -> list[dict[str, Any]]:
    """What the script said, once it has ended well and left nothing behind."""
    ended = subprocess.run(
        command(script),
        env=environment(folder, **more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list(folder.glob("convolver-*"))
    return [json.loads(line) for line in ended.stdout.splitlines()]


@contextmanager
def talking(script: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process that runs the script, in a group of its own, and the first that it said."""
    process = subprocess.Popen(
        command(script),
        env=environment(folder),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def is_gone(pid: int) -> bool:
    """Whether the process has ended, be it that nobody has asked how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_clients_share_one_server_that_ends_with_the_last(tmp_path: Path) -> None:
    script = """
first, second = Client(), Client()
say(servers=servers())
say(servers=servers(), total=total(first), same=first.address == second.address)
first.close()
say(servers=servers(), total=total(second))
second.close()
say(servers=servers())
with Client() as third:
    say(servers=servers(), total=total(third))
say(servers=servers())
"""
    before, both, one, none, again, after = told(script, tmp_path)
    assert [len(said["servers"]) for said in (before, none, after)] == [0, 0, 0]
    assert one["servers"] != again["servers"]
    assert both == {"servers": [], "total": 16.0, "same": True}  # started by the first call, which comes after
    assert (len(one["servers"]), one["total"], len(again["servers"]), again["total"]) == (1, 16.0, 0, 16.0)


def test_threads_and_clients_that_begin_at_once_start_one_server(tmp_path: Path) -> None:
    script = """
from concurrent.futures import ThreadPoolExecutor
clients = [Client() for _ in range(8)]
with ThreadPoolExecutor(16) as threads:
    totals = list(threads.map(total, clients * 2))
say(servers=len(servers()), totals=totals)
for client in clients:
    client.close()
say(servers=len(servers()))
"""
    assert told(script, tmp_path) == [{"servers": 1, "totals": [16.0] * 16}, {"servers": 0}]


def test_all_back_ends_of_this_machine_are_used(tmp_path: Path) -> None:
    (said,) = told(
        "say(names=[backend.name for backend in Client().info().backends])", tmp_path, CONVOLVER_BACKEND="auto"
    )
    assert said["names"][0] == "reference"


def test_a_process_that_ends_without_closing_leaves_nothing(tmp_path: Path) -> None:
    (said,) = told("client = Client()\nsay(total=total(client), servers=servers())", tmp_path)
    assert said["total"] == 16.0
    until(lambda: is_gone(said["servers"][0]), "the server to end")


def test_a_process_that_is_killed_takes_its_server_with_it(tmp_path: Path) -> None:
    script = "client = Client()\ntotal(client)\nsay(servers=servers())\nsys.stdin.read()"
    with talking(script, tmp_path) as (process, said):
        (server,) = said["servers"]
        assert not is_gone(server)
        process.kill()
        until(lambda: is_gone(server), "the server to end")


def test_an_interrupt_at_the_terminal_is_not_the_servers(tmp_path: Path) -> None:
    script = """
with Client() as client:
    total(client)
    try:
        say(ready=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        say(total=total(client))
"""
    with talking(script, tmp_path) as (process, _):
        os.killpg(process.pid, signal.SIGINT)
        answer, _errors = process.communicate(timeout=60)
    assert json.loads(answer) == {"total": 16.0}


def test_a_forked_process_uses_its_parents_server_and_does_not_end_it(tmp_path: Path) -> None:
    script = """
from convolver.client import _embedded
_embedded.STOP_SECONDS = 3600.0  # it is not killed
client = Client()
total(client)
(has_called, calls), (has_closed, closes) = os.pipe(), os.pipe()
child = os.fork()
if not child:
    os.close(closes)
    say(child=total(client))
    client.close()
    os.write(calls, b"!")
    os.read(has_closed, 1)  # it lives on, with what it inherited, until the parent has closed its client
    os._exit(0)
os.read(has_called, 1)
say(parent=total(client))
client.close()
say(servers=len(servers()) - 1)
os.close(closes)
os.waitpid(child, 0)
"""
    assert told(script, tmp_path) == [{"child": 16.0}, {"parent": 16.0}, {"servers": 0}]


def test_a_server_that_died_is_replaced(tmp_path: Path) -> None:
    script = """
import signal
first, second = Client(), Client()
total(first), total(second)
(server,) = servers()
os.kill(server, signal.SIGKILL)
os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
third = Client()
say(totals=[total(client) for client in (first, second, third)])
say(servers=len(servers()), folders=len(list(Path(os.environ["TMPDIR"]).glob("convolver-*"))))
for client in (first, second, third):
    client.close()
say(servers=len(servers()))
"""
    totals, *rest = told(script, tmp_path)
    assert (totals, rest) == ({"totals": [16.0] * 3}, [{"servers": 1, "folders": 1}, {"servers": 0}])


LISTENING = """
from convolver.client import _embedded
_embedded.STOP_SECONDS = 3600.0  # it is not killed

def listening(pid):
    ours = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in ours]
with Client() as client:
    say(total=total(client), ports=listening(servers()[0]), address=client.address)
"""


def test_no_port_is_open_and_the_servers_variables_do_not_change_that(tmp_path: Path) -> None:
    variables = {
        "CONVOLVER_LISTEN": "127.0.0.1:0",
        "CONVOLVER_HTTP_LISTEN": "127.0.0.1:0",
        "CONVOLVER_DRAIN_DELAY": "3600",
        "CONVOLVER_EXIT_ON_EOF": "false",
        "CONVOLVER_LOG_LEVEL": "debug",
    }
    (said,) = told(LISTENING, tmp_path, **variables)
    assert (said["total"], said["ports"]) == (16.0, [])
    assert said["address"].startswith(f"unix:{tmp_path}/convolver-")


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    script = """
try:
    Client().info()
except ServiceUnavailable as error:
    say(text=str(error))
"""
    (said,) = told(script, tmp_path, CONVOLVER_THREADS="many")
    assert said["text"].startswith("the embedded server did not start and ended with status 2: ")
    assert "CONVOLVER_THREADS: 'many'" in said["text"]


@pytest.mark.parametrize("module", ["pydantic_settings", "prometheus_client", "grpc_reflection"])
def test_without_the_servers_extra_the_command_that_installs_it_is_named(tmp_path: Path, module: str) -> None:
    script = f"""
sys.modules[{module!r}] = None
try:
    Client().info()
except ServiceUnavailable as error:
    say(text=str(error))
"""
    (said,) = told(script, tmp_path)
    assert "pip install 'convolver[server]'" in said["text"]


def test_a_file_of_the_current_folder_is_not_taken_for_a_module(tmp_path: Path) -> None:
    (tmp_path / "pydantic_settings.py").write_text("raise RuntimeError('not me')")
    assert told("with Client() as client:\n    say(total=total(client))", tmp_path) == [{"total": 16.0}]
