"""Cases: who joins, who is turned away, and when the refused are told. Time is moved by the test."""

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.internet.task import Clock

from apigw.adapters.api_key_cases import _LOOKS, MAX_PER_ID, MAX_WAITING, Cases, refusal_deadlines
from apigw.core.api_keys import InvalidAPIKey, made
from apigw.stages.authentication import AuthenticationUnavailable

KEY = made("k", "f" * 64, partner_id="acme")
WRONG = InvalidAPIKey("key_wrong", "k")
UNVERIFIABLE = AuthenticationUnavailable("key_unverifiable")


class Cashier:
    """Cases on a clock of their own. Each request of ask() is in `told` with when and what it was told."""

    def __init__(self, max_in_flight: int = 200) -> None:
        self.clock = Clock()
        self.max_in_flight = max_in_flight
        self.cases = Cases(refusal_deadlines(self.clock), lambda: self.max_in_flight, 1.0)
        self.told: list[tuple[float, Any]] = []

    def ask(self, name: str, key_id: str | None = "k", preferred: bool = False) -> Any:
        case, new = self.cases.opened(name, key_id, preferred)
        waiting = self.cases.wait(case)
        waiting.addErrback(lambda failure: failure.value)
        waiting.addCallback(lambda told: self.told.append((round(self.clock.seconds(), 1), told)))
        return case, new, waiting

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 100 + 0.5)):
            self.clock.advance(0.01)


def test_a_good_key_goes_on_at_once_and_its_case_is_closed() -> None:
    desk = Cashier()
    case, new, _ = desk.ask("a")
    assert new and desk.told == []
    desk.cases.decided(case, KEY)
    assert desk.told == [(0.0, KEY)] and len(desk.cases) == desk.cases.waiting == 0


def test_who_goes_on_may_ask_again_at_once() -> None:
    """As the next request of a pipeline does: what it asks is a case of its own, not the one that has ended."""
    desk = Cashier()
    case, _, waiting = desk.ask("a")
    found: list[Any] = []
    waiting.addCallback(lambda _: found.append(desk.ask("a")))
    desk.cases.decided(case, KEY)
    again, new, _ = found[0]
    assert new and again is not case


@pytest.mark.parametrize("after_s", [0.0, 0.3, 0.9])
def test_a_refusal_is_told_after_the_same_time_whenever_it_was_found(after_s: float) -> None:
    desk = Cashier()
    case, _, _ = desk.ask("a")
    desk.advance(after_s)
    desk.cases.decided(case, WRONG)
    desk.advance(0.99 - after_s)
    assert desk.told == []
    desk.advance(0.05)
    assert desk.told == [(1.0, WRONG)]
    assert len(desk.cases) == desk.cases.waiting == 0


def test_a_refusal_that_is_found_late_is_told_at_the_next_time() -> None:
    desk = Cashier()
    case, _, _ = desk.ask("a")
    desk.advance(1.2)
    desk.cases.decided(case, WRONG)
    desk.advance(0.9)
    assert desk.told == [(2.0, WRONG)]


def test_a_key_is_looked_into_once_and_each_request_is_told_at_its_own_time() -> None:
    desk = Cashier()
    case, new, _ = desk.ask("a")
    desk.cases.decided(case, WRONG)
    desk.advance(0.5)
    again, new, _ = desk.ask("a")
    assert again is case and not new
    desk.advance(1.1)
    assert [when for when, _ in desk.told] == [1.0, 1.5]
    assert desk.ask("a")[1], "its case was closed; whoever remembers it decides at once"


def test_who_is_told_nothing_in_time_gets_503_and_the_case_goes_on() -> None:
    desk = Cashier()
    case, _, _ = desk.ask("a")
    desk.advance(_LOOKS + 0.2)
    ((when, told),) = desk.told
    assert when == _LOOKS and isinstance(told, AuthenticationUnavailable) and told.retry_after_s
    assert len(desk.cases) == 1
    desk.cases.decided(case, WRONG)
    assert len(desk.cases) == 0


