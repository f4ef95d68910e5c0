"""Threads for what blocks: a few, of one purpose, whose work never waits longer than its caller says.

Not Twisted's pool: that one is shared by everything (name lookups, reloads), has no priorities, and at the end of
the process waits for its threads without an end. in_thread() is for what may share it.
"""

import errno
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

T = TypeVar("T")
_STOP_S = 3.0  # what a thread has to end its last piece of work; then it is left to the end of the process


class _Job:
    """One call. Taken back before a thread has it, it is an empty shell that waits for its turn to be dropped."""

    __slots__ = ("call", "answer")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.call: tuple[Callable[..., Any], tuple[Any, ...]] | None = (function, arguments)
        self.answer: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        """What it would have worked on must not wait, too: threads may hang for long."""
        self.call = None


class Threads(Service):
    """`size` threads. niceness: how much they stand back for the loop, 0 to 19.

    The number of calls that wait is the caller's to bound. Before start and after stop a call fails at once.
    """

    def __init__(self, reactor: Any, purpose: str, size: int, niceness: int = 0) -> None:
        self.size = size
        self._reactor = reactor
        self._purpose = purpose
        self._niceness = niceness
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._alive = 0
        self._stopped: Deferred[None] | None = None

    def startService(self) -> None:
        """Make the threads."""
        if self.running:
            return
        Service.startService(self)
        self._jobs = SimpleQueue()
        for number in range(self.size):
            self._alive += 1
            name = f"{self._purpose}-{number}"
            threading.Thread(target=self._work, args=(self._jobs,), name=name, daemon=True).start()

    def run(self, function: Callable[..., T], *arguments: Any) -> "Deferred[T]":
        """What the function returns or raises. Cancelled: it is not begun, or what it returns is dropped."""
        job = _Job(function, arguments)
        if self.running:
            self._jobs.put(job)
        else:
            job.answer.errback(Failure(CancelledError()))
        return job.answer

    def stopService(self) -> "Deferred[None] | None":
        """What was not begun is not done. Fires when the threads have ended, after _STOP_S at the latest."""
        if not self.running:
            return None
        Service.stopService(self)
        jobs: list[_Job] = []
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                jobs.append(job)
        for _ in range(self.size):
            self._jobs.put(None)
        for job in jobs:
            if not job.answer.called:
                job.answer.cancel()
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        stopped.addTimeout(_STOP_S, self._reactor)
        return stopped.addErrback(lambda _: None)  # a thread hangs: a daemon, so the process ends without it

    def _work(self, jobs: "SimpleQueue[_Job | None]") -> None:
        """One thread's life."""
        if self._niceness:
            _stand_back(self._niceness)
        while (job := jobs.get()) is not None:
            call = job.call  # once: it may be taken back at any moment
            if call is None:
                continue
            try:
                result = call[0](*call[1])
            except BaseException:  # whatever it is belongs to the caller; a thread that dies would hang its queue
                result = Failure()
            self._reactor.callFromThread(_answer, job, result)
            del job, call, result  # what it held must not live until the next job comes
        self._reactor.callFromThread(self._ended)

    def _ended(self) -> None:
        self._alive -= 1
        stopped = self._stopped
        if self._alive <= 0 and stopped is not None and not stopped.called:
            stopped.callback(None)


def in_thread(reactor: Any, function: Callable[..., T], *arguments: Any, **named: Any) -> "Deferred[T]":
    """What the function returns or raises in a thread of the reactor's; never from inside this call.

    Fails with OSError, EAGAIN, where no thread can be started: a limit of processes, no memory. Twisted raises then,
    and whoever has noted by that time that he waits for an answer would wait for ever.
    """
    try:
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments, **named)
    except RuntimeError as error:
        failed: Deferred[T] = Deferred()
        reactor.callLater(0, failed.errback, Failure(OSError(errno.EAGAIN, str(error))))
        return failed


def _answer(job: _Job, result: Any) -> None:
    if not job.answer.called:
        job.answer.callback(result)  # a Failure makes it fail


def _stand_back(niceness: int) -> None:
    """Linux has a niceness for each thread; elsewhere it is the process's, which must stay."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except OSError:
        pass  # as quick as the others, no more than that
