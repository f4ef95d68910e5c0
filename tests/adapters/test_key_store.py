"""API keys in a real SQLite file and in a real PostgreSQL: both do the same."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bcrypt
import pytest
from sqlalchemy import create_engine, text

from apigw.adapters.key_store import KEEP_CHANGES_S, KeyRefused, KeyStore
from apigw.core.api_keys import split
from tests.postgresql import PostgreSQL

NOW_S = 1_800_000_000.0
DAY_S = 86_400.0


class Wall:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/keys.db"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.database()


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def store(url: str, wall: Wall) -> Iterator[KeyStore]:
    made = KeyStore(url, wall=wall, cost=4)
    yield made
    made.close()


def rows(url: str, statement: str) -> list[tuple[object, ...]]:
    """What the database says to somebody else; a change is committed."""
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.begin() as connection:
            found = connection.execute(text(statement))
            return [tuple(row) for row in found] if found.returns_rows else []
    finally:
        engine.dispose()


def test_a_key_is_shown_once_and_kept_as_its_bcrypt_hash(store: KeyStore, url: str) -> None:
    """What is shown is a key of the gateway's form; nothing in the database lets it be made again."""
    new = store.create("acme", tier="gold", scopes=("orders:read", "b"), networks=("10.0.0.0/8",), expires_s=NOW_S + 9)
    key_id, secret = split(new.presented.encode())
    assert key_id == new.record.key_id and len(secret) == 43
    found = store.find(key_id)
    assert found == new.record and found is not None
    assert (found.partner_id, found.tier, found.scopes, found.networks) == (
        "acme", "gold", ("orders:read", "b"), ("10.0.0.0/8",),
    )  # fmt: skip
    assert (found.created_s, found.expires_s, found.revoked_s) == (NOW_S, NOW_S + 9, None)
    assert bcrypt.checkpw(secret, found.secret_hash.encode())
    dump = repr(rows(url, "SELECT * FROM api_keys") + rows(url, "SELECT * FROM api_key_changes"))
    assert secret.decode() not in dump and secret.decode() not in repr(new)


def test_the_cost_of_bcrypt_is_that_of_the_constants(url: str) -> None:
    store = KeyStore(url)
    assert store.create("acme").record.secret_hash.startswith("$2b$12$")
    store.close()


def test_no_two_keys_are_alike_and_all_that_exist_are_found_in_one_question(store: KeyStore) -> None:
    made = [store.create("acme") for _ in range(5)]
    ids = [new.record.key_id for new in made]
    assert len(set(ids)) == len({new.presented for new in made}) == 5
    assert store.find_all([*ids, "nobody"]) == {new.record.key_id: new.record for new in made}
    assert store.find_all([]) == {} and store.find("nobody") is None
    assert store.find("' OR 1=1 --") is None


def test_keys_are_listed_oldest_first_and_by_partner(store: KeyStore, wall: Wall) -> None:
    ids = []
    for partner_id in ("a", "b", "a"):
        ids.append(store.create(partner_id).record.key_id)
        wall.now_s += 1
    assert [record.key_id for record in store.list()] == ids
    assert [record.key_id for record in store.list("a")] == [ids[0], ids[2]]
    assert store.list("nobody") == []
    with pytest.raises(KeyRefused, match="partner_id is not"):
        store.list("\udcff")


@pytest.mark.parametrize(
    "more",
    [{"partner_id": ""}, {"partner_id": "a\r\nb"}, {"networks": ("10.0.0.1/8",)}, {"expires_s": NOW_S}],
    ids=str,
)
def test_a_key_that_no_request_could_use_is_not_made(store: KeyStore, more: dict[str, object]) -> None:
    with pytest.raises(KeyRefused):
        store.create(**{"partner_id": "acme", **more})  # type: ignore[arg-type]
    assert store.list() == [] and store.last_change() == 0


def test_a_rotated_key_ends_after_the_overlap_and_another_takes_its_place(store: KeyStore, wall: Wall) -> None:
    old = store.create("acme", tier="gold", scopes=("a",), networks=("10.0.0.0/8",)).record
    wall.now_s += 100
    new = store.rotate(old.key_id, 7 * DAY_S)
    assert new.record.key_id != old.key_id and new.record.secret_hash != old.secret_hash
    for name in ("partner_id", "tier", "scopes", "networks"):
        assert getattr(new.record, name) == getattr(old, name)
    assert (new.record.expires_s, new.record.created_s) == (None, NOW_S + 100)
    kept = store.find(old.key_id)
    assert kept is not None and kept.secret_hash == old.secret_hash and kept.rotated_to == new.record.key_id
    assert kept.expires_s == NOW_S + 100 + 7 * DAY_S and kept.state(wall()) == "rotated"
    assert kept.state(kept.expires_s) == "expired"


def test_a_rotation_puts_no_end_off(store: KeyStore) -> None:
    """The old key ends when it would have ended, and the new one too unless an end of its own is asked for."""
    ends_s = NOW_S + DAY_S
    old = store.create("acme", expires_s=ends_s).record
    new = store.rotate(old.key_id, 7 * DAY_S)
    kept = store.find(old.key_id)
    assert kept is not None and kept.expires_s == ends_s == new.record.expires_s
    newer = store.rotate(new.record.key_id, 0.5 * DAY_S, expires_s=NOW_S + 90 * DAY_S)
    assert newer.record.expires_s == NOW_S + 90 * DAY_S
    kept = store.find(new.record.key_id)
    assert kept is not None and kept.expires_s == NOW_S + 0.5 * DAY_S


