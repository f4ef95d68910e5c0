"""Instances in etcd v3, by its JSON gateway: one key each below a prefix, such as /services/orders/10.0.0.7:9001.

The value is {"host": "10.0.0.7", "port": 9001, "weight": 2} or 10.0.0.7:9001. Who registers an instance puts the key
under a lease and keeps that alive; when it dies the key goes, and so does the instance.

    poll    range over the prefix -> the list        every endpoint in turn until one answers
            watch from the next revision             any news, or WATCH_S without: the poll is over, the next reads

The watch is a doorbell only: what is true is always read as a whole. So deleted keys, expired leases, a compacted
revision and a cluster that was restored from a backup need no cases of their own.
"""

import base64
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from apigw.adapters.registry import ANSWER_S, MAX_ANSWER_BYTES, RegistryPoller, secret_of
from apigw.adapters.wanted_instances import Wanted
from apigw.core.discovery import MAX_INSTANCES, Entry, RawEntry
from apigw.net.fetch import Answer, Enough, FetchFailed, Question
from apigw.net.poller import PollFailed
from apigw.ports import WallClock

WATCH_S = 30.0  # then the list is read again: a watch on a server that hangs would be silent for ever
PAUSE_S = 0.3  # between news and reading: a burst of registrations is one reading or two
_MAX_LINE_BYTES = 65_536  # of what the watch says before there are news
_UNAUTHENTICATED = 16  # a gRPC status


class EtcdRegistry(RegistryPoller):
    """A Registry for the keys below a prefix."""

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        wall: WallClock,
        on_instances: Callable[[tuple[Entry, ...]], None],
        known: tuple[Entry, ...] = (),
        **times: Any,
    ) -> None:
        discovery = wanted.discovery
        prefix = discovery.prefix or f"/services/{discovery.service}/"
        self._endpoints = [endpoint.rstrip("/") for endpoint in discovery.endpoints]
        self._first = prefix.encode("utf-8")
        self._token: str | None = None
        super().__init__(
            reactor,
            wanted,
            wall,
            on_instances,
            known=known,
            where=f"etcd {', '.join(self._endpoints)} {prefix}",
            interval_s=PAUSE_S,
            longest_s=len(self._endpoints) * 4 * ANSWER_S + WATCH_S + ANSWER_S,
            **times,
        )

    async def inquire(self) -> None:
        """Read the list, then wait for news."""
        revision = await self._read()
        await self._watch(revision + 1)

    # -- reading

    async def _read(self) -> int:
        """Read the list; the revision it is of."""
        answer = await self._of_any("/v3/kv/range", self._range() | {"limit": MAX_INSTANCES + 1})
        revisions: list[int] = []

        def read() -> list[RawEntry | None]:
            document = _document(answer)
            try:
                revisions.append(int(document["header"]["revision"]))
                return list(_entries(document.get("kvs", [])))
            except (KeyError, TypeError, ValueError, AttributeError):
                raise PollFailed("the answer is not that of etcd to a range request") from None

        await self.hear(read, len(answer.body))
        return revisions[0]

    async def _of_any(self, path: str, body: dict[str, object]) -> Answer:
        """The answer of the first endpoint that has one; it is asked first from then on."""
        errors = []
        for _ in range(len(self._endpoints)):
            try:
                return await self._authorised(path, body)
            except (FetchFailed, PollFailed) as error:
                errors.append(f"{self._endpoints[0]}: {error}")
                self._endpoints.append(self._endpoints.pop(0))
                self._token = None  # tokens are one member's business where they are not signed
        raise PollFailed("; ".join(errors))

    def _range(self) -> dict[str, object]:
        """All keys that begin with the prefix: up to the prefix with its last byte raised by one."""
        last = self._first[:-1] + bytes([self._first[-1] + 1])
        return {"key": _base64(self._first), "range_end": _base64(last)}

    async def _authorised(self, path: str, body: dict[str, object]) -> Answer:
        """POST with a token where there is a user; a token that has expired is renewed once. Raises what ask() does,
        PollFailed for a status that is not 200."""
        answer = await self._post(path, body, await self._bearer())
        if self._token is not None and _code(answer) == _UNAUTHENTICATED:
            self._token = None
            answer = await self._post(path, body, await self._bearer())
        if answer.status != 200:
            _document(answer)
        return answer

    async def _bearer(self) -> dict[str, str]:
        discovery = self.wanted.discovery
        if discovery.username is None:
            return {}
        if self._token is None:
            password = secret_of(discovery.password_file, "password_file")
            answer = await self._post("/v3/auth/authenticate", {"name": discovery.username, "password": password}, {})
            token = _document(answer).get("token")
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise PollFailed("etcd gave no token")
            self._token = token
        return {"Authorization": self._token}

    async def _post(self, path: str, body: dict[str, object], headers: dict[str, str]) -> Answer:
        return await self.ask(
            Question(
                self._endpoints[0] + path,
                {"Content-Type": "application/json", **headers},
                MAX_ANSWER_BYTES,
                ANSWER_S,
                body=orjson.dumps(body),
            ),
            ANSWER_S,
        )

    # -- waiting for news

    async def _watch(self, revision: int) -> None:
        """Returns when there may be news. Raises what ask() does when the watch cannot be had."""
        bell = _Bell()
        create = {"create_request": self._range() | {"start_revision": str(revision)}}
        headers = {"Content-Type": "application/json", **await self._bearer()}
        question = Question(
            self._endpoints[0] + "/v3/watch",
            headers,
            MAX_ANSWER_BYTES,
            ANSWER_S,
            body=orjson.dumps(create),
            on_part=bell.take,
        )
        began_s = self.clock.seconds()
        try:
            answer = await self.ask(question, WATCH_S)
        except PollFailed:
            if bell.watching and self.clock.seconds() - began_s >= WATCH_S:
                return  # quiet all the time: as it should be
            raise
        if answer.status != 200:
            raise PollFailed(f"the watch is refused: status {answer.status}")


