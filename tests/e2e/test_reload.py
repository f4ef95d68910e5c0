"""Reloads under load: nothing is lost, and a refused one changes nothing."""

import signal
import ssl
import threading
import time
from collections import Counter

import pytest

from tests.e2e.client import Client
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, certificate, protected, quiet_port, route
from tests.e2e.identity import KeyServer, bearer, key_set
from tests.e2e.load import Load
from tests.e2e.origin import Origin


def _token() -> list[tuple[str, str]]:
    return [TOKEN]


TOKEN = bearer("alice", exp=int(time.time()) + 36_000)  # made when tests are collected, used when their turn comes


def _load(gateway: Gateway, clients: int = 8) -> Load:
    return Load(gateway.https, gateway.context(), clients=clients, headers=_token)


def _nothing_lost(load: Load, origin: Origin) -> None:
    """Each request has one answer of its own and reached the backend exactly once."""
    load.stop()
    assert load.failed() == [] and load.connects_refused == 0
    assert sum(one.first for one in load.outcomes) <= 8, "a connection was dropped"
    reached = Counter(seen.get("X-Tag") for seen in list(origin.seen))
    assert [one for one in load.outcomes if reached[one.tag] != 1] == []


def test_fifty_reloads_under_load_lose_no_request(launch: Launch, origin: Origin) -> None:
    """By SIGHUP and by the file poll, on eight keep-alive TLS connections with tokens: none lost, none twice."""

    def polling(gateway: Gateway) -> None:
        gateway.settings["config"]["poll_seconds"] = 0.1

    gateway = launch(polling)
    with _load(gateway) as load:
        for number in range(50):
            routes = [one for one in gateway.settings["routes"] if not one["route_id"].startswith("extra")]
            gateway.settings["routes"] = [*routes, route(f"extra-{number}", f"/extra/{number}")]
            gateway.write()
            if number % 2:
                gateway.signal(signal.SIGHUP)
            gateway.until(lambda: gateway.ask("GET", f"/extra/{number}").status == 200)
            assert gateway.ask("GET", f"/extra/{number - 1}").status == 404
        load.wait_for(50)
        _nothing_lost(load, origin)
    assert len(load.outcomes) > 300
    assert gateway.status()["config"]["reloads_rejected"] == 0


def test_a_bad_reload_leaves_everything_as_it_was(launch: Launch, origin: Origin) -> None:
    """The metric is 0, /status names the error, the old routes serve on the old connections; then a good one."""
    gateway = launch()
    version = gateway.status()["config"]["version"]
    good = gateway.copy("routes")
    with _load(gateway, 2) as load:
        gateway.settings["routes"] = [route("pub", "/new/*", "orgin")]
        refused = gateway.reload(accepted=False)
        assert "orgin" in refused["last_reload_error"] and str(gateway.main_file) in refused["last_reload_error"]
        assert refused["version"] == version
        assert gateway.metric("config_last_reload_successful") == 0
        assert gateway.metric("config_info", version=version) == 1
        assert gateway.ask("GET", "/pub/x").status == 200 and gateway.ask("GET", "/new/x").status == 404
        gateway.main_file.write_text("routes: [")
        gateway.signal(signal.SIGHUP)
        gateway.until(lambda: gateway.reload_counts()[1] == 2)
        gateway.settings["routes"] = [*good, route("new", "/new/*")]
        gateway.reload()
        assert gateway.metric("config_last_reload_successful") == 1
        assert gateway.status()["config"]["last_reload_error"] is None
        assert gateway.ask("GET", "/new/x").status == 200
        _nothing_lost(load, origin)


def test_a_new_certificate_is_served_without_dropping_a_connection(launch: Launch, origin: Origin) -> None:
    """Connections made before go on; those made after see the new one. A key that does not match is refused."""
    gateway = launch()
    old = gateway.context()
    with _load(gateway, 4) as load:
        before = gateway.metric("tls_certificate_expiry_timestamp_seconds", host="gw.test")
        certificate(gateway.work, "tls", "gw.test", "localhost")
        gateway.reload()
        load.wait_for(8)
        with gateway.tls_client() as client:
            assert client.request("GET", "/pub/x").status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            Client(gateway.https, old)
        assert gateway.metric("tls_certificate_expiry_timestamp_seconds", host="gw.test") >= before
        certificate(gateway.work, "other", "gw.test")
        (gateway.work / "tls.key").write_bytes((gateway.work / "other.key").read_bytes())
        assert "tls.key" in gateway.reload(accepted=False)["last_reload_error"]
        with gateway.tls_client() as client:
            assert client.request("GET", "/pub/x").status == 200
        _nothing_lost(load, origin)


def test_a_listener_comes_and_goes_with_a_reload(launch: Launch) -> None:
    """A connection to a port that is gone lives on; a port that is taken refuses the whole reload."""
    gateway = launch()
    port = quiet_port()
    gateway.settings["listeners"].append({"address": "127.0.0.1", "port": port})
    gateway.reload()
    with Client(port) as client:
        assert client.request("GET", "/pub/x").status == 200
        gateway.settings["listeners"].pop()
        gateway.reload()
        assert client.request("GET", "/pub/x").status == 200
        with pytest.raises(ConnectionRefusedError):
            Client(port)
    gateway.settings["listeners"].append({"address": "127.0.0.1", "port": gateway.admin})
    gateway.settings["routes"].append(route("new", "/new/*"))
    error = gateway.reload(accepted=False)["last_reload_error"]
    assert str(gateway.admin) in error, error
    assert gateway.ask("GET", "/new/x").status == 404


