"""Redis as apigwctl reaches it: by the section that the gateways have, with an end to every wait.

One server, a master that sentinels know, or a cluster (config/redis_url.py); in clear or over TLS.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException  # which is no RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel

from apigw.config.model import RedisSection
from apigw.config.redis_url import CLUSTER, SENTINEL, RedisURL
from apigw.errors import StoreDown

TIMEOUT_S: Final = 2.0  # to connect, and for each answer: a person waits
_REDIRECTIONS: Final = 3  # of a cluster whose slots move


@contextmanager
def shared_redis(section: RedisSection) -> Iterator[Any]:
    """A client for a block. Raises StoreDown, also for what goes wrong in the block; its words have no password."""
    try:
        client = _client(section)
        try:
            yield client
        finally:
            client.close()
    except (redis.RedisError, RedisClusterException, OSError) as error:
        said = str(error).splitlines() or [type(error).__name__]
        raise StoreDown(f"Redis does not answer: {said[0][:200].rstrip('.')}") from None


def _client(section: RedisSection) -> Any:
    url = RedisURL.of(section.url)
    way: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    login: dict[str, Any] = {"username": url.user, "password": url.password}
    if url.tls:
        way["ssl"] = True
        way["ssl_ca_certs"] = None if section.ca_file is None else str(section.ca_file)
        if section.cert_file is not None:
            way |= {"ssl_certfile": str(section.cert_file), "ssl_keyfile": str(section.key_file)}
    if url.kind == CLUSTER:
        nodes = [ClusterNode(host, port) for host, port in url.hosts]
        return RedisCluster(startup_nodes=nodes, retry=Retry(NoBackoff(), _REDIRECTIONS), **login, **way)
    way["retry"] = Retry(NoBackoff(), 0)
    if url.kind == SENTINEL:
        sentinels = {"username": section.sentinel_user, "password": section.sentinel_password, **way}
        known = Sentinel(url.hosts, sentinel_kwargs=sentinels, db=url.database, **login, **way)
        return known.master_for(url.master)
    host, port = url.hosts[0]
    return redis.Redis(host=host, port=port, db=url.database, **login, **way)
