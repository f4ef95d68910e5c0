"""The identity service's verification keys (RFC 7517), fetched in the background, never on a request's way.

When a fetch is due:
    start                     at once
    good                      after jwks_refresh_seconds, or half the TTL when that is sooner
    failed, keys in force     after half a minute
    failed, none in force     after 1, 2, 4, 8, 16, 30, 30 ... seconds
    a token's kid is unknown  at once, if the last one for that reason is 30 s ago; whatever its outcome
A failed fetch, a document that is none, or one without a usable key changes nothing: the keys at hand serve
until they are jwks_cache_ttl_seconds old by the monotonic clock. Then there are none (503), never "any".
"""

import random
from pathlib import Path
from typing import Any, Callable

import orjson
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from apigw.config.model import JWTSection
from apigw.constants import JWKS_COOL_DOWN_S, JWKS_TIMEOUT_S, MAX_JWKS_BYTES
from apigw.core.tokens import Keyring, KeysRefused
from apigw.net.fetch import FetchFailed, fetch
from apigw.net.poller import Poller, PollFailed
from apigw.ports import WallClock

_JITTER = 0.1  # workers started together must not ask together
_RETRY_S = 34.0  # less a tenth it is above the cool-down, and keys are back within 35 s of the service
_MAX_BACK_OFF_S = 30.0
_MAX_WAITING = 1000  # requests that wait for one refresh; each holds its buffers meanwhile
_ACCEPT = "application/jwk-set+json, application/json"

log = Logger()


class JWKS(Poller):
    """A KeySource (ports.py) for `jwks_url` or `jwks_file`. Starts and stops as a service.

    last_success_epoch_s: of the last good fetch, None before it. refresh_failures: how many failed.
    """

    def __init__(
        self,
        reactor: Any,
        section: JWTSection,
        wall: WallClock,
        *,
        clock: Any = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """`clock` times polls, TTL and cool-down; the reactor unless a test has another one."""
        interval_s = min(section.jwks_refresh_s, section.jwks_cache_ttl_s / 2)
        super().__init__(
            reactor if clock is None else clock,
            interval_s,
            name="key refresh",
            jitter=_JITTER,
            draw=draw,
            timeout_s=JWKS_TIMEOUT_S,
        )
        self.last_success_epoch_s: float | None = None
        self._reactor = reactor
        self._section = section
        self._wall = wall
        self._keyring: Keyring | None = None
        self._document = b""
        self._good_until_s = 0.0
        self._asked_s: float | None = None

    @property
    def refresh_failures(self) -> int:
        """Fetches that failed since the start, for jwks_refresh_failures_total."""
        return self.failures

    def current(self) -> Keyring | None:
        """The keys in force; None when none came yet or they are older than their TTL."""
        keyring = self._keyring
        if keyring is not None and self.clock.seconds() >= self._good_until_s:
            return None
        return keyring

    def refreshed(self) -> "Deferred[Keyring | None] | None":
        """The keys in force after the fetch in flight, or after a new one if the cool-down allows it; else None.

        A fetch is over after JWKS_TIMEOUT_S, so nobody waits longer. None too when _MAX_WAITING wait already.
        """
        if self.waiting >= _MAX_WAITING:
            return None
        if not self.in_flight:
            now_s = self.clock.seconds()
            if self._asked_s is not None and now_s - self._asked_s < JWKS_COOL_DOWN_S:
                return None
            self._asked_s = now_s
        return self.poll_now().addCallback(lambda _: self.current())

    def delay_s(self) -> float:
        """See the table at the top."""
        if self.consecutive_failures == 0:
            return self.interval_s
        if self.current() is not None:
            return min(self.interval_s, _RETRY_S)
        return min(_MAX_BACK_OFF_S, 2.0 ** min(self.consecutive_failures - 1, 5))

    def poll(self) -> "Deferred[None] | None":
        """Fetch or read the key document and put its keys in force. Raises PollFailed."""
        if self._section.jwks_file is not None:
            self._take(_read(self._section.jwks_file))
            return None
        return Deferred.fromCoroutine(self._fetch(self._section.jwks_url or ""))

    async def _fetch(self, url: str) -> None:
        try:
            document = await fetch(
                self._reactor,
                url,
                accept=_ACCEPT,
                limit_bytes=MAX_JWKS_BYTES,
                timeout_s=JWKS_TIMEOUT_S,
            )
        except FetchFailed as error:
            raise PollFailed(str(error)) from error
        self._take(document)

    def _take(self, document: bytes) -> None:
        """Put a document's keys in force. An unchanged one keeps its Keyring, which remembers headers."""
        if document != self._document or self._keyring is None:
            try:
                self._keyring = Keyring.from_jwks(orjson.loads(document), self._section.algorithms)
            except orjson.JSONDecodeError:
                raise PollFailed("the key document is not JSON") from None
            except KeysRefused as error:
                raise PollFailed(f"the key document is refused: {error}") from error
            self._document = document
            kids, skipped = sorted(self._keyring.kids), dict(self._keyring.skipped)
            log.info("verification keys in force: {kids}; skipped: {skipped}", kids=kids, skipped=skipped or "none")
        self._good_until_s = self.clock.seconds() + self._section.jwks_cache_ttl_s
        self.last_success_epoch_s = self._wall()


def _read(path: Path) -> bytes:
    """A key file, bounded. Small and local: reading it takes less than handing it to a thread."""
    try:
        with path.open("rb") as file:
            document = file.read(MAX_JWKS_BYTES + 1)
    except OSError as error:
        raise PollFailed(f"the key file cannot be read: {error}") from error
    if len(document) > MAX_JWKS_BYTES:
        raise PollFailed("the key file is too large")
    return document
