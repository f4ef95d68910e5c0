"""The daemon's process: found by the pid that it says itself, made sure of, and told something."""

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from apigw.cli.refusals import Refused

_WORD: Final = b"apigw"  # of `twistd -n --pidfile= apigw --config FILE`


class Daemon:
    """A process that cannot be mistaken for another one, even if it ends and its number is given again (pidfd)."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor

    def signal(self, number: signal.Signals) -> None:
        """Raises Refused."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except PermissionError:
            raise Refused(f"process {self.pid} may not be signalled by you: be root, or the gateway's user") from None
        except ProcessLookupError:
            raise Refused(f"process {self.pid} ended just now") from None

    def ended_within(self, seconds: float) -> bool:
        """Waits for its end."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            if poller.poll(left_s * 1000.0):
                return True
        return bool(poller.poll(0))


@contextmanager
def daemon(status: dict[str, Any]) -> Iterator[Daemon]:
    """The process that gave this /status. Raises Refused when it is not here, or is no gateway."""
    pid = status.get("pid")
    if type(pid) is not int:
        raise Refused("the gateway does not say which process it is; it may be older than this apigwctl")
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Refused(f"there is no process {pid} on this host; run this where the gateway runs") from None
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if _WORD not in words:
            raise Refused(f"process {pid} is no gateway; run this where the gateway runs")
        yield Daemon(pid, descriptor)
    finally:
        os.close(descriptor)
