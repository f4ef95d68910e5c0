"""Who the master is, by its sentinels; and whoever is connected to another is led to it at once.

    somebody wants to connect                 all sentinels are asked at the same time
    a sentinel says that the master changed   likewise
    a sentinel is heard (again)               likewise: what it said before may have been missed

    all have answered, or 0.1 s passed since the first answer, or 0.5 s in all: the answer of the highest
    configuration epoch counts. It names another than before: every connection to the old one is renewed, though
    that may be alive, writable and cut off from the rest.

Asking all of them costs no more time than asking one, and one that is frozen, cut off with the old master, or just
started with an old configuration cannot mislead us while another answers.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.redis_connect import RedisAccess, Renew, unmoved
from apigw.adapters.redis_conversation import Reply
from apigw.adapters.redis_errand import errand
from apigw.adapters.redis_line import RedisLine
from apigw.adapters.redis_link import pack
from apigw.config.redis_url import Place
from apigw.errors import StoreDown

LOOKUP_S: Final = 0.5  # one sentinel's time
GRACE_S: Final = 0.1  # for the others, after the first answer
SWITCHED: Final = b"+switch-master"  # NAME OLD-HOST OLD-PORT NEW-HOST NEW-PORT
PROMOTED: Final = b"+promoted-slave"  # slave HOST:PORT HOST PORT @ NAME HOST PORT; before all replicas follow

log = Logger()

Answer = tuple[int, Place]  # configuration epoch, master


class MasterWay:
    """A Way (redis_connect.py) to the master. place: where it leads now; None while that is being asked."""

    def __init__(self, sentinels: "Sentinels") -> None:
        self.renew: Renew = unmoved
        self.place: Place | None = None
        self._sentinels = sentinels

    def connect(self, protocol: Any) -> "Deferred[Any]":
        self.place = None
        return self._sentinels.master().addCallback(self._found, protocol)

    def _found(self, place: Place, protocol: Any) -> "Deferred[Any]":
        self.place = place
        return self._sentinels.access.open(place, protocol)


class Sentinels(MultiService):
    """The sentinels of access.url. access: how to reach them and the master.

    current: the master as it was last named, None before that.
    """

    def __init__(self, access: RedisAccess, clock: IReactorTime) -> None:
        super().__init__()
        self.access = access
        self.current: Place | None = None
        self._clock = clock
        self._name = access.url.master
        self._ways: list[MasterWay] = []
        self._lookup: _Lookup | None = None
        for host, port in access.url.hosts:
            line = RedisLine(
                access.to((host, port)),
                clock,
                (*access.sentinel_opening, pack("SUBSCRIBE", SWITCHED), pack("SUBSCRIBE", PROMOTED)),
                title=f"sentinel {host}:{port}",
                on_up=self._look,
                on_message=self._heard,
            )
            line.setServiceParent(self)

    def way(self) -> MasterWay:
        """For one kept connection; for the rest of the process."""
        way = MasterWay(self)
        self._ways.append(way)
        return way

    def master(self) -> "Deferred[Place]":
        """Ask who it is, or join those who are asking. Fails with StoreDown."""
        if self._lookup is None:
            asked = [(place, partial(self._ask, place)) for place in self.access.url.hosts]
            lookup = self._lookup = _Lookup(self._clock, asked, self._ended)
            waiting = lookup.wait()
            lookup.begin()
            return waiting
        return self._lookup.wait()

    def _ask(self, place: Place) -> "Deferred[Answer]":
        commands = (
            *self.access.sentinel_opening,
            pack("SENTINEL", "MASTER", self._name),
            pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name),
        )
        return errand(self.access.to(place), self._clock, commands, LOOKUP_S).addCallback(read_answer)

    def _ended(self, master: Place | None) -> None:
        """Before those who asked hear of it."""
        self._lookup = None
        if master is None or master == self.current:
            return
        old, self.current = self.current, master
        if old is not None:
            log.info("the sentinels name another master: {host}:{port}", host=master[0], port=master[1])
        for way in self._ways:
            if way.place is not None and way.place != master:
                way.renew(f"the master is {master[0]}:{master[1]} now")

    # -- what sentinels say

    def _look(self) -> None:
        self.master().addErrback(self._unknown)

    def _unknown(self, failure: Failure) -> None:
        """Whoever needs the master asks again."""
        failure.trap(StoreDown)

    def _heard(self, channel: bytes, message: bytes) -> None:
        words = message.split()
        name = self._name.encode()
        if (channel == SWITCHED and words[:1] == [name]) or (channel == PROMOTED and words[4:6] == [b"@", name]):
            self._look()


def read_answer(replies: Sequence[Reply]) -> Answer:
    """The last two replies: SENTINEL MASTER and its address, which a failover changes first. Raises StoreDown."""
    facts, address = replies[-2:]
    try:
        named = dict(zip(facts[::2], facts[1::2], strict=True))
        host, port = address
        return int(named[b"config-epoch"]), (host.decode("ascii"), int(port))
    except (TypeError, ValueError, KeyError, AttributeError):
        raise StoreDown("its answer about the master is none") from None


class _Lookup:
    """One question to all sentinels. on_end(master or None) is called once, then all who wait hear."""

    def __init__(
        self,
        clock: IReactorTime,
        asked: Sequence[tuple[Place, Callable[[], "Deferred[Answer]"]]],
        on_end: Callable[[Place | None], None],
    ) -> None:
        self._clock = clock
        self._asked = asked
        self._on_end = on_end
        self._waiting: list[Deferred[Place]] = []
        self._asking: list[Deferred[Any]] = []
        self._left = len(asked)
        self._answers: list[Answer] = []
        self._reasons: list[str] = []
        self._grace: Any = None
        self._ended = False

    def wait(self) -> "Deferred[Place]":
        waiting: Deferred[Place] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def begin(self) -> None:
        for place, ask in self._asked:
            asking = ask()
            self._asking.append(asking)
            asking.addCallbacks(self._answered, self._failed, (), {}, (place,))

    def _answered(self, answer: Answer) -> None:
        self._answers.append(answer)
        if self._grace is None and not self._ended:
            self._grace = self._clock.callLater(GRACE_S, self._end)
        self._one_less()

    def _failed(self, failure: Failure, place: Place) -> None:
        if not failure.check(StoreDown):
            log.failure("a sentinel could not be asked", failure=failure)
        self._reasons.append(f"{place[0]}:{place[1]}: {failure.getErrorMessage()}"[:120])
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if not self._left:
            self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._grace is not None and self._grace.active():
            self._grace.cancel()
        for asking in self._asking:
            asking.cancel()
        master = max(self._answers)[1] if self._answers else None
        self._on_end(master)
        for waiting in self._waiting:
            if waiting.called:
                continue
            if master is not None:
                waiting.callback(master)
            else:
                waiting.errback(StoreDown(f"no sentinel names the master: {'; '.join(self._reasons)}"))
