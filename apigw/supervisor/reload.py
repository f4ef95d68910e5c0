"""Reload: read and build the whole new configuration beside the old one, then swap; or leave everything as it was.

Reading and compiling happen in a thread: 5,000 routes take seconds, and requests go on. What is applied is
applied in one turn of the loop.
"""

from typing import Any, Callable, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.errors import ConfigurationError
from apigw.net.poller import Poller
from apigw.net.threads import in_thread

Prepared = TypeVar("Prepared")

log = Logger()


class Reloader(Generic[Prepared]):
    """prepare() runs in a thread and may raise; apply(prepared) runs in the loop,
    may wait (a Deferred), and refuses by raising.

    One reload at a time: calls during one start exactly one more. last_ok: None before the first.
    """

    def __init__(self, reactor: Any, prepare: Callable[[], Prepared], apply: Callable[[Prepared], Any]) -> None:
        self._reactor = reactor
        self._prepare = prepare
        self._apply = apply
        self._running = False
        self._again = False
        self.last_ok: bool | None = None
        self.last_error: str | None = None
        self.applied = 0
        self.rejected = 0

    def reload(self) -> None:
        """Begin a reload; its outcome is logged and kept in last_ok and last_error."""
        if self._running:
            self._again = True
            return
        self._running = True
        preparing: Deferred[Any] = in_thread(self._reactor, self._prepare)
        preparing.addCallback(self._apply)
        preparing.addCallbacks(self._done, self._refused)
        preparing.addBoth(self._ended)

    def _done(self, _: None) -> None:
        self.last_ok, self.last_error = True, None
        self.applied += 1

    def _refused(self, failure: Failure) -> None:
        self.last_ok, self.last_error = False, failure.getErrorMessage()
        self.rejected += 1
        if isinstance(failure.value, ConfigurationError):
            log.error("the new configuration is refused, the old one stays in force:")
            for problem in failure.value.problems:
                log.error("  {problem}", problem=str(problem))
        elif isinstance(failure.value, OSError):
            log.error("the new configuration is refused, the old one stays: {why}", why=failure.getErrorMessage())
        else:
            log.failure("the reload failed, the old configuration stays in force", failure=failure)

    def _ended(self, _: object) -> None:
        self._running = False
        if self._again:
            self._again = False
            self.reload()


class FileWatch(Poller):
    """Reloads when the configuration's files look different. fingerprint() is cheap and must not raise."""

    def __init__(self, reactor: Any, interval_s: float, fingerprint: Callable[[], object], reload: Callable[[], None]):
        self._fingerprint = fingerprint
        self._reload = reload
        self._seen = fingerprint()
        super().__init__(reactor, interval_s, name="configuration files")

    def poll(self) -> None:
        seen = self._fingerprint()
        if seen != self._seen:
            self._seen = seen
            self._reload()
