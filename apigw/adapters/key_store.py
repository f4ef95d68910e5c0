"""API keys in a database: made, found, listed, rotated, revoked. Blocks: in threads of a worker, or in apigwctl.

    create    a new key                                       change "create"
    rotate    a new key in the place of one that lives        changes "create" of the new, "rotate" of the old
    revoke    a key's end, now; once revoked it stays so      change "revoke"

A change has a number above that of every change before it, and is written in the same transaction, so that a worker
which asks for what is above a number misses nothing. Old changes are deleted: no cache remembers a key that long.
"""

import json
import secrets
import string
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import bcrypt
from attrs import field, frozen
from sqlalchemy import JSON, Connection, Dialect, FromClause, Text, bindparam, cast, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import RowMapping

from apigw.adapters.key_database import Database
from apigw.adapters.key_schema import API_KEYS, CHANGES
from apigw.constants import BCRYPT_COST
from apigw.core.api_keys import KEY_ID_CHARS, PREFIX, SECRET_CHARS, Unusable, check_partner_id, made

KEEP_CHANGES_S: Final = 7 * 86_400.0  # cache_ttl_seconds is a day at most
_ALPHABET: Final = string.ascii_letters + string.digits


def _all_of(ids: FromClause, dialect: Dialect) -> str:
    return str(select(API_KEYS).where(API_KEYS.c.key_id.in_(select(ids.c.value))).compile(dialect=dialect))


# All ids are one parameter, a list in JSON. An IN with a parameter for each is text that is made anew, by an
# interpreter which the loop wants too: with 200 ids it took three times as long (measured).
_IDS: Final = bindparam("ids", type_=Text)
_FIND: Final = {
    "sqlite": _all_of(func.json_each(_IDS).table_valued("value"), sqlite.dialect()),
    "postgresql": _all_of(
        func.json_array_elements_text(cast(_IDS, JSON)).table_valued("value"), postgresql.dialect(paramstyle="format")
    ),
}


class KeyRefused(ValueError):
    """What was asked for cannot be: no such key, one that has ended, a partner id that no header can carry."""


@frozen
class KeyRecord:
    """A key without its secret. Times are epoch seconds. rotated_to: the id of the key in its place."""

    key_id: str
    partner_id: str
    secret_hash: str = field(repr=False)
    tier: str | None
    scopes: tuple[str, ...]
    networks: tuple[str, ...]
    created_s: float
    expires_s: float | None = None
    revoked_s: float | None = None
    rotated_to: str | None = None

    def state(self, now_s: float) -> str:
        """revoked, expired, rotated (good until its end) or active."""
        if self.revoked_s is not None:
            return "revoked"
        if self.expires_s is not None and self.expires_s <= now_s:
            return "expired"
        return "active" if self.rotated_to is None else "rotated"


@frozen
class NewKey:
    """A key just made. `presented` is the whole key, shown to its owner once: nobody can find it again."""

    record: KeyRecord
    presented: str = field(repr=False)


@frozen
class Change:
    number: int
    key_id: str


