"""`make run`: the gateway with three sample backends and an identity service, until Ctrl-C.

usage: .venv/bin/python etc/demo/run.py [--config etc/demo/apigw.yaml]

Ports, addresses and names are read from the configuration, which is the daemon's own; keys and logs go to the
folder `state` beside it. Exit status 0 after Ctrl-C, SIGTERM or SIGHUP, else 1; whatever ends this process ends
what it started.
"""

import argparse
import ctypes
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import curls
import keys

from apigw.config import files
from apigw.config.model import Config
from apigw.errors import ConfigurationError

HERE = Path(__file__).resolve().parent
BACKENDS = ("users", "orders", "products")
READY_S = 30.0  # until everything answers; a slow machine needs about 5
STOP_S = 15.0  # the gateway's drain_timeout_seconds, and room for it
LOOK_EVERY_S = 0.1
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None)


class Stop(Exception):
    """The demo ends here; the argument says why, empty when somebody asked for it."""


class Processes:
    """What the demo started, in order. Signals are blocked and waited for, so nothing is missed between two looks."""

    def __init__(self) -> None:
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._stopping = {signal.SIGINT, signal.SIGTERM}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # started by nohup it wants to live on
            self._stopping.add(signal.SIGHUP)
        # A signal whose default is to be ignored has to have a handler to be waited for.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._signals = {*self._stopping, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)

    def start(self, name: str, *command: str | Path, cwd: Path = HERE) -> int:
        """Start a command in a session of its own: Ctrl-C reaches this process alone, which stops them in order."""
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_leashed
        )
        self._running.append((name, process))
        return process.pid

    def wait(self, seconds: float | None = None) -> None:
        """Until a signal comes, or for some seconds. Raises Stop when it says so or when a process has ended."""
        if seconds is None:
            number = int(signal.sigwait(self._signals))
        else:
            came = signal.sigtimedwait(self._signals, seconds)
            number = came.si_signo if came else 0
        if number in self._stopping:
            raise Stop("")
        for name, process in self._running:
            if process.poll() is not None:
                raise Stop(f"{name} ended (status {process.returncode}), so the rest is stopped too")

    def stop(self) -> None:
        """Stop all, the last first: the gateway drains while its backends still answer."""
        for _, process in reversed(self._running):
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _leashed() -> None:
    """In the new process, before its program: no blocked signals, and SIGTERM should the demo itself be killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def processes() -> Iterator[Processes]:
    """Processes that are stopped at the end, whatever the end is."""
    children = Processes()
    try:
        yield children
    finally:
        children.stop()


def configuration(main_file: Path) -> Config:
    """The demo's configuration, read as the daemon will. Raises Stop with every problem of it."""
    keys.ensure(main_file.parent / "state")
    try:
        return files.load(main_file, hostname=socket.gethostname(), now_s=time.time())
    except ConfigurationError as error:
        raise Stop("\n".join(str(problem) for problem in error.problems)) from None


def samples(config: Config) -> dict[str, int]:
    """The ports of the sample backends that the configuration still names: yours may stand beside them."""
    return {
        backend.name: backend.instances[0].port
        for backend in config.backends
        if backend.name in BACKENDS and backend.instances
    }


def refuse_taken_ports(wanted: dict[str, int]) -> None:
    """Raise Stop with all ports on which something listens already; `wanted` is purpose -> port."""
    taken = []
    for purpose, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                taken.append(f"port {port}, wanted for {purpose}: {error.strerror}")
    if taken:
        raise Stop("\n".join([*taken, f"Stop what listens there, or change the port in {HERE}/*.yaml and */*.yaml"]))


def await_answers(children: Processes, urls: list[str]) -> None:
    """Until each of the URLs answers 200. Raises Stop after READY_S."""
    end_s = time.monotonic() + READY_S
    for url in urls:
        while (problem := _problem(url)) is not None:
            if time.monotonic() > end_s:
                raise Stop(f"{url} is not ready after {READY_S:.0f} s: {problem}")
            children.wait(LOOK_EVERY_S)


def _problem(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return f"{error} {error.read(500).decode('utf-8', 'replace')}"
    except OSError as error:
        return str(error)


def demo(children: Processes, main_file: Path) -> None:
    """Start all, print the curl lines, wait. Raises Stop at the end."""
    config = configuration(main_file)
    if config.jwt is None or config.jwt.jwks_url is None:
        raise Stop(f"{main_file}: the demo needs auth.jwt.jwks_url, where its identity service is to listen")
    if config.api_keys is None:
        raise Stop(f"{main_file}: the demo needs auth.api_keys, where it puts the key of a partner")
    identity_port, backends = urlsplit(config.jwt.jwks_url).port or 80, samples(config)
    listeners = {("https" if each.tls else "plain HTTP"): each.port for each in config.listeners}
    refuse_taken_ports(
        {**listeners, "admin": config.admin.port, "the identity service": identity_port}
        | {f"the backend {name!r}": port for name, port in backends.items()}
    )
    state = main_file.parent / "state"
    key = state / "identity.key"
    api_key = keys.partner_key(state, config.api_keys.database_url, curls.PARTNER, (curls.SCOPES,))
    identity = (HERE / "identity.py", str(identity_port), key, config.jwt.issuer, config.jwt.audience)
    children.start("the identity service", sys.executable, *identity)
    for name, port in backends.items():
        children.start(f"the backend {name!r}", sys.executable, HERE / "backend.py", name, str(port))
    await_answers(children, [f"http://127.0.0.1:{port}/healthz" for port in (identity_port, *backends.values())])
    twistd = Path(sys.executable).parent / "twistd"
    daemon = (twistd, "-n", "--pidfile=", "apigw", "--config", main_file)
    pid = children.start("the gateway", *daemon, cwd=main_file.parent)
    await_answers(children, [f"http://127.0.0.1:{config.admin.port}/readyz"])
    print(curls.page(config, main_file, pid, identity_port, api_key), flush=True)
    while True:
        children.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description="The gateway with sample backends, until Ctrl-C.")
    parser.add_argument("--config", type=Path, default=HERE / "apigw.yaml", help="its main configuration file")
    main_file = parser.parse_args().config.resolve()
    try:
        with processes() as children:
            demo(children, main_file)
    except Stop as reason:
        if str(reason):
            print(f"\napigw demo: {reason}", file=sys.stderr)
            return 1
    print("\napigw demo: stopped, nothing is left running", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
