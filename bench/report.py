"""The table and the JSON of a run."""

import datetime
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from comparison import LATENCY_RATE, Results
from environments import REQUIREMENTS
from measure import spread
from peers import ALL
from world import REPOSITORY

FOLDER = REPOSITORY / "bench/results"
SHORT_TARGET = 0.5  # a refusal costs at most half of a proxied request
_RATIO_TO = ("envoy", "textbook")


def summary(results: Results) -> dict[str, Any]:
    """Per peer: median, min and max of each figure, and its CPU relative to Envoy's and textbook Twisted's, by round."""
    table: dict[str, Any] = {}
    for peer, rows in results.samples.items():
        table[peer] = {name: spread(values) for name, values in rows.items()}
        for other in _RATIO_TO:
            base = results.samples.get(other, {}).get("cpu_us", [])
            pairs = [mine / theirs for mine, theirs in zip(rows["cpu_us"], base, strict=False)]
            if pairs:
                table[peer][f"cpu_to_{other}"] = spread(pairs)
    return table


def show(results: Results) -> None:
    table = summary(results)
    columns = f"{'':<14}{'CPU us/request':>22}{'x Envoy':>20}{'x textbook':>20}{'p50 over':>10}{'p99 over':>10}"
    print(f"\n{columns}{'peak':>8}{'CPU us at':>10}  remarks\n{'':<14}{'median (min-max)':>22}", end="")
    print(f"{'by round':>20}{'by round':>20}{'ms':>10}{'ms':>10}{'MiB':>8}{LATENCY_RATE:>8.0f}/s")
    for peer in sorted(table, key=lambda name: table[name]["cpu_us"]["median"]):
        row = table[peer]
        print(
            f"{peer:<14}{_span(row['cpu_us'], 0):>22}{_span(row.get('cpu_to_envoy'), 2):>20}"
            f"{_span(row.get('cpu_to_textbook'), 2):>20}{row['over_p50_ms']['median']:>10.2f}"
            f"{row['over_p99_ms']['median']:>10.2f}{row['peak_mib']['median']:>8.0f}"
            f"{row['paced_cpu_us']['median']:>10.0f}  {ALL[peer].notes}"
        )
    direct = [value for rows in results.samples.values() for value in rows["direct_p50_ms"]]
    late = [value for rows in results.samples.values() for value in rows["direct_p99_ms"]]
    if direct:
        print(f"straight to the backend: p50 {spread(direct)['median']:.2f} ms, p99 {spread(late)['median']:.2f} ms")
    for status in (401, 404, 429):
        row = table.get("apigw", {})
        if f"short_{status}_ratio" in row:
            ratio = row[f"short_{status}_ratio"]
            print(
                f"apigw's own {status}: {row[f'short_{status}_us']['median']:.0f} us, x{ratio['median']:.2f} of a proxied"
                f" request (rounds {ratio['min']:.2f} to {ratio['max']:.2f}; target x{SHORT_TARGET})"
            )
    for what, reasons in (("skipped", results.skipped), ("FAILED", results.failed)):
        for peer, reason in reasons.items():
            print(f"{what}: {peer}: {reason}")
    for remark in results.remarks:
        print(f"remark: {remark}")


def _span(values: dict[str, float] | None, digits: int) -> str:
    if values is None:
        return "-"
    low, middle, high = (f"{values[name]:.{digits}f}" for name in ("min", "median", "max"))
    return f"{middle} ({low}-{high})"


def write(folder: Path, name: str, results: Results | None, sections: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Writes NAME.json; the file."""
    content: dict[str, Any] = {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _output(["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"]),
        "machine": _machine(),
        "settings": settings,
        "versions": _versions(),
        **sections,
    }
    if results is not None:
        content |= {
            "summary": summary(results), "samples": results.samples, "skipped": results.skipped,
            "failed": results.failed, "remarks": results.remarks,
        }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content, indent=1))
    return file


def _machine() -> dict[str, Any]:
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {"processor": processor, "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()}


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {name: list(packages) for name, packages in REQUIREMENTS.items()}
    for name, flag in (("nginx", "-v"), ("haproxy", "-v"), ("redis-server", "-v")):
        binary = shutil.which(name) or shutil.which(f"/usr/sbin/{name}")
        if binary:
            versions[name] = _output([binary, flag]).splitlines()[0]
    return versions | {"python": platform.python_version()}


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip() or "unknown"
