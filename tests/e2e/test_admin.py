"""The pages of the admin listener and the public /healthz, as the daemon gives them."""

from tests.e2e.gateway import Gateway


def test_a_running_gateway_says_so_on_all_admin_pages(gateway: Gateway) -> None:
    """/healthz is alive, /readyz ready with its checks, /status and /config JSON, /metrics the text format."""
    assert gateway.page("/healthz").status == 200
    ready = gateway.page("/readyz")
    assert ready.status == 200 and ready.json()["ready"] is True
    status = gateway.status()
    assert status["instance"] == "e2e" and status["ready"] and status["config"]["routes"] == 12
    assert {"origin", "dead"} == set(status["backends"])
    config = gateway.page("/config").json()
    assert config["gateway"]["instance_name"] == "e2e"
    metrics = gateway.page("/metrics")
    assert (metrics.get("Content-Type") or "").startswith("text/plain; version=0.0.4")
    assert b"apigw_build_info{" in metrics.body and b"apigw_config_info{" in metrics.body


def test_the_public_healthz_answers_as_readyz_does_and_says_nothing_more(gateway: Gateway) -> None:
    """No route is asked, no check is named, and the headers of every answer are there."""
    reply = gateway.ask("GET", "/healthz")
    assert (reply.status, reply.json()) == (200, {"ready": True})
    assert reply.get("X-Request-ID") and reply.get("X-Response-Time-Ms")
    assert gateway.ask("HEAD", "/healthz").status == 200


def test_a_self_route_is_answered_by_the_gateway(gateway: Gateway) -> None:
    """backend_service: self gives 200 {"status": "ok"}."""
    reply = gateway.ask("GET", "/self")
    assert (reply.status, reply.json()) == (200, {"status": "ok"})
