"""A worker reaches a real Redis in clear and over TLS, and hears when it cannot."""

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from apigw.adapters.redis_connect import RedisAccess
from apigw.adapters.redis_counters import RedisCounters
from apigw.adapters.redis_errand import errand
from apigw.adapters.redis_link import pack
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.errors import StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.certificates import self_signed
from tests.servers import free_port, redis_server, turns, until

loop: Any = reactor
DEMAND = Demand("standard", "rate:{standard:user:a}", 10, 60)


def access_to(url: str, **files: Path | None) -> RedisAccess:
    return RedisAccess(RedisSection(url=url, **files), loop, Connector(loop, Deadlines(loop)))  # type: ignore[arg-type]


def store_at(url: str, **files: Path | None) -> RedisCounters:
    access = access_to(url, **files)
    connect = access.to(access.url.hosts[0])
    return RedisCounters(connect, loop, lambda call: loop.callLater(0, call), RedisSection(url=url, timeout_s=0.1))


@pytest_twisted.ensureDeferred
async def test_in_clear_over_a_lean_transport() -> None:
    """Counts, loses it, and is back on a new connection."""
    with redis_server() as server:
        store = store_at(server.url)
        store.startService()
        await until(lambda: store.up, loop)
        assert isinstance(await store.take([DEMAND], 1_707_264_000.0), Counted)
        server.restart()
        await until(lambda: not store.up, loop)
        await until(lambda: store.up, loop, 2.0)
        store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_told() -> None:
    """In so many words."""
    access = access_to("redis://127.0.0.1")
    with pytest.raises(ConnectionError, match="refused"):
        await access.open(("127.0.0.1", free_port()), None)


@pytest_twisted.ensureDeferred
async def test_over_tls_the_servers_certificate_is_verified(tmp_path: Path) -> None:
    """Trusted: it counts. Not trusted: it stays down, and nothing was sent."""
    self_signed(tmp_path)
    with redis_server(tls=tmp_path) as server:
        port = server.port
        store = store_at(f"rediss://127.0.0.1:{port}/0", ca_file=tmp_path / "cert.pem")
        store.startService()
        await until(lambda: store.up, loop)
        assert isinstance(await store.take([DEMAND], 1_707_264_000.0), Counted)
        store.stopService()
        stranger = store_at(f"rediss://127.0.0.1:{port}/0")
        stranger.startService()
        await until(lambda: "certificate verify failed" in (stranger.last_error or ""), loop)
        assert not stranger.up
        stranger.stopService()
        await turns(loop, 0.01)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_wants_a_certificate_is_shown_ours(tmp_path: Path) -> None:
    """Redis asks for one by default. Without, or with one that it does not trust, the store stays down."""
    self_signed(tmp_path)
    (stranger := tmp_path / "stranger").mkdir()
    self_signed(stranger)
    trusted = {"ca_file": tmp_path / "cert.pem"}
    with redis_server("--tls-auth-clients", "yes", tls=tmp_path) as server:
        url = f"rediss://127.0.0.1:{server.port}/0"
        store = store_at(url, **trusted, cert_file=tmp_path / "cert.pem", key_file=tmp_path / "key.pem")
        store.startService()
        await until(lambda: store.up, loop)
        assert isinstance(await store.take([DEMAND], 1_707_264_000.0), Counted)
        store.stopService()
        for files in ({}, {"cert_file": stranger / "cert.pem", "key_file": stranger / "key.pem"}):
            refused = store_at(url, **trusted, **files)
            refused.startService()
            await until(lambda refused=refused: refused.last_error != "not connected yet", loop)
            await turns(loop, 0.2)
            assert not refused.up
            refused.stopService()
        await turns(loop, 0.02)


@pytest_twisted.ensureDeferred
async def test_renewed_certificates_are_read_without_a_restart(tmp_path: Path) -> None:
    """At the next connection; files that are no use meanwhile leave what was read before."""
    self_signed(tmp_path)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes((tmp_path / "cert.pem").read_bytes())
    access = access_to("rediss://127.0.0.1", ca_file=ca_file)

    async def connects(port: int) -> bool:
        said = errand(access.to(("127.0.0.1", port)), loop, [pack("PING")], 2.0)
        try:
            return await said == [b"PONG"]
        except StoreDown as down:
            assert "certificate verify failed" in str(down)
            return False

    with redis_server(tls=tmp_path) as server:
        assert await connects(server.port)
        server.kill()
        self_signed(tmp_path)
        server.start()
        assert not await connects(server.port), "another authority"
        ca_file.write_text("half of")
        assert not await connects(server.port)
        ca_file.write_bytes((tmp_path / "cert.pem").read_bytes())
        assert await connects(server.port)
    await turns(loop, 0.02)
