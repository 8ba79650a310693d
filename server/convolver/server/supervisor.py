"""The parent of workers: keeps so many whole servers running on the same addresses, and serves HTTP for them all.

It never loads gRPC, NumPy or torch.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from convolver.server.address import host_and_port
from convolver.server.http import HttpServer
from convolver.server.listening import announce, naming, reserve
from convolver.server.merged_metrics import Family, MergedMetrics
from convolver.server.stop_requests import watch_signals, watch_stdin
from convolver.server.worker_process import WorkerProcess

if TYPE_CHECKING:
    import socket

    from convolver.server.settings import Settings

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 1.0
"""For a worker to tell its metrics; without them a scrape goes on."""

MOST_DEATHS = 5
"""So many workers may end in a row in one place before the server has ever listened; then it gives up."""

LONG_LIFE = 10.0
"""Seconds after which a worker that ended is replaced at once."""

LONGEST_PAUSE = 10.0
"""Seconds between workers that end soon after their starts; it doubles from a fifth of a second."""

SPARE_SECONDS = 5.0
"""For workers to end, beyond their drain delay and their grace."""


def serve(settings: Settings) -> None:
    """Serves with `settings.workers` workers until the process is asked to stop and they have drained. Ends the process
    with exit code 1 where not all of them have.

    Raises OSError where an address cannot be had, or the workers cannot start.
    """
    if not asyncio.run(Supervisor(settings).run()):
        raise SystemExit(1)


class Ending(NamedTuple):
    """How a worker ended; `refusal` is what prevented its start, where it said so."""

    how: str
    refusal: str = ""
    drained: bool = False


class Supervisor:
    """The workers of one server, each in its place."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[int, WorkerProcess] = {}
        self._stopping = asyncio.Event()
        self._listening = False
        self._failure = ""
        self._metrics = MergedMetrics(self._ask_from_a_thread)
        host, port = host_and_port(settings.http_listen) if settings.http_listen else ("", 0)
        registry = self._metrics.registry
        self._http = HttpServer(host, port, self._ready, registry) if settings.http_listen else None

    async def run(self) -> bool:
        """Serves until it is asked to stop; whether all workers then drained. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        watch_signals(self._stopping.set, self._end_at_once)
        if self._settings.exit_on_eof:
            watch_stdin(self._stopping.set)
        holders = self._reserve()
        if self._http:
            with naming(f"http://{self._settings.http_listen}"):
                self._http.start()
        places = [asyncio.create_task(self._keep(place)) for place in range(self._settings.workers)]
        for place in places:
            place.add_done_callback(self._ended)
        await self._stopping.wait()
        try:
            drained = await self._drained(places)
        finally:
            if self._http:
                self._http.stop()
            for holder in holders:
                holder.close()
        if self._failure:
            raise OSError(self._failure)
        return drained

    def _reserve(self) -> list[socket.socket]:
        """The sockets that keep the addresses; the settings get the ports that were chosen."""
        self._addresses, holders = [], []
        for given in self._settings.listen:
            with naming(given):
                address, holder = reserve(given)
            self._addresses.append(address)
            holders.append(holder)
        self._workers_settings = self._settings.model_copy(update={"listen": tuple(self._addresses)})
        return holders

    async def _keep(self, place: int) -> bool:
        """Has a worker in this place until the server stops; whether the last one drained."""
        deaths = 0
        while True:
            born = time.monotonic()
            ending = await self._life(place)
            if self._stopping.is_set():
                return ending.drained
            deaths = 1 if time.monotonic() - born > LONG_LIFE else deaths + 1
            if not self._listening and (ending.refusal or deaths == MOST_DEATHS):
                self._failure = ending.refusal or f"the workers do not start; the last {ending.how}"
                self._stopping.set()
                return False
            logger.warning("worker %d %s; another takes its place", place, ending.how)
            self._metrics.restarts.inc()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _pause(deaths))
                return True

    def _ended(self, place: asyncio.Task[bool]) -> None:
        """Before the server stops none does but by an error of ours, which ends the server: `_drained` raises it."""
        if not place.cancelled() and (error := place.exception()):
            logger.error("a worker is not watched any more, and the server ends", exc_info=error)
        self._stopping.set()

    async def _life(self, place: int) -> Ending:
        """One worker from its start to its end."""
        try:
            worker = await WorkerProcess.started(self._workers_settings, self._count)
        except OSError as error:
            return Ending(f"could not be started: {error}")
        self._workers[place] = worker
        if self._stopping.is_set():
            worker.stop()
        try:
            code = await worker.ended()
        finally:
            worker.kill()  # it may still run, after an error of ours
            del self._workers[place]
            self._count()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return Ending(how, worker.error, drained=code == 0)

    def _count(self) -> None:
        """Counts those that serve; says where the server listens once they all do for the first time."""
        serving = sum(worker.ready for worker in self._workers.values())
        self._metrics.serving.set(serving)
        if serving == self._settings.workers and not self._listening:
            self._listening = True
            announce(self._settings, self._addresses, self._http.address if self._http else "")

    async def _drained(self, places: list[asyncio.Task[bool]]) -> bool:
        for worker in self._workers.values():
            if self._failure:
                worker.kill()
            else:
                worker.stop()
        await asyncio.wait(places, timeout=self._settings.drain_delay + self._settings.grace + SPARE_SECONDS)
        for worker in self._workers.values():
            worker.kill()
        return all(await asyncio.gather(*places))

    def _end_at_once(self, code: int) -> NoReturn:
        for worker in self._workers.values():
            worker.kill()
        os._exit(code)

    def _ready(self) -> bool:
        """Whether any worker can be called and will be for a while. HTTP's threads ask."""
        return not self._stopping.is_set() and any(worker.ready for worker in [*self._workers.values()])

    def _ask_from_a_thread(self) -> tuple[dict[int, list[Family]], int]:
        return asyncio.run_coroutine_threadsafe(self._ask(), self._loop).result()

    async def _ask(self) -> tuple[dict[int, list[Family]], int]:
        """What the workers that serve show, by place, and how many did not answer in time."""
        asked = {place: worker for place, worker in self._workers.items() if worker.ready}
        answers = await asyncio.gather(*(worker.metrics(ANSWER_SECONDS) for worker in asked.values()))
        told = {place: answer for place, answer in zip(asked, answers, strict=True) if answer is not None}
        return told, len(asked) - len(told)


def _pause(deaths: int) -> float:
    """Seconds before a worker follows one that is the so-many-eth in a row to end soon after its start."""
    return min(0.1 * 2.0 ** min(deaths, 10), LONGEST_PAUSE)
