"""Authentication and required scopes, with real tokens and a key source that the test plays."""

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from apigw.config.model import JWTSection
from apigw.core.api_keys import APIKey, InvalidAPIKey, made
from apigw.core.revocations import Revocations, RevokedToken, RevokedUser
from apigw.core.tokens import InvalidToken, Keyring, UnknownKey
from apigw.errors import GatewayError
from apigw.exchange import ANONYMOUS, ClientRequest, Exchange, Principal
from apigw.names import AUTH_REASONS
from apigw.stages.authentication import Authentication, AuthenticationUnavailable, MissingCredentials, token_policy
from apigw.stages.scopes import InsufficientScope, RequiredScopes
from tests.corpus import forge

NOW_S = 1_800_000_000
FORGE = forge.Forge(NOW_S)
RING = Keyring.from_jwks({"keys": FORGE.jwks()["keys"][:1]}, ("RS256",))  # k1
BOTH = Keyring.from_jwks(FORGE.jwks(), ("RS256",))  # k1 and k2
POLICY = token_policy(JWTSection(issuer=forge.ISSUER, audience=forge.AUDIENCE))
GOOD = FORGE.token({})
BY_K2 = FORGE.token({"header": {"kid": "k2"}, "sign": {"key": "k2"}})


class Keys:
    """A key source: `ring` is in force; refreshed() gives `fresh`. Counts what it is asked."""

    def __init__(self, ring: Keyring | None, fresh: "Deferred[Keyring | None] | None" = None) -> None:
        self.ring = ring
        self.fresh = fresh
        self.refreshes = 0

    def current(self) -> Keyring | None:
        return self.ring

    def refreshed(self) -> "Deferred[Keyring | None] | None":
        self.refreshes += 1
        return self.fresh


def exchange(authorization: bytes | None = None, **route: Any) -> Any:
    """A request to a route that wants a JWT, unless `route` says otherwise."""
    fields = {} if authorization is None else {b"authorization": authorization}
    ex = Exchange(SimpleNamespace(), ClientRequest("GET", b"/", [], fields), 0.0, NOW_S)
    wants = {"auth_required": True, "auth_type": "jwt", "auth_grace_period": False, "required_scopes": frozenset()}
    ex.route = SimpleNamespace(**(wants | route))
    return ex


def stage(keys: Any) -> Authentication:
    return Authentication(keys, POLICY, lambda: NOW_S)


def refusal(keys: Any, ex: Exchange) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        stage(keys).enter(ex)
    assert ex.auth_failure == caught.value.reason
    assert ex.auth_failure in AUTH_REASONS
    return caught.value


def test_a_good_token_gives_its_principal_at_once() -> None:
    ex = exchange(b"Bearer " + GOOD)
    principal = stage(Keys(RING)).enter(ex)
    assert isinstance(principal, Principal) and principal.user_id == "alice"
    assert ex.auth_failure is None


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER ", b"Bearer   "])
def test_the_scheme_is_read_in_any_case_and_with_any_number_of_spaces(scheme: bytes) -> None:
    assert stage(Keys(RING)).enter(exchange(scheme + GOOD)).user_id == "alice"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer:" + GOOD,
        b"Bearer\t" + GOOD,
        b"Bearer" + GOOD,
        b"Bearer " + GOOD + b" " + GOOD,
        b"Bearer " + GOOD + b", Bearer " + GOOD,
        b"Bearer " + GOOD + b",",
        b"Bearer bearer " + GOOD,
        b"Token " + GOOD,
        b"JWT " + GOOD,
        b"Basic YWxpY2U6c2VjcmV0",
        GOOD,
    ],
    ids=lambda header: repr(header.replace(GOOD, b"TOKEN")),
)
def test_any_other_authorization_header_is_refused(header: bytes) -> None:
    """In a grace period too: these are credentials, and wrong ones."""
    for grace_period in (False, True):
        error = refusal(Keys(RING), exchange(header, auth_grace_period=grace_period))
        assert (error.status, error.code, error.reason) == (401, "invalid_token", "bad_authorization")


