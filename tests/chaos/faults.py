"""The faults of the matrix and what clients may see of each: the contract (sections 4 and 8) as a table."""

from attrs import frozen

# What a client may get. A number is a status; CUT: the head came and the connection ended before the body did.
CUT = "cut"
OK, ERROR, BAD_GATEWAY, UNAVAILABLE, TIMEOUT = "200", "500", "502", "503", "504"
CODES = {BAD_GATEWAY: "bad_gateway", UNAVAILABLE: "service_unavailable", TIMEOUT: "upstream_timeout"}

ONE, ALL = "one of three", "all"
SCOPES = (ONE, ALL)


@frozen
class Fault:
    """`answers` besides 200 and 503, which may come with every fault: 200 of an instance that is well, or before or
    after; 503 of an open circuit or without a healthy instance.

    mode      what tests/chaos/instance.py is told; None: SIGSTOP
    seen      health checks fail too: soon the instance is out of rotation, and no client meets the fault
    flap_s    the fault comes and goes, for so long each
    slow_body a whole body may take longer than the route's timeout, since it moves
    """

    name: str
    mode: str | None
    answers: frozenset[str]
    seen: bool = True
    flap_s: float | None = None
    slow_body: bool = False


def _fault(name: str, mode: str | None, *answers: str, **more: bool | float) -> Fault:
    return Fault(name, mode, frozenset((OK, UNAVAILABLE, *answers)), **more)  # type: ignore[arg-type]


FAULTS = (
    _fault("refused", "refused", BAD_GATEWAY),
    _fault("blackholed", "blackholed", TIMEOUT),
    _fault("accepts and hangs", None, TIMEOUT),
    _fault("answers after timeout", "late", TIMEOUT),
    _fault("resets mid-body", "resets", BAD_GATEWAY, CUT, seen=False),
    _fault("garbage", "garbage", BAD_GATEWAY, CUT),
    _fault("half of requests 500", "half", ERROR, seen=False),
    _fault("flapping", "refused", BAD_GATEWAY, seen=False, flap_s=2.0),
    _fault("slow-drip body", "drip", CUT, TIMEOUT, seen=False, slow_body=True),
    _fault("FD exhaustion", "descriptors", TIMEOUT, BAD_GATEWAY),
)
# The gateway itself has no descriptor left: one row more, which has no instances to choose from.
GATEWAY = "the gateway"
GATEWAY_FAULT = _fault("FD exhaustion", "closing", BAD_GATEWAY, seen=False)
WARM_UP = _fault("answers slowly", "slow")  # no failure: no circuit opens
