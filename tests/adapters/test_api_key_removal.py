"""How changed keys leave Redis when nobody else takes them out. Time is moved by the test, Redis is played."""

from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock

from apigw.adapters.api_key_removal import MAX_LEFT, Removal
from apigw.adapters.api_key_shared import SharedKeys
from apigw.errors import StoreDown
from tests.adapters.api_key_world import Store

TTL_S = 300.0


class Desk:
    """Redis with a record of each of these ids, and what takes them out."""

    def __init__(self, *ids: str) -> None:
        self.clock = Clock()
        self.store = Store()
        for key_id in ids:
            self.put(key_id)
        self.removal = Removal(self.clock, SharedKeys(self.store, TTL_S), TTL_S)
        self.removal.startService()

    def put(self, key_id: str) -> None:
        self.store.sets[f"apikeys:{{{key_id}}}"] = {key_id}
        self.store.values[f"apikey:{key_id}"] = b"{}"


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk("a", "b", "c")
    yield desk
    desk.removal.stopService()


def test_the_records_of_changed_keys_leave_redis_and_no_others(desk: Desk) -> None:
    desk.removal.changed(["a", "c", "unknown"])
    assert desk.store.records() == ["apikey:b"] and len(desk.removal) == 0


def test_nothing_is_asked_of_redis_while_nothing_was_changed(desk: Desk) -> None:
    desk.removal.changed([])
    assert desk.store.commands == []


def test_while_redis_is_down_it_is_asked_once_in_a_while_and_the_records_leave_when_it_is_back(desk: Desk) -> None:
    """One command for each answer of the database, however many keys are left."""
    desk.store.down = True
    desk.removal.changed(["a", "b"])
    for _ in range(4):
        desk.removal.changed([])
    assert len(desk.store.commands) == 5 and len(desk.removal) == 2
    desk.store.down = False
    desk.removal.changed([])
    assert desk.store.records() == ["apikey:c"] and len(desk.removal) == 0


def test_a_node_of_a_cluster_that_is_down_does_not_keep_what_others_have(desk: Desk) -> None:
    answered = desk.store.command

    def command(key: str, *words: Any) -> "Deferred[Any]":
        return fail(StoreDown("its node is down")) if key == "apikeys:{a}" else answered(key, *words)

    desk.store.command = command  # type: ignore[method-assign]
    desk.removal.changed(["a", "b"])
    desk.removal.changed([])
    assert desk.store.records() == ["apikey:a", "apikey:c"] and len(desk.removal) == 1


def test_a_record_that_has_ended_by_itself_is_left_alone(desk: Desk) -> None:
    desk.store.down = True
    desk.removal.changed(["a"])
    desk.store.down = False
    desk.store.commands.clear()
    desk.clock.advance(TTL_S)
    desk.removal.changed([])
    assert desk.store.commands == [] and len(desk.removal) == 0


def test_what_is_left_is_bounded_and_the_newest_stay(desk: Desk) -> None:
    desk.store.down = True
    desk.removal.changed(["a", *(f"k{number}" for number in range(MAX_LEFT - 1)), "b"])
    assert len(desk.removal) == MAX_LEFT
    desk.store.down = False
    desk.removal.changed([])
    assert desk.store.records() == ["apikey:a", "apikey:c"]


def test_one_id_is_taken_out_at_a_time_and_one_changed_meanwhile_comes_next(desk: Desk) -> None:
    held: Deferred[Any] = Deferred()
    answered = desk.store.command
    desk.store.command = lambda key, *words: held  # type: ignore[method-assign]
    desk.removal.changed(["a"])
    desk.store.command = answered  # type: ignore[method-assign]
    desk.removal.changed(["b"])
    assert desk.store.commands == []
    held.callback([b"a"])
    assert desk.store.records() == ["apikey:b", "apikey:c"]
    desk.removal.changed([])
    assert desk.store.records() == ["apikey:c"]


def test_at_the_end_nothing_is_waited_for(desk: Desk) -> None:
    desk.store.command = lambda key, *words: Deferred()  # type: ignore[method-assign]
    desk.removal.changed(["a"])
    desk.removal.stopService()
    desk.store.commands.clear()
    desk.removal.changed(["b"])
    assert desk.store.commands == [] and len(desk.removal) == 2
