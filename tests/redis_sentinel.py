"""A master, its replicas and three sentinels, all real and on free ports, with short times to fail over.

from tests.redis_sentinel import SentinelSet, sentinel_set
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hiredis import ReplyError

from tests.servers import RedisServer

NAME = "main"
_QUICK = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


def wait_for(condition: Callable[[], Any], timeout_s: float = 15.0) -> float:
    """Seconds it took. A server that is not there yet, or no more, does not fulfil a condition."""
    began_s = time.monotonic()
    while True:
        with suppress(OSError, ReplyError, AssertionError):
            if condition():
                return time.monotonic() - began_s
        assert time.monotonic() - began_s < timeout_s, "the servers did not get there in time"
        time.sleep(0.02)


class Sentinel(RedisServer):
    """A sentinel. It keeps what it learned in its configuration file."""

    def __init__(self, master: RedisServer, down_after_ms: int, lines: Sequence[str], **more: Any) -> None:
        super().__init__(**more)
        file = self.folder / "sentinel.conf"
        file.write_text(
            "\n".join(
                [
                    f"sentinel monitor {NAME} 127.0.0.1 {master.port} 2",
                    f"sentinel down-after-milliseconds {NAME} {down_after_ms}",
                    f"sentinel failover-timeout {NAME} 3000",
                    *lines,
                ]
            )
            + "\n"
        )
        self._file = str(file)

    def command_line(self) -> list[str]:
        return ["redis-server", self._file, "--sentinel", *self.listening()]

    def ready(self) -> None:
        wait_for(lambda: self.command("PING") == "PONG" or self.command("PING") == b"PONG")


class SentinelSet:
    """servers: the first is the master in the beginning. password: of Redis and, reversed, of the sentinels. tls: as
    RedisServer has it, for all.

    url: for the gateway, with `password` if there is one.
    """

    def __init__(
        self, replicas: int = 1, down_after_ms: int = 500, password: str = "", tls: Path | None = None
    ) -> None:
        auth = ("--requirepass", password, "--masterauth", password) if password else ()
        credentials = (password,) if password else ()
        self.password = password
        self.sentinel_password = password[::-1]
        self.servers = [RedisServer(*_QUICK, *auth, credentials=credentials, tls=tls) for _ in range(1 + replicas)]
        lines = [f"sentinel auth-pass {NAME} {password}"] if password else []
        lines += [f"requirepass {self.sentinel_password}"] if password else []
        more = {"credentials": (self.sentinel_password,) if password else (), "tls": tls}
        self._scheme = "redis+sentinel" if tls is None else "rediss+sentinel"
        self.sentinels = [Sentinel(self.servers[0], down_after_ms, lines, **more) for _ in range(3)]

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"{self._scheme}://{f':{self.password}@' if self.password else ''}{hosts}/{NAME}"

    def start(self) -> None:
        """Returns when every sentinel knows the replicas and the other sentinels."""
        for server in self.servers:
            server.launch()
        for server in self.servers:
            server.ready()
        for replica in self.servers[1:]:
            replica.command("REPLICAOF", "127.0.0.1", self.servers[0].port)
        for sentinel in self.sentinels:
            sentinel.launch()
        self.settled()

    def settled(self) -> None:
        """Wait until one is the master, all others of `servers` are its connected replicas, and all sentinels know."""
        wait_for(self._settled, 30.0)

    def _settled(self) -> bool:
        replicas = len(self.servers) - 1
        master = self.master()
        for server in self.servers:
            role = server.command("ROLE")
            if server is not master and (role[0] != b"slave" or role[2] != master.port or role[3] != b"connected"):
                return False
        for sentinel in self.sentinels:
            facts = self.facts(sentinel)
            known = int(facts[b"num-slaves"]), int(facts[b"num-other-sentinels"]), facts[b"flags"]
            if known != (replicas, len(self.sentinels) - 1, b"master") or int(facts[b"port"]) != master.port:
                return False
        return True

    def facts(self, sentinel: RedisServer) -> dict[bytes, bytes]:
        flat = sentinel.command("SENTINEL", "MASTER", NAME)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def master(self) -> RedisServer:
        """Who the first sentinel that answers says it is."""
        for sentinel in self.sentinels:
            with suppress(OSError):
                port = int(sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)[1])
                return next(server for server in self.servers if server.port == port)
        raise AssertionError("no sentinel answers")

    def promoted(self, *old: RedisServer, timeout_s: float = 20.0) -> RedisServer:
        """Wait until a server other than `old` is a master that takes writes, and return it."""
        found: list[RedisServer] = []

        def is_there() -> bool:
            for server in self.servers:
                with suppress(OSError):
                    if server not in old and server.command("ROLE")[0] == b"master":
                        found.append(server)
            return bool(found)

        wait_for(is_there, timeout_s)
        return found[0]

    def fail_over(self) -> RedisServer:
        """Have the sentinels move the master while it is alive, and wait for the new one."""
        old = self.master()
        wait_for(lambda: self.sentinels[0].command("SENTINEL", "FAILOVER", NAME) in (b"OK", "OK"))
        return self.promoted(old)

    def remove(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.remove()


@contextmanager
def sentinel_set(**options: Any) -> Iterator[SentinelSet]:
    """Runs for a block."""
    servers = SentinelSet(**options)
    try:
        servers.start()
        yield servers
    finally:
        servers.remove()
