"""What all registries have in common: how often they are asked, what becomes of an answer, and what of a failure.

    not heard  --good answer-->  up     the list in force is the answer's
    up         --failure------>  down   the list in force stays, for as long as it takes
    down       --good answer-->  up

A failure is anything but a good answer: refused, silent, nonsense, too large, or not one usable entry. It is tried
again after 0.5, 1, 2, 4, 8, 15, 15 ... seconds, less up to a third, so that gateways do not come back together.
Whether an instance is well is not asked here: the gateway checks each one itself (upstream/health.py).

That nobody is left is believed when it has lasted (core/discovery.py), by a timer: a poll that waits for news may have
long to go then, and none may come.
"""

import random
from collections.abc import Callable, Iterable
from time import thread_time
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger

from apigw.adapters.wanted_instances import Wanted
from apigw.config.reading import Unreadable, read_bounded
from apigw.core.discovery import REASONS, Belief, Entry, RawEntry, Sifted, sift
from apigw.net.fetch import Answer, FetchFailed, Question, Trust, ask
from apigw.net.poller import Poller, PollFailed
from apigw.net.threads import in_thread
from apigw.ports import WallClock

MAX_ANSWER_BYTES = 4 * 2**20  # a thousand instances with all that Consul knows of them; parsing it takes 20 ms
ANSWER_S = 5.0  # for an answer that waits for nothing
_LARGE_BYTES = 65_536  # some hundred instances; below it reading takes a millisecond or two, as long as asking a thread
_MAX_ERROR_CHARS = 500
_MAX_SECRET_BYTES = 16_384  # a token of Kubernetes has about 1,000
_MAX_CA_BYTES = 1_048_576
_FIRST_BACK_OFF_S, _MAX_BACK_OFF_S = 0.5, 15.0  # contract 13.14: health is back within 35 s
_JITTER = 0.33
_REST = 100  # times what a list cost
_MAX_REST_S = 15.0

log = Logger()


