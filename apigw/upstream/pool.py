"""The connections of one worker to one backend: bounded, kept alive, shared out over its instances.

A request gets an idle connection, a new one, or a place in a bounded queue, in this order; it waits no
longer than its route's timeout. Never more than `max_connections` are open, detached ones included.
"""

from collections import OrderedDict, deque
from typing import Any, Callable, Protocol

from apigw.config.model import Backend, Instance
from apigw.core.balancer import SmoothRoundRobin
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.upstream.connection import UpstreamConnection

CONNECT_TIMEOUT_S = 5.0  # a local network answers in milliseconds; the route's timeout may be shorter
DETACHED_TIMEOUT_S = 30.0  # an answer nobody waits for; then its connection is closed
QUEUE_MAX = 1000  # requests waiting for a connection of one backend

POOL_FULL, NO_INSTANCE = "pool_full", "no_healthy_instance"


class Waiter(Protocol):
    """A request that wants a connection; gets exactly one of both, perhaps from inside acquire()."""

    def pool_ready(self, connection: UpstreamConnection) -> None: ...

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None: ...


class Member:
    """One instance and its idle connections (last used first). `up` is the health check's word."""

    __slots__ = ("instance", "label", "idle", "open", "up", "failures")

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.label = instance.label
        self.idle: list[UpstreamConnection] = []
        self.open = 0
        self.up = True
        self.failures = 0


class _Opening:
    """A connection on its way to a waiter, or to the idle ones when the waiter is gone."""

    __slots__ = ("pool", "member", "waiter")

    def __init__(self, pool: "Pool", member: Member, waiter: Waiter | None) -> None:
        self.pool = pool
        self.member = member
        self.waiter = waiter

    def connect_done(self, sock: Any, peer: Any) -> None:
        self.pool.opened(self, sock, peer)

    def connect_failed(self, reason: str, detail: str) -> None:
        self.pool.open_failed(self, reason, detail)


