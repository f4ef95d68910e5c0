"""Whether somebody with a watch learns which API keys exist: refusals over real HTTP, interleaved, compared.

A refusal takes a second, or two when checks of bcrypt queue up: HOLD_S. Keys have the cost that new keys have.
"""

import time
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from statistics import median

import bcrypt
import pytest

from apigw.adapters.api_key_cases import HOLD_S, MAX_PER_ID
from apigw.adapters.api_key_check import SecretChecks
from apigw.adapters.key_store import KeyStore
from apigw.constants import BCRYPT_COST
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, protected

pytestmark = pytest.mark.alone

EACH = 30  # samples of a kind
GAP_S = 0.15  # between requests: a wrong secret comes each 0.6 s, so that its check is done before the next
NOTICED = 0.25  # of the chance, 0.5, that one kind's time is above another's: four times its deviation for EACH samples
MEDIANS_S = 0.02 * HOLD_S
EACH_LATE = 5  # samples of a kind behind a queue of checks, two seconds each
LATE_MEDIANS_S = 0.05 * HOLD_S
IDS = 12
ATTEMPTS = 3  # a check that others starve of its core takes a second more, and only a check can: measure again
KINDS = ("unknown", "wrong", "expired", "revoked")
Answer = tuple[int, bytes, float]  # status, what can be seen of it, seconds