class RegistryPoller(Poller):
    """A Registry (ports.py). Subclasses say in inquire() what a poll is: it may wait long for news, with an end, and
    calls heard() with each answer."""

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        wall: WallClock,
        on_instances: Callable[[tuple[Entry, ...]], None],
        *,
        known: tuple[Entry, ...] = (),
        where: str,
        interval_s: float,
        longest_s: float,
        clock: Any = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """known: the list in force so far. interval_s: from the end of a good poll to the next, unless delay_s()
        says otherwise. longest_s: a poll that takes longer has failed."""
        super().__init__(
            reactor if clock is None else clock,
            interval_s,
            name=f"discovery of {wanted.backend}, {where}",
            jitter=_JITTER,
            draw=draw,
            timeout_s=longest_s,
        )
        self.where = where
        self.up: bool | None = None
        self.last_error: str | None = None
        self.last_success_epoch_s: float | None = None
        self.skipped: dict[str, int] = {}
        self.wanted = wanted
        self._reactor = reactor
        self._wall = wall
        self._on_instances = on_instances
        self._boundary = wanted.boundary()
        self._belief = Belief(wanted.discovery.empty_after_s, known)
        self._last = Sifted((), {})  # the last good answer
        self._cost_s = 0.0  # what reading the last list took, and putting it in force
        self._trust: tuple[bytes | None, Trust] | None = None
        self._doubt: Any = None  # a timer: until an empty answer has lasted long enough

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self._belief.entries

    @property
    def empty_since_s(self) -> float | None:
        """Since when (by the clock) the registry names nobody, while its last list is kept."""
        return self._belief.empty_since_s

    async def inquire(self) -> None:
        """One poll. Raises PollFailed or FetchFailed for what registries do, anything for a defect."""
        raise NotImplementedError

    def good_delay_s(self) -> float:
        """Seconds from a good poll to the next."""
        return max(self.interval_s, self.rest_s())

    def rest_s(self) -> float:
        """How long to leave the registry alone because of what its last list cost: a thousand instances that change
        all the time may have a hundredth of the loop."""
        return min(_MAX_REST_S, _REST * self._cost_s)

    def stopService(self) -> None:
        self._doubt_for(None)
        super().stopService()

    # -- polling

    def delay_s(self) -> float:
        """See the top."""
        failures = self.consecutive_failures
        if not failures:
            return self.good_delay_s()
        return float(min(_MAX_BACK_OFF_S, _FIRST_BACK_OFF_S * 2.0 ** min(failures - 1, 10)))

    def poll(self) -> "Deferred[None]":
        return Deferred.fromCoroutine(self._poll())

    async def _poll(self) -> None:
        try:
            await self.inquire()
        except CancelledError:
            self._failed("no answer in time")
            raise
        except (PollFailed, FetchFailed) as error:
            why = _one_line(str(error))
            self._failed(why)
            raise PollFailed(why) from None
        except Exception as error:
            self._failed(type(error).__name__)
            raise

    def _failed(self, why: str) -> None:
        self.up = False
        self.last_error = why

    # -- answers

    async def hear(self, read: Callable[[], Iterable[RawEntry | None]], size_bytes: int) -> None:
        """heard() of what `read` makes of an answer of this size: in a thread when it is large, so that the loop is
        held for some milliseconds at a time and not for all of it. `read` must not touch what others use."""
        boundary = self._boundary

        def judge() -> tuple[Sifted, float]:
            began_s = thread_time()
            sifted = sift(read(), boundary)
            return sifted, thread_time() - began_s

        if size_bytes <= _LARGE_BYTES:
            self._judged(*judge())
        else:
            self._judged(*await in_thread(self._reactor, judge))

    def heard(self, answer: Iterable[RawEntry | None]) -> None:
        """A whole list came. Raises PollFailed when nothing in it is usable."""
        began_s = thread_time()
        sifted = sift(answer, self._boundary)
        self._judged(sifted, thread_time() - began_s)

    def _judged(self, sifted: Sifted, cost_s: float) -> None:
        began_s = thread_time()
        try:
            self._sifted(sifted)
        finally:
            self._cost_s = cost_s + thread_time() - began_s

    def _sifted(self, sifted: Sifted) -> None:
        self._tell_skipped(sifted.skipped)
        if sifted.skipped and not sifted.entries:
            raise PollFailed(f"no usable instance in the answer: {_counted(sifted.skipped)}")
        self._last = sifted
        first = self.last_success_epoch_s is None
        self.up, self.last_error = True, None
        self.last_success_epoch_s = self._wall()
        self._believe(sifted.entries, first)

    def _believe(self, entries: tuple[Entry, ...], first: bool = False) -> None:
        now_s = self.clock.seconds()
        before, kept_since_s = self.entries, self.empty_since_s
        changed = self._belief.take(entries, now_s)
        self._doubt_for(self._belief.doubted_for_s(now_s))
        if kept_since_s is None and self.empty_since_s is not None:
            log.warn(
                "{backend}: {where} names no instance; the last {count} are kept for {seconds} s",
                backend=self.wanted.backend,
                where=self.where,
                count=len(before),
                seconds=round(self.wanted.discovery.empty_after_s),
            )
        if changed:
            _log_change(self.wanted.backend, self.where, before, self.entries)
        if changed or (first and entries):
            self._on_instances(self.entries)

    def heard_again(self) -> None:
        """The same good answer as before; an empty one may have lasted long enough now."""
        self._sifted(self._last)

    def _doubt_for(self, delay_s: float | None) -> None:
        doubt, self._doubt = self._doubt, None
        if doubt is not None and doubt.active():
            doubt.cancel()
        if delay_s is not None and self.running:
            self._doubt = self.clock.callLater(delay_s, self.doubt_is_over)

    def doubt_is_over(self) -> None:
        """An empty answer has lasted. It is believed if a poll waits for news, and asked for anew if none does. While
        the registry is down the next good answer decides."""
        if self.up and self.in_flight:
            self._believe(())
        elif self.up:
            self.poll_within(0.0)

    def _tell_skipped(self, skipped: dict[str, int]) -> None:
        if skipped and skipped != self.skipped:
            log.warn(
                "{backend}: {where} has entries that are not used: {what}",
                backend=self.wanted.backend,
                where=self.where,
                what="; ".join(f"{count} {word}: {REASONS[word]}" for word, count in skipped.items()),
            )
        self.skipped = skipped

    # -- what HTTP registries share

    async def ask(self, question: Question, longest_s: float) -> Answer:
        """One question with an end. Raises FetchFailed, PollFailed when it took too long."""
        began_s = self.clock.seconds()
        asking: Deferred[Answer] = Deferred.fromCoroutine(ask(self._reactor, question, self._trusted()))
        asking.addTimeout(longest_s, self.clock)
        try:
            return await asking
        except (TimeoutError, FetchFailed) as error:
            if self.clock.seconds() - began_s >= longest_s:
                raise PollFailed(f"no answer within {longest_s:g} s") from None
            raise FetchFailed(str(error)) from None

    def _trusted(self) -> Trust:
        """Of `ca_file` as it is now, or of the system."""
        path = self.wanted.discovery.ca_file
        pem = None
        if path is not None:
            try:
                pem = read_bounded(path, _MAX_CA_BYTES)
            except Unreadable as error:
                raise PollFailed(f"ca_file {error}") from None
        if self._trust is None or self._trust[0] != pem:
            self._trust = pem, Trust(pem)
        return self._trust[1]


def secret_of(path: Any, key: str) -> str:
    """What a file of one line holds, read anew each time: who rotates it tells nobody. Raises PollFailed."""
    try:
        text = read_bounded(path, _MAX_SECRET_BYTES).strip()
    except Unreadable as error:
        raise PollFailed(f"{key} {error}") from None
    if not text or not all(33 <= byte < 127 for byte in text):
        raise PollFailed(f"{key} does not hold one word of printable ASCII")
    return text.decode("ascii")


def _one_line(text: str) -> str:
    """What a registry may have written, fit for a log: short, no control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:_MAX_ERROR_CHARS])


def _counted(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in skipped.items())


def _log_change(backend: str, where: str, before: tuple[Entry, ...], after: tuple[Entry, ...]) -> None:
    """One line; of long lists the beginning."""
    old, new = {_label(each) for each in before}, {_label(each) for each in after}
    log.info(
        "{backend}: {count} instances by {where}; new: {new}; gone: {gone}",
        backend=backend,
        count=len(after),
        where=where,
        new=_some(new - old),
        gone=_some(old - new),
    )


def _label(entry: Entry) -> str:
    return f"[{entry.host}]:{entry.port}" if ":" in entry.host else f"{entry.host}:{entry.port}"


def _some(labels: set[str]) -> str:
    named = sorted(labels)[:10]
    return ", ".join(named) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "") if named else "none"