@pytest.mark.parametrize(
    "token", [b'"' + GOOD + b'"', b"\xff\xfe", b"x" * 9000, GOOD + b"="], ids=["quoted", "no ASCII", "long", "padded"]
)
def test_a_malformed_token_is_refused(token: bytes) -> None:
    assert isinstance(refusal(Keys(RING), exchange(b"Bearer " + token)), InvalidToken)


def test_no_credentials_are_challenged_without_an_error() -> None:
    """RFC 6750 3.1: a request without any authentication information gets no error code."""
    error = refusal(Keys(RING), exchange())
    assert isinstance(error, MissingCredentials)
    assert (error.status, error.code) == (401, "missing_credentials")
    assert error.headers == ((b"WWW-Authenticate", b'Bearer realm="apigw"'),)


def test_no_credentials_stay_401_while_there_are_no_keys() -> None:
    assert refusal(Keys(None), exchange()).code == "missing_credentials"


def test_a_token_without_keys_to_verify_it_is_503_with_retry_after() -> None:
    error = refusal(Keys(None), exchange(b"Bearer " + GOOD))
    assert isinstance(error, AuthenticationUnavailable)
    assert (error.status, error.code, error.reason) == (503, "authentication_unavailable", "keys_unavailable")
    assert error.retry_after_s and error.retry_after_s > 0
    assert refusal(Keys(None), exchange(b"Bearer " + GOOD, auth_grace_period=True)).status == 503


@pytest.mark.parametrize("route", [{"auth_required": False}, {"auth_type": "none"}])
def test_a_public_route_does_not_look_at_credentials(route: dict[str, Any]) -> None:
    for keys in (Keys(RING), Keys(None), None):
        for header in (None, b"Bearer " + GOOD, b"Bearer nonsense", b"Basic x"):
            ex = exchange(header, **route)
            assert stage(keys).enter(ex) is ANONYMOUS and ex.auth_failure is None


def test_a_grace_period_lets_nobody_pass_and_counts_it() -> None:
    ex = exchange(auth_grace_period=True)
    assert stage(Keys(RING)).enter(ex) is ANONYMOUS
    assert ex.auth_failure == "missing_in_grace_period"


def test_a_grace_period_identifies_who_has_a_good_token() -> None:
    ex = exchange(b"Bearer " + GOOD, auth_grace_period=True)
    assert stage(Keys(RING)).enter(ex).user_id == "alice"
    assert ex.auth_failure is None


def test_a_grace_period_refuses_wrong_credentials() -> None:
    expired = FORGE.token({"claims": {"exp": "now-60"}})
    assert refusal(Keys(RING), exchange(b"Bearer " + expired, auth_grace_period=True)).reason == "expired"


def test_a_route_whose_kind_of_credential_is_not_served_is_503() -> None:
    """Never open: an API key route, or a JWT route without the section auth.jwt."""
    keyed = exchange(b"Bearer " + GOOD, auth_type="api_key")
    keyed.request.fields[b"x-api-key"] = b"pk_live_a_b"
    assert refusal(Keys(RING), keyed).reason == "not_configured"
    ex = exchange(b"Bearer " + GOOD)
    with pytest.raises(AuthenticationUnavailable):
        Authentication(None, None, lambda: NOW_S).enter(ex)
    assert ex.auth_failure == "not_configured"


def test_an_unknown_kid_is_refused_at_once_when_no_refresh_is_allowed() -> None:
    keys = Keys(RING)
    assert isinstance(refusal(keys, exchange(b"Bearer " + BY_K2)), UnknownKey)
    assert keys.refreshes == 1


def test_a_known_kid_with_a_bad_signature_asks_for_no_refresh() -> None:
    keys = Keys(RING)
    forged = FORGE.token({"sign": {"key": "rogue"}})
    assert refusal(keys, exchange(b"Bearer " + forged)).reason == "bad_signature"
    assert keys.refreshes == 0


