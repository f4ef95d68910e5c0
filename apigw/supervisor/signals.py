"""Signals become calls in the loop. Handlers do nothing but callFromThread: they may run anywhere."""

import signal
from typing import Any, Callable, Mapping


def install(reactor: Any, calls: Mapping[signal.Signals, Callable[[], None]]) -> None:
    """Handle these signals for the rest of the process.

    SIGHUP kills a process that does not handle it, so this happens before anything else starts; the reactor
    takes SIGTERM and SIGINT for itself when it runs (and twistd would then end with status 143), so it
    happens once more after that.
    """

    def handlers() -> None:
        for number, call in calls.items():
            signal.signal(number, _handler(reactor, call))

    handlers()
    reactor.callWhenRunning(handlers)


def _handler(reactor: Any, call: Callable[[], None]) -> Callable[[int, Any], None]:
    return lambda number, frame: reactor.callFromThread(call)
