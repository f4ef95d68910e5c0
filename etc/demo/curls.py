"""What `make run` prints when everything answers: curl lines to paste, each complete in itself."""

import json
import sys
import urllib.request
from pathlib import Path
from typing import NamedTuple

from apigw.config.model import Config

USER, SCOPES, PARTNER = "alice", "orders:read", "acme"


class Line(NamedTuple):
    """One command for a shell; `status` is the answer's (of the last answer, where it asks several times)."""

    status: int
    says: str
    command: str


def token(identity_port: int) -> str:
    """A JWT for USER with SCOPES from the identity service."""
    url = f"http://127.0.0.1:{identity_port}/token?sub={USER}&scope={SCOPES}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(json.load(answer)["access_token"])


def lines(config: Config, main_file: Path, bearer: str, api_key: str) -> list[Line]:
    """The tour: public, refused, let in, no scope, a partner, too many, plain HTTP, the operator's side."""
    https = next((each.port for each in config.listeners if each.tls), None)
    plain = next((each.port for each in config.listeners if not each.tls), None)
    certificate = main_file.parent / "state" / "tls.crt"
    curl = f"curl -i --cacert {certificate}"
    login = f"-H 'Authorization: Bearer {bearer}'"
    origin, admin = f"https://127.0.0.1:{https}", f"http://127.0.0.1:{config.admin.port}"
    search = f"curl -s -o /dev/null -w '%{{http_code}} ' --cacert {certificate} {origin}/api/products/search"
    return [
        Line(200, "a public route", f"{curl} {origin}/api/products"),
        Line(401, "a protected one without a token", f"{curl} {origin}/api/users/me"),
        Line(200, f"with one: the backend sees X-User-ID: {USER}", f"{curl} {login} {origin}/api/users/me"),
        Line(200, f"the token has the scope {SCOPES}", f"{curl} {login} {origin}/api/orders"),
        Line(403, "but not orders:refund", f"{curl} {login} -X POST {origin}/api/orders/refund"),
        Line(
            200,
            f"a partner's API key: the backend sees X-Partner-ID: {PARTNER}",
            f"{curl} -H 'X-API-Key: {api_key}' {origin}/api/partner/orders",
        ),
        Line(429, "five searches a minute", f"for i in 1 2 3 4 5 6 7 8; do {search}; done; echo"),
        Line(404, "no such route, over plain HTTP", f"curl -i http://127.0.0.1:{plain}/nowhere"),
        Line(200, "for the operator: who is up", f"curl -i {admin}/readyz"),
        Line(200, "and how it goes", f"curl -i -s {admin}/metrics | grep -E '^HTTP|^apigw_requests_total'"),
    ]


def page(config: Config, main_file: Path, gateway_pid: int, identity_port: int, api_key: str) -> str:
    """All of it as text."""
    tour = [
        f"# {line.status}: {line.says}\n{line.command}\n"
        for line in lines(config, main_file, token(identity_port), api_key)
    ]
    control = f"{Path(sys.executable).parent / 'apigwctl'} --config {main_file}"
    another = f"curl -s 'http://127.0.0.1:{identity_port}/token?sub=bob&scope=orders:read+orders:refund'"
    return "\n".join(
        [
            "",
            "The gateway is ready. Paste these into another terminal; the number is the status you will see.",
            "",
            *tour,
            "# a token for somebody else",
            another,
            "",
            "# a key for another partner, and all keys",
            f"{control} keys create --partner globex --scope orders:read",
            f"{control} keys list",
            "",
            f"Routes: {main_file.parent}/routes.d/*.yaml; a change is live within {config.config.poll_s:.0f} s,",
            f"or at once: kill -HUP {gateway_pid}",
            *[f"Log: {sink.path}" for sink in config.access_log.sinks if sink.path],
            "Ctrl-C stops all of it.",
        ]
    )
