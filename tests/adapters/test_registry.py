"""What registries have in common: how often one is asked, what becomes of its answers, and of its failures."""

import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from apigw.adapters.registry import RegistryPoller, secret_of
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery
from apigw.core.discovery import Entry, RawEntry
from apigw.net.poller import PollFailed
from tests.adapters.registry_world import NOW_S, REACTOR

A, B = RawEntry("10.0.0.1", 80), RawEntry("10.0.0.2", 80)
ETCD = Discovery("etcd", "orders", endpoints=("http://10.9.9.9:2379",))


class Scripted(RegistryPoller):
    """Says what `says` holds: a list, an exception to raise, or a Deferred to wait for. On a clock."""

    def __init__(self, discovery: Discovery = ETCD, known: tuple[Entry, ...] = ()) -> None:
        self.test_clock = Clock()
        self.says: Any = [A]
        self.polls: list[float] = []
        self.lists: list[list[str]] = []
        super().__init__(
            self.test_clock,
            Wanted("orders", discovery),
            lambda: 1000.0 + self.test_clock.seconds(),
            lambda entries: self.lists.append([each.host for each in entries]),
            known=known,
            where="etcd somewhere",
            interval_s=1.0,
            longest_s=10.0,
            draw=lambda: 0.0,
        )

    async def inquire(self) -> None:
        self.polls.append(self.test_clock.seconds())
        says = self.says
        if isinstance(says, Deferred):
            await says
        elif isinstance(says, BaseException):
            raise says
        else:
            self.heard(says)

    def run_for(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.test_clock.advance(0.1)

    @property
    def hosts(self) -> list[str]:
        return [each.host for each in self.entries]


def started(**more: Any) -> Scripted:
    registry = Scripted(**more)
    registry.startService()
    return registry


def test_a_list_is_told_when_it_is_another_one() -> None:
    registry = started()
    registry.run_for(3)
    registry.says = [B, A]
    registry.run_for(3)
    registry.says = [A, B]
    registry.run_for(3)
    assert registry.lists == [["10.0.0.1"], ["10.0.0.1", "10.0.0.2"]] and len(registry.polls) > 6
    assert registry.up and registry.last_error is None


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PollFailed("status 500"), "status 500"),
        (PollFailed("a\r\nb\x1b[2J" + "x" * 1000), "a??b?[2J" + "x" * 492),
        (ZeroDivisionError("a defect"), "ZeroDivisionError"),
        ([RawEntry("169.254.169.254", 80), None], "no usable instance in the answer: 1 forbidden_address, 1 unusable"),
    ],
)
def test_a_failure_keeps_the_list_and_says_why_and_is_over_when_it_is(failure: Any, said: str) -> None:
    """A defect is logged with its traceback, which the log of the tests shows; the poller goes on."""
    registry = started()
    registry.says = failure
    registry.run_for(2)
    assert (registry.up, registry.last_error, registry.hosts) == (False, said, ["10.0.0.1"])
    registry.says = [B]
    registry.run_for(20)
    assert (registry.up, registry.last_error, registry.hosts) == (True, None, ["10.0.0.2"])


def test_failures_are_tried_again_less_and_less_often_but_within_15_seconds() -> None:
    registry = Scripted()
    registry.says = PollFailed("no")
    registry.startService()
    registry.run_for(60)
    gaps = [after - before for before, after in zip(registry.polls, registry.polls[1:])]
    assert gaps[:6] == pytest.approx([0.5, 1.0, 2.0, 4.0, 8.0, 15.0], abs=0.15) and max(gaps) < 15.2
    registry.says = [A]
    registry.run_for(20)
    assert registry.up


def test_a_poll_that_never_ends_is_ended() -> None:
    registry = Scripted()
    registry.says = Deferred()
    registry.startService()
    registry.run_for(10.5)
    assert (registry.up, registry.last_error) == (False, "no answer in time")
    registry.says = [A]
    registry.run_for(2)
    assert registry.up


def test_stopping_ends_what_is_under_way() -> None:
    registry = Scripted()
    waits: Deferred[None] = Deferred()
    registry.says = waits
    registry.startService()
    registry.stopService()
    assert waits.called and registry.test_clock.getDelayedCalls() == []


def test_the_list_from_before_is_in_force_until_there_is_another() -> None:
    registry = Scripted(known=(Entry("10.0.0.7", 80),))
    registry.says = PollFailed("no")
    registry.startService()
    assert registry.hosts == ["10.0.0.7"] and registry.lists == []
    registry.says = [RawEntry("10.0.0.7", 80)]
    registry.run_for(9)
    assert registry.up and registry.lists == [["10.0.0.7"]], "confirmed, once: it is this registry's list now"


