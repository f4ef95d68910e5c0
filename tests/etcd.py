"""An etcd server of the tests' own: on free ports of the loopback, killed, frozen and started again with its data.

from tests.etcd import etcd_server
"""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.processes import ServerProcess
from tests.servers import free_port


class EtcdServer(ServerProcess):
    """One member. Its methods block; each is one request to its JSON gateway."""

    def __init__(self) -> None:
        super().__init__("etcd")
        self.port, self._peer_port = free_port(), free_port()
        self._token: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        peer = f"http://127.0.0.1:{self._peer_port}"
        options = ["--name=one", f"--data-dir={self.folder / 'data'}", "--unsafe-no-fsync", "--log-level=error"]
        options += [f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"]
        options += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        options += [f"--initial-cluster=one={peer}", "--heartbeat-interval=50", "--election-timeout=500"]
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen(
                ["etcd", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder
            )
        end_s = time.monotonic() + 30
        while not self._healthy():
            assert self.process.poll() is None and time.monotonic() < end_s, (self.folder / "log").read_text()
            time.sleep(0.05)  # nobody tells when it is ready

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return json.load(answer).get("health") == "true"
        except (OSError, ValueError):
            return False

    # -- what is in it

    def call(self, path: str, **body: Any) -> dict[str, Any]:
        """One request. Raises urllib's HTTPError."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        request = urllib.request.Request(f"{self.url}/v3/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def put(self, key: str, value: str | bytes | dict[str, object], lease: str = "0") -> int:
        """The revision that this made."""
        text = json.dumps(value) if isinstance(value, dict) else value
        data = text.encode() if isinstance(text, str) else text
        return int(self.call("kv/put", key=_base64(key), value=_base64(data), lease=lease)["header"]["revision"])

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", key=_base64(key))

    def delete_below(self, prefix: str) -> None:
        self.call("kv/deleterange", key=_base64(prefix), range_end=_base64(prefix[:-1] + chr(ord(prefix[-1]) + 1)))

    def lease(self, ttl_s: int) -> str:
        """Its id; nobody keeps it alive."""
        return str(self.call("lease/grant", TTL=str(ttl_s))["ID"])

    def compact(self, revision: int) -> None:
        self.call("kv/compaction", revision=str(revision), physical=True)

    def switch_on_users(self, user: str, password: str, prefix: str) -> None:
        """From now on a password is wanted; `user` may read below `prefix`, root everything."""
        self.call("auth/user/add", name="root", password="root")
        self.call("auth/user/grant", user="root", role="root")
        self.call("auth/role/add", name="reader")
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        permission = {"permType": "READ", "key": _base64(prefix), "range_end": _base64(end)}
        self.call("auth/role/grant", name="reader", perm=permission)
        self.call("auth/user/add", name=user, password=password)
        self.call("auth/user/grant", user=user, role="reader")
        self.call("auth/enable")
        self._token = self.call("auth/authenticate", name="root", password="root")["token"]


def _base64(data: str | bytes) -> str:
    return base64.b64encode(data.encode() if isinstance(data, str) else data).decode()


@contextmanager
def etcd_server() -> Iterator[EtcdServer]:
    """An etcd that runs for a block, to be made a fixture of the scope that a test module wants."""
    with EtcdServer().running() as server:
        yield server
