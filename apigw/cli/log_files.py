"""The access log as files: those of the configuration, rotated ones too, read line by line and never whole.

    access.log  access.log.1  access.log.2.gz  access.log-20261125.xz        oldest first, each once

A line that is no entry (cut by a crash, another program's) is counted and left out.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import click
import orjson

from apigw.cli.kinds import Moment
from apigw.cli.refusals import Refused, warn
from apigw.cli.settings import Settings
from apigw.constants import MAX_LOG_ENTRY_BYTES

Entry = dict[str, Any]

_OPEN: Final[dict[str, Callable[[Path], IO[bytes] | gzip.GzipFile]]] = {
    ".gz": lambda path: gzip.open(path, "rb"),
    ".xz": lambda path: lzma.open(path, "rb"),
    ".bz2": lambda path: bz2.open(path, "rb"),
}

log_option = click.option(
    "--log",
    "given",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="This file instead of the configured ones; repeat.",
)
since_option = click.option("--since", "since_s", type=Moment(past=True), help="1h (ago), or a time. Default: all.")


def log_files(settings: Settings, given: Sequence[Path]) -> list[Path]:
    """The files to read, the oldest first. Raises Refused when the configuration writes none here."""
    if given:
        return list(given)
    paths = [sink.path for sink in settings.main.access_log.sinks if sink.type == "file" and sink.path is not None]
    if not paths:
        raise Refused(f"{settings.main_file} has no access_log sink of type file; --log FILE names one")
    found: dict[tuple[int, int], tuple[float, Path]] = {}
    for path in paths:
        for each in (path, *path.parent.glob(path.name + "[.-]*")):
            try:
                state = each.stat()
            except FileNotFoundError:
                continue
            found.setdefault((state.st_dev, state.st_ino), (state.st_mtime, each))
    if not found:
        raise Refused(f"there is no access log at {paths[0]}; --log FILE names another place")
    return [path for _, path in sorted(found.values())]


class LogReader:
    """Entries of log files, one at a time. `odd` counts lines that are none; tell() says so in the end."""

    def __init__(self, files: Sequence[Path], since_s: float | None = None) -> None:
        self.files = list(files)
        self.odd = 0
        self._since_s = since_s
        self._since = None if since_s is None else _timestamp(since_s)

    def __iter__(self) -> Iterator[tuple[Entry, bytes]]:
        """(entry, its line), not before `since_s`."""
        for path in self.files:
            if self._since_s is not None and path.stat().st_mtime < self._since_s:
                continue  # whatever it has, it has from before
            try:
                yield from self._of(path)
            except FileNotFoundError:
                warn(f"{path} is not there any more: the log was rotated meanwhile; ask again")
            except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
                warn(f"{path} ends in the middle or is no such archive: {error}")

    def _of(self, path: Path) -> Iterator[tuple[Entry, bytes]]:
        opened = _OPEN.get(path.suffix)
        with open(path, "rb") if opened is None else opened(path) as file:
            whole = True
            while line := file.readline(MAX_LOG_ENTRY_BYTES + 1):
                began, whole = whole, line.endswith(b"\n")
                entry = _entry(line) if began else None
                if entry is None:
                    self.odd += whole  # the last line may be in the making
                elif self._since is None or str(entry["timestamp"]) >= self._since:
                    yield entry, line

    def tell(self) -> None:
        """What was left out, if anything was."""
        if self.odd:
            warn(f"{self.odd} lines that are no entries of an access log were left out")


def _entry(line: bytes) -> Entry | None:
    try:
        found = orjson.loads(line)
    except ValueError:
        return None
    return found if type(found) is dict and "timestamp" in found and "route_id" in found else None


def _timestamp(epoch_s: float) -> str:
    """As the log writes it: of two such texts the smaller is the earlier."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:23] + "Z"
