"""The judge can fail: on records in which one thing is wrong, it says which."""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import attrs
import pytest

from tests.chaos.clients import Seen
from tests.chaos.faults import ALL, FAULTS, ONE, Fault
from tests.chaos.judge import Limits, Record, Resources, Sample, Verdict, judge
from tests.chaos.matrix import cells
from tests.e2e.tails import Span

LIMITS = Limits(timeout_s=1.0, detect_s=2.0, recover_s=1.5)
QUIET, FAULTY = ((0.0, 4.0), (12.0, 16.0), (24.0, 26.0)), ((4.0, 10.0), (16.0, 22.0))
POOL = {"open": 2, "idle": 2, "busy": 0, "waiting": 0, "most": 50}
RESOURCES = Resources(60 << 20, 12, 3, 0, {"one": POOL})


def fault(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


@cache
def waits(of_fault: float = 1.0, seed: int = 1, rate: float = 150.0) -> list[Sample]:
    """26 s of answers after 0.1 to 0.9 ms, in fault spans by a factor later. Their p99 is sharp."""
    rolls = random.Random(seed)
    return _samples(rate, lambda: 0.0001 + 0.0008 * rolls.random() ** 2, of_fault)


@cache
def noisy(of_fault: float = 1.0, seed: int = 1, rate: float = 800.0) -> list[Sample]:
    """As real ones are: exponential, and the two others of a gateway in one."""
    rolls = random.Random(seed)
    return _samples(rate, lambda: 0.0002 + rolls.expovariate(7000), of_fault)


def _samples(rate: float, wait_s: Callable[[], float], of_fault: float) -> list[Sample]:
    moments_s = [number / rate for number in range(int(26 * rate))]
    slow = [any(begin_s <= at_s < end_s for begin_s, end_s in FAULTY) for at_s in moments_s]
    return [(at_s, 200, wait_s() * (of_fault if late else 1)) for at_s, late in zip(moments_s, slow, strict=True)]


def asked(due_s: float, status: int = 200, **more: Any) -> Seen:
    own = {502: "bad_gateway", 503: "service_unavailable", 504: "upstream_timeout"}
    said: dict[str, Any] = {"whole": True, "own": True, "first_s": 0.004, "took_s": 0.005}
    if status in own:
        said |= {"code": own[status], "backend": "one", "retry_after": "5" if status == 503 else None}
    return Seen(due_s, "GET", f"chaos-{due_s}", status, **(said | more))


def record(*odd: Seen, name: str = "accepts and hangs", **more: Any) -> Record:
    """A green one, with 200 each half second and these besides."""
    usual: dict[str, Any] = {
        "fault": fault(name),
        "all_instances": False,
        "victim": "one",
        "quiet": QUIET,
        "faulty": FAULTY,
        "others": {"left": waits(seed=2), "right": waits(seed=3)},
        "unsent": {"left": 0, "right": 0},
        "twin": waits(seed=4),
        "control": waits(),
        "stalls": [],
        "seen": [*(asked(number / 2) for number in range(52)), *odd],
        "before": RESOURCES,
        "after": RESOURCES,
    }
    if more.get("all_instances"):
        usual["seen"] = [seen for seen in usual["seen"] if not any(a <= seen.due_s < b for a, b in FAULTY)]
        usual["seen"] += odd
    return Record(**(usual | more))


def verdict(*odd: Seen, **more: Any) -> Verdict:
    return judge([record(*odd, **more)], LIMITS)


def runs(count: int, of_fault: float, of_twin: float = 1.0) -> Verdict:
    """Of so many noisy ones."""
    found = [
        record(others={"both": noisy(of_fault, 2 * number)}, unsent={"both": 0}, twin=noisy(of_twin, 2 * number + 1))
        for number in range(count)
    ]
    return judge(found, LIMITS)


def test_what_the_contract_allows_is_green() -> None:
    """While the instance is not yet out its clients get 504 after the timeout; from then on all is well."""
    found = verdict(asked(4.1, 504, took_s=1.01), asked(5.9, 504, took_s=1.04), asked(10.2, 504), asked(11.4, 504))
    assert found.green, found
    assert found.figures["answers"] == {"200": 24, "504": 2}
    assert found.figures["recovered_s"] == pytest.approx(1.4)


def test_a_rise_of_30_percent_of_the_others_is_found_and_a_busy_machine_is_told_from_it() -> None:
    """Of 0.9 ms: there is no floor below which a rise is none."""
    slower = {"left": waits(1.3, seed=2), "right": waits(1.3, seed=3)}
    found = verdict(others=slower)
    assert found.wrong == found.open == [] and found.late[0].startswith("the others' p99 rose from 0.8")
    assert found.final and not found.green and not found.starved
    assert verdict(others=slower, control=waits(1.3)).starved


def test_a_rise_of_15_percent_is_found_with_enough_data_and_none_is_none() -> None:
    found = runs(5, 1.15)
    assert found.final and found.late[0].startswith("the others' p99 rose from")
    assert runs(5, 1.0).green


def test_too_few_data_are_neither_green_nor_red() -> None:
    for of_fault in (1.05, 1.15):
        found = runs(1, of_fault)
        assert found.open[0].startswith("whether the others' p99 rose is not clear")
        assert not found.final and not found.green and not found.late


def test_what_the_machine_did_to_the_twin_too_is_not_the_faults() -> None:
    """Unless it did so much that nothing can be told: that is not green."""
    assert runs(5, 1.08, of_twin=1.08).green
    assert runs(5, 1.2, of_twin=1.0).late
    both = {"left": waits(1.3, seed=2), "right": waits(1.3, seed=3)}
    found = verdict(others=both, twin=waits(1.3, seed=4))
    assert found.open[0].startswith("the p99 of the gateway without the fault rose by +30%") and not found.green


def test_a_stall_of_a_hundredth_of_the_fault_is_a_rise() -> None:
    """Medians of windows would not see it."""
    stalled = [(at_s, status, wait_s + (0.2 if 5.0 < at_s < 5.3 else 0)) for at_s, status, wait_s in waits(seed=2)]
    found = verdict(others={"left": stalled, "right": waits(seed=3)})
    assert not found.green and found.figures["others_p99_fault_s"] == pytest.approx(0.2, rel=0.01)


def test_a_floor_is_for_the_short_form_alone() -> None:
    slower = record(others={"left": waits(1.3, seed=2), "right": waits(1.3, seed=3)})
    assert judge([slower], attrs.evolve(LIMITS, floor_s=0.001)).green
    assert LIMITS.floor_s is None


def test_a_p99_of_too_few_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="too few answers"):
        verdict(others={"left": waits(seed=2)[::20]}, unsent={"left": 0})


