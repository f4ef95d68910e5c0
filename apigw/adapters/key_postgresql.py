"""The database of API keys in PostgreSQL: connections on which nothing waits without an end, whatever the server does.

a lock, a slow statement    the server gives up: statement_timeout, lock_timeout
a host that is gone         the kernel gives up: tcp_user_timeout
a server that is frozen     its kernel acknowledges all, so nobody gives up but who waits: Bounded
"""

from typing import Any, Final

from psycopg import Connection, OperationalError
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL

CONNECT_TIMEOUT_S: Final = 2  # libpq takes whole seconds, 2 at least
STATEMENT_TIMEOUT_MS: Final = 1500
UNACKNOWLEDGED_MS: Final = 3000
ANSWER_S: Final = 1.8  # above STATEMENT_TIMEOUT_MS: a server that lives says itself what it could not do
PING_S: Final = 1.0  # half of what a question has; the other half is for a new connection, after a failover


class Bounded(Connection[Any]):
    """A connection that is over when an answer does not come within `answer_s`."""

    answer_s = ANSWER_S

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        """Raises OperationalError."""
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except OperationalError:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            self.pgconn.finish()  # the answer is still to come: nobody else may get it
            raise OperationalError(f"no answer within {self.answer_s:g} s") from None


def engine(url: URL, **options: Any) -> Engine:
    """Whoever takes a connection from the pool has it looked at first: one that is dead is replaced.

    A read is one statement, so BEGIN and ROLLBACK would be two round trips for nothing.
    """
    made = create_engine(url, connect_args=_libpq(url), pool_pre_ping=True, isolation_level="AUTOCOMMIT", **options)
    event.listen(made, "do_connect", _connect)
    event.listen(made, "connect", _connected)
    event.listen(made, "checkin", _rests)
    event.listen(made, "checkout", _serves)
    return made


def _libpq(url: URL) -> dict[str, Any]:
    """What the URL does not say itself."""
    ours = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": UNACKNOWLEDGED_MS,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "application_name": "apigw",
    }
    return {name: value for name, value in ours.items() if name not in url.query}


def _connect(dialect: Any, record: Any, arguments: Any, options: Any) -> Bounded:
    return Bounded.connect(*arguments, **options)


def _connected(connection: Bounded, _: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET statement_timeout = {STATEMENT_TIMEOUT_MS}")
        cursor.execute(f"SET lock_timeout = {STATEMENT_TIMEOUT_MS}")


def _rests(connection: Bounded | None, _: object) -> None:
    """In the pool: the next that it is asked is whether it is there."""
    if connection is not None:
        connection.answer_s = PING_S


def _serves(connection: Bounded, *_: object) -> None:
    connection.answer_s = ANSWER_S
