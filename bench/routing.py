"""Does a request cost more with 5,000 routes than with 50? The trie alone, then whole gateways side by side."""

import sys
import time
from typing import Any

import job
from measure import cpu_run, spread
from peers.apigw import Apigw, extra_pattern
from world import REPOSITORY, World

FEW, MANY = 50, 5000
SPREAD = 1.05  # the target: within 5%
MATCHES = 200_000


def trie_cost() -> dict[str, dict[str, float]]:
    """Nanoseconds of Trie.match with FEW and MANY routes, in turns, paths spread over the whole table."""
    sys.path.insert(0, str(REPOSITORY))
    from apigw.core.trie import Trie  # found by the line above

    tables = {}
    for size in (FEW, MANY):
        trie: Trie[int] = Trie()
        for number in range(size):
            trie.add(extra_pattern(number), number)
        paths = [extra_pattern(number).replace("*", "me") for number in range(0, size, size // FEW)]
        tables[size] = (trie.match, paths)
    samples: dict[int, list[float]] = {FEW: [], MANY: []}
    for _ in range(7):
        for size, (match, paths) in tables.items():
            started_s = time.process_time()
            for _ in range(MATCHES // len(paths)):
                for path in paths:
                    match(path)
            samples[size].append((time.process_time() - started_s) / MATCHES * 1e9)
    return {str(size): spread(values) for size, values in samples.items()}


def gateway_cost(world: World, runs: int, count: int) -> dict[str, Any]:
    """CPU microseconds per proxied request of two gateways, one with FEW and one with MANY routes, in turns."""
    started = {}
    samples: dict[int, list[float]] = {FEW: [], MANY: []}
    try:
        for size in (FEW, MANY):
            started[size] = Apigw(f"apigw-{size}-routes", extra_routes=size).start(world)
        for number in range(4 * runs):
            for size in (FEW, MANY) if number % 2 else (MANY, FEW):
                paths = [extra_pattern(route).replace("*", "me") for route in range(0, size, size // FEW)]
                requests = [
                    job.request(started[size].port, path, token)
                    for path, token in zip(paths, world.tokens, strict=False)
                ]
                samples[size].append(cpu_run(world, started[size], count, requests=requests)["cpu_us"])
    finally:
        for running in started.values():
            running.process.stop()
    ratios = [many / few for many, few in zip(samples[MANY], samples[FEW], strict=True)]
    return {
        str(FEW): spread(samples[FEW]),
        str(MANY): spread(samples[MANY]),
        "ratio": spread(ratios),
        "ratio_of_minima": min(samples[MANY]) / min(samples[FEW]),
    }


def report(world: World, runs: int, count: int) -> dict[str, object]:
    trie = trie_cost()
    few, many = trie[str(FEW)]["median"], trie[str(MANY)]["median"]
    print(f"\nroutes: Trie.match {few:.0f} ns with {FEW}, {many:.0f} ns with {MANY}")
    gateway = gateway_cost(world, runs, count)
    ratio = gateway["ratio"]
    print(
        f"routes: a request costs {gateway[str(FEW)]['median']:.0f} us with {FEW}, {gateway[str(MANY)]['median']:.0f} us"
        f" with {MANY}: x{ratio['median']:.3f} (pairs {ratio['min']:.3f} to {ratio['max']:.3f}), of the minima x{gateway['ratio_of_minima']:.3f} (target x{SPREAD})"
    )
    return {"trie_ns": trie, "gateway_us": gateway}
