"""The judge can fail: on records in which one thing is wrong, it says which."""

import random
from typing import Any

import attrs
import pytest

from tests.chaos.clients import Seen
from tests.chaos.faults import ALL, FAULTS, ONE, Fault
from tests.chaos.judge import Limits, Record, Resources, Sample, Verdict, judge, p99, risen
from tests.chaos.matrix import cells

LIMITS = Limits(timeout_s=1.0, detect_s=2.0, recover_s=1.5)
QUIET, FAULTY = ((0.0, 4.0), (12.0, 16.0), (24.0, 26.0)), ((4.0, 10.0), (16.0, 22.0))
POOL = {"open": 2, "idle": 2, "busy": 0, "waiting": 0, "most": 50}
RESOURCES = Resources(60 << 20, 12, 3, 0, {"one": POOL})


def fault(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


def waits(rate: float = 150.0, of_fault: float = 1.0, seed: int = 1) -> list[Sample]:
    """26 s of answers after 1 to 9 ms, in fault spans by a factor later."""
    rolls = random.Random(seed)
    found = []
    for number in range(int(26 * rate)):
        at_s = number / rate
        wait_s = 0.001 + 0.008 * rolls.random() ** 2
        slow = any(begin_s <= at_s < end_s for begin_s, end_s in FAULTY)
        found.append((at_s, 200, wait_s * of_fault if slow else wait_s))
    return found


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
        "control": waits(),
        "seen": [*(asked(number / 2) for number in range(52)), *odd],
        "before": RESOURCES,
        "after": RESOURCES,
    }
    if more.get("all_instances"):
        usual["seen"] = [seen for seen in usual["seen"] if not any(a <= seen.due_s < b for a, b in FAULTY)]
        usual["seen"] += odd
    return Record(**(usual | more))


def verdict(*odd: Seen, **more: Any) -> Verdict:
    return judge(record(*odd, **more), LIMITS)


def test_what_the_contract_allows_is_green() -> None:
    """While the instance is not yet out its clients get 504 after the timeout; from then on all is well."""
    found = verdict(asked(4.1, 504, took_s=1.01), asked(5.9, 504, took_s=1.04), asked(10.2, 504), asked(11.4, 504))
    assert found.green, found
    assert found.figures["answers"] == {"200": 24, "504": 2}
    assert found.figures["recovered_s"] == pytest.approx(1.4)


def test_a_rise_of_30_percent_of_the_others_is_found_and_a_busy_machine_is_told_from_it() -> None:
    slower = {"left": waits(of_fault=1.3, seed=2), "right": waits(of_fault=1.3, seed=3)}
    found = verdict(others=slower)
    assert found.wrong == [] and found.late[0].startswith("the others' p99 rose from")
    assert not found.starved
    assert verdict(others=slower, control=waits(of_fault=1.3)).starved


def test_a_rise_of_5_percent_or_below_the_floor_is_none() -> None:
    assert verdict(others={"left": waits(of_fault=1.05), "right": waits(of_fault=1.05)}).green
    assert not risen(0.0005, 0.0014, LIMITS)
    assert risen(0.0005, 0.0016, LIMITS)


def test_one_slow_window_is_not_a_rise_and_a_p99_of_too_few_answers_is_refused() -> None:
    """A pause of the machine spoils one window; the median of several does not move."""
    samples = waits()
    paused = [(at_s, status, wait_s + (0.2 if 5.0 < at_s < 5.5 else 0.0)) for at_s, status, wait_s in samples]
    assert p99(paused, FAULTY) == pytest.approx(p99(samples, FAULTY), rel=0.1)
    with pytest.raises(ValueError, match="no window has enough answers"):
        p99(samples[:50], QUIET)


def test_an_error_of_another_backend_is_wrong_whatever_the_machine_did() -> None:
    odd = waits(seed=2)
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
    assert waited.late == ["1 waited up to 0.300 s though no instance was in rotation"]


def test_an_answer_later_than_the_timeout_and_its_grace_is_late() -> None:
    assert verdict(asked(5.0, 504, took_s=1.049)).green
    assert verdict(asked(5.0, 504, took_s=1.06)).late == ["1 answers after up to 1.060 s, timeout 1.0 s"]


def test_a_request_on_its_way_when_the_fault_begins_may_meet_it() -> None:
    assert verdict(asked(3.9, 504)).green
    assert verdict(asked(3.7, 504)).wrong == ["1 x 504 while all was well"]


def test_a_slow_body_may_last_but_its_head_may_not_nor_its_end_when_it_is_cut() -> None:
    assert verdict(asked(5.0, took_s=2.5), name="slow-drip body").green
    cut = asked(5.0, took_s=1.2, whole=False)
    assert verdict(cut, name="slow-drip body").late == ["1 answers after up to 1.200 s, timeout 1.0 s"]
    late = asked(5.0, first_s=1.2, took_s=2.5)
    assert verdict(late, name="slow-drip body").late == ["1 answers after up to 1.200 s, timeout 1.0 s"]


def test_recovery_is_counted_to_the_last_request_that_failed() -> None:
    assert verdict(asked(23.6, 504)).late == ["recovered after 1.60 s, allowed 1.50"]


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
