"""Where access log lines go: a file (or FIFO) or standard output, each written by a thread of its own.

The reactor only appends to a bounded deque: nothing it does waits for a disk. The thread looks every 50 ms,
joins what is there and writes it. What goes wrong is the thread's alone:

    state     event                        what happens
    writing   write or open fails          counted, reported once; to failing
    failing   next try, 0.1 to 1 s later   a line that was cut is completed, or, when another process wrote meanwhile,
                                           ended by a newline and written again whole
    failing   it works                     reported once; to writing
    any       buffer full                  the newest line is dropped and counted
    any       reopen()                     the new file is open before the old one is let go; no line is lost
"""

import os
import select
import stat
import threading
from collections import deque
from pathlib import Path
from typing import Final

from twisted.logger import Logger

from apigw.config.model import AccessLog

_CADENCE_S: Final = 0.05  # flush within 100 ms; 20 wake-ups a second when idle (0.02% of a core)
_BATCH_LINES: Final = 1000  # joined for one write: about 500 KB, below 0.1 ms of the interpreter's lock
_FIRST_RETRY_S: Final = 0.1
_LAST_RETRY_S: Final = 1.0  # a disk with room again is noticed within a second
_POLL_MS: Final = 50  # waiting for a FIFO's reader, between two looks at close() and reopen()
_POLLS: Final = 20  # then the reader counts as stuck
_MODE: Final = 0o640  # addresses and user names are not for everybody
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

log = Logger()


