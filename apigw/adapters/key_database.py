"""A connection to the database of API keys, SQLite or PostgreSQL, opened so that nothing waits without an end.

sqlite:////var/lib/apigw/api_keys.db            WAL: readers and the one writer do not wait for each other
postgresql://user:password@host:5432/database   parameters of libpq may follow: ?sslmode=verify-full
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from apigw.adapters.key_schema import NEWEST, refuse_newer, upgrade, version
from apigw.errors import StoreDown

BUSY_TIMEOUT_S: Final = 1.5  # SQLite, another process writes; below TIMEOUT_S of api_key_database.py
WRITE_WAIT_S: Final = 5.0  # likewise, for who writes: an operator, behind others; SQLite's turns are not fair
_CONNECTIONS: Final = 2  # one a thread that asks
_WAL_TRIES: Final = 50
_WRITES: Final[dict[str, dict[str, Any]]] = {  # options of a connection that writes, by dialect
    "sqlite": {"apigw_writes": True},
    "postgresql": {"isolation_level": "READ COMMITTED"},  # key_postgresql.py: others commit each statement
}


class Database:
    """An engine whose tables are as this version wants them. Raises StoreDown, here and in its methods.

    may_make: whether SQLite's file is made where there is none.
    """

    def __init__(self, url: str, *, may_make: bool = True) -> None:
        with _told_as_store_down():
            parsed = _parsed(url)
            self._file = Path(parsed.database or "") if parsed.drivername == "sqlite" else None
            if self._file is not None:
                _be_there(self._file, may_make)
            self._opened = _identity(self._file)
            self._engine = _engine(parsed)
            assert self._engine.dialect.dbapi is not None
            self._driver_error: type[Exception] = self._engine.dialect.dbapi.Error
        self._prepare()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one statement at a time, each of which sees what was committed before it."""
        self._look_for_the_file()
        with _told_as_store_down(), self._engine.connect() as connection:
            yield connection

    def rows(self, statement: str, value: str) -> list[Any]:
        """What one statement with one parameter reads, by the driver.

        Past all that a connection of SQLAlchemy does besides: more than half of what a question costs (0.6 ms on a core
        that was idle), in Python, for which the loop has to wait.
        """
        self._look_for_the_file()
        with _told_as_store_down():
            try:
                with closing(self._engine.raw_connection()) as connection:
                    return connection.cursor().execute(statement, (value,)).fetchall()  # type: ignore[no-any-return]
            except self._driver_error as error:
                raise StoreDown(_sentence(error)) from None

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction, committed at the end of the block."""
        self._look_for_the_file()
        with _told_as_store_down(), self._engine.connect() as connection:
            with connection.execution_options(**_WRITES[self.dialect]).begin():
                yield connection

    @property
    def dialect(self) -> str:
        return self._engine.dialect.name

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        with self.reading() as connection:
            found = version(connection)
        refuse_newer(found)
        if found < NEWEST:
            with self.writing() as connection:
                upgrade(connection)

    def _look_for_the_file(self) -> None:
        """SQLite goes on with a file that was deleted or replaced, and would never hear of what others change."""
        if self._file is None:
            return
        identity = _identity(self._file)
        if identity != self._opened:
            self._engine.dispose()
            before, self._opened = self._opened, identity
            try:
                self._prepare()
            except BaseException:
                self._opened = before  # looked at again by who asks next
                raise


def _identity(path: Path | None) -> tuple[int, int] | None:
    """Which file it is. Raises StoreDown when there is none: one that was there before is not made anew."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError as error:
        raise StoreDown(f"the database of API keys is not there: {path}: {error.strerror}") from None
    return found.st_dev, found.st_ino


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreDown("the URL of the database of API keys cannot be read") from None
    if parsed.drivername == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername != "sqlite":
        raise StoreDown("the URL of the database of API keys must begin with sqlite:// or postgresql://")
    if not parsed.database or parsed.database == ":memory:" or parsed.host:
        raise StoreDown("the URL of the database of API keys names no file: sqlite:////DIR/FILE, four slashes")
    return parsed


def _engine(url: URL) -> Engine:
    pool = {"pool_size": _CONNECTIONS, "max_overflow": _CONNECTIONS, "pool_timeout": 2}
    if url.drivername == "sqlite":
        sqlite = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S}, **pool)
        event.listen(sqlite, "connect", _sqlite_connected)
        event.listen(sqlite, "begin", _sqlite_begins)
        event.listen(sqlite, "checkin", _sqlite_rests)
        return sqlite
    from apigw.adapters.key_postgresql import engine  # psycopg: gateways with SQLite do without it

    return engine(url, **pool)


def _be_there(path: Path, may_make: bool) -> None:
    """An empty file in the place of one that is elsewhere would make every key unknown to gateways that run."""
    if path.exists():
        return
    if not path.parent.is_dir():
        raise StoreDown(f"the folder {path.parent} of the database of API keys does not exist")
    if not may_make:
        raise StoreDown(
            f"there is no database of API keys at {path}; mount it, or make a new one with `apigwctl keys create`"
        )
    journal = path.with_name(path.name + "-wal")
    if journal.exists():  # an empty database would take it for its own, and drop what is in it
        raise StoreDown(f"{path} is not there, but its newest changes are, in {journal}: put it back")
    _make_file(path)


def _make_file(path: Path) -> None:
    """A new file is its owner's alone. Made by root it belongs to the folder's owner, whom the daemon runs as."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return  # by another worker, just now
    except OSError as error:
        raise StoreDown(f"the database of API keys cannot be made: {path}: {error.strerror}") from None
    try:
        if os.geteuid() == 0:
            folder = path.parent.stat()
            os.fchown(descriptor, folder.st_uid, folder.st_gid)
    finally:
        os.close(descriptor)


def _sqlite_connected(connection: Any, _: object) -> None:
    """Transactions are ours to begin (see _sqlite_begins), and the log is a WAL, once and for all of the file."""
    connection.isolation_level = None
    for last in (*[False] * _WAL_TRIES, True):
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if last or "locked" not in str(error):
                raise
            time.sleep(BUSY_TIMEOUT_S / _WAL_TRIES)  # the change of mode does not wait for busy_timeout


def _sqlite_begins(connection: Connection) -> None:
    """A writer takes its lock first: one that reads before would be refused when another was quicker."""
    if connection.get_execution_options().get("apigw_writes"):
        connection.info["apigw_waits"] = True
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {WRITE_WAIT_S * 1000:.0f}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _sqlite_rests(connection: Any, record: Any) -> None:
    """In the pool, after a writer: the next one may read. A connection that is closed is None."""
    if record.info.pop("apigw_waits", False) and connection is not None:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")


@contextmanager
def _told_as_store_down() -> Iterator[None]:
    """Whatever the library says becomes one sentence, without the URL and the statement, which may hold secrets."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        raise StoreDown(_sentence(error.orig if isinstance(error, DBAPIError) else error)) from None
    except SQLAlchemyError as error:
        raise StoreDown(f"the database of API keys does not answer: {type(error).__name__}") from None


def _sentence(error: BaseException | None) -> str:
    """What the driver says, its first line."""
    said = str(error).strip().splitlines() or [type(error).__name__]
    return f"the database of API keys does not do it: {said[0][:200]}"
