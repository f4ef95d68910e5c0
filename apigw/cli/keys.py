"""`apigwctl keys`: API keys made, shown, rotated and revoked in the database that the gateways ask.

What changes a key tells the gateways, through Redis where there is one; else they learn it from the database within
seconds (adapters/api_key_changes.py). A whole key is shown once, when it is made.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from apigw.adapters.key_store import KeyRecord, KeyRefused, KeyStore, NewKey
from apigw.cli.kinds import Duration, KeyId, Moment, Network, Scope
from apigw.cli.refusals import Refused, nearest, warn
from apigw.cli.settings import Settings
from apigw.cli.shared_redis import shared_redis
from apigw.cli.show import document, facts, json_option, moment, table
from apigw.config.problems import shown
from apigw.errors import StoreDown
from apigw.names import API_KEYS_CHANNEL, api_key_digests, api_key_record

STATES: Final = ("active", "rotated", "expired", "revoked")
_LEARNED: Final = "the gateways learn it from the database within 5 seconds"
_DAY_S: Final = 86_400.0

_key_id = click.argument("key_id", type=KeyId(), help="Its id, as list shows it; never the whole key.")


@click.group()
def keys() -> None:
    """API keys of partners: create, list, show, rotate, revoke."""


@keys.command()
@click.option("--partner", required=True, metavar="ID", help="Whose key it is; backends see it as X-Partner-ID.")
@click.option("--tier", metavar="TIER", help="Its own rate limit tier; without it the route's counts.")
@click.option("--scope", "scopes", multiple=True, type=Scope(), help="What it may do; repeat for several.")
@click.option("--allow-ip", "networks", multiple=True, type=Network(), help="From where; repeat. Without: anywhere.")
@click.option("--expires", "expires_s", type=Moment(), help="90d, 2027-06-01 (UTC, its beginning) or a time.")
@json_option
@click.pass_obj
def create(
    settings: Settings,
    partner: str,
    tier: str | None,
    scopes: tuple[str, ...],
    networks: tuple[str, ...],
    expires_s: float | None,
    as_json: bool,
) -> None:
    """Make a key and show it, once."""
    _check_names(settings, tier, scopes)
    with _store(settings, may_make=True) as store:
        new = store.create(partner, tier=tier, scopes=dict.fromkeys(scopes), networks=networks, expires_s=expires_s)
    _print_new(new, as_json)


@keys.command(name="list")
@click.option("--partner", metavar="ID", help="Only this partner's.")
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; repeat for several.")
@json_option
@click.pass_obj
def list_(settings: Settings, partner: str | None, states: tuple[str, ...], as_json: bool) -> None:
    """All keys, the oldest first. No secret is known, so none is shown."""
    now_s = time.time()
    with _store(settings) as store:
        found = [record for record in store.list(partner) if not states or record.state(now_s) in states]
    if as_json:
        document([_described(record, now_s) for record in found])
        return
    columns = ("key_id", "partner", "state", "tier", "scopes", "networks", "created", "expires")
    table(
        columns,
        [
            (one.key_id, one.partner_id, one.state(now_s), one.tier, one.scopes, one.networks)
            + (moment(one.created_s), moment(one.expires_s) or "never")
            for one in found
        ],
    )


@keys.command()
@_key_id
@json_option
@click.pass_obj
def show(settings: Settings, key_id: str, as_json: bool) -> None:
    """One key: whose it is, what it may do, until when."""
    with _store(settings) as store:
        record = store.find(key_id)
        if record is None:
            raise _no_such_key(store, key_id)
    _print(record, as_json)


@keys.command()
@_key_id
@click.option("--overlap", "overlap_s", type=Duration(), help="How long the old key goes on; default: configured days.")
@click.option("--expires", "expires_s", type=Moment(), help="The new key's end; default: that of the old one.")
@json_option
@click.pass_obj
def rotate(settings: Settings, key_id: str, overlap_s: float | None, expires_s: float | None, as_json: bool) -> None:
    """Make a key in the place of KEY_ID, which goes on for a while."""
    if overlap_s is None:
        overlap_s = settings.api_keys().rotation_overlap_days * _DAY_S
    with _store(settings) as store:
        _known(store, key_id)
        new = store.rotate(key_id, overlap_s, expires_s=expires_s)
        old = store.find(key_id)
    _tell(settings, key_id)
    _print_new(new, as_json, old)


@keys.command()
@_key_id
@json_option
@click.pass_obj
def revoke(settings: Settings, key_id: str, as_json: bool) -> None:
    """End a key, now and for good. One that was revoked before stays so."""
    with _store(settings) as store:
        _known(store, key_id)
        record = store.revoke(key_id)
    _tell(settings, key_id)
    _print(record, as_json)


# -- parts of these


@contextmanager
def _store(settings: Settings, *, may_make: bool = False) -> Iterator[KeyStore]:
    """Raises Refused for what the store refuses; StoreDown is main.py's to tell. may_make: the database too."""
    store = KeyStore(settings.api_keys().database_url, may_make=may_make)
    try:
        yield store
    except KeyRefused as refused:
        raise Refused(str(refused)) from None
    finally:
        store.close()


