"""A reactor that can start no thread: the limit of processes is reached, or memory is.

from tests.threadless import Threadless
"""

from typing import Any


class Threadless:
    """Everything else is the reactor's own. `failures`: how many threads it fails to start."""

    def __init__(self, reactor: Any, failures: int = 1) -> None:
        self.failures = failures
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def getThreadPool(self) -> "Threadless":
        return self

    def callInThreadWithCallback(self, *arguments: Any, **named: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("can't start new thread")
        self._reactor.getThreadPool().callInThreadWithCallback(*arguments, **named)
