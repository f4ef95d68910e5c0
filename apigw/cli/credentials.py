"""What `apigwctl explain` verifies credentials with: the gateways' own keys, asked here and now, blocking.

Nothing is remembered and nobody is told: no cache of keys is filled, no failed attempt is counted.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cached_property
from typing import Any

import bcrypt

from apigw.adapters.key_store import KeyRecord, KeyStore
from apigw.cli.refusals import warn
from apigw.config.model import APIKeysSection, JWTSection
from apigw.config.reading import Unreadable, read_bounded
from apigw.constants import JWKS_TIMEOUT_S, MAX_JWKS_BYTES
from apigw.core.api_keys import APIKey, InvalidAPIKey, Malformed, Unusable, digest, made, split
from apigw.core.keyring import Keyring, KeysRefused
from apigw.errors import StoreDown
from apigw.stages.authentication import AuthenticationUnavailable


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The gateway follows none either."""

    def redirect_request(self, *_: Any) -> None:
        return None


class TokenKeys:
    """A KeySource (ports.py): the key set as it is now. What is wrong with it is told once, on standard error."""

    def __init__(self, section: JWTSection) -> None:
        self._section = section

    def current(self) -> Keyring | None:
        return self._keyring

    def refreshed(self) -> None:
        """It was fetched a moment ago."""
        return None

    @cached_property
    def _keyring(self) -> Keyring | None:
        try:
            return Keyring.from_jwks(json.loads(self._document()), self._section.algorithms)
        except (OSError, Unreadable, KeysRefused, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            warn(f"the key set of auth.jwt cannot be used: {reason}")
            return None

    def _document(self) -> bytes:
        if self._section.jwks_file is not None:
            return read_bounded(self._section.jwks_file, MAX_JWKS_BYTES)
        asked = urllib.request.build_opener(_NoRedirect).open(self._section.jwks_url or "", timeout=JWKS_TIMEOUT_S)
        with asked as answer:
            return bytes(answer.read(MAX_JWKS_BYTES))


class StoredKeys:
    """An APIKeySource (ports.py): the database, for one key."""

    def __init__(self, section: APIKeysSection, wall: Callable[[], float]) -> None:
        self._section = section
        self._wall = wall

    def knows(self, presented: bytes) -> bool:
        """Nothing is remembered."""
        return False

    def find(self, presented: bytes) -> APIKey:
        """Raises InvalidAPIKey, AuthenticationUnavailable."""
        try:
            key_id, secret = split(presented)
        except Malformed:
            raise InvalidAPIKey("key_malformed") from None
        try:
            store = KeyStore(self._section.database_url, may_make=False)
            try:
                record = store.find(key_id)
            finally:
                store.close()
        except StoreDown as down:
            warn(str(down))
            raise AuthenticationUnavailable("key_unverifiable") from None
        return self._checked(record, key_id, secret, digest(presented))

    def _checked(self, record: KeyRecord | None, key_id: str, secret: bytes, key_hash: str) -> APIKey:
        if record is None:
            raise InvalidAPIKey("key_unknown", key_id)
        if not bcrypt.checkpw(secret, record.secret_hash.encode("ascii")):
            raise InvalidAPIKey("key_wrong", key_id)
        state = record.state(self._wall())
        if state in ("revoked", "expired"):
            raise InvalidAPIKey(f"key_{state}", key_id)
        try:
            return made(
                key_id,
                key_hash,
                partner_id=record.partner_id,
                tier=record.tier,
                scopes=record.scopes,
                expires_s=record.expires_s,
                networks=record.networks,
            )
        except Unusable as unusable:
            warn(f"the record of API key {key_id} is no usable key: {unusable}")
            raise InvalidAPIKey("key_unknown", key_id) from None
