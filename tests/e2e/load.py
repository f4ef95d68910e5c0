"""Clients that keep asking until told to stop, and remember every answer."""

import ssl
import threading
import time
import uuid
from typing import Callable

from tests.e2e.client import Client, Closed, Response


class Outcome:
    """One request: `reply` is None when the connection failed; then `error` says how."""

    def __init__(self, tag: str, method: str, started_s: float) -> None:
        self.tag = tag
        self.method = method
        self.started_s = started_s
        self.took_s = 0.0
        self.reply: Response | None = None
        self.error: Exception | None = None
        self.first = False  # of its connection

    def __repr__(self) -> str:
        return f"<{self.method} {self.tag} after {self.took_s:.3f} s: {self.reply or self.error!r}>"

    @property
    def status(self) -> int | None:
        return None if self.reply is None else self.reply.status


class Load:
    """`clients` threads with a keep-alive connection each, GET and POST in turn, each with an X-Tag of its own.

    headers: made anew for each request. A client whose connection ends opens another, or stops if `once`.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        clients: int = 8,
        target: str = "/api/load",
        headers: Callable[[], list[tuple[str, str]]] = lambda: [],
        pause_s: float = 0.0,
        once: bool = False,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self.connects_refused = 0
        self._port, self._context, self._target = port, context, target
        self._headers, self._pause_s, self._once = headers, pause_s, once
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Every client ends after the answer it waits for."""
        self._stop.set()
        for thread in self._threads:
            thread.join(15)

    def wait_for(self, count: int, timeout_s: float = 10.0) -> None:
        """Until so many more answers have come."""
        end, wanted = time.monotonic() + timeout_s, len(self.outcomes) + count
        while len(self.outcomes) < wanted:
            assert time.monotonic() < end, self.outcomes[-3:]
            time.sleep(0.01)

    def failed(self, *good: int) -> list[Outcome]:
        """The requests without one of these answers, whole and for them."""
        return [one for one in self.outcomes if one.status not in (good or (200,)) or not _whole(one)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = Client(self._port, self._context)
            except OSError:
                self.connects_refused += 1
                if self._once:
                    return
                time.sleep(0.02)
                continue
            with client:
                first = True
                while not self._stop.is_set() and self._ask(client, first):
                    first = False
                    if self._pause_s:
                        time.sleep(self._pause_s)
            if self._once:
                return

    def _ask(self, client: Client, first: bool) -> bool:
        """One request; whether the connection is good for another."""
        method = "POST" if len(self.outcomes) % 2 else "GET"
        one = Outcome(uuid.uuid4().hex, method, time.monotonic())
        one.first = first
        headers = [("X-Tag", one.tag), *self._headers()]
        try:
            one.reply = client.request(method, self._target, headers, b"b" * 100 if method == "POST" else None)
        except (OSError, Closed) as error:
            one.error = error
        one.took_s = time.monotonic() - one.started_s
        self.outcomes.append(one)
        return one.reply is not None and one.reply.complete and one.reply.get("Connection") != "close"


def _whole(one: Outcome) -> bool:
    """The answer is complete, and it is the answer to this request."""
    if one.reply is None or not one.reply.complete:
        return False
    return one.status != 200 or one.reply.json()["tag"] == one.tag


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
