"""What API keys stand on, played by the test: a table of keys and a store that all gateways share. Both can fail."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import bcrypt
from attrs import evolve, frozen
from twisted.internet.defer import Deferred, fail, succeed

from apigw.errors import StoreDown

SECRET = b"s" * 43
QUICK = bcrypt.hashpw(SECRET, bcrypt.gensalt(4)).decode()


def shown(key_id: str, secret: bytes = SECRET) -> bytes:
    """A key as a client sends it."""
    return b"pk_live_%b_%b" % (key_id.encode(), secret)


@frozen
class Row:
    key_id: str
    partner_id: str = "acme"
    secret_hash: str = QUICK
    tier: str | None = None
    scopes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    expires_s: float | None = None
    revoked_s: float | None = None


@frozen
class Change:
    number: int
    key_id: str


class Table:
    """A KeyTable. finds: ids that were looked for. `down`: it does not answer. at_find: called in the thread, before
    the answer with the number of the find."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.changes: list[Change] = []
        self.finds: list[str] = []
        self.down = False
        self.at_find: Callable[[int], None] = lambda number: None
        self.gate: threading.Event | None = None  # questions wait for it

    def put(self, key_id: str, **members: Any) -> bytes:
        """A key of this id, new or edited; as a client sends it."""
        self.rows[key_id] = evolve(self.rows.get(key_id, Row(key_id)), **members)
        self.changes.append(Change(len(self.changes) + 1, key_id))
        return shown(key_id)

    def _answer(self) -> None:
        if self.gate is not None:
            self.gate.wait(5)
        if self.down:
            raise StoreDown("the test says so")

    def find_all(self, ids: Sequence[str]) -> dict[str, Row]:
        found = {key_id: self._find(key_id) for key_id in ids}
        return {key_id: row for key_id, row in found.items() if row is not None}

    def _find(self, key_id: str) -> Row | None:
        self.finds.append(key_id)
        self._answer()
        row = self.rows.get(key_id)
        self.at_find(len(self.finds))
        return row

    def changes_since(self, number: int) -> list[Change]:
        self._answer()
        return self.changes[number:]

    def last_change(self) -> int:
        self._answer()
        return len(self.changes)


class Store:
    """A SharedStore in memory, of as many gateways as use it. `down`: nothing is answered or heard."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.sets: dict[str, set[str]] = {}
        self.commands: list[tuple[Any, ...]] = []
        self.down = False
        self.listening = True
        self.left_ms = 300_000  # of each record's life
        self.answers: list[Deferred[Any]] | None = None  # when a list, GETs wait there for the test
        self._heard: list[tuple[str, Callable[[bytes], None]]] = []
        self._begins: list[Callable[[], None]] = []

    def command(self, key: str, *words: Any) -> "Deferred[Any]":
        self.commands.append(words)
        if self.down:
            return fail(StoreDown("the test says so"))
        name = words[0]
        if name == "GET":
            if self.answers is not None:
                self.answers.append(Deferred())
                return self.answers[-1]
            return succeed(self.values.get(key))
        if name == "PTTL":
            return succeed(self.left_ms if key in self.values else -2)
        if name == "SET":
            self.values[key] = words[2]
        elif name == "DEL":
            self.values.pop(key, None)
        elif name == "SMEMBERS":
            return succeed([digest.encode() for digest in sorted(self.sets.get(key, ()))])
        elif name == "SADD":
            self.sets.setdefault(key, set()).add(words[2])
        return succeed(1)

    def publish(self, channel: str, message: bytes) -> "Deferred[Any]":
        for heard, on_message in self._heard:
            if heard == channel and self.listening:
                on_message(message)
        return succeed(0)

    def listen(self, channel: str, on_message: Callable[[bytes], None], on_listening: Callable[[], None]) -> None:
        self._heard.append((channel, on_message))
        self._begins.append(on_listening)

    def begin(self) -> None:
        """The subscription begins, perhaps again."""
        self.listening = True
        for on_listening in self._begins:
            on_listening()

    def deafen(self) -> None:
        self.listening = False

    def records(self) -> list[str]:
        return [key for key in self.values if key.startswith("apikey:")]

    def revoke(self, key_id: str) -> None:
        """What whoever revokes a key does here, when the database has it."""
        for digest in self.sets.pop(f"apikeys:{{{key_id}}}", ()):
            self.values.pop(f"apikey:{digest}", None)
        self.publish("apigw:apikeys", b'{"key_id": "%b"}' % key_id.encode())
