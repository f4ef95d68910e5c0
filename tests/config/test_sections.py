"""The main file's sections: the defaults are the model's, every key of the contract's example is known."""

from typing import Any, Callable

import pytest

from apigw.config import model
from apigw.config.model import Config
from apigw.config.sections import GATEWAY, LISTENER, Workers


def test_what_is_left_out_has_the_models_defaults(loaded: Callable[[Any], Config], document: dict[str, Any]) -> None:
    config = loaded(document)
    assert config.limits == model.Limits() and config.admin == model.AdminSection()
    assert config.circuit_breaker == model.CircuitBreaker() and config.tracing == model.Tracing()
    assert config.load_shedding == model.NOT_FOR_CPU and config.access_log == model.AccessLog()
    assert config.jwt is None and config.api_keys is None and config.redis is None


@pytest.mark.parametrize("section", ["gateway", "admin", "limits", "auth", "redis", "rate_limits", "config"])
def test_an_empty_section_is_one_left_out(
    loaded: Callable[[Any], Config], document: dict[str, Any], section: str
) -> None:
    assert loaded(document | {section: None}).version == loaded(document).version


def test_workers_may_be_auto() -> None:
    assert Workers().show(0) == "auto" and Workers().show(4) == 4


def test_the_tables_name_their_keys() -> None:
    assert list(GATEWAY.keys())[:2] == ["instance_name", "workers"]
    assert list(LISTENER.keys()) == ["address", "port", "tls", "allow_plaintext"]
