"""Workers of the tests' own process: real sockets, a configuration that the test writes, and no way to stop the loop.

with workers() as house:
    worker = house.start(routes=(...))
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest_twisted
from attrs import evolve
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import maybeDeferred
from zope.interface import directlyProvides, providedBy

from apigw.config.model import AdminSection, Config, Listener, Route
from apigw.testing import small_snapshot
from apigw.worker import Worker
from tests.servers import free_port, until

NOW_S = 1_800_000_000
REACTOR: Any = installed_reactor


class Process:
    """The reactor of the tests, which a worker may not stop; `stopped` counts how often it wanted to."""

    def __init__(self) -> None:
        self.stopped = 0
        directlyProvides(self, providedBy(REACTOR))

    def stop(self) -> None:
        self.stopped += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(REACTOR, name)


class House:
    """Starts workers. `now` is the configuration that the next reload reads, or what its reading raises."""

    def __init__(self) -> None:
        self.process = Process()
        self.port, self.other_port = free_port(), free_port()
        self.now: Config | Exception = self.config()
        self.workers: list[Worker] = []

    def config(self, version: str = "v1", **sections: Any) -> Config:
        """One listener, and a route that the gateway answers by itself."""
        open_route = Route("self", "/self", ("GET",), "self", auth_required=False, auth_type="none")
        named: dict[str, Any] = {
            "listeners": (Listener("127.0.0.1", self.port),),
            "admin": AdminSection(port=0),
            "backends": (),
            "routes": (open_route,),
            "version": version,
        }
        return evolve(small_snapshot().config, **(named | sections))

    def load(self, main_file: Path) -> Config:
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def start(self, **sections: Any) -> Worker:
        self.now = self.config(**sections)
        worker = Worker(self.process, Path("apigw.yaml"), self.now, self.load, lambda: NOW_S)
        self.workers.append(worker)
        worker.startService()  # not privileged: the signals are the tests' own
        return worker

    async def reload(self, worker: Worker, config: "Config | Exception") -> bool:
        """Whether it was applied."""
        self.now = config
        before = worker.reloader.applied + worker.reloader.rejected
        worker.reloader.reload()
        await until(lambda: worker.reloader.applied + worker.reloader.rejected > before, REACTOR)
        return worker.reloader.last_ok is True


@contextmanager
def workers() -> Iterator[House]:
    """A House whose workers are stopped in the end; the collector is then as it was."""
    threshold = gc.get_threshold()
    house = House()
    try:
        yield house
    finally:
        for worker in house.workers:
            pytest_twisted.blockon(maybeDeferred(worker.stopService))
            worker.deadlines.stop()
        gc.unfreeze()
        gc.set_threshold(*threshold)
