"""How a worker hears of changed keys: told, asked for, or neither. Time is moved by the test."""

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from apigw.adapters.api_key_changes import Announcements, Changes
from apigw.errors import StoreDown
from tests.adapters.api_key_world import Store


class World:
    """A database whose changes the test writes, and what was heard of them."""

    def __init__(self, store: Store | None) -> None:
        self.clock = Clock()
        self.written: list[str] = []
        self.down = False
        self.asked = 0
        self.held: Deferred[Any] | None = None
        self.heard: list[list[str] | None] = []
        announcements = None if store is None else Announcements(store)
        self.changes = Changes(self.clock, announcements, self.since, self.heard.append, lambda: 0.0)

    def since(self, number: int | None) -> Any:
        self.asked += 1
        if self.down:
            return fail(StoreDown("the test says so"))
        changed = [] if number is None else self.written[number:] if number <= len(self.written) else None
        answer = (len(self.written), changed)
        if self.held is not None:
            return self.held.addCallback(lambda _: answer)
        return succeed(answer)

    def start(self) -> "World":
        self.changes.startService()
        return self

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 10 + 0.5)):
            self.clock.advance(0.1)


def deaf() -> Store:
    store = Store()
    store.listening = False
    return store


def test_without_redis_the_database_is_asked_every_two_seconds() -> None:
    world = World(None).start()
    assert world.heard == [None], "what was learned before the first answer may be over"
    world.written += ["a", "b"]
    world.advance(2.1)
    assert world.heard == [None, ["a", "b"]] and not world.changes.in_step
    world.advance(2.1)
    assert len(world.heard) == 2 and world.asked == 3
    assert round(world.changes.heard_s, 1) == 4.0


def test_when_the_database_was_replaced_by_an_older_one_any_key_may_have_changed() -> None:
    world = World(None)
    world.written += ["a", "b"]
    world.start()
    del world.written[1:]
    world.advance(2.1)
    assert world.heard == [None, None]
    world.written.append("c")
    world.advance(2.1)
    assert world.heard[-1] == ["c"]


def test_redis_tells_at_once_and_the_database_is_asked_half_as_often() -> None:
    store = Store()
    world = World(store).start()
    world.advance(2.1)
    assert world.changes.in_step
    asked = world.asked
    store.publish("apigw:apikeys", b'{"key_id": "a"}')
    assert world.heard[-1] == ["a"]
    world.written.append("b")
    world.advance(4.5)
    assert world.heard[-1] == ["b"] and world.changes.heard_s > 4, "messages can be lost"
    world.advance(40)
    assert 9 <= world.asked - asked <= 13


def test_what_may_have_been_missed_is_asked_for_when_redis_listens_again() -> None:
    store = deaf()
    world = World(store).start()
    world.down = True
    world.written.append("missed")
    world.advance(10)
    assert not world.changes.in_step and world.changes.heard_s == 0.0 and not world.changes.database_up
    store.begin()
    assert not world.changes.in_step, "the database has not said what was missed"
    world.down = False
    world.advance(2.1)
    assert world.changes.in_step and world.heard[-1] == ["missed"]
    store.deafen()
    assert not world.changes.in_step


def test_an_answer_to_a_question_from_before_redis_listened_does_not_count() -> None:
    store = deaf()
    world = World(store)
    world.held = Deferred()
    world.start()
    world.advance(1)
    store.begin()
    held, world.held = world.held, Deferred()
    held.callback(None)
    assert not world.changes.in_step and world.asked == 2, "asked again at once"
    world.held.callback(None)
    assert world.changes.in_step


def test_a_message_that_cannot_be_read_may_be_a_change() -> None:
    store = Store()
    world = World(store).start()
    store.begin()
    world.advance(2.1)
    for message in (b"", b"[]", b'{"key_id": 7}', b"\xff"):
        asked = world.asked
        world.written.append("a")
        store.publish("apigw:apikeys", message)
        assert world.asked == asked + 1 and world.heard[-1] == ["a"]
        assert world.changes.in_step


def test_a_source_made_by_a_reload_hears_from_its_start_and_a_stopped_one_no_more() -> None:
    """The subscription is the process's; it began long before."""
    store = Store()
    world = World(store).start()
    assert world.changes.in_step
    world.changes.stopService()
    store.publish("apigw:apikeys", b'{"key_id": "a"}')
    store.begin()
    assert world.heard == [None]


def test_a_stamp_differs_after_a_change() -> None:
    store = Store()
    world = World(store).start()
    stamps = [world.changes.stamp("a")]
    store.publish("apigw:apikeys", b'{"key_id": "b"}')
    assert world.changes.stamp("a") == stamps[0] and not world.changes.known("a")
    for _ in range(2):
        store.publish("apigw:apikeys", b'{"key_id": "a"}')
        assert world.changes.stamp("a") not in stamps and world.changes.known("a")
        stamps.append(world.changes.stamp("a"))


def test_stamps_are_bounded_and_none_is_taken_for_an_older_one() -> None:
    world = World(None).start()
    world.written += ["a"]
    world.advance(2.1)
    before = world.changes.stamp("a"), world.changes.stamp("z")
    world.written += [f"k{number}" for number in range(10_000)]
    world.advance(2.1)
    assert world.changes.stamp("a") != before[0] and world.changes.stamp("z") != before[1]
    assert len(world.changes._stamps) <= 10_000
