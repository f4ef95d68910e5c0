"""One question to a real Redis on a connection of its own."""

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from apigw.adapters.redis_errand import errand
from apigw.adapters.redis_link import pack
from apigw.errors import StoreDown
from tests.servers import free_port, redis_server, turns

loop: Any = reactor


def ask(port: int, *commands: tuple[str, ...], timeout_s: float = 1.0) -> "Deferred[list[Any]]":
    endpoint = TCP4ClientEndpoint(loop, "127.0.0.1", port, timeout=1)
    return errand(
        lambda protocol: connectProtocol(endpoint, protocol), loop, [pack(*one) for one in commands], timeout_s
    )


@pytest_twisted.ensureDeferred
async def test_the_replies_in_their_order_and_the_connection_is_closed() -> None:
    with redis_server() as server:
        assert await ask(server.port, ("SET", "a", "1"), ("GET", "a")) == [b"OK", b"1"]
        await turns(loop, 0.05)
        assert server.command("CLIENT", "LIST").count(b"\n") == 1, "the connection of this very question"


@pytest_twisted.ensureDeferred
async def test_all_that_can_go_wrong_is_told_alike() -> None:
    """An error reply, nobody there, silence, a connection that ends."""
    with redis_server() as server:
        with pytest.raises(StoreDown, match="unknown command"):
            await ask(server.port, ("PING",), ("NONSENSE",))
        with pytest.raises(StoreDown, match="cannot connect"):
            await ask(free_port(), ("PING",))
        server.freeze()
        with pytest.raises(StoreDown, match="no answer within 0.1 s"):
            await ask(server.port, ("PING",), ("PING",), timeout_s=0.1)
        asked = ask(server.port, ("PING",), ("PING",))
        await turns(loop, 0.05)
        server.kill()
        with pytest.raises(StoreDown, match="connection lost"):
            await asked


@pytest_twisted.ensureDeferred
async def test_cancelled_it_ends() -> None:
    with redis_server() as server:
        server.freeze()
        asked = ask(server.port, ("PING",))
        asked.addErrback(lambda failure: failure.type)
        await turns(loop, 0.02)
        asked.cancel()
        assert await asked is StoreDown
