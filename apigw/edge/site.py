"""What all client connections of a worker share: the pipeline in force, limits, deadlines, counts, drain."""

from typing import Any, Callable, Protocol

from twisted.internet.defer import Deferred

from apigw.config.model import Limits
from apigw.config.snapshot import Snapshot
from apigw.edge.channel import Channel
from apigw.edge.request import Request
from apigw.exchange import ClientRequest, Exchange
from apigw.net.deadlines import Deadlines

DRAIN_GRACE_S = 0.5  # an idle client that sends within it is answered, with Connection: close


class Generation(Protocol):
    """One configuration at work: its snapshot and the first Resource of its pipeline."""

    @property
    def snapshot(self) -> Snapshot: ...

    @property
    def root(self) -> Any: ...


class Site:
    """`generation` is swapped by a reload; a request keeps the one it began with.

    record(ex) is called once for each Exchange that was made, when it is over (contract 13.9).
    """

    def __init__(
        self,
        reactor: Any,
        deadlines: Deadlines,
        wall: Callable[[], float],
        generation: Generation,
        record: Callable[[Exchange], None],
    ) -> None:
        self.clock = reactor
        self.deadlines = deadlines
        self.wall = wall
        self.record = record
        self.in_flight = 0
        self.draining = False
        self.channels: set[Channel] = set()
        self._per_ip: dict[str, int] = {}
        self._drained: Deferred[None] | None = None
        self.limits: Limits = generation.snapshot.config.limits
        self.swap(generation)

    def swap(self, generation: Generation) -> None:
        """Requests that begin from now on use this one."""
        before_s = self.limits.keepalive_timeout_s
        self.generation = generation
        self.limits = generation.snapshot.config.limits
        self._trusted = generation.snapshot.trusted_proxies
        if self.limits.keepalive_timeout_s != before_s:
            for channel in list(self.channels):
                channel.idle_over()

    # -- requests

    def exchange(self, client: ClientRequest) -> Exchange:
        """Begin an exchange; in_flight counts it until ended()."""
        self.in_flight += 1
        ex = Exchange(self.generation.snapshot, client, self.clock.seconds(), self.wall())
        if self._trusted is not None:
            ex.client_ip = self._trusted.client_ip(client.peer_ip, client.fields.get(b"x-forwarded-for"))
        return ex

    def render(self, request: Request) -> None:
        request.render(self.generation.root)

    def ended(self, ex: Exchange) -> None:
        self.in_flight -= 1
        self.record(ex)

    def later(self, call: Callable[[], None]) -> None:
        """Run call() in a turn of its own."""
        self.clock.callLater(0, call)

    def keepalive_s(self) -> float:
        return DRAIN_GRACE_S if self.draining else self.limits.keepalive_timeout_s

    # -- connections

    def admits(self, peer_ip: str) -> bool:
        """Whether one more connection of this peer is within max_connections and max_connections_per_ip."""
        return (
            not self.draining
            and len(self.channels) < self.limits.max_connections
            and self._per_ip.get(peer_ip, 0) < self.limits.max_connections_per_ip
        )

    def accepted(self, channel: Channel) -> None:
        """Counted from accept, so that a TLS handshake that never ends counts too."""
        self.channels.add(channel)
        self._per_ip[channel.peer_ip] = self._per_ip.get(channel.peer_ip, 0) + 1

    def closed(self, channel: Channel) -> None:
        if channel not in self.channels:
            return
        self.channels.discard(channel)
        left = self._per_ip[channel.peer_ip] - 1
        if left:
            self._per_ip[channel.peer_ip] = left
        else:
            del self._per_ip[channel.peer_ip]
        if self._drained is not None and not self.channels:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def drain(self) -> "Deferred[None]":
        """No new connections; idle ones close, requests in flight are answered. Fires when none is left."""
        self.draining = True
        self._drained = Deferred()
        drained = self._drained
        if not self.channels:
            self._drained = None
            drained.callback(None)
        for channel in list(self.channels):
            channel.drain(DRAIN_GRACE_S)
        return drained

    def abort_all(self) -> None:
        """The drain's time is over."""
        for channel in list(self.channels):
            channel.abort()
