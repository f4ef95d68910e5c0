"""Which part of a Redis Cluster has a key, and what the cluster says of its parts. Pure.

A key belongs to one of 16384 slots: CRC16 (XMODEM) of its hash tag, which is what stands between its first "{" and
the "}" after it, or of the whole key where there is no tag or nothing in it (Redis Cluster specification).
"""

from binascii import crc_hqx
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

SLOTS: Final = 16_384
_MAX_TRIES: Final = 20 * SLOTS  # of finding a name whose slot is wanted; one in 500 million would take more

Place = tuple[str, int]  # host and port


class SlotRange(NamedTuple):
    """`master` has the slots first..last, both included; the replicas have copies."""

    first: int
    last: int
    master: Place
    replicas: tuple[Place, ...] = ()


def slot_of(key: str) -> int:
    """The slot of a key, 0..16383."""
    begin = key.find("{")
    if begin >= 0:
        end = key.find("}", begin + 1)
        if end > begin + 1:
            key = key[begin + 1 : end]
    return crc_hqx(key.encode("utf-8", "surrogatepass"), 0) % SLOTS


def tag_within(ranges: Sequence[SlotRange]) -> str | None:
    """A hash tag whose slot lies in one of `ranges`; None when there are none. About SLOTS / (their slots) tries."""
    wanted = [range(one.first, one.last + 1) for one in ranges]
    for number in range(_MAX_TRIES if wanted else 0):
        tag = f"probe-{number}"
        slot = crc_hqx(tag.encode("ascii"), 0) % SLOTS
        if any(slot in one for one in wanted):
            return tag
    return None


def read_slots(reply: Any, asked: Place) -> tuple[SlotRange, ...]:
    """What CLUSTER SLOTS answered, in the order of the slots. `asked`: who answered; a node that does not know its own
    host (no other has met it) is known by the one that we used. Raises ValueError for anything else.
    """
    if not isinstance(reply, list):
        raise ValueError("the map of the slots is no list")
    return tuple(sorted(_range(entry, asked) for entry in reply))


def read_info(reply: Any) -> tuple[bool, int]:
    """Of CLUSTER INFO: whether the node holds the cluster for whole, and the epoch that it knows of, which grows with
    every failover and every slot that has moved. Raises ValueError.
    """
    if not isinstance(reply, bytes):
        raise ValueError("what it says of the cluster is no text")
    facts = dict(line.split(b":", 1) for line in reply.split() if b":" in line)
    try:
        return facts[b"cluster_state"] == b"ok", int(facts[b"cluster_current_epoch"])
    except KeyError:
        raise ValueError("it does not say how the cluster is") from None


def _range(entry: Any, asked: Place) -> SlotRange:
    if not isinstance(entry, list) or len(entry) < 3:
        raise ValueError("an entry of the map of the slots is not (first, last, master ...)")
    first, last = entry[:2]
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < SLOTS):
        raise ValueError("an entry of the map of the slots has no such slots")
    master, *replicas = (_place(node, asked) for node in entry[2:])
    return SlotRange(first, last, master, tuple(replicas))


def _place(node: Any, asked: Place) -> Place:
    if not isinstance(node, list) or len(node) < 2:
        raise ValueError("a node of the map of the slots has no address")
    return _known(node[0] or b"", node[1], asked)


def _known(host: Any, port: Any, asked: Place) -> Place:
    if not isinstance(host, bytes) or not isinstance(port, int) or not 0 < port < 65_536:
        raise ValueError("a node of the map of the slots has no address")
    name = host.decode("ascii", "replace")
    if name == "?" or not name.isprintable() or len(name) > 253:
        raise ValueError("a node of the cluster has no usable host name")
    if not (name or asked[0]):
        raise ValueError("a node of the cluster is not said where")
    return name or asked[0], port


def read_redirection(error: str, asked: Place) -> tuple[int, Place]:
    """The slot and the node of "MOVED 3999 127.0.0.1:6381" or "ASK ...". Raises ValueError."""
    words = error.split()
    if len(words) != 3:
        raise ValueError("it does not say where to")
    host, _, port = words[2].rpartition(":")
    slot = int(words[1])
    if not 0 <= slot < SLOTS:
        raise ValueError("it names no slot")
    return slot, _known(host.encode(), int(port), asked)
