"""The daemon's process: nobody else's is ever signalled."""

import os
import signal
import subprocess
import sys

import pytest

from apigw.cli.process import daemon
from apigw.cli.refusals import Refused
from tests.e2e.gateway import Gateway


@pytest.fixture
def other() -> "subprocess.Popen[bytes]":  # type: ignore[misc]
    """A process that is no gateway."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.communicate(b"\n", timeout=10)
    assert process.returncode == 0, "it was left alone"


def test_the_gateways_own_process_is_found(gateway: Gateway) -> None:
    assert gateway.process is not None
    with daemon(gateway.status()) as process:
        assert process.pid == gateway.process.pid
        assert not process.ended_within(0.05)


def test_a_process_that_is_no_gateway_is_not_touched(other: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(Refused, match=f"process {other.pid} is no gateway"):
        with daemon({"pid": other.pid}) as process:
            process.signal(signal.SIGTERM)


def test_a_process_that_does_not_exist_is_on_another_host_perhaps() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(Refused, match="no process .* on this host; run this where the gateway runs"):
        with daemon({"pid": ended.pid}):
            pass


@pytest.mark.parametrize("status", [{}, {"pid": None}, {"pid": "1"}, {"pid": True}])
def test_a_status_without_a_process_is_refused(status: dict[str, object]) -> None:
    with pytest.raises(Refused, match="does not say which process"):
        with daemon(status):
            pass


def test_an_end_is_seen_and_nobody_is_signalled_after_it() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "apigw"]
    ending = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert ending.stdout is not None and ending.stdout.readline(), "it runs; before that it has no command line yet"
    with daemon({"pid": ending.pid}) as process:
        ending.communicate(b"\n", timeout=10)
        assert process.ended_within(5)
        with pytest.raises(Refused, match="ended just now"):
            process.signal(signal.SIGTERM)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a user to become")
def test_who_may_not_signal_it_is_told_what_to_be(gateway: Gateway) -> None:
    assert gateway.process is not None
    script = (
        "import os, signal; os.setuid(65534)\n"
        "from apigw.cli.process import Daemon\n"
        f"Daemon({gateway.process.pid}, os.pidfd_open({gateway.process.pid})).signal(signal.SIGHUP)\n"
    )
    done = subprocess.run([sys.executable, "-c", f"import apigw.cli.process\n{script}"], capture_output=True, text=True)
    assert "may not be signalled by you: be root, or the gateway's user" in done.stderr
