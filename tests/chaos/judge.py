"""Is a cell of the matrix green? Pure functions of what was recorded, so that they can be tested on recorded data.

Two kinds of failure. One of correctness (an answer that the contract has not, an error of another backend, a resource
that did not come back) is final. One of time may be the machine's: it is final only if the control, clients that ask
a backend without the gateway in the same seconds, did not suffer too; else the cell is measured again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from attrs import field, frozen

from tests.chaos.clients import Seen
from tests.chaos.faults import CODES, CUT, UNAVAILABLE, Fault

ALLOWED_RISE = 0.10  # of the others' p99
FLOOR_S = 0.001  # a rise below it is no rise: the generators themselves sleep in whole milliseconds
GRACE_S = 0.050  # above the route's timeout, for any answer
WINDOW_S = 2.0  # one p99 each; a cell compares medians of several
RSS_RISE = 0.05
_ON_ITS_WAY_S = 0.25  # a request sent so shortly before the fault may meet it
_LEAST_IN_A_WINDOW = 100  # answers; with fewer, a p99 says nothing

Span = tuple[float, float]  # begin and end, of time.monotonic()
Sample = tuple[float, int, float]  # at, status, wait in seconds


@frozen
class Limits:
    """What the configuration of the run allows, in seconds."""

    timeout_s: float
    detect_s: float  # from the fault until the instance is out
    recover_s: float  # from its healing until its clients notice nothing
    rise: float = ALLOWED_RISE
    floor_s: float = FLOOR_S
    grace_s: float = GRACE_S


@frozen
class Resources:
    """The gateway at one moment. `own_descriptors`: without those of pooled and of client connections."""

    rss_bytes: int
    own_descriptors: int
    threads: int
    in_flight: int
    pools: dict[str, dict[str, int]]  # open, idle, busy, waiting, most

    def busy(self) -> list[str]:
        """What is not quiet, or contradicts itself (contract 13.8)."""
        found = [] if self.in_flight == 0 else [f"in_flight {self.in_flight}"]
        for name, pool in self.pools.items():
            if pool["open"] != pool["idle"] + pool["busy"] or pool["open"] > pool["most"]:
                found.append(f"{name}: the pool contradicts itself: {pool}")
            found += [f"{name}: {pool[word]} {word}" for word in ("busy", "waiting") if pool[word]]
        return found

    def grown(self, before: "Resources") -> list[str]:
        """What did not come back."""
        found = self.busy()
        if self.own_descriptors > before.own_descriptors:
            found.append(f"descriptors {before.own_descriptors} -> {self.own_descriptors}")
        if self.threads > before.threads:
            found.append(f"threads {before.threads} -> {self.threads}")
        if self.rss_bytes > before.rss_bytes * (1 + RSS_RISE):
            found.append(f"memory {before.rss_bytes >> 10} -> {self.rss_bytes >> 10} KiB")
        return found


@frozen
class Record:
    """One run of one cell. Fault spans end when the fault was healed; quiet ones lie after recovery."""

    fault: Fault
    all_instances: bool
    victim: str
    quiet: tuple[Span, ...]
    faulty: tuple[Span, ...]
    others: dict[str, list[Sample]]
    unsent: dict[str, int]
    control: list[Sample]
    seen: list[Seen]
    before: Resources
    after: Resources
    doubled_posts: int = 0


@frozen
class Verdict:
    """`wrong` is final; `late` may be the machine's, which `starved` says."""

    wrong: list[str]
    late: list[str]
    starved: bool
    figures: dict[str, object] = field(factory=dict)

    @property
    def green(self) -> bool:
        return not self.wrong and not self.late


def judge(record: Record, limits: Limits) -> Verdict:
    """All of it."""
    wrong, late = contract(record, limits)
    wrong += others_errors(record)
    wrong += [f"did not come back: {what}" for what in record.after.grown(record.before)]
    if record.doubled_posts:
        wrong.append(f"{record.doubled_posts} POSTs reached the backend twice")
    through = [sample for samples in record.others.values() for sample in samples]
    quiet_s, fault_s = p99(through, record.quiet), p99(through, record.faulty)
    control_quiet_s, control_fault_s = p99(record.control, record.quiet), p99(record.control, record.faulty)
    if risen(quiet_s, fault_s, limits):
        late.append(f"the others' p99 rose from {quiet_s * 1000:.1f} to {fault_s * 1000:.1f} ms")
    recovered_s = recovery(record)
    if recovered_s > limits.recover_s:
        late.append(f"recovered after {recovered_s:.2f} s, allowed {limits.recover_s:.2f}")
    figures = {
        "answers": dict(answers(record)),
        "worst_answer_s": worst_answer_s(record),
        "others_p99_quiet_s": quiet_s,
        "others_p99_fault_s": fault_s,
        "control_p99_quiet_s": control_quiet_s,
        "control_p99_fault_s": control_fault_s,
        "others_answers": len(through),
        "others_errors": sum(status != 200 for _, status, _ in through) + sum(record.unsent.values()),
        "recovered_s": recovered_s,
        "rss_before_bytes": record.before.rss_bytes,
        "rss_after_bytes": record.after.rss_bytes,
    }
    return Verdict(wrong, late, starved(record, limits), figures)


# -- the other backends


def others_errors(record: Record) -> list[str]:
    """Anything that is not 200, or was never sent because connections stayed busy."""
    found = []
    for name, samples in record.others.items():
        odd = Counter(status for _, status, _ in samples if status != 200)
        if odd:
            found.append(f"errors of {name}: {dict(odd)}")
        if record.unsent[name]:
            found.append(f"{name}: {record.unsent[name]} requests were not answered")
    return found


