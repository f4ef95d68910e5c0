"""Large configurations are read in a process of their own.

Reading 5,000 routes makes a hundred times as many objects as it leaves, for a second of CPU: in our own process
that would leave 13 MiB of holes in memory for good (measured), and a reload would hold requests up whenever it
held the interpreter's lock. Small ones are read here: a process costs a third of a second.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from apigw.config import files
from apigw.config.model import Config
from apigw.errors import ConfigurationError

LARGE_BYTES = 262_144  # about 500 routes
_TIMEOUT_S = 60.0  # 5,000 routes take two seconds

log = Logger()


def load(main_file: Path, *, hostname: str, now_s: float) -> Config:
    """files.load(), where it is better done. Raises ConfigurationError. Blocks: for the start, or for a thread."""
    if _size_bytes(main_file) < LARGE_BYTES:
        return files.load(main_file, hostname=hostname, now_s=now_s)
    try:
        outcome, readings = _ask_child(main_file, hostname, now_s)
    except (OSError, subprocess.SubprocessError, pickle.UnpicklingError, EOFError) as error:
        log.warn("reading the configuration in a process of its own failed, so here: {why}", why=str(error))
        return files.load(main_file, hostname=hostname, now_s=now_s)
    files.adopt_last_read(readings)
    if isinstance(outcome, Config):
        return outcome
    raise ConfigurationError(outcome)


def _size_bytes(main_file: Path) -> int:
    """About how much there is to read: the main file and the files of the folders beside it."""
    size = 0
    for path in (main_file, *main_file.parent.glob("*/*.yaml")):
        try:
            size += path.stat().st_size
        except OSError:
            pass  # the reading itself will say so
    return size


def _ask_child(main_file: Path, hostname: str, now_s: float) -> Any:
    command = [sys.executable, "-m", "apigw.supervisor.apart", str(main_file), hostname, repr(now_s)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_TIMEOUT_S, check=True)
    return pickle.loads(child.stdout)  # noqa: S301 - our own child's, and nobody else can write to its pipe


def main() -> None:
    """The child: the configuration, or the tuple of its problems, and what to watch, pickled to standard output."""
    outcome: object
    try:
        outcome = files.load(Path(sys.argv[1]), hostname=sys.argv[2], now_s=float(sys.argv[3]))
    except ConfigurationError as error:
        outcome = error.problems
    pickle.dump((outcome, files.last_read()), sys.stdout.buffer, pickle.HIGHEST_PROTOCOL)


if __name__ == "__main__":
    main()
