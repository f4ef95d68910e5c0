"""Who measures by it must know that it sees a core taken away, and that nothing of it stays."""

import os
import subprocess
import sys
import time

import pytest

from tests.e2e.witness import PRIORITY, Witness

TAKEN_S = 0.03
# A process that nobody of less priority can interrupt, as a machine is that takes the core away.
TAKES = f"""
import os, time
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param({PRIORITY + 1}))
end_s = time.monotonic() + {TAKEN_S}
print(end_s - {TAKEN_S}, end_s)
while time.monotonic() < end_s: pass
"""


@pytest.mark.alone
@pytest.mark.skipif(os.geteuid() != 0, reason="wants a priority that is root's")
def test_a_core_that_is_taken_away_is_a_stall() -> None:
    with Witness() as witness:
        time.sleep(0.2)
        said = subprocess.run([sys.executable, "-c", TAKES], capture_output=True, text=True, timeout=10, check=True)
        time.sleep(0.1)
    begin_s, end_s = map(float, said.stdout.split())
    assert any(first_s <= begin_s + 0.002 and last_s >= end_s - 0.002 for first_s, last_s in witness.stalls)
    assert witness.share((begin_s, end_s)) > 0.9 and witness.stalls == sorted(witness.stalls)


def test_nothing_of_it_stays() -> None:
    with pytest.raises(ZeroDivisionError), Witness() as witness:
        processes = list(witness._watching)
        assert all(process.poll() is None for process in processes) and processes
        raise ZeroDivisionError
    assert all(process.poll() is not None for process in processes)
