"""Floods of wrong API keys, a thousand a second, through the real daemon: what a good key notices, what bcrypt gets.

Each kind of flood comes from another address than the good key does (a trusted proxy says so), so that no limit of an
address hides what it costs. Quiet seconds and seconds of the flood alternate. The gateway, its backend and the client
that measures go before the flood's own process, and that before all else that the machine has to do: a flood comes over
a network, and a good key does not wait for the making of it. What falls into a moment at which the machine stood still
is left out, and a round in which it often did is not fit to tell a p99 (witness.py): cores that others want too work at
half their speed then.

The issue's bound is twice the p99 of quiet.

    make floods   strictly: the p99s of all fit rounds, until the interval of their ratio is clear (tails.py); where
                  it is not in the end, the measured ratio. It wants a quiet machine
    make test     runs on anybody's machine, where half a core may be the loop's alone. So what a wrong key costs the
                  loop is judged, in good requests of the same round; and the p99, with TICK_S more, in rounds in which
                  the loop had room. Each must hold in one round, since what disturbs only adds. With less than ROUNDS
                  fit and no p99 good it is not judged: the test says that it was skipped, after all else it asserts
"""

import os
import resource
import subprocess
import time
from pathlib import Path

import pytest
from attrs import frozen

from apigw.adapters.api_key_cases import HOLD_S
from apigw.adapters.api_key_examination import WRONG_S
from apigw.adapters.key_store import KeyStore
from tests.e2e import surge
from tests.e2e.conftest import Change, Launch
from tests.e2e.gateway import Gateway, backend, protected
from tests.e2e.tails import Blocks, Span, blocks, rise, tail, undisturbed
from tests.e2e.witness import Witness
from tests.postgresql import postgresql_server
from tests.servers import redis_server

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]

RATE = 1000  # a second
CONNECTIONS = 1600  # a refusal takes a second, so as many wait at a time
SECONDS = 2.5  # of a flood, as it is measured
BEGIN_S = 1.5  # of a flood, before it is measured: its connections are made, its first refusals come back
QUIET_S = 2.5
REST_S = 1.2  # after a flood: its last refusals are held for a second
GOOD_RATE = 500
ALLOWED = 1.0  # issue: p99 within twice that of quiet
STRICT_ROUNDS = 2, 8  # of quiet and flood, fit ones at least and all at most
ROUNDS, MOST_ROUNDS = 2, 4  # likewise, in `make test`
TICK_S = 0.002
FIT = 0.03  # of a span, at most, that the machine may stand still
ROOM = 0.5  # of its core, at most, that the loop may work beside the flood: above it a p99 is the queue's
MOST_COST = 2.0  # of a wrong key to the loop, in good requests: two wake-ups, and 0.6 to 1.8 measured
SECRET = "b" * 43
ELSEWHERE = "X-Forwarded-For: 2001:db8::7\r\n"

# (target, head) of each flood; {victim} is the id of a key that exists, {n} the number of the request
FLOODS = {
    "unknown": ("/keyed/x", f"X-API-Key: pk_live_u{{n}}_{SECRET}\r\n"),
    "wrong": ("/keyed/x", "X-API-Key: pk_live_{victim}_w{n}cccccccccccccccccccccc\r\n"),
    "same": ("/keyed/x", f"X-API-Key: pk_live_{{victim}}_{SECRET}\r\n"),
    "malformed": ("/keyed/x", "X-API-Key: pk_test_{n}\r\n"),
}


