"""Stage 7, second half: the scopes that the route requires. All of them, letter for letter."""

from apigw.config.snapshot import CompiledRoute
from apigw.errors import GatewayError
from apigw.exchange import Exchange
from apigw.names import AUTH_REASONS, IN_GRACE_PERIOD


class InsufficientScope(GatewayError):
    """403: the caller is known and may not (RFC 6750 3.1). The answer names what the route requires."""

    status, code = 403, "insufficient_scope"
    message = "The credential does not have the scope that this request needs."

    def __init__(self, required: frozenset[str]) -> None:
        scope = " ".join(sorted(required)).encode("ascii", "replace")
        challenge = b'Bearer realm="apigw", error="insufficient_scope", scope="%b"' % scope
        super().__init__(
            reason="insufficient_scope",
            detail=AUTH_REASONS["insufficient_scope"],
            headers=((b"WWW-Authenticate", challenge),),
        )


class RequiredScopes:
    """Lets through who has every scope of the route, by token or by API key, and nobody in a grace period."""

    name = "scopes"
    needs: frozenset[str] = frozenset({"route", "principal"})
    gives: str | None = None

    def concerns(self, route: CompiledRoute) -> bool:
        return bool(route.required_scopes)

    def enter(self, ex: Exchange) -> None:
        """Raises InsufficientScope."""
        route, principal = ex.route, ex.principal
        assert route is not None and principal is not None  # `needs` says so
        required = route.required_scopes
        if not required or required <= principal.scopes:
            return
        if ex.auth_failure == IN_GRACE_PERIOD:  # no credentials pass, scopes or not (contract section 7)
            return
        ex.auth_failure = "insufficient_scope"
        raise InsufficientScope(required)
