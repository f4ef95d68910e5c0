"""Redis as apigwctl reaches it: by the URL that the gateways have, with an end to every wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from apigw.errors import StoreDown

TIMEOUT_S: Final = 2.0  # to connect, and for each answer: a person waits


@contextmanager
def shared_redis(url: str) -> Iterator[Any]:
    """A client for a block. Raises StoreDown, also for what goes wrong in the block; its words have no password."""
    try:
        client = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        try:
            yield client
        finally:
            client.close()
    except (redis.RedisError, OSError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise StoreDown(f"Redis does not answer: {said[0][:200].rstrip('.')}") from None
