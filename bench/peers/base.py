"""What a peer is to the benchmark."""

from pathlib import Path
from typing import Protocol

from processes import Process
from world import World


class Missing(Exception):
    """The peer cannot run here; the text says what to install."""


class Running:
    """A started peer. `access_log` has one JSON object a line."""

    def __init__(self, process: Process, port: int, access_log: Path) -> None:
        self.process = process
        self.port = port
        self.access_log = access_log


class Peer(Protocol):
    name: str
    notes: str  # where its job differs from the full one
    uses_redis: bool

    def start(self, world: World) -> Running:
        """Starts it and waits until it listens. Raises Missing, StartFailed."""
        ...
