"""The connections of one worker to one backend: bounded, kept alive, shared out over its instances.

A request gets an idle connection, a new one, or a place in a bounded queue, in this order; it waits no
longer than its route's timeout. Never more than `max_connections` are open, detached ones included. Which
instance: core/balancer.py, and Note [Fair parts] in member.py.
"""

from collections import OrderedDict, deque
from itertools import islice
from typing import Any, Callable

from apigw.config.model import Backend
from apigw.core.balancer import SmoothRoundRobin
from apigw.net.connect import EXHAUSTED, REFUSED, TIMED_OUT, Connector
from apigw.net.deadlines import Deadlines
from apigw.upstream.connection import UpstreamConnection
from apigw.upstream.detached import Detached
from apigw.upstream.member import Member, oldest_idle, share_out
from apigw.upstream.slow_clients import SlowClients, Transfer
from apigw.upstream.waiting import Failed, Opening, Waiter

CONNECT_TIMEOUT_S = 5.0  # a local network answers in milliseconds; the route's timeout may be shorter
CONNECT_AT_LEAST_S = 1.0  # below it nothing is said of the instance: a lost SYN is sent again after a second
QUEUE_MAX = 1000  # requests waiting for a connection of one backend
KEEP_ALIVE_S = 30.0  # contract section 8: TCP asks a silent peer whether it is there
_LIFETIME_SPREAD = 0.2  # of max_lifetime: what was opened together does not end together
_AT_ONCE = 50  # waiters served, or clients ended, in one turn of the loop
_MOMENT_S = 0.1  # in a burst a place comes free sooner than this: then no slow client has to go

POOL_FULL, NO_INSTANCE = "pool_full", "no_healthy_instance"
_WORDS = {REFUSED: "connection was refused", TIMED_OUT: "connect was not answered"}


def _no_draw() -> float:
    return 0.0


def _unknown() -> float:
    return 5.0  # about half a health check interval


