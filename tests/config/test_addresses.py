"""Hosts, addresses, URLs, origins."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.config.addresses import (
    URL,
    DatabaseURL,
    FilePath,
    Host,
    IPAddress,
    Network,
    Origin,
    is_loopback,
    redacted_url,
    split_url,
)
from apigw.config.kinds import Kind, Reading, Refused
from apigw.config.nodes import Scalar
from apigw.config.problems import Problems


def read(kind: Kind[Any], value: Any) -> Any:
    try:
        return kind.read(Scalar(1, value), "key", Reading("f", Path("/etc/apigw"), Problems()))
    except Refused as refused:
        return refused


@pytest.mark.parametrize("text", ["localhost", "a.b-c.example", "x_y", "127.0.0.1", "::1", "a.b."])
def test_hosts(text: str) -> None:
    assert read(Host(), text) == text


@pytest.mark.parametrize(
    "text", ["", "a b", "-a", "a-", "a..b", "127.0.0.1:80", "[::1]", "1.2.3", "256.1.1.1", "a/b", "a" * 64, "é", "a:80"]
)
def test_what_is_no_host(text: str) -> None:
    assert isinstance(read(Host(), text), Refused)


def test_addresses_to_listen_on_are_no_names() -> None:
    assert read(IPAddress(), "0.0.0.0") == "0.0.0.0" and read(IPAddress(), "::") == "::"
    refused = read(IPAddress(), "localhost")
    assert isinstance(refused, Refused) and refused.suggestion == "127.0.0.1"


def test_networks_have_no_host_bits() -> None:
    assert str(read(Network(), "10.0.0.0/8")) == "10.0.0.0/8" and str(read(Network(), "::1")) == "::1/128"
    refused = read(Network(), "10.0.0.1/8")
    assert isinstance(refused, Refused) and refused.suggestion == "10.0.0.0/8"


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fe80::%eth0/64"])
def test_networks_have_no_zone(text: str) -> None:
    """It names an interface of one machine; an address is in the network or not, by whatever interface."""
    refused = read(Network(), text)
    assert isinstance(refused, Refused) and str(refused) == f"must be a network without a zone (%...), not '{text}'"


def test_paths_start_at_the_folder_of_their_file() -> None:
    assert read(FilePath(), "tls/a.crt") == Path("/etc/apigw/tls/a.crt")
    assert read(FilePath(), "/x/a.crt") == Path("/x/a.crt")


@pytest.mark.parametrize("text", ["https://a", "http://a:1/b?c=d", "https://[::1]:8443/x"])
def test_urls(text: str) -> None:
    assert read(URL(("https", "http")), text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "//a",
        "ftp://a",
        "https:a",
        "https://",
        "https://a:x",
        "https://a:0",
        "https://a#b",
        "https://a b",
        "https://[::1",
    ],
)
def test_what_is_no_url_and_is_not_quoted(text: str) -> None:
    refused = read(URL(("https", "http")), text)
    assert isinstance(refused, Refused) and text not in refused.message.split("://")


def test_a_database_in_a_file_is_found_from_the_folder_of_the_configuration() -> None:
    assert read(DatabaseURL(), "sqlite:///keys.db") == "sqlite:////etc/apigw/keys.db"
    assert read(DatabaseURL(), "sqlite:////var/keys.db") == "sqlite:////var/keys.db"
    assert read(DatabaseURL(), "postgresql://u:p@db/keys?sslmode=require") == "postgresql://u:p@db/keys?sslmode=require"


@pytest.mark.parametrize(
    "text",
    ["sqlite://", "sqlite:///", "sqlite://keys.db", "sqlite:///:memory:", "sqlite://host/keys.db", "mysql://h/d"],
)
def test_what_is_no_database_that_workers_could_share(text: str) -> None:
    assert isinstance(read(DatabaseURL(), text), Refused)


@pytest.mark.parametrize(
    "text", ["https://app.example.com", "http://localhost:3000", "https://[::1]:8443", "capacitor://localhost"]
)
def test_origins(text: str) -> None:
    assert read(Origin(), text) == text


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("*", None),
        ("null", None),
        ("app.example.com", None),
        ("https://app.example.com/", "https://app.example.com"),
        ("https://App.example.com", "https://app.example.com"),
        ("https://a:443", "https://a"),
        ("http://a:80", "http://a"),
        ("https://a/b", "https://a"),
        ("https://*.example.com", "https://*.example.com"),
        ("https://a:99999", None),
    ],
)
def test_origins_that_no_browser_sends(text: str, suggestion: str | None) -> None:
    refused = read(Origin(), text)
    assert isinstance(refused, Refused)
    if text != "https://*.example.com":
        assert refused.suggestion == suggestion


def test_loopback_is_this_machine_only() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "localhost.example.com", "")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@127.0.0.1:6379/0", "redis://:***@127.0.0.1:6379/0"),
        ("redis://user:se@cret@h/0", "redis://user:***@h/0"),
        ("https://token@h/x", "https://***@h/x"),
        ("postgresql://u:p@h/db?password=x&sslmode=require", "postgresql://u:***@h/db?password=***&sslmode=require"),
        ("sqlite:////var/lib/apigw/api_keys.db", "sqlite:////var/lib/apigw/api_keys.db"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert redacted_url(url) == shown


@given(st.text(max_size=40))
def test_no_url_raises(text: str) -> None:
    split_url(text)
    redacted_url("https://" + text)


@given(st.from_regex(r"[A-Za-z0-9]{8,20}", fullmatch=True), st.sampled_from(["user", ""]))
def test_no_password_is_ever_shown(password: str, user: str) -> None:
    assert password not in redacted_url(f"redis://{user}:{password}@127.0.0.1/0").removeprefix("redis://")