class KeyStore:
    """The KeyTable of api_key_database.py, and what an operator does. Every method raises StoreDown.

    wall: epoch seconds. cost: of bcrypt, for the secrets of new keys. may_make: as of Database.
    """

    def __init__(
        self, url: str, *, wall: Callable[[], float] = time.time, cost: int = BCRYPT_COST, may_make: bool = True
    ) -> None:
        self._database = Database(url, may_make=may_make)
        self._wall = wall
        self._cost = cost

    def close(self) -> None:
        self._database.close()

    # -- what workers ask

    def find(self, key_id: str) -> KeyRecord | None:
        return self.find_all((key_id,)).get(key_id)

    def find_all(self, ids: Iterable[str]) -> dict[str, KeyRecord]:
        """Those that exist, in one question."""
        found = self._database.rows(_FIND[self._database.dialect], json.dumps(list(ids)))
        records = [_record(dict(zip(API_KEYS.c.keys(), row, strict=True))) for row in found]
        return {record.key_id: record for record in records}

    def changes_since(self, number: int) -> list[Change]:
        """Those above `number`, in order."""
        wanted = select(CHANGES.c.number, CHANGES.c.key_id).where(CHANGES.c.number > number).order_by(CHANGES.c.number)
        with self._database.reading() as connection:
            return [Change(*row) for row in connection.execute(wanted)]

    def last_change(self) -> int:
        """The number of the newest change, 0 for none."""
        with self._database.reading() as connection:
            return _last_change(connection)

    # -- what an operator does

    def list(self, partner_id: str | None = None) -> list[KeyRecord]:
        """All keys, or a partner's; the oldest first. Raises KeyRefused for a partner id that no key can have."""
        wanted = select(API_KEYS).order_by(API_KEYS.c.created_s, API_KEYS.c.key_id)
        if partner_id is not None:
            with _told_as_refused():
                check_partner_id(partner_id)
            wanted = wanted.where(API_KEYS.c.partner_id == partner_id)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(wanted).mappings()]

    def create(
        self,
        partner_id: str,
        *,
        tier: str | None = None,
        scopes: Iterable[str] = (),
        networks: Iterable[str] = (),
        expires_s: float | None = None,
    ) -> NewKey:
        """Raises KeyRefused."""
        new = self._new(partner_id, tier, tuple(scopes), tuple(networks), expires_s)
        with self._database.writing() as connection:
            self._insert(connection, new.record)
        return new

    def rotate(self, key_id: str, overlap_s: float, *, expires_s: float | None = None) -> NewKey:
        """A key with the same partner, tier, scopes and networks in this one's place, which ends `overlap_s` from now.

        expires_s: the new key's end; None for that of the old one, which a rotation must not put off unasked.
        Raises KeyRefused for a key that does not exist, has ended, or was rotated already.
        """
        old = self._living(self.find(key_id), key_id)
        new_ends_s = old.expires_s if expires_s is None else expires_s
        new = self._new(old.partner_id, old.tier, old.scopes, old.networks, new_ends_s)
        ends_s = self._wall() + overlap_s
        with self._database.writing() as connection:  # bcrypt is over: the lock is short
            current = self._living(_locked(connection, key_id), key_id)
            end_s = ends_s if current.expires_s is None else min(ends_s, current.expires_s)
            self._update(connection, key_id, "rotate", expires_s=end_s, rotated_to=new.record.key_id)
            self._insert(connection, new.record)
        return new

    def revoke(self, key_id: str) -> KeyRecord:
        """The key, ended now or before. Raises KeyRefused when there is none."""
        with self._database.writing() as connection:
            if _locked(connection, key_id) is None:
                raise KeyRefused(f"there is no API key {key_id}")
            unless_revoked = func.coalesce(API_KEYS.c.revoked_s, self._wall())
            self._update(connection, key_id, "revoke", revoked_s=unless_revoked)
            record = _locked(connection, key_id)
        assert record is not None
        return record

    # -- parts of these

    def _new(
        self, partner_id: str, tier: str | None, scopes: tuple[str, ...], networks: tuple[str, ...], end_s: float | None
    ) -> NewKey:
        """Takes as long as bcrypt does."""
        now_s = self._wall()
        if end_s is not None and end_s <= now_s:
            raise KeyRefused("the key would have expired already")
        key_id, secret = _drawn(KEY_ID_CHARS), _drawn(SECRET_CHARS)
        with _told_as_refused():
            key = made(key_id, "", partner_id=partner_id, tier=tier, scopes=scopes, expires_s=end_s, networks=networks)
        secret_hash = bcrypt.hashpw(secret.encode("ascii"), bcrypt.gensalt(self._cost)).decode("ascii")
        whole = tuple(str(network) for network in key.networks)
        record = KeyRecord(key_id, partner_id, secret_hash, tier, scopes, whole, now_s, end_s)
        return NewKey(record, f"{PREFIX.decode('ascii')}{key_id}_{secret}")

    def _living(self, record: KeyRecord | None, key_id: str) -> KeyRecord:
        if record is None:
            raise KeyRefused(f"there is no API key {key_id}")
        state = record.state(self._wall())
        if state == "rotated":
            raise KeyRefused(f"API key {key_id} was rotated already: {record.rotated_to} is in its place")
        if state != "active":
            raise KeyRefused(f"API key {key_id} is {state}")
        return record

    def _insert(self, connection: Connection, record: KeyRecord) -> None:
        values = {name: getattr(record, name) for name in API_KEYS.c.keys()}
        values.update(scopes=json.dumps(record.scopes), networks=json.dumps(record.networks))
        connection.execute(API_KEYS.insert().values(values))
        self._note(connection, record.key_id, "create")

    def _update(self, connection: Connection, key_id: str, kind: str, **values: Any) -> None:
        connection.execute(API_KEYS.update().where(API_KEYS.c.key_id == key_id).values(values))
        self._note(connection, key_id, kind)

    def _note(self, connection: Connection, key_id: str, kind: str) -> None:
        """Writers take turns here, so that numbers become visible in their order; old changes go, never the newest."""
        if self._database.dialect == "postgresql":
            connection.execute(text("LOCK TABLE api_key_changes IN SHARE ROW EXCLUSIVE MODE"))
        number, now_s = _last_change(connection) + 1, self._wall()
        connection.execute(CHANGES.insert().values(number=number, key_id=key_id, kind=kind, changed_s=now_s))
        old = (CHANGES.c.changed_s < now_s - KEEP_CHANGES_S) & (CHANGES.c.number < number)
        connection.execute(CHANGES.delete().where(old))


@contextmanager
def _told_as_refused() -> Iterator[None]:
    try:
        yield
    except Unusable as unusable:
        raise KeyRefused(str(unusable)) from None


def _drawn(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _last_change(connection: Connection) -> int:
    return connection.execute(select(func.max(CHANGES.c.number))).scalar() or 0


def _locked(connection: Connection, key_id: str) -> KeyRecord | None:
    """The row, which nobody else changes until the transaction ends."""
    wanted = select(API_KEYS).where(API_KEYS.c.key_id == key_id).with_for_update()  # SQLite: the whole file is locked
    row = connection.execute(wanted).mappings().one_or_none()
    return None if row is None else _record(row)


def _record(row: RowMapping | dict[str, Any]) -> KeyRecord:
    """What this gateway did not write makes a record that is no usable key, and harms no other key's question."""
    values = dict(row)
    scopes, networks = _texts(row["scopes"]), _texts(row["networks"])
    whole = scopes is not None and networks is not None
    values.update(scopes=scopes if whole else (), networks=networks if whole else ("damaged",))
    return KeyRecord(**values)


def _texts(document: str) -> tuple[str, ...] | None:
    try:
        found = json.loads(document)
    except ValueError:
        return None
    return tuple(found) if type(found) is list and all(type(item) is str for item in found) else None
