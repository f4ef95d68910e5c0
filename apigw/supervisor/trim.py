"""After a crowd has left, the memory it took goes back to the system (contract 13.10).

The allocator keeps what connections freed: 2,000 idle TLS connections left 38 MiB behind, of which
malloc_trim gives 32 back.
"""

from typing import Any, Callable

from apigw.net.poller import Poller

_EVERY_S = 0.5  # often enough to see a crowd
_REST_S = 30.0  # between two: the allocator is locked meanwhile, and crowds can be sent on purpose
_CROWD = 256  # connections that must be gone: about 5 MiB; fewer are not worth the milliseconds


class Trimming(Poller):
    """trim() runs in a thread when `connections()` is _CROWD below the most that were seen since the last time.

    Not while it still falls, or the rest of the crowd would wait for the next time; at most every _REST_S.
    """

    def __init__(self, reactor: Any, connections: Callable[[], int], trim: Callable[[], None]) -> None:
        self._reactor = reactor
        self._connections = connections
        self._trim = trim
        self._most = 0
        self._last = 0
        self._trimmed_s = float("-inf")
        super().__init__(reactor, _EVERY_S, name="memory of connections gone")

    def poll(self) -> None:
        now, now_s = self._connections(), self.clock.seconds()
        falling, self._last = now < self._last, now
        if self._most - now >= _CROWD and not falling and now_s - self._trimmed_s >= _REST_S:
            self._most, self._trimmed_s = now, now_s
            self._reactor.callInThread(self._trim)
        self._most = max(self._most, now)
