"""Files, read with a bound and with a sentence for every way it can fail."""

import os
import stat
from pathlib import Path


class Unreadable(Exception):
    """The message completes "FILE ...": "does not exist", "is a directory"."""


class Missing(Unreadable):
    """There is no such file; of one in a folder that may not be looked into nobody knows."""


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole file. Raises Unreadable. A pipe or device is refused rather than waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Missing("does not exist") from None
    except (OSError, ValueError) as error:
        raise Unreadable(_reason(error)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise Unreadable("is a directory")
        if not stat.S_ISREG(mode):
            raise Unreadable("is not a regular file")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise Unreadable(_reason(error)) from None
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise Unreadable(f"is larger than {max_bytes} bytes")
    return content


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or "bad path"
    return f"cannot be read: {text}"