def test_a_new_key_is_waited_for() -> None:
    fresh: Deferred[Keyring | None] = Deferred()
    ex = exchange(b"Bearer " + BY_K2)
    waiting = stage(Keys(RING, fresh)).enter(ex)
    assert isinstance(waiting, Deferred) and not waiting.called
    seen: list[Any] = []
    waiting.addBoth(seen.append)
    fresh.callback(BOTH)
    assert seen[0].user_id == "alice" and ex.auth_failure is None


@pytest.mark.parametrize(
    ("fresh_ring", "token", "reason"),
    [
        (RING, BY_K2, "unknown_key"),
        (None, BY_K2, "keys_unavailable"),
        (BOTH, FORGE.token({"header": {"kid": "k2"}, "sign": {"key": "rogue"}}), "bad_signature"),
        (BOTH, FORGE.token({"header": {"kid": "k2"}, "sign": {"key": "k2"}, "claims": {"exp": "now-60"}}), "expired"),
    ],
)
def test_what_is_still_no_good_after_the_refresh_is_refused(fresh_ring: Any, token: bytes, reason: str) -> None:
    fresh: Deferred[Keyring | None] = Deferred()
    keys = Keys(RING, fresh)
    ex = exchange(b"Bearer " + token)
    seen: list[Any] = []
    stage(keys).enter(ex).addBoth(seen.append)
    fresh.callback(fresh_ring)
    assert seen[0].value.reason == ex.auth_failure == reason
    assert keys.refreshes == 1, "once a request"


def test_the_time_of_the_check_is_that_after_the_waiting() -> None:
    """A token that expired while its key was fetched has expired."""
    times = iter([NOW_S, NOW_S + 3600])
    fresh: Deferred[Keyring | None] = Deferred()
    ex = exchange(b"Bearer " + BY_K2)
    seen: list[Any] = []
    Authentication(Keys(RING, fresh), POLICY, lambda: next(times)).enter(ex).addBoth(seen.append)
    fresh.callback(BOTH)
    assert seen[0].value.reason == "expired"


def test_nobody_has_no_scopes_except_in_a_grace_period() -> None:
    ex = exchange(required_scopes=frozenset({"a"}))
    ex.principal = ANONYMOUS
    with pytest.raises(InsufficientScope):
        RequiredScopes().enter(ex)
    ex = exchange(required_scopes=frozenset({"a"}), auth_grace_period=True)
    ex.principal = stage(Keys(RING)).enter(ex)
    assert RequiredScopes().enter(ex) is None
    assert ex.auth_failure == "missing_in_grace_period"


def test_a_grace_period_gives_a_known_caller_no_scope() -> None:
    ex = exchange(b"Bearer " + GOOD, required_scopes=frozenset({"admin"}), auth_grace_period=True)
    ex.principal = stage(Keys(RING)).enter(ex)
    with pytest.raises(InsufficientScope):
        RequiredScopes().enter(ex)


class APIKeySource:
    """A source of API keys: those of `keys` are at hand, the others are what `later` comes to."""

    def __init__(self, *keys: APIKey) -> None:
        self.keys = {b"key of " + key.key_id.encode(): key for key in keys}
        self.later: Deferred[APIKey] = Deferred()

    def find(self, presented: bytes) -> "APIKey | Deferred[APIKey]":
        return self.keys.get(presented) or self.later


PARTNER = made("p", "f" * 64, partner_id="acme", scopes=("a",))
FENCED = made("f", "e" * 64, partner_id="acme", networks=("10.0.0.0/8",))


def with_key(presented: bytes | None, **route: Any) -> Any:
    """A request to a route that wants an API key, from 192.0.2.7."""
    ex = exchange(b"Bearer " + GOOD, **({"auth_type": "api_key"} | route))
    if presented is not None:
        ex.request.fields[b"x-api-key"] = presented
    ex.client_ip = "192.0.2.7"
    return ex


def by_key(source: Any, ex: Exchange) -> Any:
    return Authentication(Keys(RING), POLICY, lambda: NOW_S, api_keys=source).enter(ex)


def test_a_good_api_key_gives_its_owner_at_once_and_a_token_beside_it_counts_for_nothing() -> None:
    ex = with_key(b"key of p")
    assert by_key(APIKeySource(PARTNER), ex) is PARTNER.principal
    assert ex.auth_failure is None