@frozen
class Round:
    """Quiet, then the flood: what the good key waited, what the flood saw, how much of its core the loop worked.

    still: how much of either the machine stood still.
    """

    quiet: Blocks
    flooded: Blocks
    seen: surge.Summary
    quiet_share: float
    flooded_share: float
    still: float

    @property
    def cost(self) -> float:
        """Of a wrong key, in good requests."""
        return (self.flooded_share - self.quiet_share) / RATE / (self.quiet_share / GOOD_RATE)

    @property
    def p99s(self) -> tuple[float, float]:
        return tail(self.quiet).p99_s(), tail(self.flooded).p99_s()

    @property
    def good(self) -> bool:
        quiet_s, flooded_s = self.p99s
        return flooded_s <= (1 + ALLOWED) * quiet_s + TICK_S

    def __str__(self) -> str:
        quiet_s, flooded_s = self.p99s
        return (
            f"{quiet_s * 1e3:.2f} to {flooded_s * 1e3:.2f} ms, the loop {self.quiet_share:.0%} to"
            f" {self.flooded_share:.0%} of a core, a wrong key {self.cost:.2f} good ones, stood still {self.still:.1%}"
        )


class House:
    """A gateway with API keys of the default cost: one that is in use, and one whose id an attacker knows.

    most: bcrypt checks running and waiting at a time, as seen.
    """

    strict = False

    def __init__(self, launch: Launch, url: str, backend_port: int, change: Change = lambda gateway: None) -> None:
        store = KeyStore(url)
        self.good, self.victim = store.create("acme"), store.create("victim")
        store.close()

        def settle(gateway: Gateway) -> None:
            gateway.settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8"]
            gateway.settings["limits"]["max_connections_per_ip"] = 2 * CONNECTIONS
            gateway.settings["auth"]["api_keys"] = {"database_url": url}
            gateway.settings["backends"].append(backend("quick", backend_port))
            gateway.settings["routes"].append(protected("keyed", "/keyed/*", backend="quick", auth_type="api_key"))
            change(gateway)

        self.settle = settle  # for another gateway on the same keys
        self.most = {"running": 0.0, "queued": 0.0}
        self.unjudged: list[str] = []
        self.gateway: Gateway = launch(settle)
        assert self.gateway.process is not None
        surge.first(self.gateway.process.pid)
        assert self.gateway.ask("GET", "/keyed/x", ("X-API-Key", self.good.presented)).status == 200

    def begun(self, target: str, head: str, gateway: Gateway | None = None) -> "subprocess.Popen[str]":
        """A flood, all of whose connections are open and whose first refusals come back. gateway: another one.

        Meanwhile `most` bcrypt checks are seen: not later, since to write its metrics costs the loop time.
        """
        head = head.replace("{victim}", self.victim.record.key_id)
        flood = surge.clients(
            port=(gateway or self.gateway).http, target=target, head=head, rate=RATE, connections=CONNECTIONS,
            seconds=SECONDS + BEGIN_S,
        )  # fmt: skip
        surge.first(flood.pid, surge.ASIDE)  # its requests come evenly, as they do over a network
        begun_s = time.monotonic() + BEGIN_S
        while time.monotonic() < begun_s - REST_S / 4:
            time.sleep(0.1)
            for state, most in self.most.items():
                self.most[state] = max(most, (gateway or self.gateway).metric("api_key_checks", state=state))
        time.sleep(max(0.0, begun_s - time.monotonic()))
        return flood

    def round(self, flood: str, more: str) -> Round:
        """All requests of the good key pass."""
        time.sleep(REST_S)
        target, head = FLOODS[flood]
        asking = surge.clients(
            port=self.gateway.http, target="/keyed/x", head=f"X-API-Key: {self.good.presented}\r\n", rate=GOOD_RATE,
            connections=16, seconds=1.0 + QUIET_S + BEGIN_S + SECONDS, exact=True,
        )  # fmt: skip
        surge.first(asking.pid)
        with Witness() as witness:
            time.sleep(0.5)
            in_quiet = self.worked(QUIET_S)
            process = self.begun(target, head + more)
            in_flood = self.worked(SECONDS)
            good = surge.summary(asking, 30)
        seen = surge.summary(process, 60)
        assert good.statuses == {200: len(good.answers)} and good.unsent == 0
        assert len(seen.answers) >= 0.9 * RATE * SECONDS, "it was a flood"
        every = [(good.began_s + at_s, wait_s) for at_s, _, wait_s in good.answers]
        waits = undisturbed(every, witness.stalls)
        (quiet_span, quiet_share), (flooded_span, flooded_share) = in_quiet, in_flood
        still = max(witness.share(quiet_span), witness.share(flooded_span))
        found = blocks(waits, [quiet_span]), blocks(waits, [flooded_span])
        return Round(*found, seen, quiet_share, flooded_share, still)

    def worked(self, seconds: float) -> tuple[Span, float]:
        """The next so many seconds, and how much of them the loop was on a core, without the checks of bcrypt."""
        assert self.gateway.process is not None
        begin_s, before_s = time.monotonic(), thread_cpu_s(self.gateway.process.pid)
        time.sleep(seconds)
        end_s, after_s = time.monotonic(), thread_cpu_s(self.gateway.process.pid)
        return (begin_s, end_s), (after_s - before_s) / (end_s - begin_s)

    def not_noticed(self, flood: str, more: str = ELSEWHERE) -> surge.Summary:
        """A good key's p99, as the table says; what the flood saw, the last time."""
        return (self._strictly if self.strict else self._anywhere)(flood, more)

    def _strictly(self, flood: str, more: str) -> surge.Summary:
        least, most = STRICT_ROUNDS
        fit: list[Round] = []
        for _ in range(most):
            last = self.round(flood, more)
            fit += [last] if last.still <= FIT else []
            if len(fit) >= least:
                found = rise(sum((one.quiet for one in fit), []), sum((one.flooded for one in fit), []))
                if found.below(ALLOWED) or found.above(ALLOWED):
                    break
        if len(fit) < least:
            self.unjudged.append(f"beside {flood}: {len(fit)} of {most} rounds were fit")
            return last.seen
        told = f"a good key beside {flood}: {found} in {len(fit)} rounds: " + "; ".join(map(str, fit))
        print(told)
        assert found.measured < ALLOWED and not found.above(ALLOWED), told
        return last.seen

    def _anywhere(self, flood: str, more: str) -> surge.Summary:
        rounds: list[Round] = []
        while len(rounds) < MOST_ROUNDS:
            rounds.append(self.round(flood, more))
            fit = [one for one in rounds if one.still <= FIT and one.flooded_share <= ROOM]
            dear = min(one.cost for one in rounds) > MOST_COST
            if not dear and any(one.good for one in fit):
                break
        told = f"a good key beside {flood}: " + "; ".join(map(str, rounds))
        print(told)
        assert not dear, told
        if not any(one.good for one in fit):
            assert len(fit) < ROUNDS, told
            self.unjudged.append(told)
        return rounds[-1].seen

    def end(self) -> None:
        """The last thing that a test does."""
        if self.unjudged:
            pytest.skip(f"the machine stood still too often to tell a p99: {self.unjudged}")


