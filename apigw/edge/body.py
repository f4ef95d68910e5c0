"""The body of one request on its way from the client: counted, held while small, handed on while large."""

from typing import Callable, Protocol

from apigw.core.http1 import ChunkDecoder

_MAX_PIECES = 64  # held apart: a body that comes in segments of two bytes would take 22 times its size in objects


class BodyConsumer(Protocol):
    """Takes a streamed body. body_failed() means the body will never be whole: it must not look complete."""

    def body_data(self, data: bytes) -> None: ...

    def body_end(self) -> None: ...

    def body_failed(self) -> None: ...


class TooLarge(Exception):
    """More bytes than the route allows were sent or announced."""


class RequestBody:
    """Receives what the channel reads. Pieces are held until take(), or go to the consumer once there is one.

    complete: the whole body has come. received: payload bytes so far. held: bytes not handed on yet.
    """

    __slots__ = ("complete", "received", "held", "_pieces", "_remaining", "_decoder", "_consumer", "_wanted", "_hold")

    def __init__(self, content_length: int | None, chunked: bool) -> None:
        self._decoder = ChunkDecoder() if chunked else None
        self._remaining = content_length or 0
        self.complete = not chunked and not content_length
        self.received = 0
        self.held = 0
        self._pieces: list[bytes] = []
        self._consumer: BodyConsumer | None = None
        self._wanted: Callable[[], None] | None = None
        self._hold = 0

    def receive(self, data: bytes, limit: int) -> bytes:
        """Take bytes from the wire; returns what follows the body. Raises MalformedMessage, TooLarge."""
        if self._decoder is None:
            piece = data if len(data) <= self._remaining else data[: self._remaining]
            self._remaining -= len(piece)
            self.complete = self._remaining == 0
            self._accept(piece)
            return data[len(piece) :]
        pieces = self._decoder.feed(data)
        if self._decoder.declared_bytes > limit:
            raise TooLarge()
        self.complete = self._decoder.done
        self._accept(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return self._decoder.rest

    @property
    def more(self) -> bool:
        """The decoder stopped at its budget: call receive(b"") in a later turn."""
        return self._decoder is not None and self._decoder.more

    def _accept(self, piece: bytes) -> None:
        self.received += len(piece)
        if self._consumer is not None:
            if piece:
                self._consumer.body_data(piece)
            if self.complete:
                consumer, self._consumer = self._consumer, None
                consumer.body_end()
            return
        if piece:
            self._pieces.append(piece)
            if len(self._pieces) > _MAX_PIECES:
                self._pieces = [b"".join(self._pieces)]
            self.held += len(piece)
        if self._wanted is not None and (self.complete or self.held > self._hold):
            wanted, self._wanted = self._wanted, None
            wanted()

    def when_ready(self, hold_bytes: int, ready: Callable[[], None]) -> None:
        """Call ready() once the body is complete or larger than `hold_bytes`; at once if that is so already."""
        if self.complete or self.held > hold_bytes or self._remaining + self.held > hold_bytes:
            ready()
        else:
            self._wanted, self._hold = ready, hold_bytes

    def take(self) -> bytes:
        """All that is held; afterwards nothing is."""
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self.held = 0
        return data

    def stream_to(self, consumer: BodyConsumer) -> None:
        """Hand what still comes to the consumer; call take() first. The body must not be complete."""
        self._consumer = consumer

    def stop(self) -> None:
        """Nobody wants the rest; what still comes is counted and dropped by the channel."""
        self._wanted = None
        self._consumer = None
        self._pieces.clear()
        self.held = 0

    def fail(self) -> None:
        """The body ends here, incomplete."""
        consumer = self._consumer
        self.stop()
        if consumer is not None:
            consumer.body_failed()


EMPTY_BODY = RequestBody(None, False)  # of every request without one: complete from the start, so nothing changes it
