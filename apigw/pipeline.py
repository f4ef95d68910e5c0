"""The stages of a request, composed as Twisted Resources.

`StageResource(stage, next)` runs its stage and then renders its next; the leaf proxies. A stage that can
answer at once costs no Deferred. Whatever a stage raises travels up to the one error edge (edge/request.py).
A Resource that is followed by stages runs theirs in its own loop: a call and a frame less for each of them.
"""

from typing import Any, Callable, Protocol, Sequence

from twisted.internet.defer import Deferred
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from apigw.errors import GatewayError
from apigw.exchange import Exchange


class Stage(Protocol):
    """One step of the pipeline: plain code without Twisted, clock or socket."""

    @property
    def name(self) -> str:
        """For build errors, docs and logs."""

    @property
    def needs(self) -> frozenset[str]:
        """Exchange parts that must exist before it."""

    @property
    def gives(self) -> str | None:
        """The one Exchange part it makes."""

    def enter(self, ex: Exchange) -> "Any | Deferred[Any]":
        """Its part, or a Deferred of it. Raises GatewayError to refuse the request, Answered to answer it.

        A Deferred may also have a GatewayError as its value: it refuses as a raised one does, without the Failure that
        Twisted makes of what is raised in a callback (30 us, a fifth of a refused request).
        """
        ...


class PipelineError(Exception):
    """The stages do not fit together; the gateway refuses to start."""


# (how to enter a stage, the part it gives, how to go on when it had to wait)
_Step = tuple[Callable[[Exchange], Any], str | None, Callable[[Any, Any], None]]


@implementer(IResource)
class StageResource:
    """One stage as an IResource; `request` is edge/request.py's and carries its Exchange."""

    isLeaf = True

    def __init__(self, stage: Stage, following: Any) -> None:
        self.stage = stage
        self._gives = stage.gives
        self._next = following.render
        own: _Step = (stage.enter, stage.gives, self._go_on)
        if isinstance(following, StageResource):
            self._steps: tuple[_Step, ...] = (own, *following._steps)
            self._leaf: Callable[[Any], int] = following._leaf
        else:
            self._steps = (own,)
            self._leaf = following.render

    def render(self, request: Any) -> int:
        ex = request.exchange
        for enter, gives, go_on in self._steps:
            part = enter(ex)
            if part.__class__ is Deferred:
                request.wait(part, go_on)
                return NOT_DONE_YET
            if gives is not None:
                setattr(ex, gives, part)
        return self._leaf(request)

    def _go_on(self, part: Any, request: Any) -> None:
        if isinstance(part, GatewayError):
            request.fail(part)
            return
        if self._gives is not None:
            setattr(request.exchange, self._gives, part)
        self._next(request)

    def getChildWithDefault(self, name: bytes, request: Any) -> "StageResource":
        return self

    def putChild(self, path: bytes, child: Any) -> None:
        raise PipelineError("a stage has no children: a route is a row of the route table")


def compose(stages: Sequence[Stage], leaf: Any) -> Any:
    """The first stage's Resource. Raises PipelineError when a stage stands before what it needs."""
    have = {"request"}
    for stage in stages:
        missing = sorted(stage.needs - have)
        if missing:
            raise PipelineError(f"{stage.name} needs {missing} before it")
        if stage.gives is not None:
            if stage.gives in have:
                raise PipelineError(f"{stage.name} makes {stage.gives!r}, which stands already")
            have.add(stage.gives)
    resource = leaf
    for stage in reversed(stages):
        resource = StageResource(stage, resource)
    return resource
