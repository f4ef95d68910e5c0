"""The leaf as a Resource: a route is a row of the table, never a child. What it does with requests: test_proxy.py."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.web.resource import IResource

from apigw.net.deadlines import Deadlines
from apigw.upstream.leaf import Proxy


@pytest.fixture
def leaf() -> Proxy:
    clock: Any = Clock()
    return Proxy(clock, Deadlines(clock), {}, 1000, lambda backend, reason: None)


def test_it_is_a_leaf_that_renders_whatever_lies_below_it(leaf: Proxy) -> None:
    assert IResource.providedBy(leaf) and leaf.isLeaf
    assert leaf.getChildWithDefault(b"users", None) is leaf


def test_it_takes_no_children(leaf: Proxy) -> None:
    with pytest.raises(TypeError, match="a row of the route table"):
        leaf.putChild(b"users", leaf)
