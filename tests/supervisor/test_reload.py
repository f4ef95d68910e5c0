"""Reloads come one at a time, and one that fails in any way leaves the old configuration and its reason."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from apigw.errors import ConfigurationError
from apigw.supervisor.reload import FileWatch, Reloader
from tests.servers import until
from tests.threadless import Threadless

REACTOR: Any = installed_reactor


class Bench:
    """A Reloader whose prepare() and apply() the test plays. `applied`: what apply() was given."""

    def __init__(self, reactor: Any = REACTOR) -> None:
        self.prepared = 0
        self.applied: list[int] = []
        self.prepare: Callable[[], Any] = lambda: None
        self.apply: Callable[[], Any] = lambda: None
        self.threads: list[threading.Thread] = []
        self.reloader: Reloader[int] = Reloader(reactor, self._prepare, self._apply)

    def _prepare(self) -> int:
        self.prepared += 1
        self.threads.append(threading.current_thread())
        self.prepare()
        return self.prepared

    def _apply(self, number: int) -> Any:
        assert threading.current_thread() is threading.main_thread()
        self.applied.append(number)
        return self.apply()

    async def ended(self, count: int) -> None:
        """Wait for the end of `count` reloads."""
        await until(lambda: self.reloader.applied + self.reloader.rejected == count, REACTOR)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest_twisted.ensureDeferred
async def test_a_reload_that_no_thread_could_be_started_for_is_refused_and_the_next_is_done() -> None:
    bench = Bench(Threadless(REACTOR))
    bench.reloader.reload()
    await bench.ended(1)
    assert bench.reloader.last_ok is False and "can't start new thread" in str(bench.reloader.last_error)
    bench.reloader.reload()
    await bench.ended(2)
    assert bench.reloader.last_ok and bench.applied == [1]


@pytest_twisted.ensureDeferred
async def test_it_is_prepared_in_a_thread_and_applied_in_the_loop(bench: Bench) -> None:
    assert bench.reloader.last_ok is None
    bench.reloader.reload()
    await bench.ended(1)
    assert bench.applied == [1] and bench.threads != [threading.main_thread()]
    assert (bench.reloader.last_ok, bench.reloader.last_error) == (True, None)


@pytest_twisted.ensureDeferred
async def test_calls_during_a_reload_make_one_more_after_it(bench: Bench) -> None:
    """The one that runs may have read the files already, so its outcome is not theirs."""
    gate = threading.Event()
    bench.prepare = lambda: gate.wait(5)
    for _ in range(5):
        bench.reloader.reload()
    await until(lambda: bench.prepared == 1, REACTOR)
    bench.reloader.reload()
    gate.set()
    await bench.ended(2)
    assert bench.applied == [1, 2]


@pytest_twisted.ensureDeferred
async def test_none_begins_while_one_is_being_applied(bench: Bench) -> None:
    applying: Deferred[None] = Deferred()
    bench.apply = lambda: applying
    bench.reloader.reload()
    await until(lambda: bench.applied, REACTOR)
    bench.reloader.reload()
    assert bench.reloader.last_ok is None and bench.prepared == 1
    bench.apply = lambda: None
    applying.callback(None)
    await bench.ended(2)
    assert bench.prepared == 2


@pytest.mark.parametrize(
    "error",
    [ConfigurationError(("a.yaml:3: no such backend", "a.yaml:9: twice")), OSError("port taken"), ValueError("defect")],
)
@pytest.mark.parametrize("where", ["reading", "applying", "applying, later"])
@pytest_twisted.ensureDeferred
async def test_a_failure_is_kept_and_the_next_good_one_forgets_it(bench: Bench, error: Exception, where: str) -> None:
    later: Deferred[None] = Deferred()
    if where == "reading":
        bench.prepare = raising(error)
    else:
        bench.apply = raising(error) if where == "applying" else lambda: later
    bench.reloader.reload()
    if where == "applying, later":
        await until(lambda: bench.applied, REACTOR)
        later.errback(error)
    await bench.ended(1)
    assert (bench.reloader.last_ok, bench.reloader.rejected, bench.reloader.applied) == (False, 1, 0)
    assert bench.reloader.last_error == str(error)
    assert bool(bench.applied) == (where != "reading")
    bench.prepare = bench.apply = lambda: None
    bench.reloader.reload()
    await bench.ended(2)
    assert (bench.reloader.last_ok, bench.reloader.last_error) == (True, None)


@pytest_twisted.ensureDeferred
async def test_a_call_during_one_that_fails_is_not_lost(bench: Bench) -> None:
    gate = threading.Event()

    def half_a_file() -> None:
        gate.wait(5)
        raise ConfigurationError(("half a file",))

    bench.prepare = half_a_file
    bench.reloader.reload()
    await until(lambda: bench.prepared == 1, REACTOR)
    bench.reloader.reload()
    gate.set()
    await bench.ended(2)
    assert bench.reloader.rejected == 2


@pytest_twisted.ensureDeferred
async def test_each_problem_is_a_line_of_the_log_and_a_refusal_is_no_traceback(bench: Bench) -> None:
    events: list[Any] = []
    globalLogPublisher.addObserver(events.append)
    try:
        bench.prepare = raising(ConfigurationError(("a.yaml:3: no such backend", "a.yaml:9: twice")))
        bench.reloader.reload()
        await bench.ended(1)
    finally:
        globalLogPublisher.removeObserver(events.append)
    mine = [event for event in events if event["log_namespace"] == "apigw.supervisor.reload"]
    assert [event.get("problem") for event in mine] == [None, "a.yaml:3: no such backend", "a.yaml:9: twice"]
    assert not any("log_failure" in event for event in mine)


def test_files_that_look_different_are_reloaded_once() -> None:
    clock, look, reloads = Clock(), ["as at the start"], []
    FileWatch(clock, 10.0, lambda: look[0], lambda: reloads.append(clock.seconds())).startService()
    clock.pump([10.0] * 2)
    assert reloads == []
    look[0] = "changed"
    clock.pump([10.0] * 3)
    assert reloads == [30.0]
    look[0] = "as at the start"
    clock.pump([10.0] * 2)
    assert reloads == [30.0, 60.0]
