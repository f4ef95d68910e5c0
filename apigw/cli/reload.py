"""`apigwctl reload`: have the gateway read its configuration again, and say what became of it."""

import signal
import sys
import time
from typing import Any, Final

import click

from apigw.cli.admin import ask
from apigw.cli.process import daemon
from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings
from apigw.cli.show import plain

_LOOK_EVERY_S: Final = 0.1


@click.command()
@click.option("--wait", "wait_s", type=click.FloatRange(0.0, 600.0), default=30.0, show_default=True, help="Seconds.")
@click.pass_obj
def reload(settings: Settings, wait_s: float) -> None:
    """Reload the configuration (SIGHUP) and wait for the outcome; a refused one changes nothing, and is status 1."""
    found = ask(settings, "/status")
    with daemon(found) as process:
        process.signal(signal.SIGHUP)
    before = _counts(found)
    end_s = time.monotonic() + wait_s
    while _counts(found := ask(settings, "/status")) == before:
        if time.monotonic() > end_s:
            raise Refused(f"the gateway was told, but has not finished within {wait_s:g} s; see apigwctl status")
        time.sleep(_LOOK_EVERY_S)
    config = found["config"]
    if config["reloads_rejected"] > before[1]:
        for line in str(config["last_reload_error"]).splitlines():
            print(plain(line), file=sys.stderr)
        raise Refused(f"the new configuration is refused, {config['version']} stays in force")
    print(f"configuration {config['version']} is in force")


def _counts(found: dict[str, Any]) -> tuple[int, int]:
    """(reloads applied, reloads refused) since the start."""
    config = found.get("config", {})
    return int(config.get("reloads_applied", 0)), int(config.get("reloads_rejected", 0))
