"""The revocation list on disk, so that a gateway that starts while Redis is down still refuses what was revoked.

    start      what the file says is in force before anybody is served
    changed    written anew, in a thread: not more often than every 5 s, and a long list less often
    stop       what is not written yet is, unless the disk hangs

One revocation a line, as it is told on the channel (core/revocation_codec.py). Workers of one host share the file:
each replaces it as a whole by all it knows, which is the same. What is over by then is dropped by whoever reads it.
"""

import os
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from threading import get_ident
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.adapters.half_written import remove_half_written
from apigw.adapters.revocation_list import RevocationList
from apigw.core.revocation_codec import from_message, message
from apigw.core.revocations import Kept, Revocation, RevokedToken, RevokedUser
from apigw.net.poller import Poller, PollFailed
from apigw.net.threads import Threads

FILE_NAME: Final = "revocations.jsonl"
SAVE_S: Final = 5.0
LAST_SAVE_S: Final = 5.0  # at the end: 200,000 entries take 1.6 s, with a save that was under way; a disk may hang
ENTRIES_A_SECOND: Final = 2_000.0  # on average: 1% of a core
MAX_FILE_BYTES: Final = 128 * 2**20  # 200,000 entries with long names
_PAUSE_S: Final = 0.001  # between two pieces: who gives the interpreter's lock up for a write has it back too soon
_LINES: Final = 200  # a thread keeps the loop waiting for as long as it makes them: half a millisecond

log = Logger()


class RevocationFile(MultiService):
    """Loads and saves what a RevocationList knows, in a folder.

    error: why it could not be read or written the last time, None when it could.
    """

    def __init__(self, reactor: Any, folder: Path, source: RevocationList, last_save_s: float = LAST_SAVE_S) -> None:
        super().__init__()
        self.error: str | None = None
        self._reactor = reactor
        self._last_save_s = last_save_s
        self._path = folder / FILE_NAME
        self._source = source
        self._saved = source.changes
        self._threads = Threads(reactor, "revocations", 1, niceness=10)
        self._threads.setServiceParent(self)
        _Saving(reactor, self.save, self.gap_s).setServiceParent(self)

    @classmethod
    def of(cls, reactor: Any, folder: Path, source: RevocationList | None) -> "RevocationFile | None":
        """None without a list."""
        return None if source is None else cls(reactor, folder, source)

    def startService(self) -> None:
        """Blocks while it reads: nobody is served yet."""
        self._read()
        remove_half_written(self._path)
        super().startService()

    def stopService(self) -> "Deferred[None]":
        """Fires when what is not written yet is, after last_save_s at the latest, and the thread has ended."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        try:
            if self._source.changes != self._saved:
                saving = self._threads.run(write, self._path, self._source.known.kept())
                await saving.addTimeout(self._last_save_s, self._reactor)
        except (OSError, TimeoutError, CancelledError) as error:
            why = str(error) or "the disk does not answer in time"
            log.warn("revocations are not kept for the next start: {why}", why=why)
        finally:
            await super().stopService()

    def _read(self) -> None:
        odd = 0
        try:
            for revocation in read(self._path):
                if revocation is None:
                    odd += 1
                else:
                    self._source.known.add((revocation,))
        except FileNotFoundError:
            return
        except OSError as error:
            self.error = str(error)
            log.error("revocations of the last run are not in force: {error}", error=error)
            return
        if odd:
            self.error = f"{odd} lines of {self._path} are no revocations"
            log.error("{error}", error=self.error)
        log.info("revocations of the last run: {counts}", counts=self._source.known.counts())

    def gap_s(self) -> float:
        """A list that is twice as long is written half as often."""
        return max(SAVE_S, len(self._source.known) / ENTRIES_A_SECOND)

    def save(self) -> "Deferred[None] | None":
        """Write it, if there is anything new. Fails with PollFailed."""
        changes = self._source.changes
        return None if changes == self._saved else Deferred.fromCoroutine(self._save(changes))

    async def _save(self, changes: int) -> None:
        try:
            await self._threads.run(write, self._path, self._source.known.kept(), _PAUSE_S)
        except OSError as error:
            self.error = str(error)
            raise PollFailed(self.error) from None
        self.error = None
        self._saved = changes


class _Saving(Poller):
    """Has the file written when it is time."""

    def __init__(
        self, clock: IReactorTime, save: "Callable[[], Deferred[None] | None]", gap_s: Callable[[], float]
    ) -> None:
        super().__init__(clock, SAVE_S, name="revocations on disk", first_delay_s=SAVE_S)
        self._save = save
        self._gap_s = gap_s

    def poll(self) -> "Deferred[None] | None":
        """What RevocationFile.save() does."""
        return self._save()

    def delay_s(self) -> float:
        return self._gap_s()


def read(path: Path) -> Iterator[Revocation | None]:
    """What a file says; None for a line that is no revocation. Raises OSError."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
            raise OSError(f"{path} is larger than a list of revocations")
        for line in file:
            try:
                yield from_message(line)
            except ValueError:
                yield None


def write(path: Path, kept: Kept, pause_s: float = 0.0) -> None:
    """Replace the file by one with all of these. Blocks, often; see _LINES and _PAUSE_S. Raises OSError."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{get_ident()}")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb", 0) as file:
            lines = _lines(kept)
            while piece := b"".join(islice(lines, _LINES)):
                file.write(piece)
                time.sleep(pause_s)
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _lines(kept: Kept) -> Iterator[bytes]:
    tokens, users = kept
    entries: Iterator[Revocation] = chain(
        (RevokedToken(jti, until_s) for jti, until_s in tokens.items()),
        (RevokedUser(user_id, *times) for user_id, times in users.items()),
    )
    return (message(entry) + b"\n" for entry in entries)
