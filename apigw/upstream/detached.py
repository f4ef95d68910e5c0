"""Answers that nobody waits for any more: since when, the oldest first. Their connections stay busy.

    detached --its answer is whole--> idle again
    detached --DETACHED_YIELDS_S, and a request wants its place in a full pool--> closed
    detached --DETACHED_TIMEOUT_S--> closed
After a timeout a backend is not told to stop (contract section 3); but one that hung must not keep a full pool from
those who ask when it is back.
"""

from typing import Final

from apigw.upstream.connection import UpstreamConnection

DETACHED_TIMEOUT_S: Final = 30.0
DETACHED_YIELDS_S: Final = 1.0


class Detached(dict[UpstreamConnection, float]):
    """Connection -> the clock's seconds at which its client was gone. Closing one takes it out, by Pool.lost()."""

    def give_way(self, now_s: float) -> bool:
        """Close the oldest, if it has had its time."""
        for connection, since_s in self.items():
            if now_s - since_s < DETACHED_YIELDS_S:
                return False
            connection.kill()
            return True
        return False

    def expire(self, now_s: float) -> None:
        """Close those that were never answered."""
        for connection, since_s in list(self.items()):
            if now_s - since_s <= DETACHED_TIMEOUT_S:
                break
            connection.kill()
