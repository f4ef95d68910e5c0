"""`apigwctl tokens`: the revocation list of JWTs, kept in Redis, where every gateway hears of a new entry at once.

An entry stays for as long as a token that it meets could be taken: exp and clock_skew_seconds. Entries only ever add
up (Note [Revocations], core/revocations.py), so there is no way back before that.
"""

import sys
import time
from base64 import urlsafe_b64decode
from binascii import Error as NotBase64
from typing import Any, Final

import click
import orjson

from apigw.cli.kinds import Duration, Moment
from apigw.cli.refusals import Refused, warn
from apigw.cli.revocation_store import in_force, put
from apigw.cli.settings import Settings
from apigw.cli.show import document, facts, json_option, moment, table
from apigw.constants import CLOCK_SKEW_S, MAX_TOKEN_BYTES
from apigw.core.revocation_codec import LAST_S
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser

_WHY: Final = "revocations of tokens are kept there, and gateways hear of them through it"


@click.group()
def tokens() -> None:
    """JWTs that no gateway takes any more: revoke, list."""


@tokens.command()
@click.argument("token", required=False, help="The token itself, or - to read it from standard input.")
@click.option("--jti", metavar="JTI", help="The token with this jti instead.")
@click.option("--user", "user_id", metavar="ID", help="All tokens of this user instead.")
@click.option("--issued-before", "issued_until_s", type=Moment(past=True), help="With --user; default: now.")
@click.option("--expires-in", "lifetime_s", type=Duration(), help="With --jti, --user: how long tokens live at most.")
@json_option
@click.pass_obj
def revoke(
    settings: Settings,
    token: str | None,
    jti: str | None,
    user_id: str | None,
    issued_until_s: float | None,
    lifetime_s: float | None,
    as_json: bool,
) -> None:
    """Revoke a token, or all tokens of a user that were issued up to a moment."""
    if sum(given is not None for given in (token, jti, user_id)) != 1:
        raise click.UsageError("Give one of TOKEN (or -), --jti and --user")
    if issued_until_s is not None and user_id is None:
        raise click.UsageError("--issued-before is for --user")
    if (token is None) is (lifetime_s is None):
        raise click.UsageError(
            "--expires-in is for --jti and --user: the token says itself when it expires"
            if token is not None
            else "Give --expires-in: how long tokens of the identity service live at most, such as 24h"
        )
    now_s = time.time()
    if token is not None:
        revocation: Revocation | None = _of_token(settings, _read(token), now_s)
    elif jti is not None:
        revocation = RevokedToken(jti, now_s + (lifetime_s or 0.0) + _skew_s(settings))
    else:
        until_s = now_s if issued_until_s is None else issued_until_s  # with its fraction: an iat may have one too
        revocation = RevokedUser(user_id or "", until_s, max(now_s, until_s) + (lifetime_s or 0.0) + _skew_s(settings))
    heard_by = None if revocation is None else put(settings.redis(_WHY), revocation, now_s)
    _print(revocation, heard_by, as_json)


@tokens.command(name="list")
@json_option
@click.pass_obj
def list_(settings: Settings, as_json: bool) -> None:
    """What is revoked at present, and until when the entry stays."""
    found = in_force(settings.redis(_WHY), time.time())
    if as_json:
        document([_described(one) for one in found])
        return
    columns = ("jti", "user_id", "issued_before", "until")
    table(columns, [[_described(one).get(name) for name in columns] for one in found])


# -- parts of these


def _read(token: str) -> bytes:
    """The token, from standard input for "-": what stands on a command line is seen by others and remembered."""
    if token != "-":
        return token.strip().encode("utf-8", "replace")
    return sys.stdin.buffer.read(MAX_TOKEN_BYTES + 100).strip()


def _of_token(settings: Settings, token: bytes, now_s: float) -> RevokedToken | None:
    """By what it says itself; its signature is not asked for. None for one that has expired. Raises Refused."""
    claims = _claims(token.removeprefix(b"Bearer "))
    section = settings.main.jwt
    if section is not None and claims.get("iss") != section.issuer:
        warn("the token's iss is not auth.jwt.issuer: the gateways of this configuration do not take it anyway")
    jti, exp_s = claims.get("jti"), claims.get("exp")
    if type(exp_s) is not int and type(exp_s) is not float:
        raise Refused("the token has no exp, so gateways refuse it anyway")
    if type(jti) is not str or not jti:
        raise Refused("the token has no jti, by which it could be told from others; --user ID revokes its user's")
    until_s = float(exp_s) + _skew_s(settings)
    if until_s <= now_s:
        warn(f"nothing to do: the token expired at {moment(exp_s)}")
        return None
    return RevokedToken(jti, min(until_s, LAST_S) if exp_s <= LAST_S else until_s)  # gateways take an exp up to it


def _claims(token: bytes) -> dict[str, Any]:
    parts = token.split(b".")
    if len(parts) != 3 or len(token) > MAX_TOKEN_BYTES:
        raise Refused("that is no JWT: three segments with dots between them, as it stands after the word Bearer")
    try:
        claims = orjson.loads(urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4)))
    except (NotBase64, ValueError):
        claims = None
    if type(claims) is not dict:
        raise Refused("that is no JWT: its middle segment is no JSON object in base64url")
    return claims


def _skew_s(settings: Settings) -> float:
    section = settings.main.jwt
    return CLOCK_SKEW_S if section is None else section.clock_skew_s


def _described(revocation: Revocation) -> dict[str, Any]:
    until = moment(revocation.until_s)
    if isinstance(revocation, RevokedToken):
        return {"jti": revocation.jti, "until": until}
    return {"user_id": revocation.user_id, "issued_before": moment(revocation.issued_until_s), "until": until}


def _print(revocation: Revocation | None, heard_by: int | None, as_json: bool) -> None:
    if heard_by == 0:
        warn("no gateway listens at the moment; each loads the list when it starts or finds Redis again")
    described = {} if revocation is None else _described(revocation)
    if as_json:
        document({"revoked": revocation is not None, **described, "heard_by": heard_by})
    elif revocation is not None:
        facts([*described.items(), ("heard by", heard_by)])
