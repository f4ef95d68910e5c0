"""The schema's version: made, kept, and refused when it is a newer gateway's."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, text

from apigw.adapters.key_schema import NEWEST, metadata, refuse_newer, upgrade, version
from apigw.adapters.key_store import KeyStore
from apigw.errors import StoreDown
from tests.postgresql import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Of an empty database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/keys.db"
    else:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        url = server.database().replace("postgresql:", "postgresql+psycopg:")
    made = create_engine(url)
    yield made
    made.dispose()


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False).replace("+psycopg", "")


def set_version(connection: Connection, number: int) -> None:
    connection.execute(text("UPDATE schema_version SET version = :number"), {"number": number})


def test_an_empty_database_becomes_the_newest_by_steps_and_stays_so(engine: Engine) -> None:
    """The tables that the steps make have the columns that the code asks for."""
    for _ in range(2):
        with engine.begin() as connection:
            upgrade(connection)
            assert version(connection) == NEWEST
    seen = inspect(engine)
    for name, table in metadata.tables.items():
        assert [column["name"] for column in seen.get_columns(name)] == table.c.keys()


def test_a_newer_schema_is_refused_with_a_sentence_and_left_alone(engine: Engine) -> None:
    store = KeyStore(url_of(engine), cost=4)
    store.create("acme")
    store.close()
    with engine.begin() as connection:
        set_version(connection, NEWEST + 1)
    sentence = f"has schema version {NEWEST + 1}, this gateway knows up to {NEWEST}"
    with pytest.raises(StoreDown, match=sentence):
        KeyStore(url_of(engine))
    with engine.begin() as connection, pytest.raises(StoreDown, match=sentence):
        upgrade(connection)
    with engine.begin() as connection:
        assert version(connection) == NEWEST + 1
    refuse_newer(NEWEST)


def test_a_step_that_fails_leaves_nothing_half_made(engine: Engine) -> None:
    """A table of one of the names is there already, from something else."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE api_key_changes (something INTEGER)"))
    with pytest.raises(StoreDown, match="already exists"):
        KeyStore(url_of(engine))
    assert sorted(inspect(engine).get_table_names()) == ["api_key_changes"]