def test_an_error_of_another_backend_is_wrong_whatever_the_machine_did() -> None:
    odd = [*waits(seed=2)]
    odd[700] = (odd[700][0], 503, 0.001)
    assert verdict(others={"left": odd, "right": waits()}).wrong == ["errors of left: {503: 1}"]
    assert verdict(unsent={"left": 0, "right": 7}).wrong == ["right: 7 requests were not answered"]


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (asked(5.0, 500), "500 is no answer to accepts and hangs"),
        (asked(5.0, 200, whole=False), "cut is no answer to accepts and hangs"),
        (asked(5.0, 0, problem="ConnectionResetError", took_s=0.1), "ConnectionResetError is no answer"),
        (asked(5.0, 504, own=False), "504 with another request's id"),
        (asked(5.0, 504, backend=None), "504 with code upstream_timeout and backend None"),
        (asked(5.0, 503, code="overloaded"), "503 with code overloaded"),
        (asked(5.0, 503, retry_after=None), "503 with Retry-After None"),
        (asked(2.0, 504), "504 while all was well"),
        (asked(6.5, 504), "504 though the instance was to be out of rotation"),
        (asked(5.0, 503), "503 though two instances were well"),
    ],
)
def test_an_answer_that_the_contract_has_not_is_wrong(odd: Seen, said: str) -> None:
    found = verdict(odd)
    assert len(found.wrong) == 1 and found.wrong[0].startswith(f"1 x {said}"), found.wrong


def test_with_no_instance_left_only_503_at_once_will_do() -> None:
    everything = {"all_instances": True}
    assert verdict(asked(5.0, 504), asked(7.0, 503), **everything).green
    assert verdict(asked(7.0, 504), **everything).wrong == ["1 x 504 though no instance was to be in rotation"]
    assert verdict(asked(7.0, 200), **everything).green, "a flicker of a healthy instance is no failure"
    waited = verdict(asked(7.0, 503, took_s=0.3), **everything)
    assert waited.open == ["1 waited up to 0.300 s though no instance was in rotation"]