class House:
    """A gateway, keys of each kind, and a client for each request."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self._store = KeyStore(f"sqlite:///{folder / 'keys.db'}")
        self._random = Random(7)

        def change(gateway: Gateway) -> None:
            gateway.settings["auth"]["api_keys"] = {"database_url": f"sqlite:///{folder / 'keys.db'}"}
            gateway.settings["routes"].append(protected("keyed", "/keyed/*", auth_type="api_key"))

        self.real = [self._store.create("acme") for _ in range(IDS)]
        self.expired = self._store.create("acme", expires_s=time.time() + 1.0)
        self.revoked = self._store.create("acme")
        self._store.revoke(self.revoked.record.key_id)
        self._store.close()
        self._gateway: Gateway = launch(change)  # which takes longer than the expired key lives
        self._pool = ThreadPoolExecutor(64)

    def close(self) -> None:
        self._pool.shutdown()

    def _text(self, length: int) -> str:
        return "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=length))

    def guess(self, key_id: str | None = None) -> str:
        """A key with a secret that was never tried, of this id or of one that is made up."""
        return f"pk_live_{key_id or self._text(16)}_{self._text(43)}"

    def shown(self, kind: str) -> str:
        if kind == "wrong":
            self.real.append(self.real.pop(0))  # in turns
            return self.guess(self.real[-1].record.key_id)
        if kind == "unknown":
            return self.guess()
        return {"expired": self.expired, "revoked": self.revoked}[kind].presented

    def ask(self, presented: str) -> "Future[Answer]":
        return self._pool.submit(self._asked, presented)

    def _asked(self, presented: str) -> Answer:
        with self._gateway.client(timeout_s=30) as client:
            began_s = time.perf_counter()
            answer = client.request("GET", "/keyed/x", [("X-API-Key", presented)])
            took_s = time.perf_counter() - began_s
        request_id = answer.get("X-Request-ID") or ""
        fields = [(name, value) for name, value in answer.headers if name not in ("Date", "X-Response-Time-Ms")]
        return answer.status, repr((fields, answer.body)).replace(request_id, "ID").encode(), took_s


@pytest.fixture
def house(launch: Launch, tmp_path: Path) -> Iterator[House]:
    made = House(launch, tmp_path)
    yield made
    made.close()


def above(one: Sequence[float], other: Sequence[float]) -> float:
    """The chance that a time of `one` is above one of `other` (Mann and Whitney's U over its most), 0.5 for alike."""
    wins = sum((a > b) + 0.5 * (a == b) for a in one for b in other)
    return wins / (len(one) * len(other))


def looks(answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """Status of each and the second in which it came, sorted."""
    return sorted((status, int(took_s / HOLD_S)) for status, _, took_s in answers)


def checks_ahead() -> int:
    """How many have to be ahead so that a check ends between the first and the second look, far from both."""
    secret_hash = bcrypt.hashpw(b"secret", bcrypt.gensalt(BCRYPT_COST))
    takes_s = min(timeit.repeat(lambda: bcrypt.checkpw(b"wrong", secret_hash), number=1, repeat=5))
    return min(IDS - 1, round((1.4 * HOLD_S / takes_s - 1) * SecretChecks(None).size))


def in_some_attempt(alike: Callable[[], str | None]) -> None:
    """`alike` says what it saw when answers can be told apart."""
    told = []
    for _ in range(ATTEMPTS):
        seen = alike()
        if seen is None:
            return
        told.append(seen)
    raise AssertionError(told)


@pytest.mark.slow
def test_by_their_time_and_their_words_refused_keys_are_alike(house: House) -> None:
    """Unknown, wrong, expired and revoked keys in random order, seven a second."""
    order = Random(1)

    def alike() -> str | None:
        asked: list[tuple[str, Future[Answer]]] = []
        due_s = time.monotonic()
        for _ in range(EACH):
            for kind in order.sample(KINDS, len(KINDS)):
                asked.append((kind, house.ask(house.shown(kind))))
                due_s += GAP_S
                time.sleep(max(0.0, due_s - time.monotonic()))
        answers = {kind: [one.result() for of, one in asked if of == kind] for kind in KINDS}
        seen = {answer[:2] for each in answers.values() for answer in each}
        if len(seen) > 1:
            return repr(seen)
        assert {status for status, _ in seen} == {401}
        times = {kind: [took_s for _, _, took_s in each] for kind, each in answers.items()}
        assert min(min(each) for each in times.values()) >= HOLD_S
        told = {kind: (median(each), above(each, times["unknown"])) for kind, each in times.items()}
        print(told)
        apart = max(abs(middle - told["unknown"][0]) for middle, _ in told.values())
        return None if apart < MEDIANS_S and all(abs(u - 0.5) < NOTICED for _, u in told.values()) else repr(told)

    in_some_attempt(alike)


@pytest.mark.slow
def test_many_secrets_of_one_id_at_once_do_not_tell_whether_it_exists(house: House) -> None:
    """So many are looked into and the others turned away, all of them after the same second."""

    def alike() -> str | None:
        ids = [key.record.key_id for key in house.real[:3]]
        real, made_up = ([], [])  # type: tuple[list[object], list[object]]
        for key_id in ids:
            for seen, of in ((real, key_id), (made_up, house.guess().split("_")[2])):
                asked = [house.ask(house.guess(of)) for _ in range(MAX_PER_ID + 2)]
                seen.append(looks([one.result() for one in asked]))
        print(real, made_up)
        assert made_up == [[(401, 1)] * MAX_PER_ID + [(503, 1)] * 2] * 3
        return None if real == made_up else repr((real, made_up))

    in_some_attempt(alike)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_while_checks_queue_up_refused_keys_are_alike(house: House) -> None:
    """So many checks of others are ahead that a wrong secret is refused after two seconds, and so are all kinds."""
    order, ahead = Random(2), checks_ahead()

    def late(kind: str) -> tuple[set[int], float]:
        presented = house.shown(kind)
        others = [house.ask(house.guess(key.record.key_id)) for key in house.real[:ahead]]  # not that of `presented`
        time.sleep(0.1)
        status, _, took_s = house.ask(presented).result()
        return {status, *(one.result()[0] for one in others)}, took_s

    def alike() -> str | None:
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(EACH_LATE):
            for kind in order.sample(KINDS, len(KINDS)):
                statuses, took_s = late(kind)
                if statuses != {401}:
                    return f"{kind}: {statuses}"
                times[kind].append(took_s)
        told = {kind: median(each) for kind, each in times.items()}
        print(ahead, told)
        apart = max(told.values()) - min(told.values())
        return None if 1.9 * HOLD_S < told["wrong"] < 2.1 * HOLD_S and apart < LATE_MEDIANS_S else repr(told)

    in_some_attempt(alike)