def test_only_a_key_that_lives_is_rotated_and_only_once(store: KeyStore, wall: Wall) -> None:
    first, second, third = (store.create("acme", expires_s=ends).record.key_id for ends in (None, NOW_S + 5, None))
    successor = store.rotate(first, DAY_S).record.key_id
    with pytest.raises(KeyRefused, match=f"rotated already: {successor}"):
        store.rotate(first, DAY_S)
    with pytest.raises(KeyRefused, match="would have expired already"):
        store.rotate(third, DAY_S, expires_s=0.0)
    wall.now_s += 5
    with pytest.raises(KeyRefused, match="expired"):
        store.rotate(second, DAY_S)
    store.revoke(third)
    with pytest.raises(KeyRefused, match="revoked"):
        store.rotate(third, DAY_S)
    with pytest.raises(KeyRefused, match="no API key nobody"):
        store.rotate("nobody", DAY_S)
    assert len(store.list()) == 4


def test_a_revoked_key_stays_revoked_since_the_first_time(store: KeyStore, wall: Wall) -> None:
    key_id = store.create("acme").record.key_id
    wall.now_s += 10
    assert store.revoke(key_id).revoked_s == NOW_S + 10
    wall.now_s += 10
    again = store.revoke(key_id)
    assert again.revoked_s == NOW_S + 10 and again.state(wall()) == "revoked" and store.find(key_id) == again
    with pytest.raises(KeyRefused, match="no API key nobody"):
        store.revoke("nobody")


def test_each_change_has_a_number_above_the_one_before(store: KeyStore, url: str) -> None:
    """A worker that knows all changes up to a number hears of each key that changed after it, in order."""
    assert store.last_change() == 0 and store.changes_since(0) == []
    first = store.create("acme").record.key_id
    second = store.rotate(first, DAY_S).record.key_id
    store.revoke(second)
    assert [(change.number, change.key_id) for change in store.changes_since(0)] == [
        (1, first), (2, first), (3, second), (4, second),
    ]  # fmt: skip
    assert [change.number for change in store.changes_since(3)] == [4] and store.last_change() == 4
    kinds = rows(url, "SELECT kind FROM api_key_changes ORDER BY number")
    assert kinds == [("create",), ("rotate",), ("create",), ("revoke",)]


def test_old_changes_are_deleted_and_their_numbers_never_given_again(store: KeyStore, wall: Wall) -> None:
    key_id = store.create("acme").record.key_id
    store.revoke(key_id)
    wall.now_s += KEEP_CHANGES_S + 1
    store.revoke(key_id)
    assert [change.number for change in store.changes_since(0)] == [3]
    wall.now_s += KEEP_CHANGES_S + 1
    assert store.last_change() == 3
    store.revoke(key_id)
    assert [change.number for change in store.changes_since(0)] == [4]


def together(count: int, work: Callable[[int], None]) -> None:
    """Run it in so many threads at once; the first failure is raised."""
    begin = threading.Barrier(count)

    def run(number: int) -> None:
        begin.wait(10)
        work(number)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run, number) for number in range(count)]:
            done.result(30)


def test_several_workers_open_a_new_database_at_the_same_time(url: str) -> None:
    """Each finds the tables whole, and they were made once."""

    def open_and_create(_: int) -> None:
        store = KeyStore(url, cost=4)
        store.create("acme")
        store.close()

    together(8, open_and_create)
    assert rows(url, "SELECT version FROM schema_version") == [(1,)]
    assert rows(url, "SELECT count(*), min(number), max(number) FROM api_key_changes") == [(8, 1, 8)]


def test_writers_at_the_same_time_hide_no_change_from_a_reader(store: KeyStore, url: str) -> None:
    """A number that is seen is never followed by the appearance of a lower one."""
    seen: list[int] = []
    end_s = time.monotonic() + 10

    def work(number: int) -> None:
        if number == 0:
            while len(seen) < 30 and time.monotonic() < end_s:
                seen.extend(change.number for change in store.changes_since(seen[-1] if seen else 0))
            return
        other = KeyStore(url, cost=4)
        for _ in range(10):
            other.create("acme")
        other.close()

    together(4, work)
    assert seen == list(range(1, 31))


def test_of_two_rotations_at_the_same_time_one_is_refused(store: KeyStore) -> None:
    key_id = store.create("acme").record.key_id
    refused: list[KeyRefused] = []

    def rotate(_: int) -> None:
        try:
            store.rotate(key_id, DAY_S)
        except KeyRefused as refusal:
            refused.append(refusal)

    together(2, rotate)
    assert len(refused) == 1 and len(store.list()) == 2


def test_a_row_that_somebody_else_wrote_harms_no_other_key(store: KeyStore, url: str) -> None:
    """Its networks are none that any address is in, so the key is good nowhere."""
    good, bad = store.create("acme").record, store.create("acme").record
    for document in ("5", "[5]", "nothing", "{}"):
        rows(url, f"UPDATE api_keys SET scopes = '{document}' WHERE key_id = '{bad.key_id}'")
        found = store.find_all([good.key_id, bad.key_id])
        assert found[good.key_id] == good
        assert (found[bad.key_id].scopes, found[bad.key_id].networks) == ((), ("damaged",))