@pytest.fixture(scope="module", autouse=True)
def _floor(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--no-floor"):
        House.strict = True


@pytest.fixture(scope="module", autouse=True)
def _files() -> None:
    """The daemon has a file for each connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def thread_cpu_s(pid: int) -> float:
    """CPU of a process' first thread so far; of a gateway that is the loop's."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'keys.db'}"


@pytest.mark.slow
def test_unknown_ids_reach_no_bcrypt_and_a_good_key_does_not_notice(
    launch: Launch, quick_backend: int, tmp_path: Path
) -> None:
    house = House(launch, sqlite(tmp_path), quick_backend)
    seen = house.not_noticed("unknown")
    assert seen.statuses == {401: len(seen.answers)} and seen.wait_s(0.01) > 0.95
    assert house.most == {"running": 0, "queued": 0}
    assert house.gateway.metric("api_key_turned_away_total") == 0
    house.end()


@pytest.mark.slow
def test_unknown_ids_in_postgresql(launch: Launch, quick_backend: int) -> None:
    with postgresql_server() as server:
        house = House(launch, server.database(), quick_backend)
        seen = house.not_noticed("unknown")
        assert seen.statuses == {401: len(seen.answers)}
        assert house.most == {"running": 0, "queued": 0}
        house.end()


@pytest.mark.slow
def test_ever_different_secrets_of_one_id_get_a_few_checks_and_a_good_key_does_not_notice(
    launch: Launch, quick_backend: int, tmp_path: Path
) -> None:
    """Four a second are looked into, one or two at a time; all others are turned away, after the same second."""
    house = House(launch, sqlite(tmp_path), quick_backend)
    seen = house.not_noticed("wrong")
    assert seen.statuses.keys() == {401, 503}
    assert seen.statuses[401] <= 5 * (SECONDS + BEGIN_S + 1), "four of an id at a time, each a second"
    assert 1 <= house.most["running"] <= 2 and house.most["queued"] <= 4
    assert seen.wait_s(0.01) > 0.95, "those that were turned away take as long"
    victim = house.gateway.ask("GET", "/keyed/x", ("X-API-Key", house.victim.presented))
    assert victim.status in (200, 503), "its id's places may be taken for another second"
    house.gateway.until(
        lambda: house.gateway.ask("GET", "/keyed/x", ("X-API-Key", house.victim.presented)).status == 200, 10
    )
    house.end()


@pytest.mark.slow
def test_the_owner_of_a_flooded_id_gets_in_where_redis_has_the_key(
    launch: Launch, quick_backend: int, tmp_path: Path
) -> None:
    """In the midst of ever different secrets of its id, on a gateway that never saw the key; another one checked it."""
    with redis_server() as redis:
        house = House(
            launch, sqlite(tmp_path), quick_backend, lambda gateway: gateway.settings.update(redis={"url": redis.url})
        )
        owner = ("X-API-Key", house.victim.presented)
        assert house.gateway.ask("GET", "/keyed/x", owner).status == 200
        fresh: Gateway = launch(house.settle)
        fresh.until(lambda: fresh.metric("shared_store_listening") == 1)
        target, head = FLOODS["wrong"]
        flood = house.begun(target, head + ELSEWHERE, fresh)
        began_s = time.monotonic()
        answer = fresh.ask("GET", "/keyed/x", owner)
        took_s = time.monotonic() - began_s
        seen = surge.summary(flood, 60)
        assert answer.status == 200 and took_s < HOLD_S, (answer.status, took_s)
        assert seen.statuses.keys() == {401, 503} and seen.wait_s(0.01) > 0.95
        assert fresh.metric("api_key_hits_total", layer="redis") == 1


@pytest.mark.slow
def test_one_wrong_key_again_and_again_is_checked_once(launch: Launch, quick_backend: int, tmp_path: Path) -> None:
    """It is remembered for a minute, so no check runs while the flood does; and a malformed key never gets one."""
    house = House(launch, sqlite(tmp_path), quick_backend)
    wrong = FLOODS["same"][1].replace("{victim}", house.victim.record.key_id).split()[1]
    assert house.gateway.ask("GET", "/keyed/x", ("X-API-Key", wrong)).status == 401
    refused_s = time.monotonic()
    for flood in ("same", "malformed"):
        seen = house.not_noticed(flood)
        assert seen.statuses == {401: len(seen.answers)} and seen.wait_s(0.01) > 0.95
        minutes = int((time.monotonic() - refused_s) / WRONG_S)  # many rounds take more than one
        assert house.most["queued"] == 0 and house.most["running"] <= min(1, minutes)
    house.end()


@pytest.mark.slow
def test_a_flood_from_the_good_keys_own_address(launch: Launch, quick_backend: int, tmp_path: Path) -> None:
    """The address' limit is used up by the flood, which is told 429; the good key behind it passes all the same."""

    def limited(gateway: Gateway) -> None:
        gateway.settings["rate_limits"]["tiers"] = [
            {"tier": "door", "limit": 30, "window_seconds": 600, "per": "client_ip"}
        ]
        gateway.settings["rate_limits"]["failed_auth_tier"] = "door"

    house = House(launch, sqlite(tmp_path), quick_backend, limited)
    for flood in ("unknown", "wrong"):
        seen = house.not_noticed(flood, "")
        assert seen.statuses.keys() <= {401, 429, 503} and seen.statuses[429] > 0.6 * len(seen.answers)
    house.end()
