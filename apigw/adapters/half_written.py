"""What a process that was killed left of a file that it wrote: each is written beside its place, then put there."""

import time
from pathlib import Path
from typing import Final

from twisted.logger import Logger

_NOBODY_WRITES_FOR_S: Final = 600.0

log = Logger()


def remove_half_written(path: Path) -> None:
    """Those of `path` that are too old to be another worker's, who is writing now. Named .NAME.ANYTHING beside it."""
    try:
        for half in path.parent.glob(f".{path.name}.*"):
            if time.time() - half.stat().st_mtime > _NOBODY_WRITES_FOR_S:
                half.unlink()
    except FileNotFoundError:
        pass  # another worker was quicker
    except OSError as error:
        log.warn("what is left of {path}: {error}", path=str(path), error=error)
