"""What gateways share in one Redis besides rate counters: commands on one kept connection, messages on another.

A connection that subscribes takes no other commands, hence two. Both live and die by redis_line.py; nothing here
waits longer than a second, and while Redis is down a command fails at once. Who uses it: checked API keys
(api_key_shared.py), what changed of them (api_key_changes.py), revoked tokens (revocation_list.py).
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hiredis import ReplyError
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.adapters.redis_cluster_lines import ClusterLines
from apigw.adapters.redis_connect import Way
from apigw.adapters.redis_conversation import Reply
from apigw.adapters.redis_line import RedisLine
from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import cured_by_new_connection
from apigw.errors import StoreDown

log = Logger()

Hearer = tuple[Callable[[bytes], None], Callable[[], None]]  # on_message, on_listening


class RedisSharedStore(MultiService):
    """A SharedStore (ports.py) over Redis. It outlives reloads; whoever listens says so before the start.

    way: makes what leads a kept connection to Redis (redis_connect.py). The only place where one is made.
    opening: packed commands that begin each connection (AUTH, SELECT). commands: of a cluster, which are many
    connections. draw: the back-off's jitter.

    up, listening, last_error, reconnects: for metrics and /status.
    """

    def __init__(
        self,
        way: Callable[[], Way],
        clock: IReactorTime,
        opening: Sequence[bytes],
        *,
        draw: Callable[[], float] = random.random,
        commands: ClusterLines | None = None,
    ) -> None:
        super().__init__()
        self.listening = False
        self._way = way
        self._clock = clock
        self._opening = tuple(opening)
        self._draw = draw
        self._hearers: dict[bytes, list[Hearer]] = {}
        self._commands: RedisLine | ClusterLines = self._line(opening) if commands is None else commands
        if commands is not None:
            commands.on_up = self._begin
        self._commands.setServiceParent(self)
        self._messages: RedisLine | None = None

    def _line(self, opening: Sequence[bytes]) -> RedisLine:
        way = self._way()
        line = RedisLine(way.connect, self._clock, opening, title="shared store", on_up=self._begin, draw=self._draw)
        way.renew = line.renew
        return line

    @property
    def up(self) -> bool:
        """Whether commands are answered."""
        return self._commands.up

    @property
    def last_error(self) -> str | None:
        """Why commands are not answered, or else why nothing is heard; None when all is well."""
        messages = self._messages
        return self._commands.last_error or (None if messages is None else messages.last_error)

    @property
    def reconnects(self) -> int:
        """Of both connections."""
        return self._commands.reconnects + (0 if self._messages is None else self._messages.reconnects)

    def command(self, key: str, *words: str | bytes | int) -> "Deferred[Any]":
        """See ports.SharedStore: fails with StoreDown within a second, at once while Redis is down."""
        return self._commands.ask(pack(*words), key).addCallback(self._good)

    def publish(self, channel: str, message: bytes) -> "Deferred[Any]":
        """Fires with the number of connections that hear it on this node."""
        return self._commands.ask(pack("PUBLISH", channel, message)).addCallback(self._good)

    def _good(self, reply: Reply) -> Any:
        if isinstance(reply, ReplyError):
            text = str(reply)[:200]
            if cured_by_new_connection(text) and "NOPERM" not in text:  # one command's ACL is not the others' trouble
                self.renew(text)
            raise StoreDown(text)
        return reply

    def renew(self, reason: str) -> None:
        """Both connections lead to the wrong place by now (a failover, a new password): make others."""
        for line in (self._commands, self._messages):
            if line is not None:
                line.renew(reason)

    # -- channels

    def listen(self, channel: str, on_message: Callable[[bytes], None], on_listening: Callable[[], None]) -> None:
        """See ports.SharedStore. Before startService."""
        assert not self.running, "listen() comes before the start"
        self._hearers.setdefault(channel.encode(), []).append((on_message, on_listening))

    def startService(self) -> None:
        if self._hearers and self._messages is None:
            subscribing = [pack("SUBSCRIBE", channel) for channel in self._hearers]
            to_messages = self._way()
            self._messages = RedisLine(
                to_messages.connect,
                self._clock,
                (*self._opening, *subscribing),
                title="subscription",
                on_up=self._begin,
                on_down=self._broken,
                on_message=self._heard,
                draw=self._draw,
            )
            to_messages.renew = self._messages.renew
            self._messages.setServiceParent(self)
        super().startService()

    def _begin(self) -> None:
        """One of the connections is made. Who is told to load anew can do so only when both are."""
        messages = self._messages
        if self.listening or messages is None or not messages.up or not self._commands.up:
            return
        self.listening = True
        for hearers in self._hearers.values():
            for _, on_listening in hearers:
                _guarded(on_listening)

    def _broken(self) -> None:
        self.listening = False

    def _heard(self, channel: bytes, message: bytes) -> None:
        for on_message, _ in self._hearers.get(channel, ()):
            _guarded(partial(on_message, message))


def _guarded(call: Callable[[], None]) -> None:
    """One listener's defect is not another's."""
    try:
        call()
    except Exception:
        log.failure("a listener of the shared store failed")
