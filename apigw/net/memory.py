"""Memory that a start or a reload leaves behind: YAML trees, old snapshots."""

import ctypes
import gc
from typing import Any

from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.net.threads import in_thread

log = Logger()

# A request leaves no cycles: look for them rarely. The first number is of objects that live, above what refused API
# keys hold while they wait (api_key_cases.py): at 50,000 each look at 1,000 of those stopped the loop for 6 to 20 ms.
_GENERATIONS = (200_000, 20, 100)


def settle_memory() -> None:
    """After the start: collect once, take what lives from now on out of the collector's sight, trim.

    The configuration and the code stay for hours; looking through them at each collection would cost the
    loop tens of milliseconds and find nothing.
    """
    gc.collect()
    keep_out_of_sight()
    trim_memory()


def keep_out_of_sight() -> None:
    """After a reload: the new snapshot is not the collector's business either. Takes microseconds."""
    gc.freeze()
    gc.set_threshold(*_GENERATIONS)


def trim_memory() -> None:
    """Give free pages back to the system. Takes milliseconds without the interpreter's lock: call it in a thread."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        pass


def trim_soon(reactor: Any) -> None:
    """trim_memory() in a thread. Without one the pages stay, which is no failure of whoever wants them back."""
    in_thread(reactor, trim_memory).addErrback(_kept)


def _kept(failure: Failure) -> None:
    log.warn("free memory is not given back: {why}", why=failure.getErrorMessage())
