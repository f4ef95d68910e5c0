"""Configuration from files: the main file and what it includes."""

import glob
import os
from pathlib import Path
from typing import Hashable

import attrs

from apigw.config.documents import MainFile, paths_of
from apigw.config.model import Config
from apigw.config.parse import Draft, Part, assemble, read_main, read_part
from apigw.config.problems import Problems, shown
from apigw.config.reading import Unreadable, read_bounded
from apigw.config.validate import validated

MAX_FILE_BYTES = 8 * 1024 * 1024  # 5,000 routes with every key written out are 2.7 MB
MAX_FILES = 5_000
MAX_TOTAL_BYTES = 64 * 1024 * 1024
_WILD = frozenset("*?[")


def load(main_file: Path, *, hostname: str, now_s: float) -> Config:
    """The configuration that begins in `main_file`, valid in itself and at `now_s` (epoch seconds).

    hostname: the default of gateway.instance_name. Raises ConfigurationError with the problems of all files.
    """
    draft, sources = read_draft(main_file, hostname=hostname)
    return validated(draft, now_s, sources)


def read_draft(main_file: Path, *, hostname: str) -> tuple[Draft, tuple[Path, ...]]:
    """All files read, not yet validated, and their paths. Problems are in the draft."""
    problems = Problems()
    problems.enter(str(main_file))
    text = _text(main_file, str(main_file), 1, problems)
    if text is None:
        main = Part(str(main_file), main=MainFile(None), complete=False)
    else:
        main = read_main(text, str(main_file), main_file.parent, problems)
    _remember(main_file, main.main)
    included, complete = _included(main_file, main, problems)
    parts = []
    left_bytes = MAX_TOTAL_BYTES
    for path in included:
        text = _text(path, str(path), 1, problems)
        left_bytes -= len(text or "")
        if left_bytes < 0:
            problems.add(str(path), 1, f"the included files are larger than {MAX_TOTAL_BYTES} bytes together")
            text = None
        parts.append(
            Part(str(path), complete=False) if text is None else read_part(text, str(path), path.parent, problems)
        )
        if left_bytes < 0:
            break
    draft = assemble(main, parts, hostname, problems)
    draft = draft if complete else attrs.evolve(draft, complete=False)
    return draft, (main_file.absolute(), *(path.absolute() for path in included))


def _text(path: Path, file: str, line: int, problems: Problems) -> str | None:
    try:
        content = read_bounded(path, MAX_FILE_BYTES)
    except Unreadable as error:
        problems.add(file, line, f"the file {error}")
        return None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(file, content.count(b"\n", 0, error.start) + 1, "not valid UTF-8")
        return None


def _included(main_file: Path, main: Part, problems: Problems) -> tuple[list[Path], bool]:
    """The files of `config.include` in order, each once; and whether every glob could be followed."""
    section = main.main.config if main.main else None
    if section is None:
        return [], False
    site = main.sites.get(id(section))
    line = site[1].lines.get("include", 1) if site else 1
    found: dict[str, Path] = {}
    complete = site is None or "include" not in site[1].bad
    for pattern in section.include:
        problem = _unusable(main_file.parent, pattern)
        if problem is not None:
            problems.add(main.file, line, f"config.include {shown(pattern)} {problem}")
            complete = False
            continue
        for path in _matches(main_file, pattern):
            found.setdefault(os.path.abspath(path), path)
    if len(found) > MAX_FILES:
        problems.add(main.file, line, f"config.include matches {len(found)} files, more than {MAX_FILES}")
        return [], False
    return list(found.values()), complete


def _matches(main_file: Path, pattern: str) -> list[Path]:
    """Sorted; never the main file itself, no hidden files (editors leave them)."""
    names = sorted(glob.glob(pattern, root_dir=main_file.parent))
    paths = [main_file.parent / name for name in names]
    return [path for path in paths if os.path.abspath(path) != os.path.abspath(main_file)]


def _unusable(folder: Path, pattern: str) -> str | None:
    """Why a glob would silently match nothing: then all its routes would vanish with a reload."""
    if "**" in pattern:
        return "has '**', which is not supported"
    if _WILD.isdisjoint(pattern):
        return None if os.path.lexists(folder / pattern) else "does not exist"
    parent = folder / os.path.dirname(pattern)
    if not _WILD.isdisjoint(os.path.dirname(pattern)):
        return None
    try:
        os.scandir(parent).close()
    except OSError as error:
        return f"cannot be followed: {parent}: {error.strerror}"
    return None


def fingerprint(main_file: Path, config: Config | None) -> Hashable:
    """A value that changes when a file does: main file, included files, certificates, keys, JWKS file.

    Compare with ==. Costs a stat for each file and a listing for each glob, parses nothing, never raises.
    What is watched is what the main file named when it was last read, even if that was refused: so a mended
    file is seen although only the refused version includes it. Before the first reading, `config` says it.
    """
    patterns, named = _last_read.get(os.path.abspath(main_file), ((), ()))
    if not patterns and config is not None:
        patterns = config.config.include
    paths = [main_file, *named]
    for pattern in patterns:
        paths.extend(_matches(main_file, pattern) if "**" not in pattern else ())
    return tuple((str(path), _state(path)) for path in dict.fromkeys(paths))


# Main file -> (include globs, certificates and keys) at its last reading. Written whole by read_draft.
_last_read: dict[str, tuple[tuple[str, ...], tuple[Path, ...]]] = {}


def last_read() -> dict[str, tuple[tuple[str, ...], tuple[Path, ...]]]:
    """What the readings of this process named, for a process that had another one read."""
    return dict(_last_read)


def adopt_last_read(readings: dict[str, tuple[tuple[str, ...], tuple[Path, ...]]]) -> None:
    """Watch what another process's reading named, as if it had been read here."""
    _last_read.update(readings)


def _remember(main_file: Path, main: MainFile | None) -> None:
    if main is not None and main.listeners is not None:
        _last_read[os.path.abspath(main_file)] = main.config.include, paths_of(main)


def _state(path: Path) -> tuple[int, int, int] | None:
    """(modification time in ns, size, inode), None for a file that is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
