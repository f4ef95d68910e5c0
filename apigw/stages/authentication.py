"""Stage 7: who the caller is. Always fail-closed: what cannot be verified does not pass.

    no Authorization header      401 missing_credentials; in a grace period it passes as nobody, counted
    a header, keys in force      the principal, or 401 invalid_token with the same words whatever is wrong
    a header, no keys in force   503 authentication_unavailable
    a kid that is not known      waits for fresh keys if a refresh is allowed (contract section 7), once

    an API key instead           see _by_api_key; what is checked how is the APIKeySource's

The reason of a refusal is in ex.auth_failure (names.AUTH_REASONS), for the log and the metrics only.
"""

from typing import TYPE_CHECKING, Any

from apigw.constants import RETRY_AFTER_DEPENDENCY_S
from apigw.core.api_keys import APIKey
from apigw.core.revocations import NOTHING_REVOKED, Revocations
from apigw.core.tokens import InvalidToken, Keyring, TokenPolicy, UnknownKey, verify
from apigw.errors import GatewayError, Unauthorized
from apigw.exchange import ANONYMOUS, Exchange, Principal
from apigw.names import AUTH_REASONS, IN_GRACE_PERIOD

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from apigw.config.model import JWTSection
    from apigw.ports import APIKeySource, KeySource, WallClock


class MissingCredentials(Unauthorized):
    """401: the route wants a credential and the request has none (RFC 6750 3.1: a challenge without error)."""

    code = "missing_credentials"
    message = "The request needs a credential."

    def __init__(self) -> None:
        super().__init__(
            reason="missing_credentials",
            detail=AUTH_REASONS["missing_credentials"],
            headers=((b"WWW-Authenticate", b'Bearer realm="apigw"'),),
        )


class AuthenticationUnavailable(GatewayError):
    """503: a credential came and there is nothing to verify it with."""

    status, code = 503, "authentication_unavailable"
    message = "Credentials cannot be verified at the moment."

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason, detail=AUTH_REASONS[reason], retry_after_s=RETRY_AFTER_DEPENDENCY_S)


def token_policy(section: "JWTSection | None") -> TokenPolicy | None:
    """`auth.jwt` as the rules of core/tokens.py; None without the section."""
    if section is None:
        return None
    return TokenPolicy(
        issuer=section.issuer,
        audience=section.audience,
        algorithms=section.algorithms,
        skew_s=section.clock_skew_s,
        user_id_claim=section.user_id_claim,
        scopes_claim=section.scopes_claim,
    )


class Authentication:
    """Makes the principal. `wall` gives epoch seconds; keys and policy are None without a section auth.jwt,
    api_keys without a section auth.api_keys. revocations: asked for each token."""

    name = "authentication"
    needs: frozenset[str] = frozenset({"route", "identity"})
    gives: str | None = "principal"

    def __init__(
        self,
        keys: "KeySource | None",
        policy: TokenPolicy | None,
        wall: "WallClock",
        api_keys: "APIKeySource | None" = None,
        revocations: Revocations = NOTHING_REVOKED,
    ) -> None:
        self._keys = keys
        self._revocations = revocations
        self._api_keys = api_keys
        self._policy = policy
        self._wall = wall

    def enter(self, ex: Exchange) -> "Principal | Deferred[Principal]":
        """Raises MissingCredentials, InvalidToken, AuthenticationUnavailable."""
        route = ex.route
        assert route is not None  # `needs` says so
        if not route.auth_required or route.auth_type == "none":
            return ANONYMOUS
        try:
            if route.auth_type == "jwt":
                return self._by_token(ex, route.auth_grace_period)
            if route.auth_type == "api_key":
                return _by_api_key(ex, self._api_keys, route.auth_grace_period)
            raise AuthenticationUnavailable("not_configured")
        except GatewayError as refusal:
            ex.auth_failure = refusal.reason
            raise

    def _by_token(self, ex: Exchange, grace_period: bool) -> "Principal | Deferred[Principal]":
        credentials = ex.request.fields.get(b"authorization")
        if credentials is None:
            if not grace_period:
                raise MissingCredentials
            ex.auth_failure = IN_GRACE_PERIOD
            return ANONYMOUS
        token = _bearer(credentials)
        keys, policy = self._keys, self._policy
        if keys is None or policy is None:
            raise AuthenticationUnavailable("not_configured")
        keyring = keys.current()
        if keyring is None:
            raise AuthenticationUnavailable("keys_unavailable")
        try:
            return verify(token, keyring, policy, self._wall(), self._revocations)
        except UnknownKey:
            refreshed = keys.refreshed()
            if refreshed is None:
                raise
        return refreshed.addCallback(self._with_fresh_keys, ex, token, policy)

    def _with_fresh_keys(self, keyring: Keyring | None, ex: Exchange, token: bytes, policy: TokenPolicy) -> Principal:
        try:
            if keyring is None:
                raise AuthenticationUnavailable("keys_unavailable")
            return verify(token, keyring, policy, self._wall(), self._revocations)
        except GatewayError as refusal:
            ex.auth_failure = refusal.reason
            raise


def _bearer(credentials: bytes) -> bytes:
    """The token of `Bearer TOKEN` (RFC 6750 2.1): scheme in any case, spaces, one token. Raises InvalidToken."""
    if credentials[:7].lower() != b"bearer ":
        raise InvalidToken("bad_authorization")
    token = credentials[7:].strip(b" ")
    if not token or b" " in token or b"," in token:  # two credentials, joined to one line
        raise InvalidToken("bad_authorization")
    return token


class AddressNotAllowed(GatewayError):
    """403: the API key is good, and its owner said from where it may be used."""

    status, code = 403, "ip_not_allowed"
    message = "The API key may not be used from this address."

    def __init__(self, key_id: str) -> None:
        super().__init__(reason="ip_not_allowed", detail=f"{AUTH_REASONS['ip_not_allowed']} (key {key_id})")


def _by_api_key(ex: Exchange, source: "APIKeySource | None", grace_period: bool) -> "Principal | Deferred[Principal]":
    """Whose key X-API-Key has. Two header lines, or two keys in one, are no key: fields joins them with a comma."""
    presented = ex.request.fields.get(b"x-api-key")
    if presented is None:
        if not grace_period:
            raise MissingCredentials
        ex.auth_failure = IN_GRACE_PERIOD
        return ANONYMOUS
    if source is None:
        raise AuthenticationUnavailable("not_configured")
    found = source.find(presented)
    if isinstance(found, APIKey):
        return found.principal if not found.networks else _from_its_network(found, ex)
    return found.addCallback(_from_its_network, ex).addErrback(_noted, ex)


def _from_its_network(key: APIKey, ex: Exchange) -> Principal:
    if not key.allows(ex.client_ip):
        raise AddressNotAllowed(key.key_id)
    return key.principal


def _noted(failure: Any, ex: Exchange) -> Any:
    """For the log and the metrics, of a refusal that took its time."""
    if isinstance(failure.value, GatewayError):
        ex.auth_failure = failure.value.reason
    return failure