def test_keys_from_another_place_come_into_force_with_a_reload(launch: Launch) -> None:
    """From a file to a URL and to another file; one that gives no keys refuses the reload."""
    gateway = launch()
    jwt = gateway.settings["auth"]["jwt"]
    assert gateway.ask("GET", "/api/x", bearer()).status == 200
    assert gateway.ask("GET", "/api/x", bearer(kid="k2")).status == 401
    service = KeyServer("k2")
    try:
        del jwt["jwks_file"]
        jwt["jwks_url"] = service.url
        gateway.reload()
        assert gateway.ask("GET", "/api/x", bearer(kid="k2")).status == 200
        assert gateway.ask("GET", "/api/x", bearer()).status == 401
        jwt["jwks_url"] = f"http://127.0.0.1:{quiet_port()}/none"
        error = gateway.reload(accepted=False)["last_reload_error"]
        assert "key" in error, error
        assert gateway.ask("GET", "/api/x", bearer(kid="k2")).status == 200
    finally:
        service.stop()
    del jwt["jwks_url"]
    (gateway.work / "more.json").write_bytes(key_set("k1", "k2"))
    jwt["jwks_file"] = "more.json"
    gateway.reload()
    assert gateway.ask("GET", "/api/x", bearer()).status == 200
    assert gateway.ask("GET", "/api/x", bearer(kid="k2")).status == 200


def test_a_changed_key_file_is_seen_at_a_reload(launch: Launch) -> None:
    """The same path with other keys in it: rotation by file."""
    gateway = launch()
    (gateway.work / "jwks.json").write_bytes(key_set("k2"))
    gateway.reload()
    gateway.until(lambda: gateway.ask("GET", "/api/x", bearer(kid="k2")).status == 200, 3)
    assert gateway.ask("GET", "/api/x", bearer()).status == 401


def test_a_request_in_flight_on_a_removed_route_is_answered(launch: Launch) -> None:
    """It keeps the configuration it began with, its backend's pool included; the next one meets the new."""

    def slow(gateway: Gateway) -> None:
        gateway.settings["backends"].append({**gateway.settings["backends"][0], "name": "doomed"})
        gateway.settings["routes"].append(route("doomed", "/doomed/*", "doomed"))

    gateway = launch(slow)
    replies = []
    asking = threading.Thread(target=lambda: replies.append(gateway.ask("GET", "/doomed/x?delay_ms=600")))
    asking.start()
    gateway.until(lambda: gateway.metric("in_flight_requests") == 1)
    gateway.settings["routes"].pop()
    gateway.settings["backends"].pop()
    gateway.reload()
    assert gateway.ask("GET", "/doomed/x").status == 404
    asking.join(5)
    assert [reply.status for reply in replies] == [200]


def test_a_new_limit_does_not_reset_the_counters(launch: Launch) -> None:
    """Memory store: three of five used, then the limit is four: one is left."""

    def limited(gateway: Gateway) -> None:
        gateway.settings["rate_limits"]["tiers"] = [
            {"tier": "few", "limit": 5, "window_seconds": 3600, "per": "user_id"}
        ]
        gateway.settings["routes"].append(protected("few", "/few/*", rate_limit_tier="few"))

    gateway = launch(limited)
    assert [gateway.ask("GET", "/few/x", TOKEN).get("X-RateLimit-Remaining") for _ in range(3)] == ["4", "3", "2"]
    gateway.settings["rate_limits"]["tiers"][0]["limit"] = 4
    gateway.reload()
    reply = gateway.ask("GET", "/few/x", TOKEN)
    assert (reply.status, reply.get("X-RateLimit-Limit"), reply.get("X-RateLimit-Remaining")) == (200, "4", "0")
    assert gateway.ask("GET", "/few/x", TOKEN).status == 429


def test_what_needs_a_restart_is_refused_with_a_sentence(launch: Launch) -> None:
    """Every such key is named; nothing else of that reload comes into force."""
    gateway = launch()
    gateway.settings["gateway"]["instance_name"] = "other"
    gateway.settings["admin"]["port"] = quiet_port()
    gateway.settings["access_log"]["sinks"][0]["path"] = str(gateway.work / "elsewhere.log")
    gateway.settings["routes"].append(route("new", "/new/*"))
    error = gateway.reload(accepted=False)["last_reload_error"]
    for key in ("gateway.instance_name", "admin", "access_log"):
        assert f"{key}: a change needs a restart" in error, error
    assert gateway.ask("GET", "/new/x").status == 404


def test_a_changed_timeout_of_the_keepalive_applies_to_what_comes(launch: Launch) -> None:
    """limits are part of a reload: an idle connection is closed after the new time from its next answer on."""
    gateway = launch()
    with gateway.client() as client:
        assert client.request("GET", "/pub/x").status == 200
        gateway.settings["limits"] = {"keepalive_timeout_seconds": 0.3}
        gateway.reload()
        assert client.request("GET", "/pub/x").status == 200
        began_s = time.monotonic()
        assert client.ended(3)
        assert 0.25 < time.monotonic() - began_s < 1.0