def p99(samples: Sequence[Sample], spans: Iterable[Span]) -> float:
    """The median, over the windows of these spans, of the p99 of each."""
    found = []
    for begin_s, end_s in spans:
        count = max(1, round((end_s - begin_s) / WINDOW_S))
        step_s = (end_s - begin_s) / count
        for number in range(count):
            from_s = begin_s + number * step_s
            waits_s = sorted(wait_s for at_s, _, wait_s in samples if from_s <= at_s < from_s + step_s)
            if len(waits_s) >= _LEAST_IN_A_WINDOW:
                found.append(waits_s[int(len(waits_s) * 0.99)])
    if not found:
        raise ValueError("no window has enough answers for a p99")
    return median(found)


def risen(quiet_s: float, fault_s: float, limits: Limits) -> bool:
    return fault_s > quiet_s * (1 + limits.rise) and fault_s - quiet_s > limits.floor_s


def starved(record: Record, limits: Limits) -> bool:
    """Whether the control suffered: its own p99 rose, or it waited for longer than half of an answer's grace."""
    if risen(p99(record.control, record.quiet), p99(record.control, record.faulty), limits):
        return True
    return max(wait_s for _, _, wait_s in record.control) > limits.grace_s / 2


# -- the clients of the backend that fails


def outcome(seen: Seen) -> str:
    if seen.status == 0:
        return seen.problem or "no answer"
    return str(seen.status) if seen.whole else CUT


def good(seen: Seen) -> bool:
    return seen.status == 200 and seen.whole and seen.own


def answers(record: Record) -> Counter[str]:
    """Outcomes of the requests of fault spans."""
    return Counter(outcome(seen) for seen in record.seen if _within(seen, record.faulty))


def worst_answer_s(record: Record) -> float:
    """The longest wait for an answer's end; for its first byte where a body is slow on purpose and comes whole."""
    return max((_answered_s(seen, record.fault) for seen in record.seen), default=0.0)


def _answered_s(seen: Seen, fault: Fault) -> float:
    return seen.first_s if fault.slow_body and seen.whole else seen.took_s


def _within(seen: Seen, spans: Iterable[Span], after_s: float = 0.0, before_s: float = 0.0) -> bool:
    return any(begin_s + after_s - before_s <= seen.due_s < end_s for begin_s, end_s in spans)


def contract(record: Record, limits: Limits) -> tuple[list[str], list[str]]:
    """(wrong, late): what the clients of the failing backend got and should not have."""
    wrong: Counter[str] = Counter()
    late: list[float] = []
    waited: list[float] = []
    for seen in record.seen:
        problem = _against_contract(seen, record)
        if problem is None and not good(seen):
            problem = _against_time(seen, record, limits)
        if problem is not None:
            wrong[problem] += 1
        answered_s = _answered_s(seen, record.fault)
        if answered_s > limits.timeout_s + limits.grace_s:
            late.append(answered_s)
        elif _known_out(seen, record, limits) and answered_s > limits.grace_s:
            waited.append(answered_s)
    said = [f"{count} x {problem}" for problem, count in wrong.most_common()]
    slow = [f"{len(late)} answers after up to {max(late):.3f} s, timeout {limits.timeout_s} s"] if late else []
    if waited:
        slow.append(f"{len(waited)} waited up to {max(waited):.3f} s though no instance was in rotation")
    return said, slow


def _against_contract(seen: Seen, record: Record) -> str | None:
    """Whether this answer may be given at all while the fault lasts."""
    got = outcome(seen)
    if got not in record.fault.answers:
        return f"{got} is no answer to {record.fault.name}"
    if not seen.own:
        return f"{got} with another request's id"
    code = CODES.get(got)
    if seen.whole and (seen.code, seen.backend) != (code, record.victim if code else None):
        return f"{got} with code {seen.code} and backend {seen.backend}"
    if got == UNAVAILABLE and not (seen.retry_after or "").isdecimal():
        return f"503 with Retry-After {seen.retry_after}"
    return None


def _against_time(seen: Seen, record: Record, limits: Limits) -> str | None:
    """Whether something other than 200 may be given at this moment."""
    got = outcome(seen)
    if _within(seen, record.quiet) and not _within(seen, record.faulty, before_s=_ON_ITS_WAY_S):
        return f"{got} while all was well"
    if _known_out(seen, record, limits):
        return None if got == UNAVAILABLE else f"{got} though no instance was to be in rotation"
    if got == UNAVAILABLE and not record.all_instances:
        return "503 though two instances were well"
    if record.fault.seen and not record.all_instances and _within(seen, record.faulty, limits.detect_s):
        return f"{got} though the instance was to be out of rotation"
    return None


def _known_out(seen: Seen, record: Record, limits: Limits) -> bool:
    """Whether the gateway must know by now that no instance is fit: the answer comes at once."""
    return record.fault.seen and record.all_instances and _within(seen, record.faulty, limits.detect_s)


def recovery(record: Record) -> float:
    """Seconds from a healing to the last request, before all was to be well again, that did not get 200."""
    worst_s = 0.0
    for _, healed_s in record.faulty:
        until_s = min((begin_s for begin_s, _ in record.faulty if begin_s > healed_s), default=float("inf"))
        bad_s = [seen.due_s for seen in record.seen if healed_s <= seen.due_s < until_s and not good(seen)]
        worst_s = max(worst_s, max(bad_s, default=healed_s) - healed_s)
    return worst_s
