"""Starts the real daemon: `twistd apigw` with files, certificates and ports of its own, seen from outside only."""

import copy
import datetime
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.e2e.client import Client, Response
from tests.e2e.identity import AUDIENCE, ISSUER, key_set
from tests.servers import ports_between

CHECKOUT = Path(__file__).parents[2]
TWISTD = Path(sys.executable).with_name("twistd")  # of the environment that runs the tests
APP = "https://app.e2e.test"
_BAD_WORDS = re.compile(r"Traceback|Unhandled|internal error|ResourceWarning|never retrieved")

Settings = dict[str, Any]


def certificate(folder: Path, stem: str, *names: str) -> None:
    """A self-signed certificate for these host names, as {stem}.crt and {stem}.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=60))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pkcs8 = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    (folder / f"{stem}.key").write_bytes(pkcs8)
    (folder / f"{stem}.crt").write_bytes(made.public_bytes(ser.Encoding.PEM))


def route(route_id: str, pattern: str, backend: str = "origin", **more: Any) -> Settings:
    """A public route, unless `more` says otherwise: it opens no circuit, so that tests may let backends fail."""
    return {
        "route_id": route_id,
        "pattern": pattern,
        "methods": ["GET", "HEAD", "POST", "PUT", "DELETE"],
        "backend_service": backend,
        "auth_required": False,
        "auth_type": "none",
        "timeout_ms": 5000,
        "circuit_breaker": False,
        **more,
    }


def protected(route_id: str, pattern: str, **more: Any) -> Settings:
    """A route that wants a token."""
    return route(route_id, pattern, **{"auth_required": True, "auth_type": "jwt", **more})


def backend(name: str, *ports: int, **more: Any) -> Settings:
    return {
        "name": name,
        "owner": f"team-{name}",
        "health_check_interval_ms": 60_000,
        "instances": [{"host": "127.0.0.1", "port": port, "weight": 1} for port in ports],
        **more,
    }


_ports = ports_between(12_000, 30_000)


def quiet_port() -> int:
    """A free port that this run never gives again, below those that the kernel gives to clients and to bind(0)."""
    for port in _ports:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


class Gateway:
    """One daemon. Change `settings`, then start() or reload().

    Ports: http, https, admin. Files: main_file, access_log, output (stdout and stderr).
    """

    def __init__(self, work: Path, origin_port: int) -> None:
        self.work = work
        self.http, self.https, self.admin = quiet_port(), quiet_port(), quiet_port()
        self.main_file = work / "apigw.yaml"
        self.access_log = work / "access.log"
        self.output = work / "output.log"
        self.process: subprocess.Popen[bytes] | None = None
        certificate(work, "tls", "gw.test", "localhost")
        (work / "jwks.json").write_bytes(key_set("k1"))
        self.settings = self._settings(origin_port)

    def _settings(self, origin_port: int) -> Settings:
        return {
            "gateway": {"instance_name": "e2e", "state_dir": str(self.work), "drain_timeout_seconds": 5},
            "listeners": [
                {
                    "address": "127.0.0.1",
                    "port": self.https,
                    "tls": {"certificates": [{"cert_file": "tls.crt", "key_file": "tls.key"}]},
                },
                {"address": "127.0.0.1", "port": self.http},
            ],
            "admin": {"address": "127.0.0.1", "port": self.admin},
            "limits": {},
            "auth": {"jwt": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": "jwks.json"}},
            "rate_limits": {"store": "memory", "tiers": []},
            "access_log": {"sinks": [{"type": "file", "path": str(self.access_log)}]},
            "config": {"poll_seconds": 3600},
            "backends": [backend("origin", origin_port)],
            "routes": [route("pub", "/pub/*"), protected("api", "/api/*", strip_prefix="/api")],
        }

    # -- its life

    def write(self) -> None:
        """The settings as they are now, to the configuration file, at once."""
        text = yaml.safe_dump(self.settings, sort_keys=False)
        fresh = self.main_file.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.main_file)

    def launch(self) -> "subprocess.Popen[bytes]":
        """Write the configuration and start the process; does not wait."""
        self.write()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [str(TWISTD), "-n", "--pidfile=", "apigw", "--config", str(self.main_file)],
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT)},  # the code beside these tests
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.process

    def start(self) -> "Gateway":
        """Returns when it serves."""
        process = self.launch()
        self.until(lambda: process.poll() is not None or self._alive(), 20)
        assert process.poll() is None, self.output.read_text()
        return self

    def _alive(self) -> bool:
        try:
            return self.page("/healthz").status == 200 and b"serving" in self.output.read_bytes()
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 10.0) -> int:
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """SIGTERM; it must end with 0, and its log must be free of tracebacks."""
        process = self.process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"SIGTERM did not end it: {self.output.read_text()[-2000:]}") from None
            assert process.returncode == 0, (process.returncode, self.output.read_text()[-2000:])
        self.assert_clean()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def reload(self, *, accepted: bool = True, by_signal: bool = True, timeout_s: float = 10.0) -> Settings:
        """Write the settings and wait until they are in force, or refused. Returns /status' config part."""
        before = self.status()["config"]
        self.write()
        if by_signal:
            self.signal(signal.SIGHUP)
        name = "reloads_applied" if accepted else "reloads_rejected"
        self.until(lambda: self.reload_counts() != self.reload_counts(before), timeout_s)
        after: Settings = self.status()["config"]
        assert after[name] > before[name], after["last_reload_error"]
        return after

    def reload_counts(self, config: Settings | None = None) -> tuple[int, int]:
        config = config or self.status()["config"]
        return config["reloads_applied"], config["reloads_rejected"]

    # -- what it shows

    def page(self, path: str) -> Response:
        """A page of the admin listener."""
        with Client(self.admin, timeout_s=5) as client:
            return client.request("GET", path)

    def status(self) -> Settings:
        found: Settings = self.page("/status").json()
        return found

    def metrics(self) -> dict[str, float]:
        """Series as exposed, `name{labels}`: value."""
        lines = self.page("/metrics").body.decode().splitlines()
        return {key: float(value) for key, _, value in (x.rpartition(" ") for x in lines if x and x[0] != "#")}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the family's series that have these labels; 0 when there is none."""
        total = 0.0
        for key, value in self.metrics().items():
            family, _, rest = key.partition("{")
            if family == f"apigw_{name}" and all(f'{label}="{wanted}"' in rest for label, wanted in labels.items()):
                total += value
        return total

    def entries(self, *paths: Path) -> list[Settings]:
        """The entries of the access log, of all files given. A last line without its end is being written."""
        found = []
        for path in paths or (self.access_log,):
            whole, _, _ = path.read_bytes().rpartition(b"\n")
            found += [json.loads(line) for line in whole.splitlines()]
        return found

    def entry(self, request_id: str | None) -> Settings:
        """The one log entry of a request, waited for."""
        self.until(lambda: any(e["request_id"] == request_id for e in self.entries()), 3)
        (found,) = [entry for entry in self.entries() if entry["request_id"] == request_id]
        return found

    def rss_bytes(self) -> int:
        """Resident memory of the process."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def context(self, stem: str = "tls") -> ssl.SSLContext:
        """A client's TLS context that trusts this certificate alone."""
        context = ssl.create_default_context(cafile=self.work / f"{stem}.crt")
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def client(self, **more: Any) -> Client:
        return Client(self.http, **more)

    def tls_client(self, **more: Any) -> Client:
        return Client(self.https, self.context(), **more)

    def ask(self, method: str, target: str, *headers: tuple[str, str], body: bytes | None = None) -> Response:
        """One request on a plain connection of its own."""
        with self.client() as client:
            return client.request(method, target, headers, body)

    # -- what must always hold

    def until(self, condition: Callable[[], Any], timeout_s: float = 5.0) -> float:
        """Wait for what nobody tells; the seconds it took."""
        began_s = time.monotonic()
        while not condition():
            assert time.monotonic() - began_s < timeout_s, "it did not come true in time"
            time.sleep(0.02)
        return time.monotonic() - began_s

    def quiet(self) -> bool:
        """No request in flight, no upstream connection busy."""
        return self.metric("in_flight_requests") == 0 and self.metric("upstream_connections", state="busy") == 0

    def assert_quiet(self) -> None:
        """Invariant 8: 0 in flight and no connection busy within 1 s of quiet."""
        self.until(self.quiet, 1.0)

    def assert_accounts(self, *paths: Path) -> None:
        """Invariant 9: requests_total = entries written + dropped, and the entries are in the files."""

        seen: dict[str, float] = {}

        def square() -> bool:
            names = ("requests_total", "access_log_written_total", "access_log_dropped_total")
            seen.update({name: self.metric(name) for name in names}, entries=len(self.entries(*paths)))
            total, written, dropped, entries = seen.values()
            return total == written + dropped and written == entries

        try:
            self.until(square, 3.0)
        except AssertionError:
            raise AssertionError(f"the accounts do not square: {seen}") from None

    def assert_clean(self) -> None:
        """No traceback in its output."""
        text = self.output.read_text(errors="replace") if self.output.exists() else ""
        found = _BAD_WORDS.search(text)
        assert found is None, text[max(0, found.start() - 1500) : found.start() + 3000]

    def copy(self, name: str) -> Settings:
        """A copy of the settings, to be put back later."""
        found: Settings = copy.deepcopy(self.settings[name])
        return found
