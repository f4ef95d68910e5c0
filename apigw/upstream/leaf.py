"""The leaf of the pipeline: a Resource that renders a request by its route's backend."""

from types import MappingProxyType
from typing import Any, Callable, Mapping

from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from apigw.net.deadlines import Deadlines
from apigw.upstream.gate import Gate
from apigw.upstream.pool import Pool
from apigw.upstream.proxy import Proxying


@implementer(IResource)
class Proxy:
    """`pools` and `gates` have one for each backend of the snapshot.

    on_replay(backend, reason) is told of each attempt that failed and was made again.
    """

    isLeaf = True

    def __init__(
        self,
        clock: Any,
        deadlines: Deadlines,
        pools: Mapping[str, Pool],
        hold_bytes: int,
        on_replay: Callable[[str, str], None],
        gates: Mapping[str, Gate] = MappingProxyType({}),
    ) -> None:
        self.clock = clock
        self.deadlines = deadlines
        self.pools = pools
        self.hold_bytes = hold_bytes
        self.on_replay = on_replay
        self.gates = gates

    def render(self, request: Any) -> int:
        Proxying(self, request).start()
        return NOT_DONE_YET

    def getChildWithDefault(self, name: bytes, request: Any) -> "Proxy":
        return self

    def putChild(self, path: bytes, child: Any) -> None:
        raise TypeError("the proxy has no children: a route is a row of the route table")
