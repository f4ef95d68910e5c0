"""`make bench`: what the gateway costs, beside peers that do the same job in the same minutes.

usage: .venv/bin/python bench/run.py [--quick] [--peers a,b] [--runs N] [--requests N] [--tokens N] [--memory | --routes | --identity]

Prints a table, writes bench/results/latest.json (memory.json, routes.json, identity.json); docs/benchmarking.md says how to
read them. Exit status 1 when a peer that is installed does not do the job.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import comparison
import identity_cost
import job
import memory
import report
import routing
from peers import ALL, DEFAULT, QUICK
from world import World

REQUESTS = 6000
QUICK_REQUESTS = 2000
RUNS = 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The benchmark of apigw, with peers.")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} with {QUICK_REQUESTS} requests")
    parser.add_argument("--peers", help=f"comma-separated, of: {', '.join(ALL)}")
    parser.add_argument("--runs", type=int, default=RUNS, help="rounds; the peers take turns in each")
    parser.add_argument("--requests", type=int, help=f"of one CPU measurement; default {REQUESTS}")
    parser.add_argument(
        "--tokens", type=int, default=job.TOKENS, help="in use; as many as requests: no cache of verified tokens helps"
    )
    parser.add_argument("--memory", action="store_true", help="only resident memory: 5,000 routes, 5,000 connections")
    parser.add_argument("--routes", action="store_true", help="only the cost of 5,000 routes against 50")
    parser.add_argument("--identity", action="store_true", help="only what tokens, API keys and tiers add to a request")
    parser.add_argument("--results", type=Path, default=report.FOLDER, help="the folder of the figures in JSON")
    options = parser.parse_args()
    options.names = options.peers.split(",") if options.peers else list(QUICK if options.quick else DEFAULT)
    unknown = [name for name in options.names if name not in ALL]
    if unknown or min(options.runs, options.tokens) < 1:
        parser.error(f"no such peer: {', '.join(unknown)}" if unknown else "--runs and --tokens are at least 1")
    options.requests = options.requests or (QUICK_REQUESTS if options.quick else REQUESTS)
    return options


def main() -> int:
    options = arguments()
    memory.raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: everything that was started is ended
    started_s = time.monotonic()
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.requests} requests a measurement", flush=True
    )
    results: comparison.Results | None = None
    sections: dict[str, object] = {}
    with World(options.tokens) as world:
        if options.memory:
            sections["memory"] = memory.report(world)
        elif options.routes:
            sections["routes"] = routing.report(world, options.runs, options.requests)
        elif options.identity:
            sections["identity"] = identity_cost.report(world, options.runs, options.requests)
        else:
            results = comparison.compare(world, [ALL[name] for name in options.names], options.runs, options.requests)
            report.show(results)
            if "apigw" in results.samples and not options.quick:
                sections["routes"] = routing.report(world, options.runs, options.requests // 2)
    name = next(iter(sections)) if results is None else "latest"
    settings = {
        "requests": options.requests,
        "runs": options.runs,
        "peers": options.names,
        "tokens": options.tokens,
    }
    file = report.write(options.results, name, results, sections, settings)
    print(
        f"\n{file.relative_to(os.getcwd()) if file.is_relative_to(os.getcwd()) else file}, "
        f"{time.monotonic() - started_s:.0f} s"
    )
    return 1 if results is not None and results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
