"""What every peer is asked to do, in one place.

https with keep-alive; an RS256 token (signature, exp, iss, aud) with each request; at most `LIMIT` requests
a minute and user; `/api/v2/users/*` to the backend's `/users/*` over pooled connections; X-User-ID for the
backend, never from the client; one JSON line of access log; metrics. `/api/v2/limited/*` is the same with
`LIMITED`, so that the check can see the limiter at work.
"""

import json

PREFIX = "/api/v2"
PATH = "/api/v2/users/me"
LIMITED_PATH = "/api/v2/limited/me"
UNKNOWN_PATH = "/nothing/here"
LIMIT = 10_000_000
LIMITED = 5
WINDOW_S = 60
TOKENS = 50  # in use, one a user: a peer that remembers verified tokens verifies none of them twice
SEEN_USER_HEADER = "X-Seen-User"  # the backend's answer: the X-User-ID it was given

BODY_BYTES = 5 * 1024


def answer_body() -> bytes:
    """The backend's answer: JSON of exactly BODY_BYTES."""
    items = [
        {"id": number, "name": f"item {number}", "price": number * 7 % 100 + 0.99, "tags": ["alpha", "beta"]}
        for number in range(1, 70)
    ]
    body = json.dumps({"items": items, "filler": ""})
    return json.dumps({"items": items, "filler": "x" * (BODY_BYTES - len(body))}).encode("ascii")


def request(port: int, path: str, token: str | None, *extra: str) -> str:
    """The bytes of a GET as an ordinary client sends them."""
    lines = [f"GET {path} HTTP/1.1", f"Host: localhost:{port}", "User-Agent: bench/1.0", "Accept: application/json"]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*lines, *extra, "", ""])
