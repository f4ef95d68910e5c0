"""`apigwctl logs`: what is asked for is found, and shown so that nothing steers a terminal."""

import json

import pytest

from tests.cli.test_log_files import entry, put
from tests.cli.tool import Tool


@pytest.fixture
def logged(tool: Tool) -> Tool:
    path = tool.main_file.parent / "access.log"
    tool.sections["access_log"] = {"sinks": [{"type": "file", "path": str(path)}]}
    tool.sections["backends"] = [{"name": "users", "instances": [{"host": "127.0.0.1", "port": 9001}]}]
    lines = [
        entry(0, status=200, route_id="orders", request_id="a", backend_service="users", total_latency_ms=4.25),
        entry(1, status=404, route_id=None, request_id="b", client_ip="192.0.2.1"),
        entry(2, status=502, route_id="orders", request_id="c", backend_service="users", error_type="bad\x1b"),
        entry(3, status=503, route_id="orders", request_id="d", partner_id="acme"),
        entry(4, status=None, route_id="orders", request_id="e", user_id="alice"),
    ]
    put(path, b"".join(lines))
    return tool


def found(tool: Tool, *options: str) -> str:
    """The request ids of what is found, in order."""
    ran = tool.run("logs", "--json", *options)
    assert ran.status == 0
    return "".join(json.loads(line)["request_id"] for line in ran.out.splitlines())


@pytest.mark.parametrize(
    "options, ids",
    [
        ((), "abcde"),
        (("--status", "5xx"), "cd"),
        (("--status", "404"), "b"),
        (("--status", "404", "--status", "none"), "be"),
        (("--backend", "users"), "ac"),
        (("--backend", "users", "--status", "5xx"), "c"),
        (("--route", "orders"), "acde"),
        (("--client", "192.0.2.1"), "b"),
        (("--partner", "acme"), "d"),
        (("--user", "alice"), "e"),
        (("--request-id", "c"), "c"),
        (("--last", "2"), "de"),
        (("--since", "2026-11-25T10:00:03Z"), "de"),
        (("--since", "0s"), ""),
    ],
)
def test_entries_that_have_all_that_is_asked_for(logged: Tool, options: tuple[str, ...], ids: str) -> None:
    assert found(logged, *options) == ids


def test_json_is_the_lines_as_they_were_written(logged: Tool) -> None:
    assert logged.run("logs", "--json").out == (logged.main_file.parent / "access.log").read_text()


def test_a_line_for_a_person_says_when_what_where_and_why(logged: Tool) -> None:
    lines = logged.run("logs").out.splitlines()
    assert lines[0] == "2026-11-25T10:00:00.000Z 200 - - route=orders backend=users caller=- 4.2ms"
    assert lines[2].endswith("  bad\\x1b")
    assert lines[3].split()[1] == "503" and "caller=acme" in lines[3]


def test_a_name_that_is_not_configured_is_worth_a_word(logged: Tool) -> None:
    ran = logged.run("logs", "--backend", "user", "--json")
    assert (ran.status, ran.out) == (0, "")
    assert "the configuration has no backend 'user'; did you mean 'users'?" in ran.err


@pytest.mark.parametrize("text", ["600", "5x", "5XX", "", "99"])
def test_what_is_no_status_is_refused_with_examples(logged: Tool, text: str) -> None:
    assert "is no status such as 5xx, 404 or none" in logged.refused("logs", "--status", text, status=2)
