"""The revocation list in Redis, as apigwctl writes and reads it (core/revocation_codec.py says how it is spelled)."""

from typing import Final

from apigw.cli.refusals import Refused, warn
from apigw.cli.shared_redis import shared_redis
from apigw.config.model import RedisSection
from apigw.config.redis_url import CLUSTER, RedisURL
from apigw.core import revocation_codec as codec
from apigw.core.revocations import Revocation
from apigw.names import REVOCATIONS_CHANNEL, REVOKED_TOKENS, REVOKED_USERS

CLOCKS_DIFFER_S: Final = 60.0  # what is over is dropped so much later: this machine's clock may be ahead


def put(section: RedisSection, revocation: Revocation, now_s: float) -> int | None:
    """Into the list, then to those who listen; how many did, None where Redis cannot know.

    Raises StoreDown, and Refused for what no gateway would read.
    """
    try:
        key, member = codec.key(revocation), codec.member(revocation)
    except ValueError as error:
        raise Refused(f"no gateway could read that: {error}") from None
    with shared_redis(section) as redis:
        redis.zadd(key, {member: revocation.until_s}, gt=True)
        for each in (REVOKED_TOKENS, REVOKED_USERS):
            redis.zremrangebyscore(each, "-inf", now_s - CLOCKS_DIFFER_S)
        heard_by = redis.publish(REVOCATIONS_CHANNEL, codec.message(revocation))
    return None if RedisURL.of(section.url).kind == CLUSTER else int(heard_by)


def in_force(section: RedisSection, now_s: float) -> list[Revocation]:
    """All that is revoked at present; a word about what makes no sense there. Raises StoreDown."""
    found: list[Revocation] = []
    odd = 0
    with shared_redis(section) as redis:
        for key in (REVOKED_TOKENS, REVOKED_USERS):
            for member, until_s in redis.zrangebyscore(key, now_s, "+inf", withscores=True):
                try:
                    found.append(codec.from_member(key, member, until_s))
                except ValueError:
                    odd += 1
    if odd:
        warn(f"{odd} entries of {REVOKED_TOKENS} and {REVOKED_USERS} make no sense, so no gateway reads them")
    return found
