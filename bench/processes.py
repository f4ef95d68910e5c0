"""Processes of the benchmark: start, wait until they listen, read their CPU and memory, end them by pid."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class StartFailed(Exception):
    """A process ended, or did not listen in time; the text has the end of its log."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child and its descendants, in a session of their own. Output goes to `log_file`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        *,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._stopped = False
        with log_file.open("ab") as log:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._child.pid
        atexit.register(self.stop)  # whatever ends the benchmark ends this too

    def wait_for_port(self, port: int) -> None:
        """Raises StartFailed."""
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end and self._child.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 0.5).close()
                return
            time.sleep(0.05)
        tail = self.log_file.read_text(errors="replace")[-1500:]
        self.stop()
        raise StartFailed(f"{self.name} did not listen on port {port}; its log ends:\n{tail}")

    def tree(self) -> list[int]:
        """The pids of the process and all its descendants."""
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            for thread in _names(f"/proc/{pid}/task"):
                todo += [int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split()]
        return found

    def cpu_s(self) -> float:
        """User + system seconds so far of the whole tree, with reaped children; resolution is one tick (10 ms)."""
        ticks = 0
        for pid in self.tree():
            fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            if fields:
                ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
        return ticks / TICKS_PER_SECOND

    def resident_bytes(self) -> int:
        return sum(_status_bytes(pid, "VmRSS") for pid in self.tree())

    def peak_resident_bytes(self) -> int:
        return sum(_status_bytes(pid, "VmHWM") for pid in self.tree())

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for the session; does nothing for a process that was stopped before."""
        atexit.unregister(self.stop)
        if self._stopped:
            return
        self._stopped = True
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # the session is ours alone: start_new_session
        self._child.wait()


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []  # ended meanwhile


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""  # ended meanwhile


def _status_bytes(pid: int, field: str) -> int:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0
