"""A double of Consul's HTTP API for a service's health, since there is no package of Consul for Debian or on PyPI.

Written after Consul's documentation: /v1/health/service/NAME?passing, tag, dc, index, wait ("Health HTTP Endpoint",
"Blocking Queries"). It runs on the reactor of the tests; to the gateway of an end-to-end test it is another process's.

- A query with an index at or above the present one is held until something changes, `wait` (10 min at most, 5 by
  default) and up to a sixteenth more are over; then the present list is given, changed or not.
- X-Consul-Index is the number of the last change, at least 1. restore() sets it back, as after a snapshot.
- With a token set, a request without it gets 403; leaderless: 500 "No cluster leader".
"""

import json
from typing import Any
from urllib.parse import unquote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from tests.servers import until


class _Held:
    """A blocking query that waits. `end` is its timer."""

    def __init__(self, request: Request, name: str, asked: dict[str, str], end: IDelayedCall) -> None:
        self.request = request
        self.name = name
        self.asked = asked
        self.end = end


class _Health(Resource):
    isLeaf = True

    def __init__(self, consul: "Consul") -> None:
        super().__init__()
        self._consul = consul

    def render_GET(self, request: Request) -> Any:
        return self._consul.asked(request)


class Consul:
    """An agent that knows of services. `queries` are the queries so far, as dictionaries with their "service"."""

    def __init__(self, reactor: Any, port: int = 0) -> None:
        self.index = 1
        self.token: str | None = None
        self.leaderless = False
        self.without_index = False  # an agent or a proxy before it that does not know blocking queries
        self.queries: list[dict[str, str]] = []
        self.held: list[_Held] = []
        self._reactor = reactor
        self._services: dict[str, dict[str, dict[str, Any]]] = {}  # name -> id -> entry
        self._site = Site(_Health(self))
        self._site.displayTracebacks = False
        self._connections: set[Any] = set()
        self._site.protocol = self._counted(self._site.protocol)
        self._port: Any = reactor.listenTCP(port, self._site, interface="127.0.0.1")
        self.port = int(self._port.getHost().port)
        self.url = f"http://127.0.0.1:{self.port}"

    def _counted(self, protocol: Any) -> Any:
        def build() -> Any:
            channel = protocol()
            self._connections.add(channel)
            return channel

        return build

    async def close(self) -> None:
        """Gone, as after SIGKILL: every connection is cut."""
        if self._port is not None:
            await self._port.stopListening()
            self._port = None
        for held in list(self.held):
            self._release(held)
        for channel in self._connections:
            if getattr(channel, "transport", None) is not None:
                channel.transport.abortConnection()
        await until(lambda: not self.held, self._reactor)

    # -- what it knows

    def register(
        self,
        name: str,
        service_id: str,
        address: str,
        port: int,
        *,
        node_address: str = "10.9.9.9",
        weight: int | None = 1,
        tags: tuple[str, ...] = (),
        passing: bool = True,
    ) -> None:
        """A service, or a change of it."""
        service: dict[str, Any] = {"ID": service_id, "Service": name, "Tags": list(tags), "Meta": None}
        service |= {"Address": address, "Port": port, "EnableTagOverride": False}
        if weight is not None:
            service["Weights"] = {"Passing": weight, "Warning": 1}
        check = {"CheckID": f"service:{service_id}", "Status": "passing" if passing else "critical", "Output": ""}
        node = {
            "ID": "40e4a748-2192-161a-0510-9bf59fe950b5",
            "Node": "n1",
            "Address": node_address,
            "Datacenter": "dc1",
        }
        entry = {"Node": node, "Service": service, "Checks": [check]}
        self._services.setdefault(name, {})[service_id] = entry
        self.changed()

    def deregister(self, name: str, service_id: str) -> None:
        del self._services[name][service_id]
        self.changed()

    def changed(self) -> None:
        """Something did, perhaps of another service: the index grows and who waits is answered."""
        self.index += 1
        self._answer_all()

    def restore(self, index: int) -> None:
        """The state of a snapshot: a smaller index."""
        self.index = index
        self._answer_all()

    # -- the API

    def asked(self, request: Request) -> Any:
        path = request.path.decode("ascii")
        if not path.startswith("/v1/health/service/"):
            request.setResponseCode(404)
            return b""
        if self.token is not None and request.getHeader("X-Consul-Token") != self.token:
            request.setResponseCode(403)
            return b"Permission denied"
        if self.leaderless:
            request.setResponseCode(500)
            return b"No cluster leader"
        name = unquote(path.removeprefix("/v1/health/service/"))
        asked = {key.decode(): values[0].decode() for key, values in request.args.items()}
        self.queries.append({"service": name} | asked)
        if not int(asked.get("index", "0")) or int(asked["index"]) < self.index:
            return self._list(request, name, asked)
        self._hold(request, name, asked)
        return NOT_DONE_YET

    def _hold(self, request: Request, name: str, asked: dict[str, str]) -> None:
        wait = asked.get("wait", "5m")
        seconds = min(600.0, float(wait[:-1]) * {"s": 1, "m": 60}[wait[-1]]) * (1 + 1 / 32)
        end = self._reactor.callLater(seconds, lambda: self._answer(held))
        held = _Held(request, name, asked, end)
        self.held.append(held)
        gone: Deferred[None] = request.notifyFinish()
        gone.addErrback(lambda _: self._release(held))

    def _release(self, held: _Held) -> None:
        if held in self.held:
            self.held.remove(held)
        if held.end.active():
            held.end.cancel()

    def _answer_all(self) -> None:
        for held in list(self.held):
            self._answer(held)

    def _answer(self, held: _Held) -> None:
        self._release(held)
        held.request.write(self._list(held.request, held.name, held.asked))
        held.request.finish()

    def _list(self, request: Request, name: str, asked: dict[str, str]) -> bytes:
        entries = list(self._services.get(name, {}).values())
        if "passing" in asked:
            entries = [one for one in entries if all(check["Status"] == "passing" for check in one["Checks"])]
        if "tag" in asked:
            entries = [one for one in entries if asked["tag"] in one["Service"]["Tags"]]
        if asked.get("dc", "dc1") != "dc1":
            request.setResponseCode(500)
            return b"No path to datacenter"
        if not self.without_index:
            request.setHeader("X-Consul-Index", str(self.index))
        request.setHeader("Content-Type", "application/json")
        return json.dumps(entries).encode()
