"""A double of the Kubernetes API for EndpointSlices, since a real API server wants a cluster and is not in Debian.

Written after Kubernetes' documentation ("API Concepts": list, watch, resourceVersion, bookmarks, 410 Gone;
"EndpointSlices"): GET /apis/discovery.k8s.io/v1/namespaces/NS/endpointslices with labelSelector, watch,
resourceVersion, allowWatchBookmarks, timeoutSeconds. Over TLS with a certificate of its own, and for a bearer token.

- resourceVersion grows with each change of any object. A watch from one below `oldest` gets 410 Gone, as an ERROR
  event in a stream of status 200, which is how the API server tells it, or as a status (gone_by_status).
- A watch ends after timeoutSeconds, with a bookmark just before.
"""

import json
from pathlib import Path
from typing import Any

from twisted.internet import ssl
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from apigw.config.model import Certificate
from tests.edge.authority import certificate
from tests.servers import until

_SELECTOR = "kubernetes.io/service-name="
Slice = dict[str, Any]


def endpoint(address: str, ready: bool | None = True, serving: bool | None = None, terminating: bool = False) -> Slice:
    """One endpoint of a slice."""
    conditions: dict[str, bool] = {} if ready is None else {"ready": ready}
    if serving is not None:
        conditions["serving"] = serving
    if terminating:
        conditions["terminating"] = True
    return {"addresses": [address], "conditions": conditions, "nodeName": "node-1"}


class _Watch:
    """An open watch; `end` is its timer."""

    def __init__(self, request: Request, namespace: str, service: str, bookmarks: bool) -> None:
        self.request = request
        self.namespace = namespace
        self.service = service
        self.bookmarks = bookmarks
        self.end: Any = None


class _API(Resource):
    isLeaf = True

    def __init__(self, cluster: "Kubernetes") -> None:
        super().__init__()
        self._cluster = cluster

    def render_GET(self, request: Request) -> Any:
        return self._cluster.asked(request)


