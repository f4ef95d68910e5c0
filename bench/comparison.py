"""The comparison with the peers, and the gateway's own short answers."""

import json
import time
from dataclasses import dataclass, field
from typing import Any

import job
import verify
from measure import RunFailed, cpu_run, latency_run
from peers import Missing, Peer, Running
from processes import StartFailed
from redis_count import RedisCount
from world import World

LATENCY_RATE = 200.0  # requests per second
LATENCY_S = 5.0


@dataclass
class Results:
    """samples: peer -> measurement -> one value a round. skipped: peer -> why. remarks: what the reader should know."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, peer: str, figures: dict[str, float]) -> None:
        rows = self.samples.setdefault(peer, {})
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)


def compare(world: World, peers: list[Peer], runs: int, count: int) -> Results:
    """Each peer `runs` times, in turns: the machine drifts, so neighbours in time are what is compared."""
    results = Results()
    for number in range(1, runs + 1):
        for peer in peers:
            if peer.name in results.skipped or peer.name in results.failed:
                continue
            started_s = time.monotonic()
            try:
                figures = _round(world, peer, count, results)
            except Missing as error:
                results.skipped[peer.name] = str(error)
                print(f"{peer.name}: skipped ({error})", flush=True)
            except (StartFailed, RunFailed) as error:
                results.failed[peer.name] = str(error)
                print(f"{peer.name}: FAILED: {error}", flush=True)
            else:
                results.add(peer.name, figures)
                print(
                    f"round {number}  {peer.name:<13}{figures['cpu_us']:7.0f} us/request  p50 {figures['over_p50_ms']:+.2f} ms"
                    f"  p99 {figures['over_p99_ms']:+.2f} ms  {figures['peak_mib']:6.1f} MiB"
                    f"  ({time.monotonic() - started_s:.1f} s)",
                    flush=True,
                )
    return results


def _round(world: World, peer: Peer, count: int, results: Results) -> dict[str, float]:
    running = peer.start(world)
    try:
        found, made = verify.problems(world, running)
        if found:
            raise RunFailed("it does not do the job: " + "; ".join(found))
        redis = RedisCount(world.redis_port)
        redis.clear()
        figures = cpu_run(world, running, count)
        made += int(figures.pop("made"))
        if peer.uses_redis and redis.counted() < count * 0.99:
            results.remarks.append(f"{peer.name}: Redis counted {redis.counted()} of {count} requests")
        redis.close()
        figures |= latency_run(world, running, LATENCY_RATE, LATENCY_S)
        made += int(figures.pop("made"))
        figures["peak_mib"] = running.process.peak_resident_bytes() / 2**20
        if peer.name == "apigw":
            figures |= short_answers(world, running, count)
    finally:
        running.process.stop()
    _check_log(peer, running, made, results)
    return figures


def short_answers(world: World, running: Running, count: int) -> dict[str, float]:
    """CPU of the gateway's own answers, in microseconds and relative to proxied requests just before and after."""
    port = running.port
    forged = [world.identity.forged(f"user-{number}") for number in range(job.TOKENS)]
    kinds = {
        401: [job.request(port, job.PATH, token) for token in forged],
        404: [job.request(port, job.UNKNOWN_PATH, token) for token in world.tokens],
        429: world.requests(port, "/api/v2/exhausted/me"),
    }
    verify.Client(port).get("/api/v2/exhausted/me", world.tokens[0])  # the one request that its limit allows
    figures = {}
    proxied_us = cpu_run(world, running, count)["cpu_us"] / 2
    for status, requests in kinds.items():
        figures[f"short_{status}_us"] = cpu_run(world, running, count, requests=requests, expect=status)["cpu_us"]
    proxied_us += cpu_run(world, running, count)["cpu_us"] / 2
    return figures | {f"short_{status}_ratio": figures[f"short_{status}_us"] / proxied_us for status in kinds}


def _check_log(peer: Peer, running: Running, made: int, results: Results) -> None:
    """Every request in the access log, and the log readable: else the peer did less than the job."""
    lines = [line for line in running.access_log.read_text(errors="replace").splitlines() if line.startswith("{")]
    if len(lines) < made * 0.99:
        results.remarks.append(f"{peer.name}: {len(lines)} lines of access log for {made} requests")
    for line in lines[:: max(1, len(lines) // 100)]:
        try:
            entry: Any = json.loads(line)
        except ValueError:
            results.remarks.append(f"{peer.name}: an access log line is not JSON: {line[:200]}")
            return
        if "status" not in entry:
            results.remarks.append(f"{peer.name}: an access log line without a status: {line[:200]}")
            return
