"""What Redis knows of a run: whether the limiter really counted there."""

import re
import socket
from typing import Any

import hiredis


class RedisCount:
    """A blocking client with two questions, for the harness alone."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 5)
        self._reader = hiredis.Reader()

    def _command(self, *words: str) -> Any:
        self._socket.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65_536))
        return reply

    def clear(self) -> None:
        self._command("FLUSHALL")

    def counted(self) -> int:
        """The sum of all counters of users; 0 when the limiter does not keep them here. Spreads are no counters."""
        keys = [key.decode() for key in self._command("KEYS", "*user-*") if not key.startswith(b"spread")]
        return sum(int(value or 0) for value in self._command("MGET", *keys)) if keys else 0

    def script_calls(self) -> int:
        """Rate limit checks that Redis has answered so far."""
        found = re.search(rb"cmdstat_evalsha:calls=(\d+)", self._command("INFO", "commandstats"))
        return int(found[1]) if found else 0

    def close(self) -> None:
        self._socket.close()
