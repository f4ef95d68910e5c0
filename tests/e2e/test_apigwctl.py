"""apigwctl beside the real daemon, on one configuration file."""

import json
import os
import subprocess
import sys
import time
from typing import Any

from attrs import frozen

from tests.e2e.conftest import Launch
from tests.e2e.gateway import CHECKOUT, Gateway
from tests.e2e.test_api_keys import ask, with_keys


@frozen
class Ran:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def ctl(gateway: Gateway, *words: str, stdin: str = "", status: int = 0) -> Ran:
    """`apigwctl --config FILE WORDS`, in a process of its own, which must end with this status."""
    done = subprocess.run(
        [sys.executable, "-m", "apigw.cli.main", "--config", str(gateway.main_file), *words],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_key_made_is_let_in_rotated_lives_on_and_revoked_is_refused_within_five_seconds(launch: Launch) -> None:
    def change(gateway: Gateway) -> None:
        with_keys(f"sqlite:///{gateway.work}/keys.db")(gateway)

    gateway = launch(change)
    made = ctl(gateway, "keys", "create", "--partner", "acme", "--tier", "three", "--json").json()
    assert ask(gateway, made["key"], "/limited/x").get("X-RateLimit-Limit") == "3"
    successor = ctl(gateway, "keys", "rotate", made["key_id"], "--json").json()
    assert [ask(gateway, key).status for key in (made["key"], successor["key"])] == [200, 200]
    ctl(gateway, "keys", "revoke", made["key_id"])
    began_s = time.monotonic()
    gateway.until(lambda: ask(gateway, made["key"]).status == 401, 6.0)
    assert time.monotonic() - began_s < 6.0, "5 s, and the second that a refusal takes"
    assert ask(gateway, successor["key"]).status == 200
    shown = gateway.access_log.read_text() + gateway.output.read_text()
    assert all(key["key"].rsplit("_", 1)[1] not in shown for key in (made, successor))


def test_a_key_ends_with_the_overlap_that_was_asked_for(launch: Launch) -> None:
    def change(gateway: Gateway) -> None:
        with_keys(f"sqlite:///{gateway.work}/keys.db")(gateway)

    gateway = launch(change)
    made = ctl(gateway, "keys", "create", "--partner", "acme", "--json").json()
    successor = ctl(gateway, "keys", "rotate", made["key_id"], "--overlap", "3s", "--json").json()
    assert ask(gateway, successor["key"]).status == 200
    gateway.until(lambda: ask(gateway, made["key"]).status == 401, 10.0)
    assert ask(gateway, successor["key"]).status == 200
