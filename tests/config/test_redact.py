"""GET /config: what runs, in the words of the file, without its secrets."""

import json
from pathlib import Path
from typing import Any, Callable

from apigw.config.files import load
from apigw.config.model import Config
from apigw.config.redact import redacted

VALID = Path(__file__).parent.parent / "golden" / "valid.yaml"


def test_secrets_are_stars_and_all_else_is_in_the_units_of_the_file(now_s: float) -> None:
    shown = redacted(load(VALID, hostname="h", now_s=now_s))
    text = json.dumps(shown)
    assert "secret" not in text
    assert shown["redis"]["url"] == "redis://:***@127.0.0.1:6379/0" and shown["redis"]["timeout_ms"] == 5
    assert shown["redis"]["sentinel_password"] is None
    users = shown["routes"][0]
    assert users["route_id"] == "users" and users["timeout_ms"] == 10_000 and users["owner"] == "team-platform"
    me = next(route for route in shown["routes"] if route["route_id"] == "me")
    assert me["deprecated"] == "2026-01-01" and me["sunset_date"] == "2026-12-31"
    assert shown["auth"]["jwt"]["jwks_refresh_seconds"] == 1800
    assert shown["config"]["etcd"]["prefix"] == "/gateway/"
    assert shown["gateway"]["trusted_proxies"] == ["127.0.0.0/8", "::1/128"]


def test_what_is_shown_is_a_main_file_of_the_same_meaning(now_s: float, loaded: Callable[[Any], Config]) -> None:
    """But for the secrets, which were taken out."""
    config = load(VALID, hostname="h", now_s=now_s)
    shown = redacted(config)
    assert shown.pop("version") == config.version and shown.pop("sources") == [str(VALID)]
    shown["redis"]["url"] = "redis://:secret@127.0.0.1:6379/0"
    assert loaded(shown).version == config.version
