"""Instances in a real etcd: they come, go and expire; etcd itself goes away, hangs, compacts and wants passwords."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_twisted

from apigw.adapters import registry_etcd
from apigw.adapters.registry_etcd import EtcdRegistry, _entry
from apigw.config.model import Discovery
from apigw.core.discovery import Entry, RawEntry
from tests.adapters.registry_world import REACTOR, Flood, RawServer, Watch, answer, watching
from tests.etcd import EtcdServer, etcd_server
from tests.servers import free_port, turns, until

ONE, TWO = {"host": "10.0.0.1", "port": 80}, {"host": "10.0.0.2", "port": 80, "weight": 3}
PREFIX = "/services/orders/"


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with etcd_server() as server:
        yield server


@pytest.fixture
def etcd(server: EtcdServer) -> EtcdServer:
    """Empty below the prefix."""
    server.delete_below(PREFIX)
    return server


def at(*urls: str, **more: Any) -> Discovery:
    return Discovery("etcd", "orders", endpoints=urls, **more)


@pytest_twisted.ensureDeferred
async def test_instances_come_change_and_go_within_a_moment(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        etcd.put(PREFIX + "2", TWO)
        assert await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3") < 5
        etcd.put(PREFIX + "2", "10.0.0.9:8080")
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.9:8080*1")
        etcd.delete(PREFIX + "1")
        await watch.until_hosts("10.0.0.9:8080*1")
        assert watch.registry.up and watch.registry.last_error is None and len(watch.lists) == 4


@pytest_twisted.ensureDeferred
async def test_an_instance_whose_lease_expires_is_gone(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    etcd.put(PREFIX + "2", TWO, etcd.lease(1))
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3")
        await watch.until_hosts("10.0.0.1:80*1", timeout_s=15)


@pytest_twisted.ensureDeferred
async def test_only_what_is_below_the_prefix_counts(etcd: EtcdServer) -> None:
    etcd.put("/services/orders", "10.0.0.7:80")
    etcd.put("/services/orders0", "10.0.0.8:80")
    etcd.put("/elsewhere/1", "10.0.0.9:80")
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_up()
        assert watch.hosts == []
    with watching(EtcdRegistry, at(etcd.url, prefix="/elsewhere/")) as watch:
        await watch.until_hosts("10.0.0.9:80*1")


@pytest_twisted.ensureDeferred
async def test_a_killed_etcd_leaves_the_list_and_is_found_again(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        etcd.kill()
        await watch.until_down()
        await until(lambda: "refused" in str(watch.registry.last_error).lower(), REACTOR)
        assert watch.hosts == ["10.0.0.1:80*1"] and len(watch.lists) == 1
        etcd.start()
        assert await watch.until_up(20) < 20
        etcd.put(PREFIX + "2", TWO)
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3")
        assert watch.registry.last_error is None


@pytest_twisted.ensureDeferred
async def test_an_etcd_that_hangs_counts_as_down(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_etcd, "WATCH_S", 0.5)
    monkeypatch.setattr(registry_etcd, "ANSWER_S", 0.5)
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        etcd.freeze()
        try:
            await watch.until_down()
            assert watch.hosts == ["10.0.0.1:80*1"] and "no answer within" in (watch.registry.last_error or "")
        finally:
            etcd.thaw()
        await watch.until_up()


@pytest_twisted.ensureDeferred
async def test_a_quiet_watch_is_no_failure(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_etcd, "WATCH_S", 0.2)
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        await turns(REACTOR, 1.5)
        assert watch.registry.failures == 0 and watch.registry.up and len(watch.lists) == 1


@pytest_twisted.ensureDeferred
async def test_a_revision_that_is_compacted_away_is_read_anew(
    etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and watching: the watch is cancelled by etcd, and what is true is read."""
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        reads = watch.registry._read  # type: ignore[attr-defined]

        async def read_and_lag() -> int:
            await reads()
            return 1  # what follows was compacted long ago

        monkeypatch.setattr(watch.registry, "_read", read_and_lag)
        etcd.compact(etcd.put(PREFIX + "2", TWO))
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3")
        etcd.put(PREFIX + "3", "10.0.0.3:80")
        await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3", "10.0.0.3:80*1")


