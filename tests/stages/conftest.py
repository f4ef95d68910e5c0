"""Exchanges at the point where a stage meets them."""

from typing import Any, Callable

import pytest
from attrs import evolve

from apigw.config.snapshot import CompiledRoute, Snapshot
from apigw.core.paths import canonical_and_wire
from apigw.exchange import ClientRequest, Exchange, Target
from apigw.testing import small_snapshot

Make = Callable[..., Exchange]


@pytest.fixture
def route() -> Callable[..., CompiledRoute]:
    """A compiled route like `route-users`, with these fields changed."""

    def make(**changes: Any) -> CompiledRoute:
        config = small_snapshot().config
        return CompiledRoute(evolve(config.routes[0], **changes), config, {})

    return make


@pytest.fixture
def snapshot() -> Callable[..., Snapshot]:
    """A snapshot with these routes: pattern -> fields changed."""

    def make(**routes: dict[str, Any]) -> Snapshot:
        config = small_snapshot().config
        rows = [evolve(config.routes[0], route_id=name, **changes) for name, changes in routes.items()]
        return Snapshot(evolve(config, routes=tuple(rows)), lambda: 0.0)

    return make


@pytest.fixture
def exchange() -> Make:
    def make(
        method: str = "GET", target: bytes = b"/users/1", fields: dict[bytes, bytes] | None = None, **facts: Any
    ) -> Exchange:
        request = ClientRequest(method, target, [], fields or {}, content_length=facts.pop("content_length", None))
        ex = Exchange(small_snapshot(), request, 0.0, 0.0)
        if target:
            ex.target = Target(*canonical_and_wire(target))
        for name, value in facts.items():
            setattr(ex, name, value)
        return ex

    return make
