"""`make run` on free ports: what it prints works when pasted, README's first route too, and nothing is left behind."""

import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from apigw.adapters.key_store import KeyStore

CHECKOUT = Path(__file__).resolve().parents[2]
DEMO = CHECKOUT / "etc" / "demo"
PORTS = (8443, 8080, 9601, 9400, 9401, 9402, 9403)  # of etc/demo, each replaced by a free one
END_OF_PAGE = "Ctrl-C stops all of it."


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens at the moment, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Demo:
    """A copy of etc/demo's configuration on free ports, and run.py on it. `ports` is the demo's port -> ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        for file in DEMO.glob("**/*.yaml"):
            text = re.sub(
                r"\b(?:8443|8080|9601|940[0-3])\b", lambda found: str(self.ports[int(found[0])]), file.read_text()
            )
            (folder / file.relative_to(DEMO)).parent.mkdir(exist_ok=True)
            (folder / file.relative_to(DEMO)).write_text(text)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """run.py, its output as a pipe of text."""
        self.process = subprocess.Popen(
            [sys.executable, DEMO / "run.py", "--config", self.folder / "apigw.yaml"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def output_until(self, text: str) -> str:
        """What it prints up to and with a line that contains `text`."""
        assert self.process is not None and self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"ended without {text!r}:\n" + "".join(lines))

    def rest(self) -> str:
        """What it prints until its end; all that it started shares the pipe, so all of it has ended."""
        assert self.process is not None
        return self.process.communicate(timeout=30)[0]

    def open_ports(self) -> set[int]:
        """The demo's ports on which something listens."""
        opened = set()
        for port in self.ports.values():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    opened.add(port)
        return opened


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    shutil.rmtree(tmp_path / "state", ignore_errors=True)
    demo = Demo(tmp_path)
    yield demo
    if demo.process is not None and demo.process.poll() is None:
        demo.process.terminate()
        demo.process.communicate(timeout=30)


@pytest.fixture
def file_server() -> Iterator[int]:
    """Stands for README's `python3 -m http.server`: 200 to everything, the path as body. Gives its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def shell(command: str) -> str:
    """What a terminal would show of a pasted line."""
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30).stdout


def pasted_statuses(page: str, run: Callable[[str], str]) -> list[tuple[int, int, str]]:
    """(promised status, status got, what was shown) of each printed command: a comment `# 401: why`, then the line."""
    results = []
    for promised, command in re.findall(r"^# (\d{3}): .*\n(.+)$", page, re.MULTILINE):
        shown = run(command)
        got = re.findall(r"^HTTP/1\.1 (\d{3})", shown, re.MULTILINE) or re.findall(r"\b\d{3}\b", shown)
        results.append((int(promised), int(got[-1]), shown))
    return results


def command_with(page: str, words: str) -> str:
    """The printed line that has these words."""
    (found,) = [line for line in page.splitlines() if words in line]
    return found


def gateway_pid(page: str) -> str:
    found = re.search(r"kill -HUP (\d+)", page)
    assert found
    return found[1]


def test_what_it_prints_works_when_pasted_and_ctrl_c_leaves_nothing_running(demo: Demo, file_server: int) -> None:
    """The whole tour of README: the printed lines, a first route of one's own, a mistake in it, Ctrl-C."""
    process = demo.start()
    page = demo.output_until(END_OF_PAGE)
    results = pasted_statuses(page, shell)
    assert [got for _, got, _ in results] == [promised for promised, _, _ in results]
    assert {401, 403, 404, 429} <= {promised for promised, _, _ in results}
    assert any('"X-User-ID": "alice"' in shown for _, _, shown in results)
    assert any('"X-Partner-ID": "acme"' in shown for _, _, shown in results)
    assert "apigw_requests_total" in results[-1][2]
    assert demo.open_ports() == set(demo.ports.values())

    assert re.search(r"\bpk_live_[A-Za-z0-9]{16}_", shell(command_with(page, "keys create")))
    listed = shell(command_with(page, "keys list"))
    assert "acme" in listed and "globex" in listed and "pk_live_" not in listed

    readme = (CHECKOUT / "README.rst").read_text()
    block = re.search(r"code-block:: yaml\n\n((?:    .*\n|\n)+)", readme)
    assert block
    route = re.sub("^    ", "", block[1].replace("9500", str(file_server)), flags=re.MULTILINE)
    mine = demo.folder / "routes.d" / "mine.yaml"
    mine.write_text(route)
    shell(f"kill -HUP {gateway_pid(page)}")
    demo.output_until("is in force")
    curl = f"curl -s --cacert {demo.folder}/state/tls.crt https://127.0.0.1:{demo.ports[8443]}/files/README.rst"
    assert shell(curl) == "/README.rst"

    mine.write_text(route.replace("backend_service: files", "backend_service: fils"))
    shell(f"kill -HUP {gateway_pid(page)}")
    problem = demo.output_until("mine.yaml:")
    assert "'files'" in problem.splitlines()[-1]
    assert shell(curl) == "/README.rst"

    process.send_signal(signal.SIGINT)
    assert "nothing is left running" in demo.rest()
    assert process.returncode == 0
    assert demo.open_ports() == set()


def test_the_partners_key_is_kept_for_the_next_start_unless_it_was_revoked(demo: Demo) -> None:
    def printed_key() -> str:
        process = demo.start()
        page = demo.output_until(END_OF_PAGE)
        process.send_signal(signal.SIGINT)
        demo.rest()
        found = re.search(r"pk_live_([A-Za-z0-9]+)_[A-Za-z0-9]+", page)
        assert found
        return found[1]

    first = printed_key()
    assert printed_key() == first
    store = KeyStore(f"sqlite:///{demo.folder}/state/api_keys.db")
    store.revoke(first)
    store.close()
    assert printed_key() != first


def test_when_one_part_dies_the_rest_is_stopped_and_it_says_which(demo: Demo) -> None:
    process = demo.start()
    page = demo.output_until(END_OF_PAGE)
    shell(f"kill -KILL {gateway_pid(page)}")
    assert "apigw demo: the gateway ended (status -9)" in demo.rest()
    assert process.returncode == 1
    assert demo.open_ports() == set()


def test_what_it_started_ends_even_when_it_is_killed_itself(demo: Demo) -> None:
    process = demo.start()
    demo.output_until(END_OF_PAGE)
    process.kill()
    demo.rest()
    assert demo.open_ports() == set()


def test_a_taken_port_is_named_with_what_it_was_wanted_for(demo: Demo) -> None:
    with socket.create_server(("127.0.0.1", demo.ports[8080])):
        process = demo.start()
        said = demo.rest()
    assert f"port {demo.ports[8080]}, wanted for plain HTTP: Address already in use" in said
    assert process.returncode == 1


def test_a_mistake_in_the_configuration_is_told_with_file_and_line_before_anything_starts(demo: Demo) -> None:
    orders = demo.folder / "routes.d" / "shop.yaml"
    orders.write_text(orders.read_text().replace("backend_service: orders", "backend_service: order"))
    process = demo.start()
    said = demo.rest()
    assert re.search(r"routes\.d/shop\.yaml:\d+: .*'orders'", said)
    assert "Traceback" not in said
    assert process.returncode == 1
