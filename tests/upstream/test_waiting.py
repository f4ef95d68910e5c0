"""A connection on its way tells its pool how it ended, once."""

from typing import Any

from apigw.config.model import Instance
from apigw.upstream.member import Member
from apigw.upstream.waiting import Failed, Opening


class Told:
    """A pool that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def opened(self, opening: Opening, sock: Any, peer: Any) -> None:
        self.heard.append(("opened", opening, sock, peer))

    def open_failed(self, opening: Opening, reason: str, detail: str) -> None:
        self.heard.append(("failed", opening, reason, detail))


def test_both_ends_of_a_connect_reach_the_pool() -> None:
    pool, member = Told(), Member(Instance("10.0.0.1", 80), 0.0)
    good, bad = Opening(pool, member, None), Opening(pool, member, None)
    good.connect_done("sock", "peer")
    bad.connect_failed("connection_refused", "why")
    assert pool.heard == [("opened", good, "sock", "peer"), ("failed", bad, "connection_refused", "why")]


def test_a_failure_is_a_plain_triple() -> None:
    reason, detail, instance = Failed("pool_full", "all busy", None)
    assert (reason, detail, instance) == ("pool_full", "all busy", None)
