"""What explain verifies credentials with: key sets and databases as they are, and what is wrong with them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apigw.adapters.key_store import KeyStore, NewKey
from apigw.cli.credentials import StoredKeys, TokenKeys
from apigw.config.model import APIKeysSection, JWTSection
from apigw.core.api_keys import InvalidAPIKey
from apigw.stages.authentication import AuthenticationUnavailable
from tests.e2e.identity import AUDIENCE, ISSUER, KeyServer, key_set
from tests.servers import free_port


@pytest.fixture
def identity() -> Iterator[KeyServer]:
    server = KeyServer("k1")
    yield server
    server.stop()


def by_url(url: str) -> TokenKeys:
    return TokenKeys(JWTSection(ISSUER, AUDIENCE, jwks_url=url))


def test_keys_come_from_the_identity_service_or_a_file(identity: KeyServer, tmp_path: Path) -> None:
    keys = by_url(identity.url)
    assert identity.fetches == 0, "nothing is fetched before it is needed"
    for _ in range(2):
        keyring = keys.current()
        assert keyring is not None and keyring.kids == {"k1"}
    assert identity.fetches == 1 and keys.refreshed() is None
    (tmp_path / "jwks.json").write_bytes(key_set("k2"))
    keyring = TokenKeys(JWTSection(ISSUER, AUDIENCE, jwks_file=tmp_path / "jwks.json")).current()
    assert keyring is not None and keyring.kids == {"k2"}


def test_a_key_set_that_cannot_be_used_is_none_and_told(
    identity: KeyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jwks.json"
    missing = TokenKeys(JWTSection(ISSUER, AUDIENCE, jwks_file=file))
    down = by_url(f"http://127.0.0.1:{free_port()}/")
    for keys, why in ((missing, "does not exist"), (down, "refused")):
        assert keys.current() is None
        assert why in capsys.readouterr().err
    identity.document = b"<html>"
    assert by_url(identity.url).current() is None
    assert "the key set of auth.jwt cannot be used" in capsys.readouterr().err
    identity.document, identity.status = key_set("k1"), 302
    assert by_url(identity.url).current() is None, "redirects are not followed, as by the gateway"


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[tuple[StoredKeys, KeyStore]]:
    url = f"sqlite:///{tmp_path}/keys.db"
    store = KeyStore(url, cost=4)
    yield StoredKeys(APIKeysSection(url), time.time), store
    store.close()


def test_a_good_key_says_whose_it_is(stored: tuple[StoredKeys, KeyStore]) -> None:
    keys, store = stored
    new = store.create("acme", tier="t", scopes=("read",), networks=("10.0.0.0/8",))
    found = keys.find(new.presented.encode())
    assert (found.partner_id, found.principal.tier, found.principal.scopes) == ("acme", "t", {"read"})
    assert found.allows("10.1.2.3") and not found.allows("192.0.2.1")
    assert not keys.knows(new.presented.encode())


@pytest.mark.parametrize(
    "reason, presented",
    [
        ("key_malformed", lambda store, new: "x"),
        ("key_unknown", lambda store, new: f"pk_live_{'a' * 16}_{'b' * 43}"),
        ("key_wrong", lambda store, new: new.presented[:-1] + ("a" if new.presented[-1] != "a" else "b")),
        ("key_revoked", lambda store, new: store.revoke(new.record.key_id) and new.presented),
        ("key_expired", lambda store, new: store.rotate(new.record.key_id, -1.0) and new.presented),
    ],
)
def test_a_key_that_is_none_says_which_check_failed(
    stored: tuple[StoredKeys, KeyStore], reason: str, presented: Callable[[KeyStore, NewKey], str]
) -> None:
    keys, store = stored
    shown = presented(store, store.create("acme"))
    with pytest.raises(InvalidAPIKey) as raised:
        keys.find(shown.encode())
    assert raised.value.reason == reason


def test_without_its_database_nothing_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = StoredKeys(APIKeysSection(f"sqlite:///{tmp_path}/nowhere/keys.db"), time.time)
    with pytest.raises(AuthenticationUnavailable):
        keys.find(f"pk_live_{'a' * 16}_{'b' * 43}".encode())
    assert "nowhere of the database of API keys does not exist" in capsys.readouterr().err


def test_a_database_that_is_not_there_is_not_made_by_a_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = StoredKeys(APIKeysSection(f"sqlite:///{tmp_path}/keys.db"), time.time)
    with pytest.raises(AuthenticationUnavailable):
        keys.find(f"pk_live_{'a' * 16}_{'b' * 43}".encode())
    assert f"there is no database of API keys at {tmp_path}/keys.db" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
