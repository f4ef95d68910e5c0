"""Stage 2: the request's ID and trace context."""

from apigw.core.trace import Randomness, identify
from apigw.exchange import Exchange, Identity


class RequestIdentity:
    """Keeps a valid X-Request-ID and continues a valid trace; makes new ones otherwise. Never refuses."""

    name = "identity"
    needs = frozenset(("request",))
    gives = "identity"

    def __init__(self, randomness: Randomness) -> None:
        self._randomness = randomness

    def enter(self, ex: Exchange) -> Identity:
        return identify(ex.request.fields, self._randomness)
