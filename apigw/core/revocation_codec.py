"""How revocations stand in Redis and travel between gateways. Pure and strict: all else is a ValueError.

    a token   ZADD revoked:tokens GT until_s JTI                  {"jti": JTI, "until_s": S}
    a user    ZADD revoked:users GT until_s ISSUED_UNTIL_S:USER   {"user_id": USER, "issued_until_s": S, "until_s": S}

The score says until when the entry counts (Note [Revocations]), so ZREMRANGEBYSCORE key -inf now drops what is over.
A user may have several members; the strictest counts. Written by `apigwctl tokens revoke`, read by each gateway.
"""

import re
from typing import Final

import orjson

from apigw.constants import MAX_USER_ID_CHARS
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser
from apigw.names import REVOKED_TOKENS, REVOKED_USERS

MAX_JTI_BYTES: Final = 512  # in UTF-8; a UUID has 36. Of a token with a longer one only the user can be revoked
MAX_MESSAGE_BYTES: Final = 4096  # a jti of control characters is six times as long in JSON
LAST_S: Final = 1e11  # the year 5138, as for the times of tokens: above it are milliseconds, which are no date

_FIRST_S: Final = 1.0
_USER_ID: Final = re.compile(r"[!-~]{1,%d}" % MAX_USER_ID_CHARS)  # as core/tokens.py takes them
_USER_MEMBER: Final = re.compile(rb"([0-9.]{1,20}):([!-~]{1,%d})" % MAX_USER_ID_CHARS)


def key(revocation: Revocation) -> str:
    """The ZSET that it belongs in."""
    return REVOKED_TOKENS if isinstance(revocation, RevokedToken) else REVOKED_USERS


def member(revocation: Revocation) -> bytes:
    """Its member there; the score is `until_s`. Raises ValueError for what no gateway would read."""
    _check(revocation)
    if isinstance(revocation, RevokedToken):
        return revocation.jti.encode()
    return f"{_written(revocation.issued_until_s)}:{revocation.user_id}".encode("ascii")


def message(revocation: Revocation) -> bytes:
    """What REVOCATIONS_CHANNEL says of it. Raises ValueError for what no gateway would read."""
    _check(revocation)
    return orjson.dumps(revocation._asdict())


def from_member(name: str, entry: bytes, until_s: float) -> Revocation:
    """Of one member of the ZSET `name` and its score. Raises ValueError."""
    if name == REVOKED_TOKENS:
        return _check(RevokedToken(entry.decode(), until_s))
    if name != REVOKED_USERS:
        raise ValueError("not a key of revocations")
    parts = _USER_MEMBER.fullmatch(entry)
    if parts is None:
        raise ValueError("not ISSUED_UNTIL_S:USER")
    issued_until_s = float(parts[1])
    if _written(issued_until_s).encode() != parts[1]:
        raise ValueError("a time that is spelled in another way")
    return _check(RevokedUser(parts[2].decode(), issued_until_s, until_s))


def from_message(data: bytes) -> Revocation:
    """Of a message on REVOCATIONS_CHANNEL. Raises ValueError."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError("longer than a revocation")
    said = orjson.loads(data)
    members = said.keys() if type(said) is dict else ()
    if members == {"jti", "until_s"}:
        return _check(RevokedToken(_text(said["jti"]), _number(said["until_s"])))
    if members == {"user_id", "issued_until_s", "until_s"}:
        user_id = _text(said["user_id"])
        return _check(RevokedUser(user_id, _number(said["issued_until_s"]), _number(said["until_s"])))
    raise ValueError("not the members of a revocation")


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("a name is a string")
    return value


def _number(value: object) -> float:
    """Not true, which is an int to Python, nor "5"."""
    if type(value) is not int and type(value) is not float:
        raise ValueError("a time is a number")
    return float(value)


def _check(revocation: Revocation) -> Revocation:
    """In range, all of it; else ValueError."""
    if isinstance(revocation, RevokedToken):
        if not 0 < len(revocation.jti.encode()) <= MAX_JTI_BYTES:
            raise ValueError(f"a jti is 1 to {MAX_JTI_BYTES} bytes long")
    else:
        if _USER_ID.fullmatch(revocation.user_id) is None:
            raise ValueError(f"a user id is 1 to {MAX_USER_ID_CHARS} visible ASCII characters")
        _check_time(revocation.issued_until_s)
    _check_time(revocation.until_s)
    return revocation


def _check_time(epoch_s: float) -> None:
    if not _FIRST_S <= epoch_s <= LAST_S:  # NaN is not either
        raise ValueError("a time is epoch seconds, 1 to 1e11")


def _written(epoch_s: float) -> str:
    """A time in its one spelling: 1700000000, or 1700000000.25; never with an exponent in the range of _check_time."""
    return str(int(epoch_s)) if epoch_s == int(epoch_s) else repr(float(epoch_s))
