"""The fault matrix in its short form: each fault in one cell, once; wide bounds for time and none for anything else."""

import os
import signal
import time
from pathlib import Path

import attrs
import pytest

from tests.chaos.faults import ALL, FAULTS, GATEWAY, GATEWAY_FAULT, ONE, Fault
from tests.chaos.judge import judge
from tests.chaos.matrix import measure
from tests.chaos.world import BREAKER, Plan, World, limits

pytestmark = pytest.mark.alone

SHORT = Plan(rounds=1, warm_s=0.8, quiet_s=1.6, fault_s=4.0, other_rate=120.0)
LOOKS = 1, 2, 3
LENIENT = {"rise": 0.5, "floor_s": 0.025, "grace_s": 0.25}  # CI's machine is anybody's


def fault(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


CELLS = [
    (fault("accepts and hangs"), ONE),
    (fault("garbage"), ONE),
    (fault("blackholed"), ALL),
    (GATEWAY_FAULT, GATEWAY),
]


# Seven cells of a dozen seconds: more requests in shorter spans, and a breaker that is over in three seconds.
QUICK = Plan(
    rounds=1, warm_s=0.3, quiet_s=0.6, fault_s=3.2, other_rate=300.0, control_rate=500.0,
    breaker={**BREAKER, "open_seconds": 1, "recovery_seconds": 2},
)  # fmt: skip
REST = [each for each in FAULTS if each not in [cell[0] for cell in CELLS]]


class Coupled(World):
    """The gateway stands still 30 ms of 150 while the fault lasts: what a loop that a backend holds up looks like."""

    def _break(self, fault: Fault, all_instances: bool, until_s: float) -> None:
        while time.monotonic() < until_s:
            os.kill(self._pid(), signal.SIGSTOP)
            time.sleep(0.03)
            os.kill(self._pid(), signal.SIGCONT)
            time.sleep(0.12)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_failing_backend_changes_nothing_for_the_others_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Others: no error, no slower. Its clients: the contract's answers. Then: memory, sockets, threads as before."""
    with World(tmp_path, SHORT) as world:
        for cell in CELLS:
            verdict = measure(world, cell, LOOKS, **LENIENT)
            assert verdict.green, (cell[0].name, cell[1], verdict)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_other_fault_of_all_instances_gets_the_contracts_answers_and_is_recovered_from(tmp_path: Path) -> None:
    """And the others notice nothing, and nothing stays behind: what the matrix asks, of the faults not tested above."""
    with World(tmp_path, QUICK) as world:
        for each in REST:
            verdict = measure(world, (each, ALL), LOOKS, **LENIENT)
            assert verdict.green, (each.name, verdict)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_gateway_that_lets_one_backend_hold_up_the_others_is_found_out(tmp_path: Path) -> None:
    with Coupled(tmp_path, attrs.evolve(SHORT, fault_s=3.0)) as world:
        verdict = judge([world.run(fault("half of requests 500"), False)], limits(False))
        assert any(reason.startswith("the others' p99 rose") for reason in verdict.late), verdict
