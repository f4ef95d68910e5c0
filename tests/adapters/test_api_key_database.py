"""Questions to the table of keys, in threads: each has an end, and whatever goes wrong is StoreDown."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from apigw.adapters.api_key_database import BATCH, FLOOD_PAUSE_S, MANY, PAUSE_S, TOLD, KeyDatabase
from apigw.errors import StoreDown
from tests.adapters.api_key_world import Row, Table
from tests.servers import until

reactor: Any = installed_reactor


class Open:
    """Opens the table, after `failures` failures."""

    def __init__(self, table: Table, failures: int = 0) -> None:
        self.table = table
        self.failures = failures
        self.threads: set[str] = set()

    def __call__(self) -> Table:
        self.threads.add(threading.current_thread().name)
        if self.failures:
            self.failures -= 1
            raise StoreDown("cannot connect")
        return self.table


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def opens(table: Table) -> Open:
    return Open(table)


@pytest.fixture
def database(opens: Open) -> Iterator[KeyDatabase]:
    made = KeyDatabase(reactor, opens, timeout_s=0.2)
    made.startService()
    yield made
    pytest_twisted.blockon(maybeDeferred(made.stopService))


@pytest_twisted.ensureDeferred
async def test_a_row_is_found_in_a_thread(database: KeyDatabase, table: Table, opens: Open) -> None:
    table.put("k1")
    assert await database.find("k1") == Row("k1")
    assert await database.find("k2") is None
    assert threading.current_thread().name not in opens.threads


@pytest_twisted.ensureDeferred
async def test_changes_are_those_after_a_number(database: KeyDatabase, table: Table) -> None:
    for key_id in ("a", "b", "c"):
        table.put(key_id)
    assert await database.since(None) == (3, [])
    assert await database.since(1) == (3, ["b", "c"])
    assert await database.since(3) == (3, [])
    assert await database.since(4) == (3, None), "a backup was put in its place: any key may have changed"


@pytest_twisted.ensureDeferred
async def test_a_database_that_cannot_be_opened_is_tried_again(database: KeyDatabase, opens: Open) -> None:
    opens.failures = 2
    for _ in range(2):
        with pytest.raises(StoreDown):
            await database.find("k1")
    assert await database.find("k1") is None


@pytest_twisted.ensureDeferred
async def test_a_silent_database_is_down_after_its_time(database: KeyDatabase, table: Table) -> None:
    table.gate = threading.Event()
    began_s = reactor.seconds()
    questions = [database.find("k1") for _ in range(5)]  # more than there are threads
    for question in questions:
        with pytest.raises(StoreDown):
            await question
    assert 0.15 < reactor.seconds() - began_s < 0.6
    table.gate.set()
    table.gate = None
    assert await database.find("k1") is None


@pytest_twisted.ensureDeferred
async def test_ids_that_are_wanted_at_the_same_time_are_one_question(database: KeyDatabase, table: Table) -> None:
    """A thousand of them take a handful of turns of one thread, and one that is asked for twice is looked for once."""
    table.put("k1")
    ids = ["first", *(f"k{number}" for number in range(500)), "k1", "k1"]
    rows = [database.find(key_id) for key_id in ids]
    found = [await row for row in rows]
    assert [key_id for key_id, row in zip(ids, found) if row is not None] == ["k1"] * 3
    assert len(table.finds) == 501


class Hands(Clock):
    """Time goes on when the test says so; threads answer when they are ready."""

    callFromThread = staticmethod(reactor.callFromThread)

    def turn(self) -> None:
        """What is due, and not what that asks for: advance() would go on with it."""
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def timed(clock: Hands, opens: Open) -> Iterator[KeyDatabase]:
    made = KeyDatabase(clock, opens)
    made.startService()
    yield made
    pytest_twisted.blockon(maybeDeferred(made.stopService))


async def asked(database: KeyDatabase, clock: Hands, count: int) -> list[bool]:
    """One question for so many ids, after a first one. Returns when it is answered; whether each was told, in time."""
    told: list[bool] = [False] * count
    first = database.find("first")
    for number in range(count):
        database.find(f"k{number}").addCallback(lambda _, number=number: told.__setitem__(number, True))
    await first
    clock.advance(PAUSE_S)
    await until(lambda: told[0], reactor)
    return told


@pytest.mark.parametrize(
    "unknown, known, pause_s",
    [
        (MANY - 1, 0, PAUSE_S),
        (MANY, 0, FLOOD_PAUSE_S),
        (MANY - 1, 50, PAUSE_S),
        (MANY, 50, FLOOD_PAUSE_S),
        (BATCH - 1, 0, FLOOD_PAUSE_S),
        (BATCH, 0, PAUSE_S),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_question_of_many_unknown_ids_is_followed_by_a_longer_pause(
    timed: KeyDatabase, clock: Hands, table: Table, unknown: int, known: int, pause_s: float
) -> None:
    """One as large as they get is not: those that wait would become ever more. Good keys, however many, are not."""
    for number in range(known):
        table.put(f"k{number}")
    told = await asked(timed, clock, unknown + known)
    while not all(told):
        clock.advance(0)
    next_one = timed.find("next")
    (pause,) = clock.getDelayedCalls()
    assert pause.getTime() - clock.seconds() == pytest.approx(pause_s)
    clock.advance(pause_s)
    assert await next_one is None and table.finds[-1] == "next"


@pytest_twisted.ensureDeferred
async def test_an_id_that_is_real_does_not_wait_for_the_pause_of_a_flood(timed: KeyDatabase, clock: Hands) -> None:
    told = await asked(timed, clock, MANY)
    while not all(told):
        clock.advance(0)
    timed.find("next", real=True)
    (pause,) = clock.getDelayedCalls()
    assert pause.getTime() - clock.seconds() == pytest.approx(PAUSE_S)
    clock.advance(PAUSE_S / 2)
    timed.find("another", real=True)
    assert pause.getTime() - clock.seconds() == pytest.approx(PAUSE_S / 2), "and puts nothing off"


@pytest_twisted.ensureDeferred
async def test_an_id_that_is_real_and_wanted_while_a_flood_is_asked_for_is_next_to_it(
    timed: KeyDatabase, clock: Hands, table: Table
) -> None:
    table.gate = threading.Event()
    first = timed.find("first")
    unknown = [timed.find(f"k{number}") for number in range(MANY)]
    table.gate.set()
    await first
    table.gate = threading.Event()
    clock.advance(PAUSE_S)
    timed.find("next", real=True)
    table.gate.set()
    await until(lambda: unknown[0].called, reactor)
    while not unknown[-1].called:
        clock.advance(0)
    (pause,) = clock.getDelayedCalls()
    assert pause.getTime() - clock.seconds() == pytest.approx(PAUSE_S)


@pytest_twisted.ensureDeferred
async def test_answers_are_told_a_few_in_a_turn(timed: KeyDatabase, clock: Hands) -> None:
    """In their order; others wait for the loop too."""
    told = await asked(timed, clock, 3 * TOLD)
    for turn in (1, 2, 3):
        assert told == [number < turn * TOLD for number in range(3 * TOLD)]
        clock.turn()


@pytest_twisted.ensureDeferred
async def test_what_is_known_when_the_database_is_stopped_is_told(timed: KeyDatabase, clock: Hands) -> None:
    told = await asked(timed, clock, 3 * TOLD)
    await maybeDeferred(timed.stopService)
    assert all(told) and not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_what_waits_for_its_question_when_the_database_is_stopped_is_told(
    database: KeyDatabase, table: Table
) -> None:
    await database.find("k1")
    heard: list[Any] = []
    database.find("k2").addBoth(heard.append)
    assert not heard, "the pause after a question"
    await maybeDeferred(database.stopService)
    assert heard[0].check(StoreDown)


@pytest_twisted.ensureDeferred
async def test_a_stopped_database_is_down(opens: Open) -> None:
    database = KeyDatabase(reactor, opens)
    database.startService()
    await maybeDeferred(database.stopService)
    with pytest.raises(StoreDown):
        await database.find("k1")