class Pool:
    """`on_connect_failure(member)` and `on_success(member)` feed the health check with live traffic."""

    def __init__(
        self,
        reactor: Any,
        deadlines: Deadlines,
        connector: Connector,
        backend: Backend,
        on_connect_failure: Callable[[Member], None] | None = None,
    ) -> None:
        self.backend = backend
        self.members: list[Member] = [Member(instance) for instance in backend.instances]
        self.open = 0
        self.busy = 0
        self.closed = False
        self.on_connect_failure = on_connect_failure
        self._reactor = reactor
        self._deadlines = deadlines
        self._connector = connector
        self._queue: deque[Waiter] = deque()
        self._admitting = False  # the queue's first are about to be served, in a turn of their own
        self._openings: "OrderedDict[Waiter, _Opening]" = OrderedDict()
        self._detached: dict[UpstreamConnection, float] = {}
        self.rebalance()

    def rebalance(self) -> None:
        """After the health or the set of members changed."""
        self._balance = SmoothRoundRobin([(member, member.instance.weight) for member in self.members if member.up])

    # -- for requests

    def acquire(self, waiter: Waiter) -> None:
        """Give the waiter a connection now or later. It must give up by itself: abandon()."""
        if self._queue:  # who came earlier goes first
            self._enqueue(waiter)
        else:
            self._provide(waiter)

    def _provide(self, waiter: Waiter) -> None:
        member = self._balance.pick()
        if member is None:
            waiter.pool_failed(NO_INSTANCE, f"no healthy instance of {self.backend.name}", None)
            return
        while member.idle:
            connection = member.idle[-1]
            if connection.stale():  # what it holds would be taken for the answer to this request (contract 13.5)
                connection.kill()
                continue
            member.idle.pop()
            self.busy += 1
            waiter.pool_ready(connection)
            return
        if self.open < self.backend.max_connections or self._evict_idle():
            self._open(member, waiter)
        else:
            self._enqueue(waiter)

    def _enqueue(self, waiter: Waiter) -> None:
        if len(self._queue) < QUEUE_MAX:
            self._queue.append(waiter)
        else:
            waiter.pool_failed(POOL_FULL, f"{QUEUE_MAX} requests wait for {self.backend.name} already", None)

    def acquire_fresh(self, member: Member, waiter: Waiter) -> None:
        """A new connection to the same instance, for the one safe replay (contract section 3)."""
        if self.open < self.backend.max_connections or self._evict_idle():
            self._open(member, waiter)
        else:
            waiter.pool_failed(POOL_FULL, "no room for a replay", member.label)

    def abandon(self, waiter: Waiter) -> None:
        """The waiter does not want a connection any more."""
        opening = self._openings.pop(waiter, None)
        if opening is not None:
            opening.waiter = None
            return
        try:
            self._queue.remove(waiter)
        except ValueError:
            pass

    def _evict_idle(self) -> bool:
        """Close the idle connection that rested longest, to make room at another instance."""
        oldest = None
        for member in self.members:
            if member.idle and (oldest is None or member.idle[0].idle_since_s < oldest.idle_since_s):
                oldest = member.idle[0]
        if oldest is None:
            return False
        oldest.kill()
        return True

    # -- connections

    def _open(self, member: Member, waiter: Waiter | None) -> None:
        self.open += 1
        self.busy += 1
        member.open += 1
        opening = _Opening(self, member, waiter)
        if waiter is not None:
            self._openings[waiter] = opening
        self._connector.connect(member.instance.host, member.instance.port, CONNECT_TIMEOUT_S, opening)

    def opened(self, opening: _Opening, sock: Any, peer: Any) -> None:
        member = opening.member
        connection = UpstreamConnection(self, member, self._reactor.seconds())
        transport = self._connector.transport(sock, peer, connection)
        transport.setTcpKeepAlive(True)
        transport.start()
        waiter = opening.waiter
        if waiter is None:
            connection.reused = True  # it will have rested when a request gets it
            self.release(connection)
        else:
            del self._openings[waiter]
            waiter.pool_ready(connection)

    def open_failed(self, opening: _Opening, reason: str, detail: str) -> None:
        member = opening.member
        self.open -= 1
        self.busy -= 1
        member.open -= 1
        waiter = opening.waiter
        if waiter is not None:
            del self._openings[waiter]
        if self.on_connect_failure is not None:
            self.on_connect_failure(member)
        if waiter is not None:
            waiter.pool_failed(reason, detail, member.label)
        self._serve_queue()

    def release(self, connection: UpstreamConnection) -> None:
        """A busy connection has its answer behind it."""
        self._detached.pop(connection, None)
        now_s = self._reactor.seconds()
        member = connection.member
        if (
            self.closed
            or not member.up
            or member not in self.members
            or now_s - connection.born_s > self.backend.max_lifetime_s
        ):
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
        """A place is free: the first in the queue may open a connection."""
        if self._queue and not self._admitting and self.open < self.backend.max_connections:
            self._admitting = True
            self.later(self._admit)

    def _admit(self) -> None:
        self._admitting = False
        while self._queue and self.open < self.backend.max_connections:
            self._provide(self._queue.popleft())

    def detached(self, connection: UpstreamConnection) -> None:
        self._detached[connection] = self._reactor.seconds() + DETACHED_TIMEOUT_S

    def later(self, call: Callable[[], None]) -> None:
        self._reactor.callLater(0, call)

    # -- housekeeping, each second

    def sweep(self) -> None:
        """Close what is idle or old; keep `min_connections` open to healthy instances."""
        now_s = self._reactor.seconds()
        for connection, until_s in list(self._detached.items()):
            if now_s > until_s:
                connection.kill()
        for member in self.members:
            for connection in list(member.idle):
                if (
                    not member.up
                    or now_s - connection.idle_since_s > self.backend.idle_timeout_s
                    or now_s - connection.born_s > self.backend.max_lifetime_s
                ):
                    connection.kill()
        self._serve_queue()
        if self.closed:
            return
        wanted = min(self.backend.min_connections, self.backend.max_connections) - self.open
        for _ in range(max(0, wanted)):
            member_up = self._balance.pick()
            if member_up is None or member_up.failures:
                break
            self._open(member_up, None)

    def update(self, backend: Backend) -> None:
        """A reload: keep the members that stay, with their connections and their health."""
        known = {member.label: member for member in self.members}
        kept = []
        for instance in backend.instances:
            member = known.pop(instance.label, None) or Member(instance)
            member.instance = instance  # its weight may be new
            kept.append(member)
        self.backend = backend
        self.members = kept
        self.rebalance()
        for member in known.values():
            for connection in list(member.idle):
                connection.kill()
        self._serve_queue()

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