def test_one_id_fills_its_places_whether_or_not_it_exists() -> None:
    """One key too many of an id within a second is crowded, 503 at its time; another id's is looked into."""
    desk = Cashier()
    for number in range(MAX_PER_ID):
        case, new, _ = desk.ask(f"a{number}")
        desk.cases.decided(case, InvalidAPIKey("key_unknown", "k"))  # at once, and the place stays taken
        assert new and not case.crowded
    case, _, _ = desk.ask("one too many")
    desk.cases.decided(case, UNVERIFIABLE)
    assert case.crowded and desk.told == [] and desk.cases.turned_away == 1
    assert not desk.ask("b", "other")[0].crowded
    assert not desk.ask("proven", preferred=True)[0].crowded, "a key that was good before is not kept out"
    desk.advance(1.05)
    assert sorted(told.status for _, told in desk.told) == [401] * MAX_PER_ID + [503]
    assert not desk.ask("a9")[0].crowded


def test_a_key_without_a_place_that_was_good_before_is_refused_like_a_guess_and_fills_none() -> None:
    """In the same words at the same time; and after both there is as much room as before."""
    desk = Cashier()
    for number in range(MAX_PER_ID):
        desk.cases.decided(desk.ask(f"a{number}")[0], WRONG)
    desk.advance(0.5)
    guess, _, _ = desk.ask("guess")
    revoked, new, _ = desk.ask("revoked", preferred=True)
    assert new and guess.crowded and not revoked.crowded
    desk.cases.decided(guess, UNVERIFIABLE)
    desk.cases.decided(revoked, InvalidAPIKey("key_revoked", "k"))
    assert desk.cases.turned_away == 2
    desk.advance(0.55)
    assert not any(desk.ask(f"b{number}")[0].crowded for number in range(MAX_PER_ID))
    desk.advance(0.5)
    assert [(when, type(told)) for when, told in desk.told[MAX_PER_ID:]] == [(1.5, AuthenticationUnavailable)] * 2


def test_a_key_without_a_place_that_is_good_goes_on_at_once() -> None:
    desk = Cashier()
    for number in range(MAX_PER_ID + 1):
        case, _, _ = desk.ask(f"a{number}", preferred=number == MAX_PER_ID)
    desk.cases.decided(case, KEY)
    assert desk.told == [(0.0, KEY)] and desk.cases.turned_away == 0


def test_a_crowded_key_goes_on_if_it_is_found_and_holds_nobody_up_if_not() -> None:
    """Looked into once while nobody knows, and anew after that: a place may be free by then."""
    desk = Cashier()
    for number in range(MAX_PER_ID):
        desk.ask(f"a{number}")
    case, new, _ = desk.ask("owner")
    again, joined, _ = desk.ask("owner")
    assert case.crowded and new and again is case and not joined
    desk.cases.decided(case, UNVERIFIABLE)
    desk.advance(0.5)
    case, new, _ = desk.ask("owner")
    assert case.crowded and new
    desk.cases.decided(case, KEY)
    assert desk.told == [(0.5, KEY)] and desk.cases.turned_away == 1
    desk.advance(0.55)
    assert desk.told[1:] == [(1.0, UNVERIFIABLE)] * 2


def test_too_many_waiting_requests_are_turned_away_before_anything_is_looked_at() -> None:
    desk = Cashier(max_in_flight=6)
    for number in range(3):
        desk.ask(f"a{number}", f"k{number}")
    for name in ("a1", "new"):
        with pytest.raises(AuthenticationUnavailable):
            desk.ask(name, "k7")
    assert desk.ask("a1", "k1", preferred=True) and desk.ask("proven", "k8", preferred=True)
    assert desk.cases.turned_away == 2


