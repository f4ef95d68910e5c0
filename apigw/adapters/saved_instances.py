"""The last list of each backend in gateway.state_dir, for a start while the registry is down.

One file a backend: discovery/NAME.json below state_dir, replaced as a whole and synced, by a thread. What is read is
judged like an answer of the registry, and only if it is of the same registry and service. That the folder is missing,
full or not writable is said once and hurts nobody: the list in memory serves. A list that cannot be read is none.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import orjson
from attrs import frozen
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.half_written import remove_half_written
from apigw.adapters.wanted_instances import Wanted
from apigw.config.reading import Missing, Unreadable, read_bounded
from apigw.core.discovery import Entry, RawEntry, sift
from apigw.net.threads import in_thread
from apigw.ports import WallClock

_MAX_BYTES = 1_048_576  # a thousand entries are 60 KB
_VERSION = 1

log = Logger()


@frozen
class Saved:
    """A list from before. saved_epoch_s: when it was written."""

    entries: tuple[Entry, ...]
    saved_epoch_s: float


class SavedInstances:
    """Reads at once, when a backend is set up; writes in threads, one at a time for each backend, the newest wins."""

    def __init__(self, reactor: Any, state_dir: Path, wall: WallClock) -> None:
        self._reactor = reactor
        self._folder = state_dir / "discovery"
        self._wall = wall
        self._writing: set[str] = set()
        self._next: dict[str, bytes] = {}  # what to write when the write under way has ended
        self.last_error: str | None = None

    def _path(self, backend: str) -> Path:
        return self._folder / f"{backend}.json"  # a Name: no slash in it

    def load(self, wanted: Wanted) -> Saved | None:
        """The list that was saved for this backend of this registry; None when there is none that is good. Raises
        nothing: a start and a reload, which is half in force by then, do without it."""
        path = self._path(wanted.backend)
        remove_half_written(path)
        try:
            document = orjson.loads(read_bounded(path, _MAX_BYTES))
            if document["version"] != _VERSION or document["registry"] != _identity(wanted):
                return None
            raw = [RawEntry(each["host"], each["port"], each["weight"]) for each in document["instances"]]
            entries = sift(raw, wanted.boundary()).entries
            saved_s = float(document["saved_at"])
        except Missing:
            return None
        except (Unreadable, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            log.warn("{path} is not used: {why}", path=str(path), why=f"{type(error).__name__}: {error}"[:200])
            return None
        return Saved(entries, saved_s) if entries else None

    def save(self, wanted: Wanted, entries: tuple[Entry, ...]) -> None:
        """Write it soon."""
        content = orjson.dumps(
            {
                "version": _VERSION,
                "registry": _identity(wanted),
                "saved_at": self._wall(),
                "instances": [{"host": each.host, "port": each.port, "weight": each.weight} for each in entries],
            }
        )
        if wanted.backend in self._writing:
            self._next[wanted.backend] = content
        else:
            self._write(wanted.backend, content)

    def _write(self, backend: str, content: bytes) -> None:
        self._writing.add(backend)
        writing = in_thread(self._reactor, _replace, self._folder, self._path(backend), content)
        writing.addCallbacks(self._written, self._unwritten)
        writing.addBoth(self._ended, backend)

    def _written(self, _: None) -> None:
        if self.last_error is not None:
            log.info("lists of instances are saved again in {folder}", folder=str(self._folder))
        self.last_error = None

    def _unwritten(self, failure: Failure) -> None:
        why = failure.getErrorMessage()
        if self.last_error is None:
            log.warn(
                "lists of instances cannot be saved in {folder}: {why}; after a restart the registry must be up",
                folder=str(self._folder),
                why=why,
            )
        self.last_error = why

    def _ended(self, _: object, backend: str) -> None:
        self._writing.discard(backend)
        content = self._next.pop(backend, None)
        if content is not None:
            self._write(backend, content)


def _identity(wanted: Wanted) -> str:
    """What a list is of: the type and what is asked for. Not where: a registry may move."""
    given = wanted.discovery
    parts = (given.type, given.service, given.port, given.prefix, given.tag, given.datacenter, given.namespace)
    return " ".join("-" if part is None else str(part) for part in parts)


def _replace(folder: Path, path: Path, content: bytes) -> None:
    """In a thread: the file is the old one or the new one at any moment, also after a power cut. Raises OSError."""
    folder.mkdir(mode=0o750, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    synced = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(synced)
    finally:
        os.close(synced)
