"""Stages as Resources: their order is checked at the start, and each runs once, in order, or not at all."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface.verify import verifyObject

from apigw.errors import GatewayError
from apigw.pipeline import PipelineError, StageResource, compose


class Step:
    """A stage that writes its name down and gives `part`."""

    def __init__(self, name: str, needs: set[str] = set(), gives: str | None = None, part: Any = None) -> None:
        self.name, self.needs, self.gives, self.part = name, frozenset(needs), gives, part

    def enter(self, ex: Any) -> Any:
        ex.log.append(self.name)
        if isinstance(self.part, Exception):
            raise self.part
        return self.part


class Leaf:
    def render(self, request: Any) -> int:
        request.exchange.log.append("leaf")
        return NOT_DONE_YET


class Slots:
    """An exchange that takes any part."""

    def __init__(self) -> None:
        self.log: list[str] = []


class Waiting:
    """As edge/request.py: runs the rest when the Deferred has fired, and takes what is raised."""

    def __init__(self) -> None:
        self.exchange = Slots()
        self.failures: list[Exception] = []

    def fail(self, error: Exception) -> None:
        self.failures.append(error)

    def wait(self, deferred: "Deferred[Any]", go_on: Any) -> None:
        deferred.addCallback(go_on, self)
        deferred.addErrback(lambda failure: self.failures.append(failure.value))


def test_stages_run_in_order_and_then_the_leaf() -> None:
    request: Any = Waiting()
    compose([Step("a", gives="x", part=1), Step("b", {"x"}, "y", 2), Step("c", {"x", "y"})], Leaf()).render(request)
    assert request.exchange.log == ["a", "b", "c", "leaf"]
    assert (request.exchange.x, request.exchange.y) == (1, 2)


def test_no_stages_are_the_leaf() -> None:
    leaf = Leaf()
    assert compose([], leaf) is leaf


def test_a_stage_before_what_it_needs_is_refused_by_name() -> None:
    with pytest.raises(PipelineError, match=r"auth needs \['route'\] before it"):
        compose([Step("auth", {"route"}), Step("routing", gives="route")], Leaf())


def test_a_part_that_nobody_gives_is_refused() -> None:
    with pytest.raises(PipelineError, match="limits needs"):
        compose([Step("limits", {"request", "principal", "route"})], Leaf())


def test_a_part_made_twice_is_refused() -> None:
    with pytest.raises(PipelineError, match="second makes 'route'"):
        compose([Step("first", gives="route"), Step("second", gives="route")], Leaf())
    with pytest.raises(PipelineError):
        compose([Step("forger", gives="request")], Leaf())


def test_what_a_stage_raises_stops_the_request_and_leaves_no_part() -> None:
    request: Any = Waiting()
    with pytest.raises(ValueError):
        compose([Step("a", gives="x", part=ValueError("no")), Step("b")], Leaf()).render(request)
    assert request.exchange.log == ["a"] and not hasattr(request.exchange, "x")


def test_a_stage_that_waits_goes_on_when_its_part_is_there() -> None:
    request: Any = Waiting()
    later: Deferred[int] = Deferred()
    composed = compose([Step("a", gives="x", part=later), Step("b")], Leaf())
    assert composed.render(request) is NOT_DONE_YET
    assert request.exchange.log == ["a"]
    later.callback(7)
    assert request.exchange.log == ["a", "b", "leaf"] and request.exchange.x == 7


def test_a_deferred_that_has_fired_is_no_part_either() -> None:
    request: Any = Waiting()
    compose([Step("a", gives="x", part=succeed(7)), Step("b")], Leaf()).render(request)
    assert request.exchange.x == 7 and request.exchange.log == ["a", "b", "leaf"]


def test_a_wait_that_fails_reaches_the_error_edge_and_no_stage() -> None:
    request: Any = Waiting()
    later: Deferred[int] = Deferred()
    compose([Step("a", gives="x", part=later), Step("b")], Leaf()).render(request)
    later.errback(ValueError("no"))
    assert request.exchange.log == ["a"] and isinstance(request.failures[0], ValueError)


def test_what_a_stage_behind_a_wait_raises_reaches_the_error_edge_too() -> None:
    request: Any = Waiting()
    later: Deferred[None] = Deferred()
    compose([Step("a", part=later), Step("b", part=KeyError("no")), Step("c")], Leaf()).render(request)
    later.callback(None)
    assert request.exchange.log == ["a", "b"] and isinstance(request.failures[0], KeyError)


def test_a_stage_without_a_part_sets_none() -> None:
    request: Any = Waiting()
    compose([Step("a", part="ignored")], Leaf()).render(request)
    assert vars(request.exchange) == {"log": ["a", "leaf"]}


def test_it_is_a_resource_of_twisted_web_without_children() -> None:
    resource = StageResource(Step("a"), Leaf())
    verifyObject(IResource, resource)
    assert resource.getChildWithDefault(b"x", None) is resource
    with pytest.raises(PipelineError):
        resource.putChild(b"x", None)


def test_a_deferred_refusal_may_be_a_value() -> None:
    """It stops the request as a raised one does; nothing behind it runs."""
    request: Any = Waiting()
    refused = GatewayError(status=429, code="rate_limit_exceeded")
    compose([Step("a", gives="x", part=succeed(refused)), Step("b")], Leaf()).render(request)
    assert request.exchange.log == ["a"] and request.failures == [refused]
    assert not hasattr(request.exchange, "x")
