"""What a check costs that is refused because Redis is down.

from tests.adapters.refusal_cost import REFUSED_WITHIN_S, refusal_cost_s
"""

import time
from collections.abc import Callable
from typing import Any

from apigw.errors import CounterStoreDown

REFUSED_WITHIN_S = 5e-6  # microseconds, as it is promised
_BATCHES = 5  # the best one counts: the machine is others', too
_CHECKS = 2_000


def refusal_cost_s(check: Callable[[], Any]) -> float:
    """CPU seconds of one check, which raises CounterStoreDown each time."""
    return min(_batch_s(check) for _ in range(_BATCHES)) / _CHECKS


def _batch_s(check: Callable[[], Any]) -> float:
    refused = 0
    began_s = time.process_time()
    for _ in range(_CHECKS):
        try:
            check()
        except CounterStoreDown:
            refused += 1
    took_s = time.process_time() - began_s
    assert refused == _CHECKS
    return took_s