class Pool:
    """`on_connect_failure(member, why)` feeds the health check with live traffic, `back_in_s()` is its guess when a
    backend without a healthy instance may have one again. `draw` gives numbers in [0, 1): random.random."""

    def __init__(
        self,
        reactor: Any,
        deadlines: Deadlines,
        connector: Connector,
        backend: Backend,
        draw: Callable[[], float] = _no_draw,
    ) -> None:
        now_s = reactor.seconds()
        self.backend = backend
        self.members: list[Member] = [Member(instance, now_s) for instance in backend.instances]
        self.open = 0
        self.busy = 0
        self.closed = False
        self.on_connect_failure: Callable[[Member, str], None] | None = None
        self.back_in_s: Callable[[], float] = _unknown
        self._reactor = reactor
        self._deadlines = deadlines
        self._connector = connector
        self._draw = draw
        self._queue: deque[Waiter] = deque()
        self._admitting = False  # the queue's first are about to be served, in a turn of their own
        self._openings: "OrderedDict[Waiter, Opening]" = OrderedDict()
        self._detached = Detached()
        self.slow_clients = SlowClients()
        self._looking = False  # at them, a moment from now
        self._waited: frozenset[Waiter] = frozenset()  # who waited when that was set
        self._in_vain = False  # since the last look a request has given up waiting for a place
        self._balance: SmoothRoundRobin[Member] = SmoothRoundRobin(())
        self._ramping = False
        self.rebalance()

    def rebalance(self) -> None:
        """After the health, the weights or the set of members changed."""
        now_s, over_s = self._reactor.seconds(), self.backend.slow_start_s
        up = [member for member in self.members if member.up]
        self._balance = SmoothRoundRobin([(member, member.weight(now_s, over_s)) for member in up], self._balance)
        self._ramping = any(member.joined_s is not None for member in up)
        share_out(up, self.backend.max_connections)
        self._serve_queue()

    # -- for requests

    def acquire(self, waiter: Waiter) -> None:
        """Give the waiter a connection now or later. It must give up by itself: abandon()."""
        if self._queue:  # who came earlier goes first
            self._enqueue(waiter)
            self._detached.give_way(self._reactor.seconds())
        else:
            self._provide(waiter)

    def refused(self, waiter: Waiter) -> bool:
        """Whether no instance is in rotation: then the waiter has been told."""
        if self._balance:
            return False
        waiter.pool_failed(NO_INSTANCE, f"no healthy instance of {self.backend.name}", None)
        return True

    def _provide(self, waiter: Waiter) -> None:
        member = self._balance.pick()
        if member is None:
            self.refused(waiter)
            return
        if member.open - len(member.idle) >= member.free and member.crowded(self.busy):
            member = self._balance.pick_among(self._has_room) or member
        while member.idle:
            connection = member.idle[-1]
            if connection.stale():  # what it holds would be taken for the answer to this request (contract 13.5)
                connection.kill()
                continue
            member.idle.pop()
            self.busy += 1
            waiter.pool_ready(connection)
            return
        if self.open < self.backend.max_connections or self._make_room():
            self._open(member, waiter)
        else:
            self._enqueue(waiter)

    def _has_room(self, member: Member) -> bool:
        return not member.crowded(self.busy)

    def _enqueue(self, waiter: Waiter) -> None:
        if len(self._queue) < QUEUE_MAX:
            self._queue.append(waiter)
            self._look_soon()
        else:
            waiter.pool_failed(POOL_FULL, f"{QUEUE_MAX} requests wait for {self.backend.name} already", None)

    def acquire_fresh(self, member: Member, waiter: Waiter) -> None:
        """A new connection to the same instance, for the one safe replay (contract section 3)."""
        if self.open < self.backend.max_connections or self._make_room():
            self._open(member, waiter)
        else:
            waiter.pool_failed(POOL_FULL, "no room for a replay", member.label)

    def abandon(self, waiter: Waiter) -> Failed:
        """The waiter does not want a connection any more. Says what it has waited for."""
        opening = self._openings.pop(waiter, None)
        if opening is not None:
            opening.waiter = None
            return Failed(TIMED_OUT, "no answer to the connect", opening.member.label)
        try:
            self._queue.remove(waiter)
            self._in_vain = self._looking
        except ValueError:
            pass
        return Failed(POOL_FULL, f"all {self.open} connections stayed busy", None)

    def take_guarded(self, most: int) -> list[Waiter]:
        """Out of the queue: the first so many that obey the circuit breaker. Who takes them fails them."""
        taken = list(islice((waiter for waiter in self._queue if waiter.guarded), most))
        gone = {*taken}
        self._queue = deque(waiter for waiter in self._queue if waiter not in gone)
        return taken

    def _make_room(self) -> bool:
        """Close the idle connection that rested longest, else one whose answer nobody has waited for for a while."""
        return self._close_an_idle_one() or self._detached.give_way(self._reactor.seconds())

    def _close_an_idle_one(self) -> bool:
        oldest = oldest_idle(self.members)
        if oldest is not None:
            oldest.kill()
        return oldest is not None

    # -- slow clients

    def follow(self, transfer: Transfer) -> None:
        """A body or an answer is streamed: its client may hold a connection that others want. See slow_clients.py."""
        self.slow_clients.follow(transfer, self._reactor.seconds())
        self._look_soon()

    def unfollow(self, transfer: Transfer) -> None:
        self.slow_clients.pop(transfer, None)

    def _look_soon(self) -> None:
        if self._queue and self.slow_clients and not self._looking:
            self._looking = True
            self._waited = frozenset(self._queue)
            self._deadlines.add(_MOMENT_S, self._look)

    def _look(self) -> None:
        """For each request that has waited for a moment a client gives way, if there are any so slow."""
        self._looking = False
        wanted = max(sum(waiter in self._waited for waiter in self._queue), self._in_vain)
        self._in_vain, self._waited = False, frozenset()
        self.slow_clients.look(self._reactor.seconds())
        self.slow_clients.give_way(min(wanted, _AT_ONCE))
        self._look_soon()

    # -- connections

    def _open(self, member: Member, waiter: Waiter | None) -> None:
        self.open += 1
        self.busy += 1
        member.open += 1
        opening = Opening(self, member, waiter)
        timeout_s = CONNECT_TIMEOUT_S
        if waiter is not None:
            self._openings[waiter] = opening
            timeout_s = min(timeout_s, max(waiter.timeout_s, CONNECT_AT_LEAST_S))
        self._connector.connect(member.instance.host, member.instance.port, timeout_s, opening)

    def opened(self, opening: Opening, sock: Any, peer: Any) -> None:
        member = opening.member
        member.refused = 0
        lifetime_s = self.backend.max_lifetime_s * (1.0 - _LIFETIME_SPREAD * self._draw())
        connection = UpstreamConnection(self, member, self._reactor.seconds(), lifetime_s)
        transport = self._connector.transport(sock, peer, connection)
        transport.keep_alive(KEEP_ALIVE_S)
        transport.start()
        waiter = opening.waiter
        if waiter is None:
            connection.reused = True  # it will have rested when a request gets it
            self.release(connection)
        else:
            del self._openings[waiter]
            waiter.pool_ready(connection)

    def open_failed(self, opening: Opening, reason: str, detail: str) -> None:
        member = opening.member
        self.open -= 1
        self.busy -= 1
        member.open -= 1
        waiter = opening.waiter
        if waiter is not None:
            del self._openings[waiter]
        if self.on_connect_failure is not None and reason != EXHAUSTED:
            self.on_connect_failure(member, f"a request's {_WORDS.get(reason, 'connect failed')}: {detail}")
        if waiter is not None:
            if member.retired and self.members:  # taken off the list meanwhile, and nothing was sent to it
                self.acquire(waiter)
            elif reason != EXHAUSTED or not self._lend(waiter):
                waiter.pool_failed(reason, detail, member.label)
        self._serve_queue()

    def _lend(self, waiter: Waiter) -> bool:
        """Where no connection can be made an idle one must do, whoever's turn it is."""
        for member in self.members:
            while member.up and member.idle:
                connection = member.idle[-1]
                if connection.stale():
                    connection.kill()
                    continue
                member.idle.pop()
                self.busy += 1
                waiter.pool_ready(connection)
                return True
        return False

    def release(self, connection: UpstreamConnection) -> None:
        """A busy connection has its answer behind it."""
        if self._detached:
            self._detached.pop(connection, None)
        now_s = self._reactor.seconds()
        member = connection.member
        if self.closed or not member.up or member.retired or now_s > connection.ends_s:
            connection.kill()
            return
        if self._queue:
            if connection.stale():
                connection.kill()
                return
            self._queue.popleft().pool_ready(connection)
            return
        self.busy -= 1
        connection.idle_since_s = now_s
        member.idle.append(connection)

    def lost(self, connection: UpstreamConnection) -> None:
        """Called once for each connection, however it ends."""
        self.open -= 1
        member = connection.member
        member.open -= 1
        self._detached.pop(connection, None)
        try:
            member.idle.remove(connection)
        except ValueError:
            self.busy -= 1
        self._serve_queue()

    def _serve_queue(self) -> None:
        """A place is free, or nobody is left to wait for: the first in the queue are next."""
        if self._queue and not self._admitting and self._admits():
            self._admitting = True
            self.later(self._admit)

    def _admits(self) -> bool:
        return self.open < self.backend.max_connections or not self._balance

    def _admit(self) -> None:
        self._admitting = False
        for _ in range(_AT_ONCE):
            if not self._queue or not self._admits():
                return
            self._provide(self._queue.popleft())
        self._serve_queue()

    def detached(self, connection: UpstreamConnection) -> None:
        self._detached[connection] = self._reactor.seconds()

    def later(self, call: Callable[[], None]) -> None:
        self._reactor.callLater(0, call)

    # -- housekeeping, each second

    def sweep(self) -> None:
        """Close what is idle or old; keep `min_connections` open to sound instances; weigh those that are new anew."""
        now_s = self._reactor.seconds()
        self._detached.expire(now_s)
        self.slow_clients.look(now_s)
        for _ in range(len(self._queue)):
            if not self._detached.give_way(now_s):
                break
        for member in self.members:
            for connection in list(member.idle):
                if (
                    not member.up
                    or now_s - connection.idle_since_s > self.backend.idle_timeout_s
                    or now_s > connection.ends_s
                ):
                    connection.kill()
        while self.open > self.backend.max_connections and self._close_an_idle_one():
            pass  # a reload made the pool smaller
        if self._ramping:
            self.rebalance()
        self._serve_queue()
        if not self.closed:
            self._warm_up()

    def _warm_up(self) -> None:
        wanted = min(self.backend.min_connections, self.backend.max_connections) - self.open
        for _ in range(min(wanted, _AT_ONCE)):
            member = self._balance.pick_among(Member.sound)
            if member is None:
                break
            self._open(member, None)

    def update(self, backend: Backend) -> None:
        """A reload, or another list of instances: members that stay keep their connections and their health."""
        now_s = self._reactor.seconds()
        known = {member.label: member for member in self.members}
        joined_s = now_s if known else None  # where all are new, none is newer than others
        kept = []
        for instance in backend.instances:
            member = known.pop(instance.label, None) or Member(instance, now_s, joined_s)
            member.instance = instance  # its weight may be new
            kept.append(member)
        self.backend = backend
        self.members = kept
        for member in known.values():
            member.retired = True
        self.rebalance()
        for member in known.values():
            for connection in list(member.idle):
                connection.kill()

    def close(self) -> None:
        """No more idle connections; requests that hold or wait for one are still served."""
        self.closed = True
        for member in self.members:
            for connection in list(member.idle):
                connection.kill()

    @property
    def idle(self) -> int:
        return sum(len(member.idle) for member in self.members)

    @property
    def waiting(self) -> int:
        """Requests in the queue for a connection."""
        return len(self._queue)
