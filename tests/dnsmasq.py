"""A real name server of the tests' own: dnsmasq on a free port of the loopback, for names below .test."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_port


class NameServer:
    """`records` are dnsmasq's options, without dashes: "host-record=a.test,10.0.0.1,30"; put in force by restart()."""

    def __init__(self) -> None:
        self.port = free_port()
        self.records: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix="apigw-dnsmasq-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def queries(self) -> list[str]:
        """What was asked so far, as "query[A] name"; over TCP too."""
        lines = (self._folder / "log").read_text(errors="replace").splitlines()
        return [" ".join(line.split(": ", 1)[1].split()[:2]) for line in lines if ": query[" in line]

    def start(self) -> None:
        """Returns when it answers."""
        options = ["--keep-in-foreground", f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces"]
        options += ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/", "--pid-file", "--user="]
        options += ["--log-queries", f"--log-facility={self._folder / 'log'}", "--local-ttl=1"]
        self._process = subprocess.Popen(
            ["/usr/sbin/dnsmasq", *options, *(f"--{record}" for record in self.records)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        end_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.stdout is not None
                assert self._process.poll() is None, self._process.stdout.read()
                assert time.monotonic() < end_s, "dnsmasq does not listen"
                time.sleep(0.02)  # nobody tells when it is ready

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def restart(self, *records: str) -> None:
        """With these records alone."""
        self.kill()
        self.records = list(records)
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: it answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def name_server() -> Iterator[NameServer]:
    """A name server that runs for a block."""
    server = NameServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()