def test_an_empty_answer_is_believed_after_the_time_of_the_configuration() -> None:
    registry = started(discovery=Discovery("etcd", "orders", empty_after_s=60.0))
    registry.says = []
    registry.run_for(59)
    assert registry.hosts == ["10.0.0.1"] and registry.up and registry.empty_since_s is not None
    registry.run_for(5)
    assert registry.hosts == [] and registry.lists[-1] == []


class Waiting(Scripted):
    """Waits for news after each answer: until `news` fires, or its poll is ended."""

    async def inquire(self) -> None:
        await super().inquire()
        self.news: Deferred[None] = Deferred()
        await self.news


def doubting(kind: type[Scripted], empty_after_s: float = 4.0) -> Scripted:
    """One that has just said that nobody is left."""
    known = (Entry("10.0.0.1", 80),)
    registry = kind(discovery=Discovery("etcd", "orders", empty_after_s=empty_after_s), known=known)
    registry.interval_s = 100.0
    registry.says = []
    registry.startService()
    return registry


def test_an_empty_answer_is_believed_when_its_time_is_over_though_a_poll_still_waits_for_news() -> None:
    registry = doubting(Waiting)
    registry.run_for(3.9)
    assert registry.hosts == ["10.0.0.1"] and registry.lists == []
    registry.run_for(0.2)
    assert registry.hosts == [] and registry.lists == [[]] and registry.polls == [0.0]
    assert registry.up and registry.last_success_epoch_s == 1000.0, "no answer came"


def test_between_polls_the_registry_is_asked_anew_when_the_time_of_an_empty_answer_is_over() -> None:
    registry = doubting(Scripted)
    registry.run_for(3.9)
    assert registry.hosts == ["10.0.0.1"] and registry.polls == [0.0]
    registry.run_for(0.2)
    assert registry.hosts == [] and registry.polls == pytest.approx([0.0, 4.0], abs=0.15)


def test_an_empty_answer_is_not_believed_while_the_registry_is_down() -> None:
    registry = doubting(Waiting, empty_after_s=12.0)
    registry.says = PollFailed("no")
    registry.run_for(30)
    assert registry.up is False and registry.hosts == ["10.0.0.1"]
    registry.says = []
    registry.run_for(15)
    assert registry.up and registry.hosts == []


def test_an_answer_that_is_not_empty_ends_the_doubt_and_stopping_does() -> None:
    registry = doubting(Waiting)
    assert isinstance(registry, Waiting)
    registry.says = [A, B]
    registry.interval_s = 1.0
    registry.news.callback(None)
    registry.run_for(8)
    assert registry.lists == [["10.0.0.1", "10.0.0.2"]]
    registry = doubting(Waiting)
    registry.stopService()
    assert registry.test_clock.getDelayedCalls() == []


def test_bad_entries_are_counted_and_the_good_ones_used() -> None:
    registry = Scripted()
    registry.says = [A, RawEntry("127.0.0.1", 80), RawEntry("10.0.0.3", 0), None]
    registry.startService()
    assert registry.hosts == ["10.0.0.1"]
    assert registry.skipped == {"loopback": 1, "bad_port": 1, "unusable": 1}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"s3cret\n", "s3cret"),
        (b"", "token_file does not hold one word of printable ASCII"),
        (b"two words", "token_file does not hold one word of printable ASCII"),
        (b"s3cret\r\nX-Header: y", "token_file does not hold one word of printable ASCII"),
        (b"\xc3\xa4", "token_file does not hold one word of printable ASCII"),
        (b"x" * 20_000, "token_file is larger than 16384 bytes"),
        (None, "token_file does not exist"),
    ],
)
def test_a_secret_is_one_word_or_a_sentence_without_it(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    try:
        assert secret_of(tmp_path / "token", "token_file") == said
    except PollFailed as error:
        assert str(error) == said


def test_a_list_that_is_dear_is_asked_for_less_often() -> None:
    """A thousand instances cost some milliseconds, and get a hundredth of the loop at most."""
    registry = started()
    assert registry.good_delay_s() == 1.0
    registry._cost_s = 0.02
    assert registry.good_delay_s() == pytest.approx(2.0)
    registry._cost_s = 10.0
    assert registry.good_delay_s() == 15.0


@pytest_twisted.ensureDeferred
async def test_a_large_answer_is_read_in_a_thread_and_told_in_the_loop() -> None:
    read_by: list[Any] = []
    told_by: list[Any] = []

    def read() -> list[RawEntry]:
        read_by.append(threading.current_thread())
        return [A]

    for size_bytes in (1000, 1_000_000):
        found = RegistryPoller(
            REACTOR,
            Wanted("orders", ETCD),
            lambda: NOW_S,
            lambda entries: told_by.append(threading.current_thread()),
            where="somewhere",
            interval_s=1.0,
            longest_s=10.0,
        )
        await found.hear(read, size_bytes)
        assert found.up and [each.host for each in found.entries] == ["10.0.0.1"]
    own = threading.current_thread()
    assert read_by[0] is own and read_by[1] is not own and told_by == [own, own]
