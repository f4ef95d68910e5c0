"""Connections that wait for their clients: who sends a large body, or takes a large answer, slowest gives way.

    followed --each second that its connection waits for it--> a second more behind
    followed --each PACE_BYTES that it sends or takes-->       a second less, at most PATIENCE_S ahead
    more than PATIENCE_S behind, its connection waits for it, and a request waits for a place --> ended
A client that goes at its pace is never behind, nor is one whose backend is slow: that has the route's timeout. A full
pool that nobody waits for ends nobody. What is not streamed is not followed: it costs nothing.
"""

from typing import Final, Protocol

from attrs import define

PACE_BYTES: Final = 8192  # a second; the slowest mobile networks carry more
PATIENCE_S: Final = 3.0  # four segments lost in a row are sent again within it


class Transfer(Protocol):
    """A request with a connection, as far as it is told here how its client gets on."""

    def client_holds(self) -> bool:
        """Whether the connection waits for the client now, and not for the backend."""

    def client_bytes(self) -> int:
        """How much the client has sent and taken."""

    def give_way(self, how_slow: str) -> None:
        """End it. It is not followed any more."""


@define
class _Progress:
    """As of `seen_s`, on the reactor's clock."""

    seen_s: float
    bytes: int
    held: bool  # whether the connection waited for the client
    behind_s: float = 0.0


class SlowClients(dict[Transfer, _Progress]):
    """The streamed requests of a pool. `ended`: how many had to give way, ever."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = 0

    def follow(self, transfer: Transfer, now_s: float) -> None:
        """From now on; the bytes of before do not count."""
        if transfer not in self:
            self[transfer] = _Progress(now_s, transfer.client_bytes(), transfer.client_holds())

    def look(self, now_s: float) -> None:
        """Often: what lies between two looks is taken for what both of them saw."""
        for transfer, progress in self.items():
            held, count = transfer.client_holds(), transfer.client_bytes()
            behind_s = progress.behind_s - (count - progress.bytes) / PACE_BYTES
            if held and progress.held:
                behind_s += now_s - progress.seen_s
            progress.behind_s = max(behind_s, -PATIENCE_S)
            progress.seen_s, progress.bytes, progress.held = now_s, count, held

    def give_way(self, most: int) -> None:
        """End at most so many of those that are too far behind, the slowest first. Call look() before."""
        slow = [one for one, progress in self.items() if progress.held and progress.behind_s > PATIENCE_S]
        for transfer in sorted(slow, key=self._behind_s, reverse=True)[:most]:
            behind_s = self.pop(transfer).behind_s
            self.ended += 1
            transfer.give_way(f"{behind_s:.1f} s behind {PACE_BYTES} bytes a second while others waited for its place")

    def _behind_s(self, transfer: Transfer) -> float:
        return self[transfer].behind_s
