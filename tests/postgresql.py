"""A real PostgreSQL of the tests' own, on a free port: made, frozen, killed and started again.

from tests.postgresql import PostgreSQL, postgresql_server
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg

from tests.servers import server_port

USER = "postgres"


def _programs() -> Path:
    """The folder of initdb and postgres: Debian has the server's outside PATH."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3])).parent


class PostgreSQL:
    """One cluster in a temporary folder. It refuses to run as root, so then it runs as the user postgres."""

    def __init__(self) -> None:
        self.port = server_port()
        self._bin = _programs()
        self._as: dict[str, Any] = {"user": USER, "group": USER, "extra_groups": []} if os.geteuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="apigw-postgresql-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self._frozen = False
        if self._as:
            shutil.chown(self._folder, USER, USER)
        command = [self._bin / "initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--locale=C", "-E", "UTF8"]
        self._run(*command, "-D", self._folder / "data")

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(command, cwd=self._folder, capture_output=True, timeout=60, **self._as)
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Returns when it answers."""
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={self._folder}"]
        settings += ["fsync=off", "max_connections=40", "shared_buffers=16MB"]
        with (self._folder / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", *(f"--{each}" for each in settings)],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                **self._as,
            )
        self._ready()

    def _ready(self) -> None:
        """Returns when it answers, so also when it has served all who came before."""
        assert self._process is not None
        end_s = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.admin_url, connect_timeout=2).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None and time.monotonic() < end_s, (self._folder / "log").read_text()
                time.sleep(0.05)  # nobody tells when it is ready

    @property
    def admin_url(self) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def database(self, name: str | None = None) -> str:
        """The URL of a new, empty database."""
        self._databases += 1
        name = name or f"keys{self._databases}"
        with psycopg.connect(self.admin_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def freeze(self) -> None:
        """SIGSTOP to the server and all that serve connections: the kernel accepts and acknowledges, nobody answers."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Returns when it answers."""
        self._signal(signal.SIGCONT)
        self._frozen = False
        self._ready()

    def _signal(self, number: int) -> None:
        """First to the server: a stopped one has no new children."""
        assert self._process is not None
        self._process.send_signal(number)
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for child in children.split():
            with suppress(ProcessLookupError):
                os.kill(int(child), number)

    def stop(self) -> None:
        """At once, as after a power cut; gone when this returns."""
        if self._frozen:
            self.thaw()  # PostgreSQL waits for a child that it makes while it is told to stop
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGQUIT)
            process.wait(20)

    def remove(self) -> None:
        """The end: processes and files."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL that runs for a block, to be made a fixture of the scope that a test module wants."""
    server = PostgreSQL()
    try:
        server.start()
        yield server
    finally:
        server.remove()
