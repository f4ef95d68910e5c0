"""The admin listener, asked; and what else may be found at its address."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from apigw.cli.admin import ask
from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings
from tests.cli.tool import Tool
from tests.e2e.gateway import Gateway
from tests.servers import free_port


def settings_for(tool: Tool, port: int, address: str = "127.0.0.1") -> Settings:
    tool.sections["admin"] = {"address": address, "port": port}
    tool.run("keys", "list")
    return Settings(tool.main_file)


@contextmanager
def web_server(status: int, body: bytes) -> Iterator[int]:
    """Something else that speaks HTTP; gives its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_page_is_a_json_object(gateway: Gateway) -> None:
    assert ask(Settings(gateway.main_file), "/status")["instance"] == "e2e"


def test_a_listener_on_every_address_is_reached_by_the_loopback(gateway: Gateway, tool: Tool) -> None:
    assert ask(settings_for(tool, gateway.admin, "0.0.0.0"), "/status")["instance"] == "e2e"


@pytest.mark.parametrize("address, shown", [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:"), ("::", "[::1]:")])
def test_nobody_answers(tool: Tool, address: str, shown: str) -> None:
    port = free_port()
    with pytest.raises(Refused, match="no gateway answers at its admin listener .*; is it running") as raised:
        ask(settings_for(tool, port, address), "/status")
    assert f"{shown}{port}: " in str(raised.value)


@pytest.mark.parametrize(
    "status, body, said",
    [
        (404, b"", "answers /status with status 404"),
        (200, b"<html>", "no admin listener of a gateway"),
        (200, b"[1]", "no admin listener of a gateway"),
        (200, b"\xff", "no admin listener of a gateway"),
    ],
)
def test_what_answers_is_no_gateway(tool: Tool, status: int, body: bytes, said: str) -> None:
    with web_server(status, body) as port:
        with pytest.raises(Refused, match=said):
            ask(settings_for(tool, port), "/status")


def test_what_does_not_speak_http_is_told_too(tool: Tool, redis: object, tmp_path: Path) -> None:
    port: int = getattr(redis, "port")
    with pytest.raises(Refused, match="no gateway answers"):
        ask(settings_for(tool, port), "/status")
