"""`make chaos`: every fault, of one instance of three and of all, under load; what the others and its clients notice.

    python -m tests.chaos.matrix [--fault NAME]... [--scope one|all|gateway]... [--json FILE] [--rounds N]

Prints a row as soon as a cell is judged, and the reasons below the table. Exit status 1: a cell is not green.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Sequence

import attrs

from tests.chaos.faults import ALL, FAULTS, GATEWAY, GATEWAY_FAULT, ONE, Fault
from tests.chaos.judge import Record, Verdict, judge
from tests.chaos.world import Plan, World, limits

# Runs of a cell after which it is judged, until it is clear. Two at least: what differs from run to run is not seen
# in one. Five looks: tails.ERRING.
LOOKS = 2, 3, 5, 8, 12
RUN_S = 75 * 60  # then the rest is not begun: a run ends
_COLUMNS = (
    ("fault", 22), ("of", 12), ("its clients got", 40), ("worst ms", 9), ("others' p99 ms", 14),
    ("rise", 20), ("twin", 5), ("errors", 6), ("recovered s", 11), ("memory MiB", 14), ("runs", 4), ("", 5),
)  # fmt: skip

Cell = tuple[Fault, str]


def cells(faults: list[str], scopes: list[str]) -> Iterator[Cell]:
    """Those chosen by the beginnings of their names; all, when none are named. The gateway's own comes last."""

    def chosen(name: str, among: list[str]) -> bool:
        return not among or any(name.startswith(word) for word in among)

    for scope in (ONE, ALL):
        if chosen(scope, scopes):
            yield from ((fault, scope) for fault in FAULTS if chosen(fault.name, faults))
    if chosen(GATEWAY.removeprefix("the "), scopes) and chosen(GATEWAY_FAULT.name, faults):
        yield GATEWAY_FAULT, GATEWAY


def measure(world: World, cell: Cell, looks: Sequence[int] = LOOKS, **more: float) -> Verdict:
    """Until it is final, as it is seen after so many runs, and so many. What is open at the last look is not green."""
    fault, scope = cell
    allowed = limits(scope != ONE, world.plan.breaker, **more)
    records: list[Record] = []
    for look in looks:
        while len(records) < look:
            records.append(world.run(fault, scope != ONE))
        verdict = judge(records, allowed)
        if verdict.final:
            break
    return verdict


def row(cell: Cell, verdict: Verdict) -> str:
    """One line of the table."""
    found: dict[str, Any] = verdict.figures
    texts = (
        cell[0].name,
        cell[1],
        " ".join(f"{name}:{count}" for name, count in sorted(found["answers"].items())),
        f"{found['worst_answer_s'] * 1000:.0f}",
        f"{found['others_p99_quiet_s'] * 1000:.2f} -> {found['others_p99_fault_s'] * 1000:.2f}",
        str(found["rise_others"]),
        f"{found['rise_twin'].measured:+.0%}",
        str(found["others_errors"]),
        f"{found['recovered_s']:.2f}",
        f"{found['rss_before_bytes'] / 2**20:.1f} -> {found['rss_after_bytes'] / 2**20:.1f}",
        str(found["runs"]),
        "ok" if verdict.green else "FAIL",
    )
    return line(texts)


def line(texts: tuple[str, ...]) -> str:
    return "  ".join(text.ljust(width) for text, (_, width) in zip(texts, _COLUMNS, strict=True)).rstrip()


def reasons(cell: Cell, verdict: Verdict) -> Iterator[str]:
    for reason in (*verdict.wrong, *verdict.late, *verdict.open):
        yield f"{cell[0].name}, {cell[1]}: {reason}"
    if (verdict.late or verdict.open) and verdict.starved:
        yield f"{cell[0].name}, {cell[1]}: the machine was busy meanwhile: measure again at a quieter time"


def run(chosen: list[Cell], plan: Plan) -> tuple[list[dict[str, Any]], bool]:
    """All cells in one world, printed as they come: the figures, and whether all is green."""
    results, found = [], []
    end_s = time.monotonic() + RUN_S
    print(line(tuple(name for name, _ in _COLUMNS)), flush=True)
    with tempfile.TemporaryDirectory(prefix="apigw-chaos-") as work, World(Path(work), plan) as world:
        for cell in chosen:
            if time.monotonic() > end_s:
                found.append(f"{cell[0].name}, {cell[1]}: not begun, the run has taken too long")
                continue
            verdict = measure(world, cell)
            print(row(cell, verdict), flush=True)
            found += reasons(cell, verdict)
            results.append({"fault": cell[0].name, "of": cell[1], "green": verdict.green})
            results[-1] |= attrs.asdict(verdict, recurse=True)
        left = world.settled(world.base)
    found += [f"after all cells: did not come back: {what}" for what in left.grown(world.base)]
    print("\n".join(["", *found]) if found else f"\nall {len(results)} cells are green")
    return results, not found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fault", action="append", default=[], help="the beginning of a fault's name")
    parser.add_argument("--scope", action="append", default=[], choices=["one", "all", "gateway"])
    parser.add_argument("--rounds", type=int, default=Plan().rounds, help="faults of a run, quiet spans in between")
    parser.add_argument("--json", type=Path, help="all figures")
    options = parser.parse_args()
    chosen = list(cells(options.fault, options.scope))
    if not chosen:
        parser.error("no cell has such a name")
    for number in (signal.SIGINT, signal.SIGTERM):  # end the processes too, also where a shell had SIGINT ignored
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    results, green = run(chosen, Plan(rounds=options.rounds))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if green else 1


if __name__ == "__main__":
    sys.exit(main())
