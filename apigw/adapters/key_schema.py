"""The tables of API keys, and how a database of an older version of the gateway gets them: ordered steps.

    version 0   nothing, or an empty database
    version 1   api_keys, api_key_changes

A step is never edited once it was released; a change is a new step at the end. Steps run in one transaction, under a
lock, so that workers which open a new database at the same time make it once.
"""

from typing import Final

from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, inspect, select, text

from apigw.errors import StoreDown

_LOCK: Final = 0x61706967775F6B31  # of pg_advisory_xact_lock: "apigw_k1"

metadata = MetaData()

# Times are epoch seconds. scopes and networks are JSON lists of texts.
API_KEYS = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("partner_id", Text, nullable=False),
    Column("secret_hash", Text, nullable=False),  # bcrypt
    Column("tier", Text),
    Column("scopes", Text, nullable=False),
    Column("networks", Text, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double),  # None: never
    Column("revoked_s", Double),  # None: it is not
    Column("rotated_to", Text),  # the key_id that took its place
)
# What happened to keys, in the order of the numbers: whoever knows all up to a number asks for those above it.
CHANGES = Table(
    "api_key_changes",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("key_id", Text, nullable=False),
    Column("kind", Text, nullable=False),  # create, rotate, revoke
    Column("changed_s", Double, nullable=False),
)
_VERSION = Table("schema_version", metadata, Column("version", Integer, nullable=False))

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE api_keys (
            key_id TEXT NOT NULL PRIMARY KEY, partner_id TEXT NOT NULL, secret_hash TEXT NOT NULL, tier TEXT,
            scopes TEXT NOT NULL, networks TEXT NOT NULL, created_s DOUBLE PRECISION NOT NULL,
            expires_s DOUBLE PRECISION, revoked_s DOUBLE PRECISION, rotated_to TEXT)""",
        "CREATE INDEX api_keys_by_partner ON api_keys (partner_id)",
        """CREATE TABLE api_key_changes (
            number BIGINT NOT NULL PRIMARY KEY, key_id TEXT NOT NULL, kind TEXT NOT NULL,
            changed_s DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX api_key_changes_by_time ON api_key_changes (changed_s)",
    ),
)
NEWEST: Final = len(STEPS)


def version(connection: Connection) -> int:
    """The schema's version in this database; 0 for none."""
    if not inspect(connection).has_table(_VERSION.name):
        return 0
    return connection.execute(select(_VERSION.c.version)).scalar() or 0


def upgrade(connection: Connection) -> None:
    """Make the tables what this version wants. In a transaction that writes. Raises StoreDown for a newer schema."""
    if connection.dialect.name == "postgresql":  # SQLite: BEGIN IMMEDIATE is the lock
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    found = version(connection)
    refuse_newer(found)
    if found == 0 and not inspect(connection).has_table(_VERSION.name):
        connection.execute(text("CREATE TABLE schema_version (version INTEGER NOT NULL)"))
        connection.execute(_VERSION.insert().values(version=0))
    for step in STEPS[found:]:
        for statement in step:
            connection.execute(text(statement))
    connection.execute(_VERSION.update().values(version=NEWEST))


def refuse_newer(found: int) -> None:
    """Raises StoreDown when the database was made by a gateway that is newer than this one."""
    if found > NEWEST:
        raise StoreDown(
            f"the database of API keys has schema version {found}, this gateway knows up to {NEWEST}: "
            "a newer apigw has upgraded it; use that one"
        )
