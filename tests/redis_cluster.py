"""A Redis Cluster of masters and replicas, all real and on free ports, with a short time to fail over.

from tests.redis_cluster import ClusterSet, cluster_set
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apigw.core.cluster_slots import SLOTS
from tests.redis_sentinel import wait_for
from tests.servers import RedisServer, server_port

_OPTIONS = {
    "--cluster-enabled": "yes",
    "--cluster-require-full-coverage": "no",  # a part that is gone is no reason to refuse the others
    "--cluster-replica-validity-factor": "0",
    "--cluster-allow-replica-migration": "no",
    "--repl-diskless-sync-delay": "0",
    "--repl-ping-replica-period": "1",
}


class ClusterNode(RedisServer):
    """One node; `bus` is the port at which nodes talk to each other."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        self.bus = server_port()
        words = [word for pair in _OPTIONS.items() for word in pair]
        super().__init__(*words, "--cluster-port", str(self.bus), *arguments, **options)

    @property
    def id(self) -> str:
        return str(self.command("CLUSTER", "MYID").decode())


class ClusterSet:
    """masters, each with a third of the slots, and replicas: replicas[n] follows masters[n].

    password: of Redis; tls: as RedisServer has it, for all. url: for the gateway, with the password if there is one.
    """

    def __init__(
        self, replicas: bool = True, node_timeout_ms: int = 800, password: str = "", tls: Path | None = None
    ) -> None:
        auth = ("--requirepass", password, "--masterauth", password) if password else ()
        options: dict[str, Any] = {"credentials": (password,) if password else (), "tls": tls}

        def node() -> ClusterNode:
            return ClusterNode("--cluster-node-timeout", str(node_timeout_ms), *auth, **options)

        self.make = node
        self.masters = [node() for _ in range(3)]
        self.replicas = [node() for _ in range(3 if replicas else 0)]
        self.nodes = [*self.masters, *self.replicas]
        self._credentials = f":{password}@" if password else ""
        self._scheme = "redis+cluster" if tls is None else "rediss+cluster"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._credentials}{','.join(f'127.0.0.1:{node.port}' for node in self.masters[:2])}"

    def start(self) -> None:
        """Returns when each node takes the cluster for whole and the replicas have their copies."""
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.ready()
        share = -(-SLOTS // len(self.masters))
        for number, master in enumerate(self.masters):
            master.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            master.command("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, SLOTS) - 1)
        for node in self.nodes[1:]:
            self.meet(node)
        wait_for(lambda: all(self.knows(node) for node in self.nodes))
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.command("CLUSTER", "REPLICATE", master.id)
        wait_for(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in self.nodes))
        wait_for(lambda: all(replica.command("ROLE")[3] == b"connected" for replica in self.replicas))
        wait_for(lambda: all(self._whole(node) for node in self.nodes))

    def meet(self, node: ClusterNode) -> None:
        """The first node and this one get to know each other."""
        self.nodes[0].command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)

    def knows(self, node: ClusterNode) -> bool:
        return f"cluster_known_nodes:{len(self.nodes)}".encode() in node.command("CLUSTER", "INFO")

    def _whole(self, node: ClusterNode) -> bool:
        """Whether it knows the masters of all slots, and all replicas."""
        entries = node.command("CLUSTER", "SLOTS")
        replicas = sum(len(entry) - 3 for entry in entries)
        return replicas == len(self.replicas) and sum(last - first + 1 for first, last, *_ in entries) == SLOTS

    def master_of(self, slot: int) -> ClusterNode:
        """Who has the slot, as the first living node says."""
        for node in self.nodes:
            try:
                entries = node.command("CLUSTER", "SLOTS")
            except OSError:
                continue
            for first, last, (_, port, *_more), *_replicas in entries:
                if first <= slot <= last:
                    return next(one for one in self.nodes if one.port == port)
        raise AssertionError("nobody has it")

    # -- slots on their way

    def begin_move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: ClusterNode, target: ClusterNode, count: int = 100) -> int:
        """How many keys went."""
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 1000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        for node in (target, source):
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    def move(self, slot: int, source: ClusterNode, target: ClusterNode) -> None:
        """A slot with all its keys."""
        self.begin_move(slot, source, target)
        while self.move_keys(slot, source, target):
            pass
        self.end_move(slot, source, target)

    def remove(self) -> None:
        for node in self.nodes:
            node.remove()


@contextmanager
def cluster_set(**options: Any) -> Iterator[ClusterSet]:
    """Runs for a block."""
    servers = ClusterSet(**options)
    try:
        servers.start()
        yield servers
    finally:
        servers.remove()
