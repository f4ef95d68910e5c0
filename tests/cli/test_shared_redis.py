"""Redis by the gateways' URL: an end to every wait, a sentence for every failure."""

import time

import pytest
from redis import RedisError

from apigw.cli.shared_redis import TIMEOUT_S, shared_redis
from apigw.errors import StoreDown
from tests.servers import RedisServer, free_port, redis_server


def test_it_is_a_client_of_the_server_and_its_database(redis: RedisServer) -> None:
    with shared_redis(f"redis://127.0.0.1:{redis.port}/3") as client:
        client.set("there", "yes")
        assert client.get("there") == b"yes"
    with shared_redis(redis.url) as client:
        assert client.get("there") is None


def test_nobody_listens() -> None:
    with pytest.raises(StoreDown, match="Redis does not answer: .*refused"):
        with shared_redis(f"redis://127.0.0.1:{free_port()}/0") as client:
            client.ping()


def test_a_wrong_password_is_told_without_it() -> None:
    with redis_server("--requirepass", "right") as server:
        with pytest.raises(StoreDown) as raised:
            with shared_redis(f"redis://:wr0ngpass@127.0.0.1:{server.port}/0") as client:
                client.ping()
        assert "wr0ngpass" not in str(raised.value)
        with shared_redis(f"redis://:right@127.0.0.1:{server.port}/0") as client:
            assert client.ping()


def test_a_server_that_answers_nothing_is_not_waited_for() -> None:
    with redis_server() as server:
        with shared_redis(server.url) as client:
            client.ping()
        server.freeze()
        began_s = time.monotonic()
        with pytest.raises(StoreDown):
            with shared_redis(server.url) as client:
                client.ping()
        assert time.monotonic() - began_s < 3 * TIMEOUT_S
        server.thaw()


def test_an_error_of_the_server_in_the_middle_is_no_traceback_either(redis: RedisServer) -> None:
    with pytest.raises(StoreDown):
        with shared_redis(redis.url) as client:
            client.set("text", "x")
            client.smembers("text")
    with pytest.raises(StoreDown):
        with shared_redis(redis.url):
            raise RedisError("at any point")