def _check_names(settings: Settings, tier: str | None, scopes: tuple[str, ...]) -> None:
    """A tier that does not exist is refused; a scope that no route wants may be meant for a route to come."""
    config = settings.main
    tiers = {each.tier for each in config.rate_limits.tiers}
    if tier is not None and tier not in tiers and config.config.source != "files":
        warn(f"{settings.main_file} has no tier {shown(tier)}; whether {config.config.source} has it is not known here")
    elif tier is not None and tier not in tiers:
        if not settings.complete:
            raise Refused(f"whether there is a tier {shown(tier)} is not known: the configuration has errors")
        raise Refused(f"the configuration has no tier {shown(tier)}{nearest(tier, tiers)}")
    wanted = {scope for route in config.routes for scope in route.required_scopes}
    for scope in scopes:
        if scope not in wanted and settings.complete:
            warn(f"no route requires the scope {shown(scope)}{nearest(scope, wanted)}")


def _known(store: KeyStore, key_id: str) -> None:
    if store.find(key_id) is None:
        raise _no_such_key(store, key_id)


def _no_such_key(store: KeyStore, key_id: str) -> Refused:
    return Refused(f"there is no API key {key_id}{nearest(key_id, [record.key_id for record in store.list()])}")


def _tell(settings: Settings, key_id: str) -> None:
    """Out of Redis with what it has of the key, then every gateway forgets it. The database has the change already."""
    section = settings.main.redis
    if section is None:
        return
    try:
        with shared_redis(section) as redis:
            digests = api_key_digests(key_id)
            for digest in redis.smembers(digests):
                redis.delete(api_key_record(digest.decode("ascii", "replace")))
            redis.delete(digests)
            redis.publish(API_KEYS_CHANNEL, json.dumps({"key_id": key_id}))
    except StoreDown as down:
        warn(f"done, but {down}; {_LEARNED}")


def _described(record: KeyRecord, now_s: float) -> dict[str, Any]:
    """JSON-ready, without the hash."""
    return {
        "key_id": record.key_id,
        "partner_id": record.partner_id,
        "state": record.state(now_s),
        "tier": record.tier,
        "scopes": list(record.scopes),
        "networks": list(record.networks),
        "created_at": moment(record.created_s),
        "expires_at": moment(record.expires_s),
        "revoked_at": moment(record.revoked_s),
        "rotated_to": record.rotated_to,
    }


def _print(record: KeyRecord, as_json: bool) -> None:
    described = _described(record, time.time())
    if as_json:
        document(described)
        return
    described["expires_at"] = described["expires_at"] or "never"
    facts(described.items())


def _print_new(new: NewKey, as_json: bool, old: KeyRecord | None = None) -> None:
    """The only place where a whole key is ever shown."""
    described = {**_described(new.record, time.time()), "key": new.presented}
    if as_json:
        document(described if old is None else {**described, "replaces": _described(old, time.time())})
        return
    described["expires_at"] = described["expires_at"] or "never"
    described.pop("revoked_at"), described.pop("rotated_to")
    facts(described.items())
    print("\nThis is the only time that the key is shown: the database has its hash. Send it as X-API-Key.")
    if old is not None:
        print(f"The old key, {old.key_id}, is good until {moment(old.expires_s)}.")