def test_an_answer_later_than_the_timeout_and_its_grace_is_late() -> None:
    assert verdict(asked(5.0, 504, took_s=1.049)).green
    assert verdict(asked(5.0, 504, took_s=1.06)).open == ["1 answers after up to 1.060 s, timeout 1.0 s"]


def test_a_request_on_its_way_when_the_fault_begins_may_meet_it() -> None:
    assert verdict(asked(3.9, 504)).green
    assert verdict(asked(3.7, 504)).wrong == ["1 x 504 while all was well"]


def test_a_slow_body_may_last_but_its_head_may_not_nor_its_end_when_it_is_cut() -> None:
    assert verdict(asked(5.0, took_s=2.5), name="slow-drip body").green
    cut = asked(5.0, took_s=1.2, whole=False)
    assert verdict(cut, name="slow-drip body").open == ["1 answers after up to 1.200 s, timeout 1.0 s"]
    late = asked(5.0, first_s=1.2, took_s=2.5)
    assert verdict(late, name="slow-drip body").open == ["1 answers after up to 1.200 s, timeout 1.0 s"]


def test_recovery_is_counted_to_the_last_request_that_failed() -> None:
    assert verdict(asked(23.6, 504)).open == ["recovered after 1.60 s, allowed 1.50"]


def test_what_is_late_is_measured_again_and_the_third_time_final() -> None:
    good, late = record(), record(asked(5.0, 504, took_s=1.06))
    assert judge([late, good], LIMITS).green
    assert not judge([late, late], LIMITS).final
    found = judge([late, good, late, late], LIMITS)
    assert found.final and found.late == ["1 answers after up to 1.060 s, timeout 1.0 s"]


def test_what_is_wrong_in_one_run_stays_wrong() -> None:
    found = judge([record(asked(5.0, 500)), record()], LIMITS)
    assert found.final and found.wrong == ["1 x 500 is no answer to accepts and hangs"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rss_bytes": 64 << 20}, "memory 61440 -> 65536 KiB"),
        ({"own_descriptors": 13}, "descriptors 12 -> 13"),
        ({"threads": 4}, "threads 3 -> 4"),
        ({"in_flight": 1}, "in_flight 1"),
        ({"in_flight": -1}, "in_flight -1"),
        ({"pools": {"one": {**POOL, "open": 3, "busy": 1}}}, "one: 1 busy"),
        ({"pools": {"one": {**POOL, "waiting": 2}}}, "one: 2 waiting"),
        ({"pools": {"one": {**POOL, "open": 3}}}, "one: the pool contradicts itself"),
        ({"pools": {"one": {**POOL, "open": 51, "idle": 51}}}, "one: the pool contradicts itself"),
    ],
)
def test_what_did_not_come_back_is_named(changed: dict[str, Any], said: str) -> None:
    found = verdict(after=attrs.evolve(RESOURCES, **changed))
    assert len(found.wrong) == 1 and found.wrong[0].startswith(f"did not come back: {said}"), found.wrong


def test_a_post_that_reached_the_backend_twice_is_wrong() -> None:
    assert verdict(doubled_posts=1).wrong == ["1 POSTs reached the backend twice"]


def test_the_matrix_has_every_fault_of_one_and_of_all_instances() -> None:
    chosen = list(cells([], []))
    assert len(chosen) == 2 * 10 + 1
    assert [(fault.name, scope) for fault, scope in cells(["acc"], [])] == [
        ("accepts and hangs", ONE),
        ("accepts and hangs", ALL),
    ]


def test_what_the_machine_took_is_no_rise() -> None:
    """Each tenth of a second of the fault it stood still for 3 ms; a gateway that did so itself is red."""
    begins = [begin_s + number / 10 for begin_s, end_s in FAULTY for number in range(int((end_s - begin_s) * 10))]
    stalls = [(begin_s, begin_s + 0.003) for begin_s in begins]
    slower = {name: [_stalled(sample, stalls) for sample in noisy(rate=600.0)] for name in ("left", "right")}
    assert judge([record(others=slower, twin=noisy(seed=5), stalls=stalls)], LIMITS).green
    assert not judge([record(others=slower, twin=noisy(seed=5))], LIMITS).green


def _stalled(sample: Sample, stalls: list[Span]) -> Sample:
    """Answered when the stall that it fell into was over."""
    at_s, status, wait_s = sample
    end_s = next((end_s for begin_s, end_s in stalls if begin_s <= at_s < end_s), at_s)
    return end_s, status, wait_s + end_s - at_s
