"""`apigwctl drain`: end the gateway without cutting a request."""

import signal
import time
from typing import Final

import click

from apigw.cli.admin import ask
from apigw.cli.process import daemon
from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings

_AFTERWARDS_S: Final = 15.0  # when requests have ended or were cut: pools, the log's last lines


@click.command()
@click.option("--no-wait", is_flag=True, help="Tell it, and do not wait for its end.")
@click.pass_obj
def drain(settings: Settings, no_wait: bool) -> None:
    """End the gateway (SIGTERM): no new connections, and requests in flight have drain_timeout_seconds to finish."""
    found = ask(settings, "/status")
    timeout_s = settings.main.gateway.drain_timeout_s + _AFTERWARDS_S
    with daemon(found) as process:
        process.signal(signal.SIGTERM)
        if no_wait:
            print(f"process {process.pid} drains, {found.get('in_flight')} requests in flight")
            return
        began_s = time.monotonic()
        if not process.ended_within(timeout_s):
            raise Refused(f"process {process.pid} was told to drain and is still there after {timeout_s:g} s")
    print(f"process {process.pid} has ended after {time.monotonic() - began_s:.1f} s")
