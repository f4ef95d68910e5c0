"""What a worker has of its Redis, by the URL alone. Failovers are in test_redis_sentinel.py."""

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from apigw.adapters.redis_deployment import RedisDeployment
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.servers import redis_server, turns, until

loop: Any = reactor
DEMAND = Demand("standard", "rate:{standard:user:a}", 10, 60)


def deployment(url: str, **more: Any) -> RedisDeployment:
    connector = Connector(loop, Deadlines(loop))
    return RedisDeployment(RedisSection(url=url, timeout_s=0.1, **more), loop, connector, lambda took_s, checks: None)


@pytest_twisted.ensureDeferred
async def test_one_server_with_user_password_and_database() -> None:
    """Counters and what is shared are in the same place."""
    with redis_server() as server:
        server.command("ACL", "SETUSER", "gw", "on", ">s3cret", "~*", "&*", "+@all")
        made = deployment(f"redis://gw:s3cret@127.0.0.1:{server.port}/3")
        counters, store = made.counters(), made.shared_store()
        made.startService()
        await until(lambda: counters.up and store.up, loop)
        assert made.whereabouts() == {}
        assert await counters.take([DEMAND], 0.0) == Counted(True, [(0, 1)])
        assert await store.command("k", "GET", "rate:{standard:user:a}:0") == b"1"
        server.command("SELECT", 3)
        assert b"db3:keys=2" in server.command("INFO", "keyspace"), "the counter and that of the probe"
        await made.stopService()
        assert not counters.up and not store.up
        await turns(loop, 0.02)


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_without_it() -> None:
    with redis_server("--requirepass", "s3cret") as server:
        made = deployment(f"redis://:wr0ng@127.0.0.1:{server.port}")
        counters = made.counters()
        made.startService()
        await until(lambda: "WRONGPASS" in (counters.last_error or ""), loop)
        assert "wr0ng" not in (counters.last_error or "")
        await made.stopService()


def test_a_ca_file_that_is_gone_is_told_at_once() -> None:
    with pytest.raises(OSError):
        deployment("rediss://127.0.0.1", ca_file=Path("/nonexistent/ca.pem"))