def test_no_api_key_is_missing_credentials_whatever_else_came() -> None:
    ex = with_key(None)
    with pytest.raises(MissingCredentials) as caught:
        by_key(APIKeySource(), ex)
    assert ex.auth_failure == "missing_credentials" and caught.value.headers


def test_a_grace_period_lets_pass_who_has_no_api_key_and_nobody_with_a_wrong_one() -> None:
    ex = with_key(None, auth_grace_period=True)
    assert by_key(APIKeySource(), ex) is ANONYMOUS and ex.auth_failure == "missing_in_grace_period"
    source, ex = APIKeySource(), with_key(b"", auth_grace_period=True)
    seen: list[Any] = []
    by_key(source, ex).addBoth(seen.append)
    source.later.errback(InvalidAPIKey("key_malformed"))
    assert seen[0].value.status == 401 and ex.auth_failure == "key_malformed"


def test_a_key_that_is_looked_into_is_waited_for() -> None:
    source, ex = APIKeySource(), with_key(b"key of p")
    seen: list[Any] = []
    by_key(source, ex).addBoth(seen.append)
    source.later.callback(PARTNER)
    assert seen == [PARTNER.principal] and ex.auth_failure is None


@pytest.mark.parametrize("at_hand", [True, False])
@pytest.mark.parametrize(("client_ip", "allowed"), [("10.1.2.3", True), ("192.0.2.7", False), ("nonsense", False)])
def test_a_key_is_good_from_its_networks_only(at_hand: bool, client_ip: str, allowed: bool) -> None:
    """403 ip_not_allowed: the key itself is good."""
    source, ex = APIKeySource(*[FENCED] * at_hand), with_key(b"key of f")
    ex.client_ip = client_ip
    seen: list[Any] = []
    try:
        found = by_key(source, ex)
        if isinstance(found, Deferred):
            found.addBoth(lambda result: seen.append(getattr(result, "value", result)))
            source.later.callback(FENCED)
        else:
            seen.append(found)
    except GatewayError as refusal:
        seen.append(refusal)
    if allowed:
        assert seen == [FENCED.principal] and ex.auth_failure is None
    else:
        assert (seen[0].status, seen[0].code) == (403, "ip_not_allowed") and ex.auth_failure == "ip_not_allowed"


def test_an_api_key_without_a_place_to_look_it_up_is_503() -> None:
    ex = with_key(b"key of p")
    with pytest.raises(AuthenticationUnavailable):
        by_key(None, ex)
    assert ex.auth_failure == "not_configured"


# -- revocations


def test_a_token_that_was_good_a_moment_ago_is_refused_from_its_revocation_on() -> None:
    """The list is asked for each request, though the keyring remembers that the token was verified."""
    revocations, ring = Revocations(), Keyring.from_jwks(FORGE.jwks(), ("RS256",))
    asked = Authentication(Keys(ring), POLICY, lambda: NOW_S, revocations=revocations)
    token = FORGE.token({"claims": {"jti": "t-1"}})
    for _ in range(3):
        assert isinstance(asked.enter(exchange(b"Bearer " + token)), Principal)
    assert token in ring.verified
    revocations.add([RevokedToken("t-1", NOW_S + 600.0)])
    ex = exchange(b"Bearer " + token)
    with pytest.raises(InvalidToken):
        asked.enter(ex)
    assert ex.auth_failure == "revoked"


def test_a_revoked_token_of_a_key_that_is_fetched_first_is_refused_too() -> None:
    """The wait for fresh keys is no way around the list."""
    revocations, fresh = Revocations(), Deferred[Any]()
    asked = Authentication(Keys(RING, fresh), POLICY, lambda: NOW_S, revocations=revocations)
    revocations.add([RevokedUser("alice", NOW_S + 0.0, NOW_S + 600.0)])
    ex = exchange(b"Bearer " + BY_K2)
    seen: list[Any] = []
    asked.enter(ex).addBoth(seen.append)  # type: ignore[union-attr]
    fresh.callback(BOTH)
    assert seen[0].check(InvalidToken) and ex.auth_failure == "revoked"
