"""`apigwctl explain` beside a real gateway: what it foretells is what happens."""

from pathlib import Path

import pytest

from tests.cli.tool import Ran, Tool, run
from tests.e2e.gateway import Gateway
from tests.e2e.identity import AUDIENCE, ISSUER, bearer, key_set
from tests.servers import RedisServer, free_port


def explain(gateway: Gateway, *words: str) -> Ran:
    ran = run("--config", str(gateway.main_file), "explain", *words)
    assert ran.status == 0, ran
    return ran


@pytest.mark.parametrize(
    "method, target, headers",
    [
        ("GET", "/pub/x", ()),
        ("GET", "/api/x", ()),
        ("GET", "/api/x", (bearer(),)),
        ("GET", "/api/x", (bearer(exp=1_000_000_000),)),
        ("GET", "/api/x", (("Authorization", "Basic x"),)),
        ("GET", "/api/x", (bearer(aud="other"),)),
        ("GET", "/grace/x", ()),
        ("GET", "/grace/x", (bearer(scope="write"),)),
        ("PATCH", "/pub/x", ()),
        ("GET", "/nowhere", ()),
        ("GET", "/pub/..%2fx", ()),
    ],
)
def test_what_it_foretells_is_what_happens(
    gateway: Gateway, method: str, target: str, headers: tuple[tuple[str, str], ...]
) -> None:
    options = [word for name, value in headers for word in ("-H", f"{name}: {value}")]
    said = explain(gateway, method, f"http://127.0.0.1:{gateway.http}{target}", *options, "--json").json()
    answer = gateway.ask(method, target, *headers)
    assert (said["status"] or 200) == answer.status
    assert said["error"] == (answer.json()["error"] if answer.status >= 400 else None)


def test_it_is_told_step_by_step_with_the_instances_and_never_the_token(gateway: Gateway) -> None:
    name, value = bearer()
    out = explain(gateway, "GET", "/api/x?a=1", "-H", f"{name}: {value}").out
    assert "user alice, scopes: read" in out and "GET /x to backend origin" in out and "X-User-ID: alice" in out
    assert "is up" in out and "Goes to origin" in out
    assert value.rsplit(".", 1)[1] not in out


def test_nothing_is_sent_and_nothing_counted(gateway: Gateway) -> None:
    before = gateway.metric("requests_total")
    explain(gateway, "GET", "/pub/x")
    assert gateway.metric("requests_total") == before


def test_files_that_differ_from_what_serves_are_explained_with_a_word(gateway: Gateway, tmp_path: Path) -> None:
    changed = gateway.main_file.with_name("changed.yaml")
    changed.write_text(gateway.main_file.read_text().replace("/pub/*", "/public/*"))
    ran = run("--config", str(changed), "explain", "GET", "/public/x", "--json")
    changed.unlink()
    assert ran.json()["backend"] == "origin"
    assert "the running gateway serves" in ran.err


def test_who_connects_may_be_said(tool: Tool) -> None:
    said = tool.run("explain", "GET", "/nowhere", "--from", "2001:DB8::1", "--json").json()
    assert said["steps"][0]["decision"].endswith("from 2001:db8::1")
    assert "no IP address" in tool.refused("explain", "GET", "/", "--from", "here", status=2)


@pytest.mark.parametrize(
    "words, said",
    [
        (("get", "/"), "methods are in upper case; did you mean 'GET'?"),
        (("GET", "orders"), "'orders' is neither http(s)://HOST/PATH nor /PATH"),
        (("GET", "ftp://x/"), "is neither http(s)"),
        (("GET", "/", "-H", "X-API-Key"), "a header is 'NAME: VALUE'"),
    ],
)
def test_what_is_no_request_is_wrong_usage(tool: Tool, words: tuple[str, ...], said: str) -> None:
    assert said in tool.refused("explain", *words, status=2)


def test_an_api_key_is_looked_up(tool: Tool) -> None:
    made = tool.run("keys", "create", "--partner", "acme", "--scope", "orders:read", "--tier", "partner", "--json")
    key = made.json()["key"]
    said = tool.run("explain", "GET", "/orders/7", "-H", f"X-API-Key: {key}", "--json").json()
    steps = {step["stage"]: step["decision"] for step in said["steps"]}
    assert steps["authentication"] == "partner acme, scopes: orders:read" and said["status"] == 200
    assert steps["rate_limit"].startswith("the key's own tier partner: 5 in 60 s on rate:{partner:apikey:")
    assert key not in str(said)
    tool.run("keys", "revoke", made.json()["key_id"])
    said = tool.run("explain", "GET", "/orders/7", "-H", f"X-API-Key: {key}").out
    assert "refused with 401 invalid_api_key: key_revoked" in said and "Answer: 401 invalid_api_key." in said


def test_headers_may_come_from_a_file_or_standard_input(tool: Tool, tmp_path: Path) -> None:
    key = tool.run("keys", "create", "--partner", "acme", "--scope", "orders:read", "--json").json()["key"]
    (tmp_path / "headers").write_text(f"X-API-Key: {key}\nX-Request-ID: mine\n\n")
    said = tool.run("explain", "GET", "/orders/7", "-H", f"@{tmp_path / 'headers'}", "--json").json()
    assert said["status"] == 200 and said["steps"][1]["decision"] == "the client's X-Request-ID"
    piped = tool.run("explain", "GET", "/orders/7", "-H", "@-", "--json", stdin=f"X-API-Key: {key}\n").json()
    assert piped["status"] == 200
    assert "No such file" in tool.refused("explain", "GET", "/", "-H", f"@{tmp_path / 'missing'}")


def test_a_configuration_that_is_not_valid_explains_nothing(tool: Tool) -> None:
    tool.sections["routes"][0]["rate_limit_tier"] = "partnr"
    ran = tool.run("explain", "GET", "/")
    assert ran.status == 1 and "did you mean 'partner'?" in ran.err


def test_a_revoked_token_is_refused_as_such(tool: Tool, redis: RedisServer, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(key_set("k1"))
    tool.sections["redis"] = {"url": redis.url}
    tool.sections["auth"]["jwt"] = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": "jwks.json"}
    tool.sections["routes"][0].update(auth_type="jwt", required_scopes=[])
    name, value = bearer(jti="explained")
    words = ("explain", "GET", "/orders/7", "-H", f"{name}: {value}", "--json")
    assert tool.run(*words).json()["status"] == 200
    tool.run("tokens", "revoke", "-", stdin=value)
    said = tool.run(*words).json()
    assert (said["status"], said["error"]) == (401, "invalid_token")
    assert "revoked: " in said["steps"][-1]["decision"]
    tool.sections["redis"] = {"url": f"redis://127.0.0.1:{free_port()}"}
    ran = tool.run(*words)
    assert ran.json()["status"] == 200 and "which tokens are revoked is not known: Redis does not answer" in ran.err