def test_a_key_that_was_good_once_and_is_refused_now_is_bounded_like_any_other() -> None:
    """It passes the bound while nobody knows, and when it is looked into anew; not as one of many that are refused."""
    desk = Cashier(max_in_flight=6)
    case, _, _ = desk.ask("revoked", preferred=True)
    for _ in range(9):
        desk.ask("revoked", preferred=True)
    desk.cases.decided(case, InvalidAPIKey("key_revoked", "k"))
    with pytest.raises(AuthenticationUnavailable):
        desk.ask("revoked", preferred=True)
    assert desk.cases.waiting == 10 and desk.cases.turned_away == 1
    desk.advance(1.05)
    assert desk.ask("revoked", preferred=True)[1]


@pytest.mark.parametrize(("max_in_flight", "most"), [(1, 1), (2, 1), (300, 150), (8000, 4000), (100_000, MAX_WAITING)])
def test_half_of_what_may_be_in_flight_may_wait(max_in_flight: int, most: int) -> None:
    """The other half is for those who are let in. At least one may, and there is a bound for memory's sake."""
    desk = Cashier(max_in_flight)
    case, _, _ = desk.ask("a", None)
    desk.cases.decided(case, InvalidAPIKey("key_malformed"))
    for _ in range(most - 1):
        desk.ask("a", None)
    for name in ("a", "b"):
        with pytest.raises(AuthenticationUnavailable):
            desk.ask(name, None)
    desk.max_in_flight *= 4  # a reload
    if most < MAX_WAITING:
        desk.ask("b", None)


def test_a_client_that_is_gone_frees_its_place_and_no_other() -> None:
    """Its case goes on: going away must not make room for one more guess."""
    desk = Cashier()
    case, _, waiting = desk.ask("a")
    desk.ask("a")
    waiting.cancel()
    assert desk.cases.waiting == 1 and isinstance(desk.told[0][1], CancelledError)
    desk.cases.decided(case, WRONG)
    assert len(desk.cases) == 1
    desk.advance(1.1)
    assert desk.told[1] == (1.0, WRONG) and len(desk.cases) == 0


def test_after_a_change_the_next_request_is_looked_into_anew() -> None:
    """A key that was unknown a moment ago may have been made; who waits already is told the old verdict."""
    desk = Cashier()
    case, _, _ = desk.ask("a")
    desk.cases.decided(case, WRONG)
    desk.ask("b", "other")
    desk.cases.changed(["k", "nobody"])
    again, new, _ = desk.ask("a")
    assert new and again is not case
    assert not desk.ask("b", "other")[1]
    desk.cases.decided(again, KEY)
    desk.advance(1.1)
    assert [told for _, told in desk.told] == [KEY, WRONG] and desk.cases.waiting == 2
    assert desk.ask("c")[1]


def test_a_change_makes_no_room_for_more_guesses() -> None:
    desk = Cashier()
    for number in range(MAX_PER_ID):
        desk.cases.decided(desk.ask(f"a{number}")[0], WRONG)
    desk.cases.changed(["k"])
    case, _, _ = desk.ask("one too many")
    assert case.crowded
    desk.cases.decided(case, UNVERIFIABLE)
    desk.advance(1.1)
    assert not desk.ask("later")[0].crowded and len(desk.cases) == 1


def test_refusals_of_requests_that_came_one_by_one_are_told_one_by_one() -> None:
    """A loop that tells those of eight milliseconds in one turn is, for a good key, away for as long."""
    desk = Cashier()
    desk.clock.advance(0.0005)  # in the midst of ticks, where a sum of milliseconds is on one side
    at_s: list[float] = []
    for number in range(20):
        case, _, waiting = desk.ask(f"name-{number}", f"id-{number}")
        waiting.addCallback(lambda _: at_s.append(desk.clock.seconds()))
        desk.cases.decided(case, WRONG)
        desk.clock.advance(0.001)
    for _ in range(2400):
        desk.clock.advance(0.0005)
    assert len(at_s) == len(set(at_s)) == 20
