"""The database of API keys as the loop sees it: its questions asked in threads, each with an end.

Note [Ids in batches]
  A flood of ids that nobody knows is a question each. Asked one by one they cost the interpreter half a millisecond
  each, which the loop then lacks. So what is asked while a question is out, or within PAUSE_S of the last one, is one
  question; the first after a pause goes at once. A hundred ids cost little more than one: after MANY that nobody
  knows the pause is FLOOD_PAUSE_S, so that the loop seldom meets one. Who knows that an id is real does not wait for
  that. Answers are told a few in each turn of the loop.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.errors import StoreDown
from apigw.net.threads import Threads

TIMEOUT_S: Final = 2.0  # of one question
PAUSE_S: Final = 0.01
FLOOD_PAUSE_S: Final = 0.2  # of the second that a refusal takes anyway
MANY: Final = 5  # unknown ids of one question
BATCH: Final = 500
TOLD: Final = 3  # answers in one turn, about 0.1 ms
_THREADS: Final = 2  # one that hangs does not stop the other

T = TypeVar("T")

log = Logger()


class StoredKey(Protocol):
    """A row: what is known of a key besides its secret. Times are epoch seconds."""

    @property
    def secret_hash(self) -> str: ...

    @property
    def partner_id(self) -> str: ...

    @property
    def tier(self) -> str | None: ...

    @property
    def scopes(self) -> Iterable[str]: ...

    @property
    def networks(self) -> Iterable[Any]: ...

    @property
    def expires_s(self) -> float | None: ...

    @property
    def revoked_s(self) -> float | None: ...


class KeyTable(Protocol):
    """The table itself; its methods block, and raise StoreDown when the database does not answer."""

    def find_all(self, ids: Sequence[str]) -> Mapping[str, StoredKey]: ...

    def changes_since(self, number: int) -> Any: ...

    def last_change(self) -> int: ...


class KeyDatabase(Service):
    """`open_table` makes the table, in a thread, at the first question and again while it fails."""

    def __init__(self, reactor: Any, open_table: Callable[[], KeyTable], timeout_s: float = TIMEOUT_S) -> None:
        self.threads = Threads(reactor, "api-keys", _THREADS)
        self._reactor = reactor
        self._open_table = open_table
        self._timeout_s = timeout_s
        self._table: KeyTable | None = None
        self._wanted: dict[str, list[Deferred[StoredKey | None]]] = {}
        self._finding = False
        self._hurried = False  # somebody who does not wait for the pause of a flood waits for the next question
        self._pause: Any = None
        self._known: deque[tuple[Deferred[StoredKey | None], StoredKey | Failure | None]] = deque()  # to be told
        self._telling: Any = None

    def startService(self) -> None:
        Service.startService(self)
        self.threads.startService()

    def stopService(self) -> "Deferred[None] | None":
        Service.stopService(self)
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.cancel()
            self._find()  # which fails, now that nothing runs
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            self._tell()
        return self.threads.stopService()

    def find(self, key_id: str, real: bool = False) -> "Deferred[StoredKey | None]":
        """The row of this id. Fails with StoreDown, after twice TIMEOUT_S at the latest. See Note [Ids in batches].

        real: there is, or was, such a key.
        """
        answer: Deferred[StoredKey | None] = Deferred()
        self._wanted.setdefault(key_id, []).append(answer)
        if not self._finding:
            self._find()
        elif real:
            self._hurried = True
            if self._pause is not None and self._pause.getTime() > self._reactor.seconds() + PAUSE_S:
                self._pause.reset(PAUSE_S)
        return answer

    def _find(self) -> None:
        """Ask for what is wanted, if anything is."""
        self._pause = None
        self._hurried = False
        ids = [key_id for key_id, _ in zip(self._wanted, range(BATCH))]
        self._finding = bool(ids)
        if ids:
            answers = {key_id: self._wanted.pop(key_id) for key_id in ids}
            self._ask(lambda table: _rows(table, ids)).addBoth(self._found, answers)

    def _found(
        self, rows: "dict[str, StoredKey] | Failure", answers: "dict[str, list[Deferred[StoredKey | None]]]"
    ) -> None:
        for key_id, waiting in answers.items():
            row = rows if isinstance(rows, Failure) else rows.get(key_id)
            self._known.extend((answer, row) for answer in waiting)
        if self.running:
            unknown = 0 if isinstance(rows, Failure) else len(answers) - len(rows)
            flooded = unknown >= MANY and len(answers) < BATCH  # who waits behind a full one would be ever more
            flooded = flooded and not self._hurried
            self._pause = self._reactor.callLater(FLOOD_PAUSE_S if flooded else PAUSE_S, self._find)
        else:
            self._find()
        if self._telling is None:
            self._tell()

    def _tell(self) -> None:
        """Some of what is known; all of it once the service has stopped."""
        self._telling = None
        known, told = self._known, 0
        while known and (told < TOLD or not self.running):
            told += 1
            answer, row = known.popleft()
            if not answer.called:  # or its request was stopped
                answer.callback(row)
        if known:
            self._telling = self._reactor.callLater(0, self._tell)

    def since(self, number: int | None) -> "Deferred[tuple[int, list[str] | None]]":
        """What adapters/api_key_changes.py asks. Fails with StoreDown."""
        return self._ask(lambda table: _since(table, number))

    def _ask(self, question: Callable[[KeyTable], T]) -> "Deferred[T]":
        if not self.running:
            return fail(StoreDown("the database of API keys is closed"))
        answer = self.threads.run(self._asked, question)
        answer.addTimeout(self._timeout_s, self._reactor)
        return answer.addErrback(_down)

    def _asked(self, question: Callable[[KeyTable], T]) -> T:
        """In a thread. Two that open at once make two tables, one of which is forgotten."""
        table = self._table
        if table is None:
            table = self._table = self._open_table()
        return question(table)


def _rows(table: KeyTable, ids: list[str]) -> dict[str, StoredKey]:
    return dict(table.find_all(ids))


def open_table(url: str) -> KeyTable:
    """The table of `auth.api_keys.database_url`. Raises StoreDown."""
    from apigw.adapters.key_store import KeyStore  # SQLAlchemy, in a thread: gateways without API keys do without it

    return KeyStore(url)


def _since(table: KeyTable, number: int | None) -> tuple[int, list[str] | None]:
    """Numbers that went back are another database, a backup: any key may have changed."""
    last = table.last_change()
    if number is None:
        return last, []
    if last < number:
        return last, None
    changes = list(table.changes_since(number))
    return max([number, *(change.number for change in changes)]), [change.key_id for change in changes]


def _down(failure: Failure) -> Any:
    """Whatever went wrong, nobody answered; a defect is logged with its traceback."""
    error = failure.value
    if isinstance(error, StoreDown):
        return failure
    if isinstance(error, TimeoutError):
        raise StoreDown("the database of API keys does not answer in time")
    if isinstance(error, CancelledError):
        raise StoreDown("the database of API keys is closed")
    log.failure("a question to the database of API keys failed", failure=failure)
    raise StoreDown(f"{type(error).__name__} in the database of API keys")
