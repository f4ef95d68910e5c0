"""Opening the database of API keys, and what is told when it is not there: a sentence, in time, without secrets."""

import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from apigw.adapters.key_database import BUSY_TIMEOUT_S, WRITE_WAIT_S, Database
from apigw.adapters.key_store import KeyStore
from apigw.errors import StoreDown
from tests.postgresql import PostgreSQL
from tests.servers import free_port


def sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def test_a_new_file_is_its_owners_alone_and_has_a_write_ahead_log(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    store = KeyStore(sqlite(path), cost=4)
    store.create("acme")
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_made_by_root_it_belongs_to_the_owner_of_its_folder(tmp_path: Path) -> None:
    """apigwctl as root, before the daemon ran: the daemon has to be able to open it, and its log."""
    os.chown(tmp_path, 65534, 65534)
    KeyStore(sqlite(tmp_path / "keys.db")).list()
    assert {file.stat().st_uid for file in tmp_path.iterdir()} == {65534}


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreDown, match=f"the folder {tmp_path}/no of the database of API keys does not exist"):
        KeyStore(sqlite(tmp_path / "no" / "keys.db"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_made_for_those_alone_who_may(tmp_path: Path) -> None:
    path = tmp_path / "keys.db"
    with pytest.raises(StoreDown, match=f"there is no database of API keys at {path}"):
        Database(sqlite(path), may_make=False)
    assert list(tmp_path.iterdir()) == []
    Database(sqlite(path)).close()
    Database(sqlite(path), may_make=False).close()


def test_none_is_made_beside_the_journal_of_one_that_was_moved(tmp_path: Path) -> None:
    """SQLite would begin the journal anew: changes that were in there alone are lost, also when the file comes back."""
    path, away = tmp_path / "keys.db", tmp_path / "away.db"
    database = Database(sqlite(path))
    journal = tmp_path / "keys.db-wal"
    written = journal.read_bytes()
    path.rename(away)
    with pytest.raises(StoreDown, match=f"{path} is not there, but its newest changes are, in {journal}: put it back"):
        Database(sqlite(path))
    assert not path.exists() and written == journal.read_bytes() != b""
    away.rename(path)
    Database(sqlite(path)).close()
    database.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite://host/keys.db", "mysql://x/y", "nothing"])
def test_a_url_that_leads_to_no_shared_database_is_refused(url: str) -> None:
    with pytest.raises(StoreDown, match="the URL of the database of API keys"):
        KeyStore(url)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_text("something else entirely, and long enough to be looked at\n" * 100)
    with pytest.raises(StoreDown, match="not a database"):
        KeyStore(sqlite(tmp_path / "keys.db"))


def test_a_file_that_is_gone_is_not_made_anew_and_another_in_its_place_is_used(tmp_path: Path) -> None:
    """SQLite alone would go on with the deleted file and never see what is changed in the new one."""
    path, backup = tmp_path / "keys.db", tmp_path / "backup.db"
    store, other = KeyStore(sqlite(path), cost=4), KeyStore(sqlite(backup), cost=4)
    gone, there = store.create("acme").record, other.create("acme").record
    other.close()
    store.find("warm")
    for file in tmp_path.glob("keys.db*"):
        file.unlink()
    with pytest.raises(StoreDown, match="not there"):
        store.find(gone.key_id)
    assert not path.exists()
    backup.rename(path)
    assert store.find(there.key_id) == there and store.find(gone.key_id) is None
    store.close()


def test_a_file_in_its_place_that_cannot_be_used_is_refused_each_time(tmp_path: Path) -> None:
    path, newer = tmp_path / "keys.db", tmp_path / "newer.db"
    store = KeyStore(sqlite(path), cost=4)
    Database(sqlite(newer)).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE schema_version SET version = version + 1")
    connection.close()
    for file in tmp_path.glob("keys.db*"):
        file.unlink()
    newer.rename(path)
    for _ in range(2):
        with pytest.raises(StoreDown, match="this gateway knows up to"):
            store.find("warm")
    store.close()


def test_a_writer_waits_for_another_and_not_without_an_end(tmp_path: Path) -> None:
    """Readers do not wait at all."""
    path = tmp_path / "keys.db"
    store = KeyStore(sqlite(path), cost=4)
    record = store.create("acme").record
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began_s = time.monotonic()
    assert store.find(record.key_id) == record
    with pytest.raises(StoreDown, match="locked"):
        store.revoke(record.key_id)
    assert 4.0 < time.monotonic() - began_s < 9.0
    other.execute("ROLLBACK")
    other.close()
    assert store.revoke(record.key_id).revoked_s
    store.close()


def test_a_connection_that_wrote_waits_no_longer_than_others_when_it_reads(tmp_path: Path) -> None:
    """There is one in the pool, which both get."""
    database = Database(sqlite(tmp_path / "keys.db"))
    waits = []
    for block in (database.writing, database.reading):
        with block() as connection:
            waits.append(connection.exec_driver_sql("PRAGMA busy_timeout").scalar())
    assert waits == [WRITE_WAIT_S * 1000, BUSY_TIMEOUT_S * 1000]
    database.close()


def test_what_is_told_has_no_password(postgresql: PostgreSQL) -> None:
    urls = [f"postgresql://nobody:hunter2@127.0.0.1:{port}/keys" for port in (postgresql.port, free_port())]
    for url in urls:
        with pytest.raises(StoreDown) as told:
            KeyStore(url)
        assert "hunter2" not in str(told.value) and told.value.__cause__ is None
