"""Contradictions within the main file (more in tests/golden/{keys,listeners,types}.yaml)."""

from pathlib import Path
from typing import Any, Callable

import pytest

from tests.edge.authority import certificate

Refused = Callable[[Any], list[str]]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"keys": []}', None),
        ("{", "is not valid JSON"),
        ("[]", 'holds no JWKS: a JSON object with a list "keys"'),
        ('{"keys": {}}', 'holds no JWKS: a JSON object with a list "keys"'),
        ("[" * 100_000, "is not valid JSON"),
        (None, "does not exist"),
    ],
)
def test_a_jwks_file_holds_a_jwks(
    refused: Refused, document: dict[str, Any], tmp_path: Path, content: str | None, problem: str | None
) -> None:
    if content is not None:
        (tmp_path / "jwks.json").write_text(content)
    document["auth"] = {"jwt": {"issuer": "i", "audience": "a", "jwks_file": "jwks.json"}}
    found = [problem.partition(": ")[2] for problem in refused(document)]
    assert found == ([] if problem is None else [f"auth.jwt.jwks_file jwks.json {problem}"])


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("https://id.example.com/jwks", True),
        ("http://127.0.0.1:9/jwks", True),
        ("http://localhost/jwks", True),
        ("http://[::1]/jwks", True),
        ("http://id.example.com/jwks", False),
        ("http://127.0.0.1.example.com/jwks", False),
        ("http://127.0.0.1@example.com/jwks", False),
        ("file:///etc/jwks", False),
    ],
)
def test_keys_come_over_https_or_loopback(refused: Refused, document: dict[str, Any], url: str, accepted: bool) -> None:
    document["auth"] = {"jwt": {"issuer": "i", "audience": "a", "jwks_url": url}}
    assert (refused(document) == []) is accepted


def test_a_store_in_memory_beside_a_redis_section_is_fine(refused: Refused, document: dict[str, Any]) -> None:
    document |= {"redis": {"url": "redis://127.0.0.1"}, "rate_limits": {"store": "memory"}}
    assert refused(document) == []


def test_lowering_the_body_limit_below_the_default_buffer_is_explained(
    refused: Refused, document: dict[str, Any]
) -> None:
    assert refused(document | {"limits": {"max_body_bytes": 1000}}) == [
        "apigw.yaml:17: limits.buffer_body_bytes (65536) is above max_body_bytes (1000)"
    ]


CERTIFICATES = """-----BEGIN CERTIFICATE-----
nothing of the kind
-----END CERTIFICATE-----
"""


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"url": "redis://:secret@h:6379/15"}, None),
        ({"url": "rediss://:secret@h"}, None),
        ({"url": "redis://:secret@h/db"}, "redis.url must end with the number of a database, as in HOST:6379/0"),
        ({"url": "rediss://:secret@h", "ca_file": "no.pem"}, "redis.ca_file no.pem does not exist"),
        ({"url": "rediss://:secret@h", "ca_file": "bad.pem"}, "redis.ca_file bad.pem holds no PEM certificates"),
        ({"url": "rediss://:secret@h", "ca_file": "empty.pem"}, "redis.ca_file empty.pem holds no PEM certificates"),
        (
            {"url": "redis://:secret@h", "ca_file": "bad.pem"},
            "redis.ca_file is for TLS; the URL must begin with rediss",
        ),
        (
            {"url": "redis://:secret@h", "cert_file": "own.crt"},
            "redis.cert_file is for TLS; the URL must begin with rediss",
        ),
        ({"url": "rediss://:secret@h", "cert_file": "own.crt", "key_file": "own.key"}, None),
        (
            {"url": "rediss://:secret@h", "cert_file": "own.crt"},
            "redis.cert_file and redis.key_file need each other",
        ),
        (
            {"url": "rediss://:secret@h", "cert_file": "own.crt", "key_file": "no.key"},
            "redis.cert_file or redis.key_file does not exist",
        ),
        (
            {"url": "rediss://:secret@h", "cert_file": "own.crt", "key_file": "other.key"},
            "redis.cert_file own.crt and redis.key_file other.key are no pair in PEM, or the key is encrypted",
        ),
        (
            {"url": "rediss://:secret@h", "cert_file": "own.crt", "key_file": "locked.key"},
            "redis.cert_file own.crt and redis.key_file locked.key are no pair in PEM, or the key is encrypted",
        ),
        (
            {"url": "redis://:secret@h", "sentinel_password": "secret"},
            "redis.sentinel_password is for redis+sentinel://; the password of Redis is in the URL",
        ),
        (
            {"url": "redis+sentinel://:secret@h/m", "sentinel_user": "secret"},
            "redis.sentinel_user needs redis.sentinel_password",
        ),
    ],
)
def test_the_keys_of_redis_fit_its_url(
    refused: Refused, document: dict[str, Any], tmp_path: Path, section: dict[str, str], problem: str | None
) -> None:
    """And no message has a password in it."""
    (tmp_path / "bad.pem").write_text(CERTIFICATES)
    (tmp_path / "empty.pem").write_text("")
    certificate(tmp_path, "own")
    certificate(tmp_path, "other")
    locked = certificate(tmp_path, "locked", password=b"x")
    locked.key_file.replace(tmp_path / "locked.key")
    problems = [problem.partition(": ")[2] for problem in refused(document | {"redis": section})]
    problems = [problem for problem in problems if "not available" not in problem]
    assert problems == ([] if problem is None else [problem])
    assert "secret" not in str(problems)


def test_a_log_file_is_written_once(refused: Refused, document: dict[str, Any]) -> None:
    file = {"type": "file", "path": "/a"}
    problems = refused(document | {"access_log": {"sinks": [file, {"type": "stdout"}, file]}})
    assert [problem.partition(": ")[2] for problem in problems] == ["access_log.sinks[2] repeats 'file /a'"]
