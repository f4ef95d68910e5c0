"""Rate counters in one Redis: one connection a worker, one script call a request, one write a turn of the loop.

Whether it is up is the connection's business (redis_node.py). A question that was not answered with counts:

    NOSCRIPT                     asked again after SCRIPT LOAD: SCRIPT FLUSH, a restart, a failover
    MOVED, ASK, TRYAGAIN         of a cluster, whose map knows who else to ask (redis_cluster.py)
    an error about one key       this one fails
    any other error              the node is down, and all that wait fail
    no answer within timeout_s   likewise
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import ReplyError
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from apigw.adapters.redis_link import RedisLink
from apigw.adapters.redis_node import Connect, RedisNode, ignored, unheard, unobserved
from apigw.adapters.redis_script import LOAD, Check, Question, about_one_key, packed, sent_away, settlements
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown

MAX_OUTSTANDING: Final = 10_000  # checks without an answer; more than 5 ms of any load
MAX_TRIES: Final = 3  # of one question: two nodes of a cluster, one of which has forgotten the script

Elsewhere = Callable[["RedisCounters", Question, str], bool]  # (who was asked, what, the error): whether it takes over


class RedisCounters(RedisNode):
    """A CounterStore over one Redis, shared by all gateways that use it; or the part of one on one node of a cluster.

    The arguments are RedisNode's. elsewhere: takes over what a cluster's node sends away.
    """

    def __init__(
        self,
        connect: Connect,
        clock: IReactorTime,
        after_turn: Callable[[Callable[[], None]], Any],
        section: RedisSection,
        *,
        title: str = "Redis",
        on_batch: Callable[[float, int], None] = unobserved,
        on_change: Callable[[], None] = unheard,
        elsewhere: Elsewhere | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            connect, clock, after_turn, section, title=title, on_batch=on_batch, on_change=on_change, draw=draw
        )
        self._elsewhere = elsewhere
        self._batch: list[Question] = []  # of this turn
        self._again: list[tuple[bytes, Question]] = []  # of this turn: what goes before, and what is asked again

    # -- the port

    def take(self, demands: Sequence[Demand], now_s: float) -> "Deferred[Counted]":
        """Count one request against all of `demands` or none; `now_s` is in epoch seconds.

        Raises CounterStoreDown at once while down; the Deferred fails with it when Redis does not answer in time.
        """
        link = self._link
        if not self.up or link is None:
            raise CounterStoreDown(self.last_error)
        batch = self._batch
        if len(batch) + len(link.waiting) >= MAX_OUTSTANDING:
            raise CounterStoreDown("too many checks wait for Redis")
        if not batch:
            self._after_turn(self._flush)
        deferred: Deferred[Counted] = Deferred()
        batch.append(Check(deferred, packed(demands, now_s), len(demands), self.refused))
        return deferred

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        """Requests counted elsewhere, the last at `at_s` (epoch seconds); before the checks of this turn."""
        if self.up and self._link is not None:
            if not self._batch:
                self._after_turn(self._flush)
            self._batch += settlements(demand, count, at_s, self.refused)

    # -- asking

    def put(self, question: Question) -> None:
        """Ask at the end of this turn. Raises CounterStoreDown."""
        link = self._link
        if not self.up or link is None:
            raise CounterStoreDown(self.last_error)
        if len(self._batch) + len(link.waiting) >= MAX_OUTSTANDING:
            raise CounterStoreDown("too many checks wait for Redis")
        if not self._batch:
            self._after_turn(self._flush)
        self._batch.append(question)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch and self._link is not None:  # else it failed together with the connection
            self._link.ask(b"".join([check.command for check in batch]), batch, len(batch))

    def again(self, question: Question, before: bytes = b"") -> None:
        """Once more, at the end of this turn and right after the command `before`. Raises CounterStoreDown.

        A node that is being connected to for the first time (it has a slot since a moment) is waited for.
        """
        if not self.up and not self.fresh:
            raise CounterStoreDown(self.last_error)
        if len(self._again) >= MAX_OUTSTANDING:
            raise CounterStoreDown("too many checks wait for Redis")
        question.tries += 1
        question.refused = self.refused
        if not self._again:
            if self.up:
                self._after_turn(self._ask_again)
            else:
                self._deadlines.add(self._timeout_s, self._waited)
        self._again.append((before, question))

    def _waited(self) -> None:
        """For a node that is not up by now. Who began to wait later fails with the first."""
        if not self.up:
            again, self._again = self._again, []
            for _, question in again:
                question.fail(f"not connected within {self._timeout_s * 1000:g} ms")

    def _go_up(self) -> None:
        super()._go_up()
        if self._again:
            self._after_turn(self._ask_again)

    def _ask_again(self) -> None:
        again, self._again = self._again, []
        if not again or self._link is None:
            return
        commands: list[bytes] = []
        takers: list[Callable[[Any], None]] = []
        for before, question in again:
            if before and not (before is LOAD and LOAD in commands):  # the script is loaded once for all of them
                commands.append(before)
                takers.append(ignored)
            commands.append(question.command)
            takers.append(question)
        self._link.ask(b"".join(commands), takers, len(again))

    # -- answers that are none

    def refused(self, question: Question, reply: Any) -> None:
        """A question was not answered as it should be."""
        text = str(reply)[:200]
        if not isinstance(reply, ReplyError):
            self._abandon("a check's answer is not the script's")
        elif question.tries < MAX_TRIES and text.startswith("NOSCRIPT"):
            self.again(question, LOAD)
            return
        elif self._elsewhere is not None and sent_away(text):
            if self._elsewhere(self, question, text):
                return
        elif not about_one_key(text):
            self._error(text)
        question.fail(text)

    def _error(self, text: str) -> None:
        if self._elsewhere is None and sent_away(text):
            text += ": this Redis is part of a cluster, whose URL begins with redis+cluster://"
        super()._error(text)

    def _unanswered(self, link: RedisLink | None) -> Sequence[Question]:
        failed = self._batch + [question for _, question in self._again]
        self._batch, self._again = [], []
        if link is not None:
            failed += [question for question in link.waiting if isinstance(question, Question)]
        return failed
