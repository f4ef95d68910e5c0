"""What a reload cannot change is refused by name."""

from typing import Any, Callable

import pytest

from apigw.config.model import Config
from apigw.config.restart import refuse_restart_only
from apigw.errors import ConfigurationError

Loaded = Callable[[Any], Config]


def test_routes_and_limits_may_change(loaded: Loaded, document: dict[str, Any]) -> None:
    refuse_restart_only(loaded(document), loaded(document | {"routes": [], "limits": {"max_connections": 5}}))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"gateway": {"instance_name": "another"}}, "gateway.instance_name"),
        ({"gateway": {"state_dir": "/tmp"}}, "gateway.state_dir"),
        ({"admin": {"port": 9602}}, "admin"),
        ({"redis": {"url": "redis://127.0.0.1"}}, "redis"),
        ({"access_log": {"sinks": [{"type": "stdout"}]}}, "access_log"),
        ({"config": {"poll_seconds": 1}}, "config.poll_seconds"),
    ],
)
def test_what_is_read_at_start_is_refused_by_name(
    loaded: Loaded, document: dict[str, Any], change: dict[str, Any], key: str
) -> None:
    old = loaded(document)
    with pytest.raises(ConfigurationError) as caught:
        refuse_restart_only(old, loaded(document | change))
    assert [str(problem).partition(":")[0] for problem in caught.value.problems] == [key]