class _ThreadedSink:
    """The buffer, its thread and its accounts; a subclass says how to open the destination.

    The reactor's thread appends to `_lines`, the sink's takes from it: a deque needs no lock for that. Each
    number has one writer. At most `buffer_entries` lines wait, and one batch of 1000 in the thread's hand.
    """

    def __init__(self, name: str, buffer_entries: int) -> None:
        self.name = name  # the label of its metrics
        self._limit = buffer_entries
        self._wake_at = max(1, buffer_entries // 2)
        self._lines: deque[bytes] = deque()
        self._batch: deque[bytes] = deque()  # taken from _lines, not yet written
        self._at = 0  # bytes of the batch's first line that are written
        self._newline_first = False  # the destination ends in the middle of a line that is not ours to complete
        self._refused = 0
        self._lost = 0
        self._written = 0
        self._errors = 0
        self._fd = -1
        self._regular = False
        self._failing = False
        self._reopen = False
        self._closing = False
        self._abandoned = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread, which opens the destination. After any fork: threads do not survive one."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"access log {self.name}", daemon=True)
            self._thread.start()

    def write(self, line: bytes) -> None:
        """Take one line, newline included. Never waits; drops and counts it when the buffer is full or closed."""
        waiting = len(self._lines)
        if waiting >= self._limit or self._closing:
            self._refused += 1
            return
        self._lines.append(line)
        if waiting == self._wake_at:
            self._wake.set()

    def dropped(self) -> int:
        """Lines lost: the buffer was full, or they could not be written until the end."""
        return self._refused + self._lost

    def written(self) -> int:
        """Lines that the operating system has taken whole."""
        return self._written

    def errors(self) -> int:
        """Failed attempts to open or to write."""
        return self._errors

    def reopen(self) -> None:
        """Have the thread open the destination again (it was renamed), at its next look. Safe in a signal handler."""
        self._reopen = True

    def close(self, timeout_s: float) -> bool:
        """Write what waits within `timeout_s`, then stop; blocks. What is left counts as dropped.

        True when nothing was left.
        """
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._abandoned = True
        left = len(self._lines) + len(self._batch)
        self._lost += left
        self._lines.clear()
        return left == 0

    # What follows runs in the sink's thread.

    def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._abandoned:
            closing = self._closing  # read before the flush, which then has all that was taken before close()
            try:
                self._flush()
                self._report(None)
                if closing:
                    break
                pause_s, retry_s = _CADENCE_S, _FIRST_RETRY_S
            except Exception as error:  # whatever it is: a thread that dies takes the log with it
                self._errors += 1
                self._report(error)
                pause_s, retry_s = retry_s, min(retry_s * 2, _LAST_RETRY_S)
            self._wake.wait(_CADENCE_S if self._closing else pause_s)
            self._wake.clear()
        self._let_go()

    def _report(self, error: Exception | None) -> None:
        """Log a change of state, once."""
        if (error is not None) is self._failing:
            return
        self._failing = error is not None
        if error is not None:
            log.error("access log {sink}: {error}; entries wait", sink=self.name, error=str(error))
        else:
            log.info("access log {sink} is written again; {n} dropped so far", sink=self.name, n=self.dropped())

    def _flush(self) -> None:
        """Write all that waits. Raises OSError; what is not written stays in `_batch`."""
        self._refresh()
        while self._take():
            self._mend()
            data = memoryview(b"".join(self._batch))[self._at :]
            done = self._put(data)
            if done == len(data):  # nearly always
                self._written += len(self._batch)
                self._batch.clear()
                self._at = 0
            else:
                self._account(done)

    def _take(self) -> bool:
        """Fill the hand when it is empty. False: nothing to write."""
        if not self._batch:
            lines = self._lines
            self._batch.extend([lines.popleft() for _ in range(min(len(lines), _BATCH_LINES))])
        return bool(self._batch) and not self._abandoned

    def _mend(self) -> None:
        """After a cut: go on where it was cut, or end the torn line and begin it again if others wrote since."""
        if self._at and self._regular and os.lseek(self._fd, 0, os.SEEK_CUR) != os.fstat(self._fd).st_size:
            self._at, self._newline_first = 0, True
        if self._newline_first:
            self._put(b"\n")
            self._newline_first = False

    def _account(self, done: int) -> None:
        """`done` more bytes are written: the lines that are whole leave the hand."""
        self._at += done
        batch = self._batch
        while batch and self._at >= len(batch[0]):
            self._at -= len(batch.popleft())
            self._written += 1

    def _put(self, data: "memoryview | bytes") -> int:
        """One write; bytes written, 0 when a FIFO was full and has room again. Raises OSError."""
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            for _ in range(_POLLS):
                if poller.poll(_POLL_MS):
                    return 0
                if self._closing or self._reopen:
                    break
            raise

    def _use(self, fd: int) -> None:
        """Write to `fd` from now on; a line that was cut in the old destination begins again in this one."""
        self._let_go()
        self._fd, self._regular = fd, stat.S_ISREG(os.fstat(fd).st_mode)
        self._at, self._newline_first = 0, False

    def _refresh(self) -> None:
        """Have the right destination open. Raises OSError."""
        raise NotImplementedError

    def _let_go(self) -> None:
        """Close the destination if it is ours to close."""
        raise NotImplementedError


class FileSink(_ThreadedSink):
    """Appends to a file, or to a FIFO that may have no reader yet. Directories are not made here.

    A file that was renamed is kept until reopen(); one that was deleted is made again at once. A FIFO stays
    open when its reader goes: the next one finds what this one left.
    """

    def __init__(self, path: Path, buffer_entries: int) -> None:
        super().__init__(f"file:{path}", buffer_entries)
        self._path = path

    def _refresh(self) -> None:
        if self._fd >= 0 and not self._reopen and not (self._lines and os.fstat(self._fd).st_nlink == 0):
            return
        self._reopen = False
        try:
            fd = os.open(self._path, _FLAGS, _MODE)
        except OSError:
            self._reopen = True  # at the next try
            raise
        self._use(fd)
        self._newline_first = self._regular and self._ends_torn()

    def _ends_torn(self) -> bool:
        """The file ends in the middle of a line: a process died there, or the disk was full."""
        size_bytes = os.fstat(self._fd).st_size
        if not size_bytes or not os.access(self._path, os.R_OK):
            return False
        with open(self._path, "rb") as file:
            file.seek(size_bytes - 1)
            return file.read(1) not in (b"\n", b"")

    def _let_go(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class StdoutSink(_ThreadedSink):
    """Writes to standard output as it is; a reader that stops reading stops only the sink's thread."""

    def __init__(self, buffer_entries: int, fd: int = 1) -> None:
        super().__init__("stdout", buffer_entries)
        self._stdout_fd = fd

    def _refresh(self) -> None:
        if self._fd < 0:
            self._use(self._stdout_fd)

    def _let_go(self) -> None:
        self._fd = -1


def open_sinks(section: AccessLog) -> list[FileSink | StdoutSink]:
    """The sinks of `access_log:`, not started. Nothing is opened yet: a log that cannot be written stops no start.

    A type that this version cannot write (kafka) is reported and left out.
    """
    sinks: list[FileSink | StdoutSink] = []
    for sink in section.sinks:
        if sink.type == "file" and sink.path is not None:
            sinks.append(FileSink(sink.path, section.buffer_entries))
        elif sink.type == "stdout":
            sinks.append(StdoutSink(section.buffer_entries))
        else:
            log.error("access log: a sink of type {type} cannot be written by this version", type=sink.type)
    return sinks