@pytest_twisted.ensureDeferred
async def test_another_member_answers_for_a_dead_one(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(f"http://127.0.0.1:{free_port()}", etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        assert watch.registry.up and watch.registry.failures == 0


@pytest_twisted.ensureDeferred
async def test_entries_that_are_no_instances_are_skipped_and_counted(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    for number, value in enumerate(
        ["nonsense", b"\xff\xfe", {"host": "169.254.169.254", "port": 80}, {"host": "10.0.0.3", "port": "80"}, "{"]
    ):
        etcd.put(f"{PREFIX}bad{number}", value)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        assert watch.registry.skipped == {"unusable": 3, "forbidden_address": 1, "bad_port": 1}


@pytest_twisted.ensureDeferred
async def test_an_answer_with_nothing_usable_in_it_keeps_the_list(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        etcd.put(PREFIX + "1", "169.254.169.254:80")
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:80*1"]
        assert watch.registry.last_error == "no usable instance in the answer: 1 forbidden_address"


@pytest_twisted.ensureDeferred
async def test_an_etcd_that_lost_its_data_keeps_the_list_for_a_while(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", ONE)
    with watching(EtcdRegistry, at(etcd.url, empty_after_s=1.0)) as watch:
        await watch.until_hosts("10.0.0.1:80*1")
        etcd.delete_below(PREFIX)
        await until(lambda: watch.registry.empty_since_s is not None, REACTOR)
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.registry.up
        assert 0.5 < await watch.until_hosts() < 5, "no news come, and the watch has long to go"


@pytest_twisted.ensureDeferred
async def test_a_registry_on_this_machine_may_name_this_machine_unless_it_is_told_otherwise(etcd: EtcdServer) -> None:
    etcd.put(PREFIX + "1", "127.0.0.1:9001")
    etcd.put(PREFIX + "2", "127.0.0.1:9601")
    with watching(EtcdRegistry, at(etcd.url), own_ports=frozenset({9601})) as watch:
        await watch.until_hosts("127.0.0.1:9001*1")
        assert watch.registry.skipped == {"own_port": 1}
    with watching(EtcdRegistry, at(etcd.url, allow_loopback=False)) as watch:
        await watch.until_down()
        assert watch.registry.last_error == "no usable instance in the answer: 2 loopback"


@pytest_twisted.ensureDeferred
async def test_a_password_is_read_from_its_file_and_a_token_that_expired_is_renewed(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    with etcd_server() as etcd:
        etcd.put(PREFIX + "1", ONE)
        etcd.switch_on_users("gateway", "s3cret", PREFIX)
        with watching(EtcdRegistry, at(etcd.url, username="gateway", password_file=file)) as watch:
            await watch.until_down()
            assert "s3cret" not in str(watch.registry.last_error) and "authentication failed" in str(
                watch.registry.last_error
            )
            file.write_text("s3cret\n")
            await watch.until_hosts("10.0.0.1:80*1")
            watch.registry._token = "expired.1"  # type: ignore[attr-defined]
            etcd.put(PREFIX + "2", TWO)
            await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3")
            failures = watch.registry.failures
            watch.registry._token = "expired.2"  # type: ignore[attr-defined]
            etcd.put(PREFIX + "3", "10.0.0.3:80")
            await watch.until_hosts("10.0.0.1:80*1", "10.0.0.2:80*3", "10.0.0.3:80*1")
            assert watch.registry.failures == failures
        with watching(EtcdRegistry, at(etcd.url)) as watch:
            await watch.until_down()
            assert "status 400" in str(watch.registry.last_error)


@pytest.mark.parametrize(
    ("value", "entry"),
    [
        (b'{"host": "10.0.0.1", "port": 80}', RawEntry("10.0.0.1", 80, 1)),
        (b' {"host": "10.0.0.1", "port": 80, "weight": 5, "zone": "a"}\n', RawEntry("10.0.0.1", 80, 5)),
        (b'{"host": "10.0.0.1", "port": 80, "weight": null}', RawEntry("10.0.0.1", 80, 1)),
        (b"10.0.0.1:80", RawEntry("10.0.0.1", 80)),
        (b"[fd00::1]:80", RawEntry("fd00::1", 80)),
        (b"orders.internal:80\n", RawEntry("orders.internal", 80)),
        (b'{"port": 80}', RawEntry(None, 80)),
        (b"10.0.0.1", None),
        (b"10.0.0.1:", None),
        (b"10.0.0.1:-80", None),
        (b"10.0.0.1:123456", None),
        ("10.0.0.1:٨٠".encode(), None),
        (b"", None),
        (b"\xff", None),
        (b"{", None),
        (b"[]", None),
    ],
)
def test_the_two_forms_of_a_value(value: bytes, entry: RawEntry | None) -> None:
    assert _entry(value) == entry


# -- what is no etcd


GARBAGE = {
    "not HTTP": b"\x00\x01\x02\r\n\r\n",
    "a page": answer(b"<html>"),
    "an error": answer(b"{}", b"500 Oops"),
    "an error with words": answer(orjson.dumps({"error": "etcdserver: no leader\x1b[2J\n", "code": 14}), b"503 Busy"),
    "a list": answer(b"[]"),
    "no revision": answer(b"{}"),
    "another shape": answer(b'{"header": {"revision": "1"}, "kvs": {"a": 1}}'),
    "bad base64": answer(b'{"header": {"revision": "1"}, "kvs": [{"value": "*"}]}'),
    "a deep one": answer(b'{"header":' + b"[" * 100_000),
    "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("name", GARBAGE)
@pytest_twisted.ensureDeferred
async def test_garbage_is_a_failure_in_one_line_and_the_list_stays(name: str) -> None:
    def say(wire: Any) -> None:
        wire.transport.write(GARBAGE[name])
        wire.transport.loseConnection()

    server = RawServer(say)
    with watching(EtcdRegistry, at(server.url), known=(Entry("10.0.0.1", 80),)) as watch:
        await watch.until_down()
        assert watch.hosts == ["10.0.0.1:80*1"] and watch.lists == []
        assert watch.registry.last_error and watch.registry.last_error.isprintable()
    await server.close()


@pytest_twisted.ensureDeferred
async def test_a_hundred_megabytes_are_not_held() -> None:
    """An endless body, and an endless head: cut at their bounds."""
    for begin, piece, why in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", b"x" * 500_000, "too large"),
        (b"HTTP/1.1 200 OK\r\n", b"X-Header: 1234567890\r\n" * 2000, "head of the answer is too large"),
    ):
        flood = Flood(begin, piece)
        server = RawServer(flood.say)
        with watching(EtcdRegistry, at(server.url)) as watch:
            await watch.until_down()
            assert why in str(watch.registry.last_error)
            assert flood.sent_bytes < 30_000_000, "what fits into two kernel buffers, and our bound"
        await server.close()


@pytest_twisted.ensureDeferred
async def test_a_registry_that_flaps_is_asked_at_a_bounded_rate() -> None:
    """Each answer good, each watch broken off at once: a poll every half second at first, less often later."""
    found = answer(orjson.dumps({"header": {"revision": "1"}, "kvs": []}))

    def say(wire: Any) -> None:
        wire.transport.write(found if b"/v3/kv/range" in wire.received else b"")
        wire.transport.loseConnection()

    server = RawServer(say)
    with watching(EtcdRegistry, at(server.url)) as watch:
        await turns(REACTOR, 2.0)
        assert 2 <= watch.registry.failures <= 5
    await server.close()


def test_nothing_runs_before_the_start() -> None:
    assert not Watch(EtcdRegistry, at("http://127.0.0.1:1")).registry.in_flight
