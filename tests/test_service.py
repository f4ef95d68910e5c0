"""`twistd apigw`: the command line, and a start that is refused in words of the operator's."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from twisted.application.service import IServiceMaker
from twisted.internet.protocol import Factory
from twisted.plugin import getPlugins
from twisted.python.usage import UsageError

import apigw
from apigw.service import Options, load, makeService
from apigw.worker import Worker
from tests.servers import free_port


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    noisy = Factory.noisy
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    yield
    Factory.noisy = noisy
    for number, handler in before.items():
        signal.signal(number, handler)


def document(**more: Any) -> dict[str, Any]:
    return {
        "gateway": {"instance_name": "gw-7"},
        "listeners": [{"address": "127.0.0.1", "port": free_port()}],
        "backends": [],
        "routes": [
            {"route_id": "r", "pattern": "/r", "methods": ["GET"], "backend_service": "self", "auth_type": "none"}
        ],
        **more,
    }


def options(folder: Path, content: Any) -> Options:
    main_file = folder / "apigw.yaml"
    main_file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    parsed = Options()
    parsed.parseOptions(["--config", str(main_file)])
    return parsed


def refused(parsed: Options, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr of a start that ends with 1."""
    with pytest.raises(SystemExit) as ended:
        makeService(parsed)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (1, "")
    return said.err.splitlines()


# -- the command line


def test_the_configuration_is_the_packages_file_unless_named() -> None:
    parsed = Options()
    parsed.parseOptions([])
    assert parsed["config"] == "/etc/apigw/apigw.yaml"
    parsed.parseOptions(["-c", "mine.yaml"])
    assert parsed["config"] == "mine.yaml"


def test_an_option_that_is_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        Options().parseOptions(["--workers", "4"])


def test_version_is_printed_and_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        Options().parseOptions(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"apigw {apigw.__version__}\n"


def test_twistd_finds_the_daemon_by_its_name() -> None:
    (plugin,) = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "apigw"]
    assert plugin.module == "apigw.service"


# -- the reactor


@pytest.mark.parametrize(
    ("first", "used"),
    [("", "LeanReactor"), ("import twisted.internet.selectreactor as s; s.install()", "SelectReactor")],
)
def test_it_brings_the_lean_reactor_unless_there_is_one(first: str, used: str) -> None:
    code = f"{first}\nimport apigw.service, twisted.internet.reactor as r; print(type(r).__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert ran.stdout.strip() == used, ran.stderr


def test_names_are_asked_for_once_at_a_time() -> None:
    """By every client of Twisted's: else a silent name server takes all threads of the reactor."""
    code = "import apigw.service, twisted.internet.reactor as r; print(type(r.nameResolver).__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert ran.stdout.strip() == "Names", ran.stderr


# -- a start


def test_a_good_configuration_gives_a_tree_with_one_worker_that_has_its_addresses(tmp_path: Path) -> None:
    """Bound, so that a taken port ends the start, and not accepting: that is startService()'s."""
    content = document()
    service: Any = makeService(options(tmp_path, content))
    (worker,) = list(service)
    try:
        assert service.name == "apigw" and isinstance(worker, Worker) and not worker.running
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", content["listeners"][0]["port"]))
    finally:
        worker.listeners.stop()
        worker.deadlines.stop()


def test_signals_that_would_kill_are_ignored_from_then_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(options(tmp_path, "listeners: []"), capsys)
    assert [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)] == [signal.SIG_IGN] * 2


def test_a_bad_configuration_says_every_problem_with_its_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = document(limits={"max_boddy_bytes": 5, "header_timeout_seconds": "soon"})
    content["routes"][0]["backend_service"] = "lost"
    said = refused(options(tmp_path, content), capsys)
    assert all(re.match(rf"{re.escape(str(tmp_path))}/apigw\.yaml:\d+: ", line) for line in said), said
    for word in ("max_boddy_bytes", "header_timeout_seconds", "lost"):
        assert any(word in line for line in said), said


@pytest.mark.parametrize("content", ["{", "", "- 1", "a: &a [*a]"])
def test_a_file_that_is_no_configuration_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    said = refused(options(tmp_path, content), capsys)
    assert said and not any("Traceback" in line for line in said)


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = Options()
    parsed.parseOptions(["--config", str(tmp_path / "none.yaml")])
    assert str(tmp_path / "none.yaml") in "".join(refused(parsed, capsys))


def test_a_taken_address_is_one_sentence_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        content = document(listeners=[{"address": "127.0.0.1", "port": port}])
        (said,) = refused(options(tmp_path, content), capsys)
    assert said.startswith("apigw cannot start: ") and str(port) in said


def test_the_host_name_is_the_instance_where_none_is_given(tmp_path: Path) -> None:
    assert load(Path(options(tmp_path, document())["config"])).gateway.instance_name == "gw-7"
    assert load(Path(options(tmp_path, document(gateway={}))["config"])).gateway.instance_name == socket.gethostname()
