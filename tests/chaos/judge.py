"""Is a cell of the matrix green? Pure functions of what was recorded, so that they can be tested on recorded data.

A cell is run until that is clear, and all runs count. Three kinds of failure. One of correctness (an answer that the
contract has not, an error of another backend, a resource that did not come back) is final at once. The others' p99 is
compared over all runs together: red when it clearly rose by more than is allowed, green when it clearly did not, else
open. An answer too late, or a late recovery, may be the machine's: the third run that has one is final. The control,
clients that ask a backend without the gateway in the same seconds, says whether the machine was busy; it makes nothing
green.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from attrs import field, frozen

from tests.chaos.clients import Seen
from tests.chaos.faults import CODES, CUT, UNAVAILABLE, Fault
from tests.e2e.tails import Blocks, Rise, Span, blocks, rise, tail, undisturbed

ALLOWED_RISE = 0.10  # of the others' p99
GRACE_S = 0.050  # above the route's timeout, for any answer
LATE_RUNS = 2  # of a cell, that may have an answer too late; one more is no chance
RSS_RISE = 0.05
_ON_ITS_WAY_S = 0.25  # a request sent so shortly before the fault may meet it

Sample = tuple[float, int, float]  # at, status, wait in seconds


@frozen
class Limits:
    """What the configuration of the run allows, in seconds."""

    timeout_s: float
    detect_s: float  # from the fault until the instance is out
    recover_s: float  # from its healing until its clients notice nothing
    rise: float = ALLOWED_RISE
    floor_s: float | None = None  # a rise below it is none, on machines that are anybody's; the matrix has no floor
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
    twin: list[Sample]  # the same two backends by a gateway that has no other
    control: list[Sample]
    stalls: list[Span]  # of the machine: tests/e2e/witness.py
    seen: list[Seen]
    before: Resources
    after: Resources
    doubled_posts: int = 0


@frozen
class Verdict:
    """`wrong` and `late` are final, `open` asks for another run; `starved`: what is late may be the machine's."""

    wrong: list[str]
    late: list[str]
    open: list[str]
    starved: bool
    figures: dict[str, object] = field(factory=dict)

    @property
    def green(self) -> bool:
        return not self.wrong and not self.late and not self.open

    @property
    def final(self) -> bool:
        return not self.open or bool(self.wrong or self.late)


def judge(records: Sequence[Record], limits: Limits) -> Verdict:
    """All runs of one cell."""
    wrong: list[str] = []
    tardy: list[list[str]] = []  # for each run
    for record in records:
        against, slow = contract(record, limits)
        wrong += against + others_errors(record)
        wrong += [f"did not come back: {what}" for what in record.after.grown(record.before)]
        if record.doubled_posts:
            wrong.append(f"{record.doubled_posts} POSTs reached the backend twice")
        recovered_s = recovery(record)
        if recovered_s > limits.recover_s:
            slow.append(f"recovered after {recovered_s:.2f} s, allowed {limits.recover_s:.2f}")
        tardy.append(slow)
    late, still_open = _tardy(tardy)
    rises, figures = compared(records)
    said, clear = _risen(rises, figures, limits)
    (late if clear else still_open).extend(said)
    counted = [record for record, slow in zip(records, tardy, strict=True) if not slow] or records
    figures |= {
        "runs": len(records),
        "answers": dict(sum(map(answers, records), Counter[str]())),
        "worst_answer_s": max(map(worst_answer_s, counted)),
        "others_answers": sum(len(samples) for record in records for samples in record.others.values()),
        "others_errors": sum(map(_errors, records)),
        "recovered_s": max(map(recovery, counted)),
        "rss_before_bytes": records[0].before.rss_bytes,
        "rss_after_bytes": records[-1].after.rss_bytes,
    }
    return Verdict(wrong, late, still_open, starved(records, rises["control"], limits), figures)


def _tardy(runs: Sequence[list[str]]) -> tuple[list[str], list[str]]:
    """(final, open): of answers too late and recoveries."""
    bad = [slow for slow in runs if slow]
    if len(bad) > LATE_RUNS:
        return bad[-1], []
    return ([], bad[-1]) if len(bad) == len(runs) else ([], [])


# -- the others' p99


def compared(records: Sequence[Record]) -> tuple[dict[str, Rise], dict[str, object]]:
    """Rises of the p99 from quiet to faulty spans, by whose it is, and the figures.

    `others` is over and above the twin's, `raw` as the others saw it.
    """
    found: dict[str, tuple[Blocks, Blocks]] = {}
    for record in records:
        through = [sample for samples in record.others.values() for sample in samples]
        for name, samples in (("others", through), ("twin", record.twin), ("control", record.control)):
            waits = undisturbed(((at_s, wait_s) for at_s, _, wait_s in samples), record.stalls)
            quiet, faulty = found.setdefault(name, ([], []))
            quiet += blocks(waits, record.quiet)
            faulty += blocks(waits, record.faulty)
    rises = {"others": rise(*found["others"], found["twin"]), "raw": rise(*found["others"])}
    rises |= {name: rise(*found[name]) for name in ("twin", "control")}
    figures: dict[str, object] = {f"rise_{name}": one for name, one in rises.items()}
    for name, pair in found.items():
        for kind, of_kind in zip(("quiet", "fault"), pair, strict=True):
            figures[f"{name}_p99_{kind}_s"] = tail(of_kind).p99_s()
    return rises, figures


def _risen(rises: dict[str, Rise], figures: dict[str, object], limits: Limits) -> tuple[list[str], bool]:
    """(what is said against it, whether that is clear).

    A twin that clearly rose too, by more than is allowed, is no measure: the fault takes the machine from both.
    """
    quiet_s, fault_s = figures["others_p99_quiet_s"], figures["others_p99_fault_s"]
    assert isinstance(quiet_s, float) and isinstance(fault_s, float)
    if limits.floor_s is not None and fault_s - quiet_s < limits.floor_s:
        return [], True
    if rises["twin"].above(limits.rise):
        return [f"the p99 of the gateway without the fault rose by {rises['twin']}"], False
    times = f"{quiet_s * 1000:.2f} to {fault_s * 1000:.2f} ms"
    if rises["others"].above(limits.rise):
        return [f"the others' p99 rose from {times}, by {rises['others']} more than without the fault"], True
    if rises["others"].below(limits.rise):
        return [], True
    return [f"whether the others' p99 rose is not clear: from {times}, {rises['others']}"], False


def starved(records: Sequence[Record], control: Rise, limits: Limits) -> bool:
    """Whether the control suffered: its p99 clearly rose, or it waited for longer than half of an answer's grace."""
    waited_s = max(wait_s for record in records for _, _, wait_s in record.control)
    return control.above(limits.rise) or waited_s > limits.grace_s / 2


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


def _errors(record: Record) -> int:
    odd = sum(status != 200 for samples in record.others.values() for _, status, _ in samples)
    return odd + sum(record.unsent.values())


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
