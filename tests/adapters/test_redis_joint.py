"""One request on several nodes: every way in which they may answer."""

import itertools
from typing import Any

import pytest

from apigw.adapters.redis_joint import Joint
from apigw.core.window import UNKNOWN, Counted, Demand, Spread
from apigw.errors import CounterStoreDown

DEMANDS = [Demand("a", "rate:{a}", 9, 60), Demand("b", "rate:{b}", 9, 60), Demand("c", "rate:{c}", 9, 60)]
SPREAD: Spread = ((0, 0, 7, 5), (3, 0))
ANSWERS = [True, False, None]  # counted, exhausted, no word


@pytest.mark.parametrize("answers", list(itertools.product(ANSWERS, repeat=3)))
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_decided_when_all_have_said(answers: tuple[bool | None, ...], order: tuple[int, ...]) -> None:
    """Refused if any is exhausted, and then counted nowhere; without a word of some, the fail mode's, who may give
    back what was counted; else allowed."""
    given_back: list[Demand] = []
    joint = Joint(DEMANDS, given_back.append)
    heard: list[Any] = []
    joint.counted.addBoth(heard.append)
    for index in order:
        assert not heard
        answer = answers[index]
        if answer is None:
            joint.part(index).errback(CounterStoreDown(f"node {index}"))
        else:
            joint.part(index).callback(Counted(answer, [(5, 3, 5)], [] if answer else [SPREAD]))
    (outcome,) = heard
    counted = [index for index in range(3) if answers[index]]
    if False in answers:
        now = {True: (5, 2, 5), False: (5, 3, 5), None: (0, 0, 0)}
        assert outcome == Counted(
            False, [now[answer] for answer in answers], [SPREAD if answer is False else UNKNOWN for answer in answers]
        )
        assert given_back == [DEMANDS[index] for index in counted]
    elif None in answers:
        assert outcome.value.counted == tuple(counted) and not given_back
        assert str(outcome.value).startswith("node ")
    else:
        assert outcome == Counted(True, [(5, 3, 5)] * 3) and not given_back


def test_whoever_asked_may_be_gone() -> None:
    given_back: list[Demand] = []
    joint = Joint(DEMANDS[:2], given_back.append)
    joint.counted.addErrback(lambda _: None)
    joint.counted.cancel()
    joint.part(0).callback(Counted(True, [(0, 1, 0)]))
    joint.part(1).callback(Counted(False, [(0, 9, 0)]))
    assert given_back == DEMANDS[:1]