class Kubernetes:
    """An API server. `lists` and `watches_begun` count what was asked; `queries` are the watches' parameters."""

    def __init__(self, reactor: Any, folder: Path, token: str = "t0ken", port: int = 0) -> None:
        self.version = 100
        self.oldest = 0
        self.gone_by_status = False
        self.token = token
        self.lists = self.watches_begun = 0
        self.queries: list[dict[str, str]] = []
        self.watches: list[_Watch] = []
        self._reactor = reactor
        self._slices: dict[tuple[str, str], Slice] = {}
        self._past: list[tuple[int, str, Slice]] = []  # (version, type, object) of every change
        made: Certificate = certificate(folder, f"kubernetes-{port}", "localhost")
        self.ca_file = made.cert_file
        context = ssl.DefaultOpenSSLContextFactory(str(made.key_file), str(made.cert_file))
        site = Site(_API(self))
        site.displayTracebacks = False
        self._port: Any = reactor.listenSSL(port, site, context, interface="127.0.0.1")
        self.port = int(self._port.getHost().port)
        self.url = f"https://localhost:{self.port}"

    async def close(self) -> None:
        """Gone: every watch is cut."""
        if self._port is not None:
            await self._port.stopListening()
            self._port = None
        for watch in list(self.watches):
            watch.request.transport.abortConnection()
        await until(lambda: not self.watches, self._reactor)

    # -- what it has

    def put(
        self,
        name: str,
        *endpoints: Slice,
        service: str = "orders",
        namespace: str = "shop",
        ports: Any = ({"name": "http", "port": 8080, "protocol": "TCP"},),
        family: str = "IPv4",
    ) -> None:
        """A slice, or a change of it."""
        self.version += 1
        kind = "MODIFIED" if (namespace, name) in self._slices else "ADDED"
        meta = {"name": name, "namespace": namespace, "resourceVersion": str(self.version)}
        meta["labels"] = {"kubernetes.io/service-name": service}  # type: ignore[assignment]
        found = {"metadata": meta, "addressType": family, "endpoints": list(endpoints), "ports": list(ports)}
        self._slices[namespace, name] = found
        self._tell(kind, found)

    def delete(self, name: str, namespace: str = "shop") -> None:
        self.version += 1
        found = self._slices.pop((namespace, name))
        found["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", found)

    def bookmark(self) -> None:
        """To every watch that wants them."""
        self.version += 1  # something elsewhere changed
        for watch in self.watches:
            if watch.bookmarks:
                self._bookmark(watch)

    def _bookmark(self, watch: _Watch) -> None:
        found = {"kind": "EndpointSlice", "metadata": {"resourceVersion": str(self.version)}}
        self._send(watch, "BOOKMARK", found)

    def forget(self) -> None:
        """etcd was compacted: what happened so far cannot be watched any more, and open watches are told."""
        self.version += 1
        self.oldest = self.version
        for watch in list(self.watches):
            self._gone(watch)

    def end_watches(self) -> None:
        """As when their time is over."""
        for watch in list(self.watches):
            self._end(watch)

    # -- the API

    def asked(self, request: Request) -> Any:
        if request.getHeader("Authorization") != f"Bearer {self.token}":
            return self._refuse(request, 401, "Unauthorized")
        parts = request.path.decode("ascii").split("/")
        if parts[:5] != ["", "apis", "discovery.k8s.io", "v1", "namespaces"] or parts[6:] != ["endpointslices"]:
            return self._refuse(request, 404, "the server could not find the requested resource")
        asked = {key.decode(): values[0].decode() for key, values in request.args.items()}
        service = asked["labelSelector"].removeprefix(_SELECTOR)
        request.setHeader("Content-Type", "application/json")
        if asked.get("watch") == "1":
            return self._watch(request, parts[5], service, asked)
        self.lists += 1
        items = [found for (space, _), found in self._slices.items() if space == parts[5] and _of(found) == service]
        meta = {"resourceVersion": str(self.version)}
        return json.dumps({"kind": "EndpointSliceList", "metadata": meta, "items": items}).encode()

    def _refuse(self, request: Request, status: int, message: str) -> bytes:
        request.setResponseCode(status)
        return json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status}).encode()

    def _watch(self, request: Request, namespace: str, service: str, asked: dict[str, str]) -> Any:
        self.watches_begun += 1
        self.queries.append(asked)
        since = int(asked["resourceVersion"])
        watch = _Watch(request, namespace, service, asked.get("allowWatchBookmarks") == "true")
        if since < self.oldest and self.gone_by_status:
            return self._refuse(request, 410, "too old resource version")
        self.watches.append(watch)
        request.notifyFinish().addBoth(lambda _: self._closed(watch))
        request.write(b"")  # the head, at once
        if since < self.oldest:
            self._gone(watch)
            return NOT_DONE_YET
        for version, kind, found in self._past:
            if version > since:
                self._tell_one(watch, kind, found)
        watch.end = self._reactor.callLater(float(asked.get("timeoutSeconds", "1800")), self._end, watch)
        return NOT_DONE_YET

    def _tell(self, kind: str, found: Slice) -> None:
        found = json.loads(json.dumps(found))
        self._past.append((self.version, kind, found))
        for watch in self.watches:
            self._tell_one(watch, kind, found)

    def _tell_one(self, watch: _Watch, kind: str, found: Slice) -> None:
        if found["metadata"]["namespace"] == watch.namespace and _of(found) == watch.service:
            self._send(watch, kind, found)

    def _send(self, watch: _Watch, kind: str, found: Slice) -> None:
        watch.request.write(json.dumps({"type": kind, "object": found}).encode() + b"\n")

    def _gone(self, watch: _Watch) -> None:
        self._send(watch, "ERROR", {"kind": "Status", "code": 410, "message": "too old resource version: 1 (2)"})
        watch.request.finish()

    def _end(self, watch: _Watch) -> None:
        if watch.bookmarks:
            self._bookmark(watch)
        watch.request.finish()

    def _closed(self, watch: _Watch) -> None:
        if watch in self.watches:
            self.watches.remove(watch)
        if watch.end is not None and watch.end.active():
            watch.end.cancel()


def _of(found: Slice) -> str:
    service: str = found["metadata"]["labels"]["kubernetes.io/service-name"]
    return service
