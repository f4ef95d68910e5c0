"""Instances in Consul: those of a service whose health checks pass, by blocking queries on /v1/health/service/NAME.

    index 0        --answer-->              index of the answer          a query without index is answered at once
    index N        --answer with M > N-->   M, the list may be new       held until there are news, or WAIT_S
    index N        --answer with N-->       N, nothing new
    index N        --answer with M < N-->   0: the agent was restored or another answers; all is read anew
    any            --no index, or 0-->      0, and a pause of POLL_S: an agent that does not hold queries is not flooded

The rules for the index are those of Consul's documentation ("Blocking Queries"): never go by an index of 0, reset
when it goes backwards, and do not take an answer for a change.
"""

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from apigw.adapters.registry import ANSWER_S, MAX_ANSWER_BYTES, RegistryPoller, secret_of
from apigw.adapters.wanted_instances import Wanted
from apigw.core.discovery import Entry, RawEntry, scaled
from apigw.net.fetch import Answer, Question
from apigw.net.poller import PollFailed
from apigw.ports import WallClock

WAIT_S = 30  # Consul's default is 300; a server that hangs would be found out so late
POLL_S = 5.0
PAUSE_S = 0.3  # from one answer to the next question: what changes all the time is heard three times a second
_MAX_INDEX = 2**64 - 1


class ConsulRegistry(RegistryPoller):
    """A Registry for one service."""

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
        self._url = f"{(discovery.url or '').rstrip('/')}/v1/health/service/{quote(discovery.service, safe='')}"
        self._index = 0
        self._heard = b""  # the last answer: most are no other, when queries end or other services change
        super().__init__(
            reactor,
            wanted,
            wall,
            on_instances,
            known=known,
            where=f"consul {discovery.url} {discovery.service}",
            interval_s=PAUSE_S,
            longest_s=_longest_s(WAIT_S) + ANSWER_S,
            **times,
        )

    def good_delay_s(self) -> float:
        return max(self.interval_s if self._index else POLL_S, self.rest_s())

    async def inquire(self) -> None:
        """One blocking query."""
        try:
            answer = await self.ask(self._question(), _longest_s(WAIT_S) if self._index else ANSWER_S)
            if not (self._index and answer.status == 200 and answer.body == self._heard):
                self._heard = b""
                await self.hear(lambda: _listed(answer), len(answer.body))
                self._heard = answer.body
            else:
                self.heard_again()
        except BaseException:
            self._index = 0  # who answers next may know nothing of it
            raise
        self._index = self._followed(answer.header("X-Consul-Index"))

    def _question(self) -> Question:
        discovery = self.wanted.discovery
        asked = {"passing": "1"}
        if discovery.tag is not None:
            asked["tag"] = discovery.tag
        if discovery.datacenter is not None:
            asked["dc"] = discovery.datacenter
        if self._index:
            asked |= {"index": str(self._index), "wait": f"{WAIT_S}s"}
        headers = {"Accept": "application/json"}
        if discovery.token_file is not None:
            headers["X-Consul-Token"] = secret_of(discovery.token_file, "token_file")
        return Question(f"{self._url}?{urlencode(asked)}", headers, MAX_ANSWER_BYTES, ANSWER_S)

    def _followed(self, given: str | None) -> int:
        """The index to go by from now on; see the top."""
        text = given or ""
        index = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0
        return index if self._index <= index <= _MAX_INDEX else 0


def _longest_s(wait_s: float) -> float:
    """What a blocking query may take: Consul adds up to a sixteenth of the wait."""
    return wait_s * (1 + 1 / 16) + ANSWER_S


def _listed(answer: Answer) -> list[RawEntry | None]:
    if answer.status != 200:
        said = answer.body[:200].decode("utf-8", "replace").strip()  # a sentence: "No cluster leader"
        raise PollFailed(f"status {answer.status}" + (f": {said}" if said else ""))
    try:
        document = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        raise PollFailed("the answer is not JSON") from None
    if not isinstance(document, list):
        raise PollFailed("the answer is not that of Consul for a service's health")
    found = list(_services(document))
    weights = iter(scaled(max(0, weight) for _, _, weight in (each for each in found if each is not None)))
    return [None if each is None else RawEntry(each[0], each[1], next(weights)) for each in found]


def _services(document: list[Any]) -> Iterator[tuple[object, object, int] | None]:
    """Address, port and weight of each; None for what is no service entry."""
    for each in document:
        try:
            service, node = each["Service"], each["Node"]
            address = service["Address"] or node["Address"]  # empty: that of the node
            weight = (service.get("Weights") or {}).get("Passing", 1)
        except (KeyError, TypeError, AttributeError):
            yield None
            continue
        yield None if type(weight) is not int else (address, service.get("Port"), weight)