class _Bell:
    """Takes the stream of a watch: the first line says that it stands, whatever follows is news."""

    def __init__(self) -> None:
        self.watching = False
        self._line = b""

    def take(self, data: bytes) -> None:
        """Raises Enough at the first news, FetchFailed when it is no watch."""
        if self.watching:
            raise Enough
        self._line += data
        line, end, rest = self._line.partition(b"\n")
        if len(line) > _MAX_LINE_BYTES:
            raise FetchFailed("the watch does not begin as one of etcd")
        if not end:
            return
        try:
            result = orjson.loads(line)["result"]
            self.watching = result["created"] is True
            cancelled = result.get("canceled", False)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise FetchFailed("the watch is refused, or not that of etcd") from None
        if cancelled:
            raise FetchFailed("the watch is refused")  # for want of permission
        if rest.strip():
            raise Enough


def _entries(pairs: list[dict[str, Any]]) -> Iterator[RawEntry | None]:
    for pair in pairs:
        yield _entry(base64.b64decode(pair.get("value", ""), validate=True))


def _entry(value: bytes) -> RawEntry | None:
    """None for a value of neither form. What else an object holds is its owner's."""
    try:
        text = value.decode("utf-8").strip()
    except UnicodeDecodeError:
        return None
    if not text.startswith("{"):
        host, colon, port = text.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5):
            return None
        bracketed = host.startswith("[") and host.endswith("]")
        return RawEntry(host[1:-1] if bracketed else host, int(port))
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    weight = found.get("weight")
    return RawEntry(found.get("host"), found.get("port"), 1 if weight is None else weight)


def _code(answer: Answer) -> object:
    """The gRPC status of an error."""
    try:
        return orjson.loads(answer.body).get("code") if answer.status != 200 else 0
    except (orjson.JSONDecodeError, AttributeError):
        return None


def _document(answer: Answer) -> dict[str, Any]:
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        document = None
    if answer.status != 200:
        said = document.get("message") or document.get("error") if isinstance(document, dict) else None
        raise PollFailed(f"status {answer.status}" + (f": {said}"[:200] if isinstance(said, str) else ""))
    if not isinstance(document, dict):
        raise PollFailed("the answer is not JSON")
    return document


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
