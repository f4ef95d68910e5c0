"""What a measurement needs of a machine whose cores are virtual: that they stay awake, and that stalls are seen.

    witness.py awake CORE       runs where nobody else wants to, until its parent ends or ends it
    witness.py watch CORE       prints "ready"; when it is terminated, the stalls in JSON: [[begin, end], ...] of
                                time.monotonic()

A virtual core that has nothing to do is given back, and comes again 0.1 to 4 ms after it is wanted (measured): a
gateway that sleeps 1,000 times a second waits for that, one that is busier does not. So one process on each core has
always something to do, and any other goes before it (SCHED_IDLE).

Cores are also taken away while they work, for a millisecond or for twenty, and nothing within tells whose waits were
longer for it. So another one on each core wakes each half millisecond, before all else (SCHED_FIFO): a wake that comes
late is the machine's, whatever a gateway and its clients do. tails.undisturbed() leaves out what fell into a stall.
Without the right to such a priority nothing is seen, and nothing left out.
"""

import gc
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from tests.e2e.tails import Span

TICK_S = 0.0005
LATE_S = 0.0002  # a wake of a core that is awake takes 0.04 to 0.1 ms
MOST_S = 900.0
PRIORITY = 3  # above surge.MEASURED


class Witness:
    """Enter it, leave it, then ask for `stalls`: those of all cores, since nobody knows which one a wait needed."""

    def __init__(self) -> None:
        self.stalls: list[Span] = []
        self._stack = ExitStack()
        self._watching: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Witness":
        with self._stack:
            for core in sorted(os.sched_getaffinity(0)):
                self._start("awake", core)
                self._watching.append(self._start("watch", core))
            for process in self._watching:
                assert process.stdout is not None
                assert select.select([process.stdout], [], [], 10)[0] and process.stdout.readline() == "ready\n"
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for process in self._watching:
                process.terminate()
            for process in self._watching:
                said, _ = process.communicate(timeout=10)
                self.stalls += map(tuple, json.loads(said))
        self.stalls.sort()

    def share(self, span: Span) -> float:
        """How much of the span the cores stood still, at the most: stalls of two at once count twice."""
        begin_s, end_s = span
        within = (min(end_s, last_s) - max(begin_s, first_s) for first_s, last_s in self.stalls)
        return sum(stalled_s for stalled_s in within if stalled_s > 0) / (end_s - begin_s)

    def _start(self, word: str, core: int) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tests.e2e.witness", word, str(core)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        self._stack.callback(process.communicate)
        self._stack.callback(process.kill)
        return process


def keep_awake() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    end_s = time.monotonic() + MOST_S
    parent = os.getppid()
    while time.monotonic() < end_s and os.getppid() == parent:
        pass


def watch() -> list[Span]:
    """Until SIGTERM. A stall begins at the last moment at which the core was seen to run."""
    found: list[Span] = []
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    print("ready", flush=True)
    late_s = LATE_S
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        late_s = float("inf")
    gc.disable()
    parent = os.getppid()
    seen_s = time.monotonic()
    end_s = seen_s + MOST_S
    while not ended and seen_s < end_s and os.getppid() == parent:
        due_s = seen_s + TICK_S
        time.sleep(max(0.0, due_s - time.monotonic()))
        now_s = time.monotonic()
        if now_s - due_s > late_s:
            found.append((seen_s, now_s))
        seen_s = now_s
    return found


def main(word: str, core: int) -> None:
    os.sched_setaffinity(0, {core})
    if word == "awake":
        keep_awake()
        return
    json.dump(watch(), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
