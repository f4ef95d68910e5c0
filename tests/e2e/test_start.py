"""How the daemon starts, refuses to, and takes its first signals."""

import signal
import socket
import time

import pytest

from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, route


def _refused(gateway: Gateway) -> str:
    """The output of a start that ends with status 1."""
    gateway.launch()
    assert gateway.wait(15) == 1
    return gateway.output.read_text()


def _listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_bad_configuration_ends_with_1_and_all_its_problems_with_file_and_line(launch: Launch) -> None:
    """Every problem of every section at once, on stderr; nothing listens meanwhile."""
    gateway = launch(start=False)
    gateway.settings["routes"] += [route("lost", "/lost/*", "orgin"), route("pub", "/other")]
    gateway.settings["limits"] = {"max_boddy_bytes": 5, "header_timeout_seconds": "soon"}
    process = gateway.launch()
    while process.poll() is None:
        assert not _listening(gateway.http)
        time.sleep(0.02)
    assert process.returncode == 1
    text = gateway.output.read_text()
    for said in ("max_boddy_bytes", "max_body_bytes", "header_timeout_seconds", "orgin", "'origin'", "pub"):
        assert said in text, (said, text)
    problems = [line for line in text.splitlines() if f"{gateway.main_file}:" in line]
    assert len(problems) >= 4, text
    assert all(line.split(f"{gateway.main_file}:")[1].split(":")[0].isdigit() for line in problems), text


@pytest.mark.parametrize("kind", ["public", "admin"])
def test_a_taken_port_ends_with_1_and_one_clear_sentence(launch: Launch, kind: str) -> None:
    """No traceback; the address is named."""
    gateway = launch(start=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        if kind == "public":
            gateway.settings["listeners"][1]["port"] = port
        else:
            gateway.settings["admin"]["port"] = port
        text = _refused(gateway)
    assert "Traceback" not in text, text
    assert str(port) in text and "in use" in text.lower(), text


def test_a_missing_file_ends_with_1_and_names_it(launch: Launch) -> None:
    """A key file that is not there is a problem of the configuration."""
    gateway = launch(start=False)
    (gateway.work / "tls.key").unlink()
    text = _refused(gateway)
    assert "tls.key" in text and "Traceback" not in text, text


def test_sigterm_ends_with_0(launch: Launch) -> None:
    """An idle gateway ends at once."""
    gateway = launch()
    gateway.signal(signal.SIGTERM)
    assert gateway.wait(5) == 0


def test_signals_right_at_the_start_do_not_kill(launch: Launch) -> None:
    """While it starts, SIGHUP and SIGUSR1 may come to nothing, but never end the process; from then on they work."""
    gateway = launch(start=False)
    gateway.launch()
    gateway.until(lambda: b"serving" in gateway.output.read_bytes() or _listening(gateway.http), 15)
    for _ in range(5):
        gateway.signal(signal.SIGHUP)
        gateway.signal(signal.SIGUSR1)
    gateway.until(lambda: _reloads(gateway) is not None, 10)
    gateway.signal(signal.SIGHUP)
    gateway.until(lambda: (_reloads(gateway) or 0) >= 1, 10)
    assert gateway.ask("GET", "/pub/x").status == 200


def _reloads(gateway: Gateway) -> int | None:
    """Reloads applied so far; None while the admin port is not open yet, which is after the public one."""
    try:
        return int(gateway.status()["config"]["reloads_applied"])
    except OSError:
        return None
