"""A real name server of the tests' own: dnsmasq on a free port of the loopback, for names below .test."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.processes import ServerProcess
from tests.servers import server_port


class NameServer(ServerProcess):
    """`records` are dnsmasq's options, without dashes: "host-record=a.test,10.0.0.1,30"; put in force by restart()."""

    def __init__(self) -> None:
        super().__init__("dnsmasq")
        self.port = server_port()
        self.records: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def queries(self) -> list[str]:
        """What was asked so far, as "query[A] name"; over TCP too."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return [" ".join(line.split(": ", 1)[1].split()[:2]) for line in lines if ": query[" in line]

    def start(self) -> None:
        """Returns when it answers."""
        options = ["--keep-in-foreground", f"--port={self.port}", "--listen-address=127.0.0.1", "--bind-interfaces"]
        options += ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/", "--pid-file", "--user="]
        options += ["--log-queries", f"--log-facility={self.folder / 'log'}", "--local-ttl=1"]
        self.process = subprocess.Popen(
            ["/usr/sbin/dnsmasq", *options, *(f"--{record}" for record in self.records)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # what it says goes to the log
            stderr=subprocess.DEVNULL,
        )
        end_s = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end_s, "dnsmasq does not listen"
                time.sleep(0.02)  # nobody tells when it is ready

    def restart(self, *records: str) -> None:
        """With these records alone."""
        self.kill()
        self.records = list(records)
        self.start()


@contextmanager
def name_server() -> Iterator[NameServer]:
    """A name server that runs for a block."""
    with NameServer().running() as server:
        yield server
