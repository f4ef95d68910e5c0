"""How much of the memory that it may use this worker uses: the control group's limit, or the machine's.

    in a control group with a limit   what the group holds, files that can be dropped aside, of that limit; of several
                                      groups around the process the fullest
    without                           the worker's resident memory, of that and what the machine still has available

So on a machine of its own 80% is what it says; on a shared one the worker speaks up only when it holds most of what
is left, since shedding its requests would free nobody else's memory.
"""

import os
from pathlib import Path

from attrs import frozen

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT_BYTES = 1 << 60  # version 1 says "unlimited" with a number near 2**63


@frozen
class _Group:
    """One control group that has a limit; `files` as the kernel's version calls them."""

    folder: Path
    usage: str
    droppable: str
    limit_bytes: int

    def percent(self) -> float:
        used = int((self.folder / self.usage).read_text())
        for line in (self.folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == self.droppable:
                used -= int(value)
                break
        return 100.0 * max(used, 0) / self.limit_bytes


class MemoryUsage:
    """percent() reads a few small files of the kernel: about 50 us. `root`: "/" but for the tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._groups = _groups(root)

    def percent(self) -> float:
        """Raises OSError or ValueError when the kernel does not say."""
        if self._groups:
            return max(group.percent() for group in self._groups)
        resident = int((self._root / "proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
        return 100.0 * resident / (resident + self._available_bytes())

    def _available_bytes(self) -> int:
        for line in (self._root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
        raise ValueError("/proc/meminfo has no MemAvailable")


def _groups(root: Path) -> list[_Group]:
    """The groups with a limit around this process, of both versions of control groups."""
    found: list[_Group] = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        number, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if number == "0":
            found += _limited(mount, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            found += _limited(mount / "memory", path, *names)
    return found


def _limited(mount: Path, path: str, limit: str, usage: str, droppable: str) -> list[_Group]:
    """The group and those around it; in a container the path may be the host's, and only the mount itself be there."""
    found = []
    folder = mount / path.strip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(mount):
            break
        try:
            limit_bytes = int((place / limit).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        if 0 < limit_bytes < _NO_LIMIT_BYTES:
            found.append(_Group(place, usage, droppable, limit_bytes))
    return found
