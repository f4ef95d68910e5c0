"""One measurement: a load generator as a process of its own, the gateway's CPU read before and after."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Self

import job
from load import Plan
from peers.base import Running
from world import World

LOAD = Path(__file__).resolve().parent / "load.py"


class RunFailed(Exception):
    """The load could not be made; the text says what the generator saw."""


class Generator:
    """load.py as a child; a context manager. Connected and warmed up once it is entered."""

    def __init__(self, mode: str, plan: Plan, folder: Path) -> None:
        self._file = folder / f"plan-{mode}.json"
        self._file.write_text(json.dumps(asdict(plan)))
        self._command = [sys.executable, str(LOAD), mode, str(self._file)]

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._line()
        return self

    def work(self) -> dict[str, Any]:
        """Runs the plan; the generator stays connected afterwards. Raises RunFailed."""
        self._say()
        result: dict[str, Any] = json.loads(self._line())
        if result.get("odd"):
            raise RunFailed(f"{result['odd']} answers had another status than expected")
        return result

    def __exit__(self, *_: object) -> None:
        try:
            self._child.communicate("\n", timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._child.kill()
            self._child.wait()

    def _say(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write("\n")
        self._child.stdin.flush()

    def _line(self) -> str:
        assert self._child.stdout is not None and self._child.stderr is not None
        line = self._child.stdout.readline()
        if not line:
            raise RunFailed(self._child.stderr.read().strip()[-600:])
        return line


def cpu_run(
    world: World,
    running: Running,
    count: int,
    *,
    requests: Sequence[str] | None = None,
    expect: int = 200,
    connections: int = 32,
) -> dict[str, float]:
    """CPU microseconds per request over `count` requests on keep-alive connections that are busy all the time."""
    plan = Plan(
        port=running.port, requests=list(requests or world.requests(running.port)), connections=connections,
        count=count, warm_up=max(connections * 8, count // 10), expect=expect,
    )  # fmt: skip
    with Generator("closed", plan, world.folder) as generator:
        before_s = running.process.cpu_s()
        result = generator.work()
        used_s = running.process.cpu_s() - before_s
    return {
        "cpu_us": used_s / count * 1e6,
        "per_second": count / result["seconds"],
        "generator_us": result["generator_cpu_s"] / count * 1e6,
        "made": count + plan.warm_up,
    }


def latency_run(world: World, running: Running, rate: float, seconds: float) -> dict[str, float]:
    """Milliseconds at an even `rate`, through the gateway and, in between, straight to the backend."""
    plan = Plan(
        port=running.port, requests=world.requests(running.port), connections=8, rate=rate, seconds=seconds,
        warm_up=int(rate / 2), direct_port=world.backend_port,
        direct_request=job.request(world.backend_port, job.PATH.removeprefix(job.PREFIX), None),
    )  # fmt: skip
    with Generator("paced", plan, world.folder) as generator:
        before_s = running.process.cpu_s()
        result = generator.work()
        used_s = running.process.cpu_s() - before_s
    through, direct = sorted(result["through_s"]), sorted(result["direct_s"])
    sides = {"through": through, "direct": direct}
    figures = {
        f"{side}_p{percent}_ms": quantile(values, percent / 100) * 1000
        for side, values in sides.items()
        for percent in (50, 99)
    }
    return figures | {
        "over_p50_ms": figures["through_p50_ms"] - figures["direct_p50_ms"],
        "over_p99_ms": figures["through_p99_ms"] - figures["direct_p99_ms"],
        "paced_cpu_us": used_s / result["requests"] * 1e6,
        "made": result["requests"] + plan.warm_up,
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}
