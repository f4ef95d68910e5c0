"""Instances of a Kubernetes service: its EndpointSlices, listed once and then watched.

unknown   --list-->               known at resourceVersion R
known     --watch from R-->       ADDED, MODIFIED, DELETED: R and the slices follow; BOOKMARK: R alone
known     --the watch ends-->     judged once more, watched again from R: the server ends it after WATCH_S
known     --410 Gone-->           unknown: R is too old (as an answer, or as an ERROR in the watch)
any       --failure-->            unknown, since it may be another API server that answers next
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import attrs
import orjson

from apigw.adapters.endpoint_slices import Slice, entries_of, put, read_list, read_slice
from apigw.adapters.registry import ANSWER_S, MAX_ANSWER_BYTES, RegistryPoller, secret_of
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery
from apigw.config.reading import Unreadable, read_bounded
from apigw.core.discovery import Entry, RawEntry
from apigw.net.fetch import Answer, FetchFailed, Question
from apigw.net.poller import PollFailed
from apigw.ports import WallClock

WATCH_S = 60  # then it is begun anew: a watch on a server that hangs would be silent for ever
PAUSE_S = 0.3
IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # token, ca.crt, namespace: what every pod has
_GONE = 410
_GONE_PAUSE_S = 1.0  # before listing again: a server that finds everything too old must not be listed all the time


class _Gone(Exception):
    """What we know is too old to be watched from."""


class KubernetesRegistry(RegistryPoller):
    """A Registry for one service of one namespace."""

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        wall: WallClock,
        on_instances: Callable[[tuple[Entry, ...]], None],
        known: tuple[Entry, ...] = (),
        *,
        in_cluster: Path = IN_CLUSTER,
        environment: Any = os.environ,
        **times: Any,
    ) -> None:
        wanted, self._missing = _placed(wanted, in_cluster, environment)
        discovery = wanted.discovery
        self._slices: dict[str, Slice] = {}
        self._version: str | None = None
        self._telling: Any = None  # a timer: news that wait
        self._told_s = float("-inf")
        super().__init__(
            reactor,
            wanted,
            wall,
            on_instances,
            known=known,
            where=f"kubernetes {discovery.url or 'without an API server'} {discovery.namespace}/{discovery.service}",
            interval_s=PAUSE_S,
            longest_s=2 * ANSWER_S + WATCH_S + ANSWER_S,
            **times,
        )

    async def inquire(self) -> None:
        """List if need be, then watch until the server ends it."""
        if self._missing:
            raise PollFailed(self._missing)
        try:
            if self._version is None:
                await self._list()
            await self._watch()
        except _Gone:
            self._version = None
        except BaseException:
            self._version = None
            raise

    def good_delay_s(self) -> float:
        return max(self.interval_s if self._version is not None else _GONE_PAUSE_S, self.rest_s())

    def stopService(self) -> None:
        self._put_off(None)
        super().stopService()

    def _question(self, **more: str) -> Question:
        discovery = self.wanted.discovery
        path = f"/apis/discovery.k8s.io/v1/namespaces/{quote(discovery.namespace or '', safe='')}/endpointslices"
        asked = {"labelSelector": f"kubernetes.io/service-name={discovery.service}", **more}
        headers = {"Accept": "application/json"}
        if discovery.token_file is not None:  # read each time: the kubelet renews it every hour
            headers["Authorization"] = f"Bearer {secret_of(discovery.token_file, 'token_file')}"
        url = f"{(discovery.url or '').rstrip('/')}{path}?{urlencode(asked)}"
        return Question(url, headers, MAX_ANSWER_BYTES, ANSWER_S)

    # -- list

    async def _list(self) -> None:
        answer = await self.ask(self._question(), ANSWER_S)
        if answer.status == _GONE:
            raise PollFailed("status 410 to a list")
        _judge(answer)
        found: list[tuple[str, dict[str, Slice]]] = []

        def read() -> list[RawEntry | None]:
            found.append(read_list(answer.body, self.wanted.discovery.port))
            return entries_of(found[0][1].values())

        await self.hear(read, len(answer.body))
        self._version, self._slices = found[0]
        self._told_s = self.clock.seconds()

    # -- watch

    async def _watch(self) -> None:
        lines = _Lines(self._event, self._news)
        question = self._question(
            watch="1", allowWatchBookmarks="true", resourceVersion=self._version or "", timeoutSeconds=str(WATCH_S)
        )
        question = attrs.evolve(question, on_part=lines.take)
        try:
            _judge(await self.ask(question, WATCH_S + ANSWER_S))
        finally:
            self._put_off(None)
        self._tell()  # it held to the end, perhaps without news: what was empty or unusable still is

    def _news(self) -> None:
        """The slices changed. A rollout changes them many times a second: they are put in force once in a while."""
        if self._telling is None:
            self._put_off(max(0.0, self._told_s + max(self.interval_s, self.rest_s()) - self.clock.seconds()))

    def _put_off(self, delay_s: float | None) -> None:
        telling, self._telling = self._telling, None
        if telling is not None and telling.active():
            telling.cancel()
        if delay_s is not None:
            self._telling = self.clock.callLater(delay_s, self._told)

    def doubt_is_over(self) -> None:
        if self._telling is None:  # else there are news, which are told in a moment and decide
            super().doubt_is_over()

    def _told(self) -> None:
        self._telling = None
        try:
            self._tell()
        except PollFailed as error:  # the watch goes on: the next event may mend it
            self._failed(str(error))

    def _tell(self) -> None:
        self._told_s = self.clock.seconds()
        self.heard(entries_of(self._slices.values()))

    def _event(self, line: bytes) -> bool:
        """One line of the watch; whether the slices changed. Raises FetchFailed when it is none."""
        try:
            event = orjson.loads(line)
            kind, found = event["type"], event["object"]
            if kind == "ERROR":
                if found.get("code") == _GONE:
                    raise _Gone
                raise FetchFailed(f"the watch failed: {found.get('message')}"[:200])
            meta = found["metadata"]
            version, name = meta["resourceVersion"], meta.get("name")
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise FetchFailed("the watch says what is no event") from None
        if not isinstance(version, str) or not version:
            raise FetchFailed("the watch says what is no event")
        self._version = version
        if kind in ("ADDED", "MODIFIED"):
            put(self._slices, name, read_slice(found, self.wanted.discovery.port))
        elif kind == "DELETED":
            self._slices.pop(name, None)
        return kind in ("ADDED", "MODIFIED", "DELETED")


class _Lines:
    """Cuts a stream into lines, each an event; `on_news` is called once for all lines of a piece."""

    def __init__(self, on_event: Callable[[bytes], bool], on_news: Callable[[], None]) -> None:
        self._on_event = on_event
        self._on_news = on_news
        self._rest: list[bytes] = []
        self._rest_bytes = 0

    def take(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._rest.append(first)
        self._rest_bytes += len(first)
        if self._rest_bytes > MAX_ANSWER_BYTES:
            raise FetchFailed("an event without an end")
        if not others:
            return
        lines = [b"".join(self._rest), *others[:-1]]
        self._rest, self._rest_bytes = [others[-1]], len(others[-1])
        changed = [self._on_event(line) for line in lines if line.strip()]
        if any(changed):
            self._on_news()


def _judge(answer: Answer) -> None:
    """Raises _Gone, or PollFailed for a status that is not 200."""
    if answer.status == _GONE:
        raise _Gone
    if answer.status != 200:
        try:
            said = orjson.loads(answer.body)["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            said = None
        raise PollFailed(f"status {answer.status}" + (f": {said}"[:200] if isinstance(said, str) else ""))


def _placed(wanted: Wanted, in_cluster: Path, environment: Any) -> tuple[Wanted, str | None]:
    """With what a pod knows of its cluster where the configuration says nothing; and what is missing, if anything."""
    given = wanted.discovery
    found: Discovery = given
    missing = None
    if given.url is None:
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if host:
            host = f"[{host}]" if ":" in host else host
            found = attrs.evolve(found, url=f"https://{host}:{port}")
            found = attrs.evolve(found, token_file=given.token_file or in_cluster / "token")
            found = attrs.evolve(found, ca_file=given.ca_file or in_cluster / "ca.crt")
        else:
            missing = "not inside a cluster (no KUBERNETES_SERVICE_HOST), and discovery has no url"
    if given.namespace is None and missing is None:
        try:
            namespace = read_bounded(in_cluster / "namespace", 256).decode("ascii").strip()
            found = attrs.evolve(found, namespace=namespace)
        except (Unreadable, UnicodeDecodeError) as error:
            missing = f"the namespace is not known: {in_cluster / 'namespace'} {error}; write it into discovery"
    return attrs.evolve(wanted, discovery=found), missing
