"""How fast a client sends and takes: when its bytes are not wanted, and when it takes none."""

from typing import Any, Callable

from apigw.constants import MIN_PROGRESS_BYTES
from apigw.net.deadlines import Deadlines

# Reasons not to read from the client. Each has its own end, so that the end of one does not lift another.
PIPELINE = 1  # enough of the requests that follow is here already
NO_TAKER = 2  # the body's first part is here, a backend's connection is not
BACKEND = 4  # the backend does not take the body as fast as it comes
CHUNKS = 8  # what was read last is not taken apart yet
ANSWERS = 16  # the client does not take its answers as fast as it asks for them
TURN = 32  # other connections' turn


class Pace:
    """Reads while no reason stands against it. `paused`: nothing is read now."""

    __slots__ = ("reasons", "paused", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.reasons = 0
        self.paused = False

    def hold(self, reason: int) -> None:
        """Stop reading at once."""
        self.reasons |= reason
        if not self.paused:
            self.paused = True
            self._transport.pauseProducing()

    def settle(self) -> None:
        """Read on if nothing speaks against it; call it last."""
        if self.paused and not self.reasons:
            self.paused = False
            self._transport.resumeProducing()


class AnswersTaken:
    """A producer that produces nothing: calls `then()` once the client has taken most of what was written."""

    __slots__ = ("_transport", "_then")

    def __init__(self, transport: Any, then: Callable[[], None]) -> None:
        self._transport = transport
        self._then = then
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """More than the high-water mark waits already."""

    def resumeProducing(self) -> None:
        self._transport.unregisterProducer()
        self._then()

    def stopProducing(self) -> None:
        """The transport ends, and tells the channel."""


class WriteWatch:
    """Sees to it that a client takes MIN_PROGRESS_BYTES of its waiting answer in each `patience_s`, or `give_up()`."""

    __slots__ = ("_transport", "_deadlines", "_patience_s", "_give_up", "_bucket", "_mark")

    def __init__(self, transport: Any, deadlines: Deadlines, patience_s: float, give_up: Callable[[], None]) -> None:
        self._transport = transport
        self._deadlines = deadlines
        self._patience_s = patience_s
        self._give_up = give_up
        self._bucket: dict[Callable[[], None], None] | None = None
        self._mark = 0

    def written(self) -> None:
        """Some bytes wait to be sent."""
        if self._bucket is None:
            self._mark = self._transport.sent_bytes
            self._bucket = self._deadlines.add(self._patience_s, self._over)

    def _over(self) -> None:
        self._bucket = None
        if not self._transport.buffered_bytes():
            return
        if self._transport.sent_bytes - self._mark < MIN_PROGRESS_BYTES:
            self._give_up()
        else:
            self.written()

    def stop(self) -> None:
        if self._bucket is not None:
            self._bucket.pop(self._over, None)
            self._bucket = None
