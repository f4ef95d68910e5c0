"""Redis URLs, and replies handed out in their order."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from apigw.adapters.redis_link import RedisLink, opening_of, pack
from apigw.config.redis_url import RedisURL
from apigw.net.deadlines import Deadlines


@pytest.mark.parametrize(
    ("url", "opening"),
    [
        ("redis://127.0.0.1", ()),
        ("redis://cache:7000/0", ()),
        ("redis://cache/3", (pack("SELECT", 3),)),
        ("redis://:p%40ss@cache", (pack("AUTH", "p@ss"),)),
        ("rediss://gw:p@[::1]:6380/1", (pack("AUTH", "gw", "p"), pack("SELECT", 1))),
        ("redis+sentinel://gw:p@a,b/main/2", (pack("AUTH", "gw", "p"), pack("SELECT", 2))),
        ("redis+cluster://:p@a,b", (pack("AUTH", "p"),)),
    ],
)
def test_a_url_says_how_to_begin(url: str, opening: tuple[bytes]) -> None:
    """Password first, then the database."""
    assert opening_of(RedisURL.of(url)) == opening


class Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        """As a TCP transport has it."""


class Heard:
    """A link on a transport in memory, and all it said."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        self.replies: list[Any] = []
        self.link = RedisLink(
            self.clock,
            Deadlines(self.clock, 0.001),
            0.005,
            lambda link: self.events.append("ready"),
            lambda link, reason: self.events.append(reason),
            lambda link: self.events.append("silent"),
            lambda duration_s, checks: self.events.append((round(duration_s, 6), checks)),
        )
        self.transport = Transport()
        self.link.makeConnection(self.transport)

    def ask(self, count: int) -> None:
        self.link.ask(b"PING\r\n" * count, [self.replies.append] * count, count)


def test_replies_go_to_their_takers_in_order_however_they_are_cut() -> None:
    """Byte by byte, too; the observer hears when a write's last reply is there."""
    heard = Heard()
    heard.ask(2)
    heard.clock.advance(0.001)
    for position in range(len(stream := b":1\r\n*2\r\n:2\r\n:3\r\n")):
        heard.link.dataReceived(stream[position : position + 1])
    assert heard.replies == [1, [2, 3]]
    assert heard.events == ["ready", (0.001, 2)]
    heard.clock.advance(1)
    assert heard.events[-1] == (0.001, 2)


def test_silence_is_told_once_the_oldest_write_is_overdue() -> None:
    """Counted from its own sending, not from a younger one's, by one timer for all."""
    heard = Heard()
    heard.ask(1)
    heard.clock.advance(0.003)
    heard.ask(1)
    heard.link.dataReceived(b":1\r\n")
    heard.clock.advance(0.003)
    assert "silent" not in heard.events
    assert len(heard.clock.getDelayedCalls()) == 1
    heard.clock.advance(0.0035)
    assert heard.events[-1] == "silent"
    assert not heard.clock.getDelayedCalls()


def test_a_dropped_link_says_nothing_more() -> None:
    """Neither replies nor the end."""
    heard = Heard()
    heard.ask(1)
    heard.link.drop()
    heard.link.dataReceived(b":1\r\n")
    assert heard.replies == [] and heard.events == ["ready"]
    assert heard.transport.disconnected
    heard.clock.advance(1.0)
    assert heard.events == ["ready"]


@pytest.mark.parametrize("garbage", [b"SSH-2.0\r\n", b":1\r\n:2\r\n", b"$70000\r\n" + b"x" * 69_000])
def test_garbage_ends_the_link(garbage: bytes) -> None:
    """Not the protocol, more replies than questions, a reply without end."""
    heard = Heard()
    heard.ask(1)
    heard.link.dataReceived(garbage)
    assert heard.transport.disconnected
    assert isinstance(heard.events[-1], str) and heard.events[-1] != "ready"
