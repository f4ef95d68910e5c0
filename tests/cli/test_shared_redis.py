"""Redis by the gateways' URL: an end to every wait, a sentence for every failure."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import RedisError

from apigw.cli.shared_redis import TIMEOUT_S, shared_redis
from apigw.config.model import RedisSection
from apigw.errors import StoreDown
from tests.edge.authority import certificate
from tests.servers import RedisServer, free_port, redis_server


def at(url: str) -> RedisSection:
    return RedisSection(url)


@contextmanager
def sentinel(folder: Path, master_port: int) -> Iterator[int]:
    """A sentinel that knows the master "main"; gives its port."""
    port = free_port()
    file = folder / "sentinel.conf"
    file.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {master_port} 1\n")
    process = subprocess.Popen(["redis-server", file, "--sentinel"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert any(b"+monitor master main" in line for line in process.stdout)
        yield port
    finally:
        process.kill()
        process.communicate()


def test_it_is_a_client_of_the_server_and_its_database(redis: RedisServer) -> None:
    with shared_redis(at(f"redis://127.0.0.1:{redis.port}/3")) as client:
        client.set("there", "yes")
        assert client.get("there") == b"yes"
    with shared_redis(at(redis.url)) as client:
        assert client.get("there") is None


def test_nobody_listens() -> None:
    with pytest.raises(StoreDown, match="Redis does not answer: .*refused"):
        with shared_redis(at(f"redis://127.0.0.1:{free_port()}/0")) as client:
            client.ping()


def test_a_wrong_password_is_told_without_it() -> None:
    with redis_server("--requirepass", "right") as server:
        with pytest.raises(StoreDown) as raised:
            with shared_redis(at(f"redis://:wr0ngpass@127.0.0.1:{server.port}/0")) as client:
                client.ping()
        assert "wr0ngpass" not in str(raised.value)
        with shared_redis(at(f"redis://:right@127.0.0.1:{server.port}/0")) as client:
            assert client.ping()


def test_a_server_that_answers_nothing_is_not_waited_for() -> None:
    with redis_server() as server:
        with shared_redis(at(server.url)) as client:
            client.ping()
        server.freeze()
        began_s = time.monotonic()
        with pytest.raises(StoreDown):
            with shared_redis(at(server.url)) as client:
                client.ping()
        assert time.monotonic() - began_s < 3 * TIMEOUT_S
        server.thaw()


def test_an_error_of_the_server_in_the_middle_is_no_traceback_either(redis: RedisServer) -> None:
    with pytest.raises(StoreDown):
        with shared_redis(at(redis.url)) as client:
            client.set("text", "x")
            client.smembers("text")
    with pytest.raises(StoreDown):
        with shared_redis(at(redis.url)):
            raise RedisError("at any point")


def test_the_master_is_the_one_that_the_sentinels_name(redis: RedisServer, tmp_path: Path) -> None:
    with sentinel(tmp_path, redis.port) as port:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
        with shared_redis(at(f"redis+sentinel://{hosts}/main/2")) as client:
            client.set("by", "sentinel")
            assert client.publish("nobody", "listens") == 0
        with shared_redis(at(f"redis://127.0.0.1:{redis.port}/2")) as client:
            assert client.get("by") == b"sentinel"
        with pytest.raises(StoreDown, match="other"):
            with shared_redis(at(f"redis+sentinel://{hosts}/other")) as client:
                client.ping()


def test_a_cluster_is_found_by_any_of_its_nodes() -> None:
    bus = ("--cluster-port", str(free_port()))  # else its own port and 10000, which may be none
    with redis_server("--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1", *bus) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        end_s = time.monotonic() + 10
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            assert time.monotonic() < end_s
            time.sleep(0.05)  # it tells nobody
        with shared_redis(at(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{server.port}")) as client:
            client.set("a", "1")
            client.set("b", "2")
            assert (client.get("a"), client.delete("a", "b")) == (b"1", 2)
            client.publish("nobody", "listens")
    with pytest.raises(StoreDown):
        with shared_redis(at(f"redis+cluster://127.0.0.1:{free_port()}")) as client:
            client.ping()


def test_tls_trusts_the_configured_authority_and_no_other(tmp_path: Path) -> None:
    made, other = certificate(tmp_path, "redis", "localhost"), certificate(tmp_path, "other", "localhost")
    port = free_port()
    tls = ("--tls-port", str(port), "--tls-cert-file", str(made.cert_file), "--tls-key-file", str(made.key_file))
    with redis_server(*tls, "--tls-auth-clients", "no", "--tls-ca-cert-file", str(made.cert_file)):
        with shared_redis(RedisSection(f"rediss://localhost:{port}", ca_file=made.cert_file)) as client:
            assert client.ping()
        with pytest.raises(StoreDown, match="certificate"):
            with shared_redis(RedisSection(f"rediss://localhost:{port}", ca_file=other.cert_file)) as client:
                client.ping()
