"""What clients are told of failures behind the gateway: contract section 4."""

import pytest

from apigw.errors import GatewayError
from apigw.upstream.failures import bad_gateway, no_connection, slow_client, unavailable, upstream_timeout


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after_s"),
    [
        (bad_gateway("users", "connection_refused", "10.0.0.7"), 502, "bad_gateway", None),
        (upstream_timeout("users", "connect_timeout", "10.0.0.7"), 504, "upstream_timeout", None),
        (unavailable("users", "pool_full", "10.0.0.7"), 503, "service_unavailable", 1),
        (unavailable("users", "no_healthy_instance", "10.0.0.7", 9), 503, "service_unavailable", 9),
        (no_connection("users", "no_healthy_instance", "10.0.0.7", 8.1), 503, "service_unavailable", 9),
        (no_connection("users", "no_healthy_instance", "10.0.0.7", 0.0), 503, "service_unavailable", 1),
        (no_connection("users", "pool_full", "10.0.0.7", 8.1), 503, "service_unavailable", 1),
        (no_connection("users", "gateway_exhausted", "10.0.0.7", 8.1), 503, "service_unavailable", 1),
        (no_connection("users", "connect_timeout", "10.0.0.7", 8.1), 504, "upstream_timeout", None),
        (no_connection("users", "connection_refused", "10.0.0.7", 8.1), 502, "bad_gateway", None),
    ],
)
def test_a_failure_names_the_backend_to_the_client_and_the_rest_to_the_log(
    error: GatewayError, status: int, code: str, retry_after_s: int | None
) -> None:
    assert (error.status, error.code, error.retry_after_s) == (status, code, retry_after_s)
    assert error.extra == {"backend": "users"} and error.detail == "10.0.0.7"
    assert "10.0.0.7" not in error.message and error.reason not in error.message


@pytest.mark.parametrize(("begun", "code"), [(False, "request_timeout"), (True, "slow_client")])
def test_a_slow_client_is_not_told_whose_place_it_held(begun: bool, code: str) -> None:
    error = slow_client("3.5 s behind", begun)
    assert (error.status, error.code, error.reason, error.detail) == (408, code, "slow_client", "3.5 s behind")
    assert not error.extra and error.detail not in error.message
