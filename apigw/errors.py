"""What can stop a request, and nothing else.

`message` goes to the client and must hold no host name, no trace and no reason that helps an attacker;
`detail` goes to the log only; so does `reason`, the machine word behind the code, which labels metrics too.
"""

from typing import Mapping, TypeVar


class GatewayError(Exception):
    """A request ends here with `status` and `code` (contract section 4). The edge alone turns it into bytes."""

    status: int = 500
    code: str = "internal_error"
    message: str = "The gateway failed to handle this request."

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
        detail: str | None = None,
        reason: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        extra: Mapping[str, object] | None = None,
    ) -> None:
        if message is not None:
            self.message = message
        if status is not None:
            self.status = status
        if code is not None:
            self.code = code
        self.retry_after_s = retry_after_s
        self.detail = detail
        self.reason = reason or self.code
        self.headers = headers  # additional answer headers: Allow, WWW-Authenticate
        self.extra = extra or {}  # additional members of the JSON body: backend, retry_after
        super().__init__(self.code, detail or self.message)


Part = TypeVar("Part")


def or_raised(part: "Part | GatewayError") -> Part:
    """The part; a GatewayError is raised. Give it an expression: a frame that holds the error it raises is a cycle,
    which costs the collector more than the refusal costs (measured: 50 us)."""
    if isinstance(part, GatewayError):
        try:
            raise part
        finally:
            del part
    return part


class BadRequest(GatewayError):
    """400: the request's bytes or its target are not what HTTP allows."""

    status, code, message = 400, "bad_request", "The request is malformed."


class Unauthorized(GatewayError):
    """401: `code` is missing_credentials, invalid_token or invalid_api_key; `reason` is for log and metric only."""

    status, code, message = 401, "invalid_token", "The access token is not valid."


class CounterStoreDown(Exception):
    """The store of rate counters cannot answer in time. Not a GatewayError: the route's fail mode decides.

    counted: which of the demands, by their number, were counted all the same (in a cluster, where another was not).
    """

    def __init__(self, reason: object = None, counted: tuple[int, ...] = ()) -> None:
        super().__init__(reason)
        self.counted = counted


class StoreDown(Exception):
    """What gateways share (Redis, a database) cannot answer in time. Whoever asked goes on without."""


class ProbeFailed(Exception):
    """A health check got no answer that is one. The text says why, to an operator."""


class NotAsked(ProbeFailed):
    """A health check could not be made, for a reason of this host's own: it says nothing about the instance."""


class ConfigurationError(Exception):
    """A configuration is refused. `problems` has every defect found, in file order."""

    def __init__(self, problems: "tuple[object, ...]") -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class Answered(Exception):
    """Not a failure: a stage gives the whole answer itself (a CORS preflight, `backend_service: self`)."""

    def __init__(self, status: int, headers: tuple[tuple[bytes, bytes], ...] = (), body: bytes = b"") -> None:
        self.status, self.headers, self.body = status, headers, body
        super().__init__(status)
