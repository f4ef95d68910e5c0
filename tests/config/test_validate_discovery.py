"""Where instances are asked for: what each type of registry needs (what is refused: tests/golden/discovery.yaml)."""

import ipaddress
from pathlib import Path
from typing import Any, Callable

import pytest

from apigw.config.model import Config, Discovery
from apigw.config.redact import redacted

Loaded = Callable[[Any], Config]
Refused = Callable[[Any], list[str]]


def discovering(document: dict[str, Any], **discovery: Any) -> dict[str, Any]:
    document["backends"] = [{"name": "b", "discovery": discovery}]
    return document


def found(loaded: Loaded, document: dict[str, Any], **discovery: Any) -> Discovery:
    (backend,) = loaded(discovering(document, **discovery)).backends
    assert backend.discovery is not None and backend.instances == ()
    return backend.discovery


def test_the_addresses_of_registries_are_those_of_the_configuration_store(
    loaded: Loaded, document: dict[str, Any]
) -> None:
    document["config"] = {"consul": {"url": "http://127.0.0.1:8500"}, "etcd": {"endpoints": ["http://127.0.0.1:2379"]}}
    assert found(loaded, document, type="consul", service="orders").url == "http://127.0.0.1:8500"
    assert found(loaded, document, type="etcd", service="orders").endpoints == ("http://127.0.0.1:2379",)
    own = found(loaded, document, type="consul", service="orders", url="https://consul.test")
    assert own.url == "https://consul.test"


def test_every_key_is_read(loaded: Loaded, document: dict[str, Any], tmp_path: Path) -> None:
    common = {"allow_loopback": False, "allow_names": True, "networks": ["10.0.0.0/8"], "empty_after_seconds": 60}
    dns = found(loaded, document, type="dns", service="o.test", port=80, nameservers=["10.0.0.2", "[::1]:53"], **common)
    assert (dns.port, dns.nameservers, dns.empty_after_s) == (80, ("10.0.0.2", "[::1]:53"), 60.0)
    assert (dns.allow_loopback, dns.allow_names) == (False, True)
    assert dns.networks == (ipaddress.ip_network("10.0.0.0/8"),)
    consul = found(
        loaded,
        document,
        **{"type": "consul", "service": "o", "url": "https://c.test", "tag": "blue", "datacenter": "dc1"},
        **{"token_file": "token", "ca_file": "ca.pem"},
    )
    assert (consul.tag, consul.datacenter, consul.token_file) == ("blue", "dc1", tmp_path / "token")
    etcd = found(
        loaded,
        document,
        **{"type": "etcd", "service": "o", "endpoints": ["https://e.test"], "prefix": "/s/"},
        **{"username": "gw", "password_file": "p"},
    )
    assert (etcd.prefix, etcd.username, etcd.password_file) == ("/s/", "gw", tmp_path / "p")
    cluster = found(loaded, document, type="kubernetes", service="o", namespace="shop", port="http")
    assert (cluster.namespace, cluster.port, cluster.url) == ("shop", "http", None)


def test_a_secret_may_go_in_the_clear_to_this_machine_only(refused: Refused, document: dict[str, Any]) -> None:
    for url, good in (("http://127.0.0.1:8500", True), ("https://c.test", True), ("http://10.0.0.1:8500", False)):
        problems = refused(discovering(document, type="consul", service="o", url=url, token_file="t"))
        assert (problems == []) is good


@pytest.mark.parametrize("kind", ["consul", "etcd"])
def test_a_bad_address_is_one_problem_not_two(refused: Refused, document: dict[str, Any], kind: str) -> None:
    """Nothing is said to be missing that stands there, though wrong."""
    key, value = ("url", "ftp://h") if kind == "consul" else ("endpoints", ["ftp://h"])
    assert len(refused(discovering(document, type=kind, service="o", **{key: value}))) == 1


def test_a_discovery_is_shown_with_the_files_words(loaded: Loaded, document: dict[str, Any]) -> None:
    document["config"] = {"etcd": {"endpoints": ["http://127.0.0.1:2379"]}}
    shown = redacted(loaded(discovering(document, type="etcd", service="orders")))["backends"][0]["discovery"]
    assert shown["endpoints"] == ["http://127.0.0.1:2379"] and shown["empty_after_seconds"] == 300
