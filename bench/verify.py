"""Whether a peer does the job, before anything is measured."""

import http.client
import ssl
import time

import job
from peers.base import Running
from world import World


class Client:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
        self.made = 0

    def get(self, path: str, token: str | None, **headers: str) -> tuple[int, str | None, bytes]:
        """(status, the user that the backend saw, body)."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self.made += 1
        self._connection.request(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        response = self._connection.getresponse()
        body = response.read()
        return response.status, response.headers.get(job.SEEN_USER_HEADER), body

    def close(self) -> None:
        self._connection.close()


def problems(world: World, running: Running, now_s: float | None = None) -> tuple[list[str], int]:
    """(what it does not do, requests made)."""
    now = int(time.time() if now_s is None else now_s)
    identity = world.identity
    client = Client(running.port)
    found = []

    status, user, body = client.get(job.PATH, identity.token("user-0"))
    if (status, user) != (200, "user-0") or body != job.answer_body():
        found.append(f"a good token: {status}, the backend saw X-User-ID {user!r}, {len(body)} bytes")
    status, user, _ = client.get(job.PATH, identity.token("user-0"), X_User_ID="root")
    if (status, user) != (200, "user-0"):
        found.append(f"a client's X-User-ID: {status}, the backend saw {user!r}")
    refused = {
        "no token": None,
        "a forged token": identity.forged("user-0"),
        "an expired token": identity.token("user-0", exp=now - 120),
        "another audience": identity.token("user-0", aud="other"),
        "another issuer": identity.token("user-0", iss="other"),
    }
    for what, token in refused.items():
        alone = Client(running.port)  # HAProxy 2.6 drops a TLS connection some time after a forged token
        status, _, _ = alone.get(job.PATH, token)
        alone.close()
        if status != 401 and not (status == 403 and what == "another audience"):  # Envoy's word for it
            found.append(f"{what}: {status} instead of 401")
    status, _, _ = client.get(job.UNKNOWN_PATH, identity.token("user-0"))
    if status != 404:
        found.append(f"an unknown path: {status} instead of 404")
    token = identity.token(f"limited-{now}")
    statuses = [client.get(job.LIMITED_PATH, token)[0] for _ in range(3 * job.LIMITED)]
    if statuses[0] != 200 or not job.LIMITED <= statuses.count(429) <= 2 * job.LIMITED:
        found.append(f"{job.LIMITED} requests a minute allowed, {3 * job.LIMITED} made: {statuses}")
    client.close()
    return found, client.made + len(refused)
