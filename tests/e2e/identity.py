"""An identity service: keys, tokens, and a real HTTP server for the key set that can die, hang and rotate."""

import base64
import http.server
import json
import threading
import time
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

ISSUER, AUDIENCE = "https://id.e2e.test", "e2e"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def private_key(kid: str) -> rsa.RSAPrivateKey:
    """The key of this name, made once a run."""
    return rsa.generate_private_key(65537, 2048)


def public_jwk(kid: str) -> dict[str, str]:
    numbers = private_key(kid).public_key().public_numbers()
    n, e = (b64(value.to_bytes((value.bit_length() + 7) // 8, "big")) for value in (numbers.n, numbers.e))
    return {"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256", "n": n, "e": e}


def key_set(*kids: str) -> bytes:
    return json.dumps({"keys": [public_jwk(kid) for kid in kids]}).encode()


def token(user: str = "alice", scope: str = "read", *, kid: str = "k1", **claims: Any) -> str:
    """A good token, unless the claims say otherwise."""
    now = int(time.time())
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "scope": scope, "iat": now - 5, "exp": now + 600, **claims}
    header = {"alg": "RS256", "typ": "JWT", "kid": kid}
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(payload).encode())}"
    signature = private_key(kid).sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{b64(signature)}"


def bearer(user: str = "alice", scope: str = "read", **more: Any) -> tuple[str, str]:
    """The Authorization header with a good token."""
    return "Authorization", f"Bearer {token(user, scope, **more)}"


class KeyServer:
    """Serves `document` with `status` on 127.0.0.1; `fetches` counts. stop() and start() keep the port."""

    def __init__(self, *kids: str) -> None:
        self.document = key_set(*(kids or ("k1",)))
        self.status = 200
        self.fetches = 0
        self.port = 0
        self._server: http.server.ThreadingHTTPServer | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/jwks.json"

    def start(self) -> None:
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.fetches += 1
                self.send_response(service.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(service.document)))
                self.end_headers()
                self.wfile.write(service.document)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
