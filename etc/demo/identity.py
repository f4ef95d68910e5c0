"""The identity service of the demo: publishes its key and gives a token to whoever asks. Nobody's model.

usage: identity.py PORT KEY_FILE ISSUER AUDIENCE

    GET /.well-known/jwks.json                       the public key, for the gateway
    GET or POST /token?sub=alice&scope=orders:read   {"access_token": a JWT signed with RS256, ...}; ttl_s=SECONDS too
"""

import json
import sys
import time
from pathlib import Path

from joserfc import jwk, jwt
from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

KEY_ID = "demo-1"
TTL_S = 8 * 3600  # a working day: the printed curl lines are to be pasted later too


class Page(Resource):
    """JSON at one path."""

    isLeaf = True

    def __init__(self, content: object) -> None:
        super().__init__()
        self._text = json.dumps(content).encode()

    def render_GET(self, request: Request) -> bytes:
        """200 with the content."""
        request.setHeader("Content-Type", "application/json")
        return self._text


class Tokens(Resource):
    """Signs what it is asked for: `sub`, `scope` (space-separated) and `ttl_s` of the query or of a form body."""

    isLeaf = True

    def __init__(self, key: jwk.RSAKey, issuer: str, audience: str) -> None:
        super().__init__()
        self._key, self._issuer, self._audience = key, issuer, audience

    def render_GET(self, request: Request) -> bytes:
        """200 with a token."""

        def argument(name: str, default: str) -> str:
            return str(request.args.get(name.encode(), [default.encode()])[0].decode("utf-8", "replace"))

        now_s, ttl_s = int(time.time()), int(argument("ttl_s", str(TTL_S)))
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": argument("sub", "alice"),
            "scope": argument("scope", "orders:read"),
            "iat": now_s,
            "exp": now_s + ttl_s,
        }
        token = jwt.encode({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"}, claims, self._key, algorithms=["RS256"])
        request.setHeader("Content-Type", "application/json")
        request.setHeader("Cache-Control", "no-store")
        return json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": ttl_s}).encode()

    render_POST = render_GET


def main() -> None:
    port, key_file, issuer, audience = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    key = jwk.RSAKey.import_key(key_file.read_text(), {"kid": KEY_ID, "use": "sig", "alg": "RS256"})
    root, well_known = Resource(), Resource()
    root.putChild(b".well-known", well_known)
    well_known.putChild(b"jwks.json", Page({"keys": [key.as_dict(private=False)]}))
    root.putChild(b"token", Tokens(key, issuer, audience))
    root.putChild(b"healthz", Page({"status": "ok"}))
    reactor.listenTCP(port, Site(root), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
