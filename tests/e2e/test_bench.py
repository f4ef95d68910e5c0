"""The benchmark runs, and its own checks hold: nobody would see before the next release that they do not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_it_measures_the_gateway_whose_limiter_counts_in_redis(tmp_path: Path) -> None:
    """As a remark it would say that Redis has not counted each request."""
    command = [sys.executable, "bench/run.py", "--quick", "--peers", "apigw", "--runs", "1", "--requests", "300"]
    run = subprocess.run(
        [*command, "--results", str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads((tmp_path / "latest.json").read_text())
    assert said["remarks"] == [] and said["failed"] == {} and said["skipped"] == {}
    assert said["summary"]["apigw"]["cpu_us"]["median"] > 0
