"""The server of a process's own, for AsyncClient: it starts beside the loop. Each test is a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.client.test_embedded import told

if TYPE_CHECKING:
    from pathlib import Path

BEGINNING = """
import asyncio
from convolver.client import AsyncClient
async def total(client):
    output = await client.conv2d(np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32))
    return float(output.sum())

"""


def test_the_loop_goes_on_while_the_server_starts(tmp_path: Path) -> None:
    script = """
async def main():
    async with AsyncClient() as client:
        start, turns = asyncio.create_task(client.address), 0
        while not start.done():
            await asyncio.sleep(0.001)
            turns += 1
        say(goes_on=turns > 5, total=await total(client))
asyncio.run(main())
"""
    assert told(BEGINNING + script, tmp_path) == [{"goes_on": True, "total": 16.0}]


def test_clients_and_calls_that_begin_at_once_share_one_server_until_the_last_is_closed(tmp_path: Path) -> None:
    script = """
async def main():
    first, second = AsyncClient(), AsyncClient()
    totals = await asyncio.gather(*(total(client) for client in (first, second) * 20))
    address = await second.address
    say(servers=len(servers()), totals=sorted(set(totals)), same=await first.address == address)
    await first.close()
    await first.close()
    say(total=await total(second), same=await second.address == address)
    await second.close()
    say(servers=len(servers()))
asyncio.run(main())
"""
    assert told(BEGINNING + script, tmp_path) == [
        {"servers": 1, "totals": [16.0], "same": True},
        {"total": 16.0, "same": True},
        {"servers": 0},
    ]


def test_a_start_outlives_the_call_that_began_it_and_ends_with_the_client(tmp_path: Path) -> None:
    script = """
async def main():
    async with AsyncClient() as client:
        first = asyncio.create_task(total(client))
        await asyncio.sleep(0)
        second = asyncio.create_task(total(client))
        await asyncio.sleep(0)
        first.cancel()
        say(cancelled=isinstance((await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError))
        say(total=await second)
    client = AsyncClient()
    waiting = asyncio.create_task(total(client))
    await asyncio.sleep(0)
    await client.close()
    say(servers=len(servers()), error=str((await asyncio.gather(waiting, return_exceptions=True))[0]))
asyncio.run(main())
"""
    assert told(BEGINNING + script, tmp_path) == [
        {"cancelled": True},
        {"total": 16.0},
        {"servers": 0, "error": "the embedded server: the client was closed"},
    ]


def test_a_server_that_died_is_replaced(tmp_path: Path) -> None:
    script = """
import signal
async def main():
    async with AsyncClient() as client:
        say(total=await total(client))
        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)
        say(totals=await asyncio.gather(*(total(client) for _ in range(5))), servers=len(servers()))
    say(servers=len(servers()))
asyncio.run(main())
"""
    assert told(BEGINNING + script, tmp_path) == [
        {"total": 16.0},
        {"totals": [16.0] * 5, "servers": 1},
        {"servers": 0},
    ]


def test_a_server_that_cannot_start_says_why_and_is_tried_again(tmp_path: Path) -> None:
    script = """
async def main():
    async with AsyncClient() as client:
        for error in await asyncio.gather(total(client), client.info(), return_exceptions=True):
            say(kind=type(error).__name__, text=str(error))
        del os.environ["CONVOLVER_THREADS"]
        say(total=await total(client))
asyncio.run(main())
"""
    *failed, succeeded = told(BEGINNING + script, tmp_path, CONVOLVER_THREADS="many")
    assert [(said["kind"], "CONVOLVER_THREADS: 'many'" in said["text"]) for said in failed] == [
        ("ServiceUnavailable", True)
    ] * 2
    assert succeeded == {"total": 16.0}
