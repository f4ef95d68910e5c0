"""Memory that a start or a reload leaves behind: YAML trees, old snapshots."""

import ctypes
import gc

_GENERATIONS = (50_000, 20, 100)  # a request leaves no cycles: look for them rarely


def release_memory() -> None:
    """Collect, give free pages back to the system, and take what lives now out of the collector's sight.

    The configuration and the code stay for hours; looking through them at each collection costs the loop
    milliseconds and requests nothing but that.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GENERATIONS)
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # not glibc
        pass
