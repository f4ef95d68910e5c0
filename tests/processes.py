"""A server of the tests' own: a process with a folder, that can be killed, frozen and started again."""

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self


class ServerProcess:
    """A subclass says in start() what is run: it sets `process`, and returns when that answers."""

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"apigw-{name}-"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """SIGKILL, and gone when this returns. Works on a frozen one too; its files stay."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        """SIGSTOP: its kernel accepts connections and bytes, it answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def remove(self) -> None:
        """The end: process and files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Started for a block, then removed."""
        try:
            self.start()
            yield self
        finally:
            self.remove()
