"""A connection to Redis for one question: made, asked, closed. Nobody keeps it, so nobody has to watch it."""

from collections.abc import Callable, Sequence
from typing import Any

from hiredis import ReplyError
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as OutOfTime
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from apigw.adapters.redis_conversation import RedisConversation, Reply
from apigw.errors import StoreDown


def errand(
    connect: Callable[[Any], "Deferred[Any]"], clock: IReactorTime, commands: Sequence[bytes], timeout_s: float
) -> "Deferred[list[Reply]]":
    """The replies to `commands`. Fails with StoreDown: no connection, an error reply, not all within `timeout_s`."""
    done = Deferred.fromCoroutine(_run(connect, clock, commands))
    done.addTimeout(timeout_s, clock)
    return done.addErrback(_as_down, timeout_s)


async def _run(
    connect: Callable[[Any], "Deferred[Any]"], clock: IReactorTime, commands: Sequence[bytes]
) -> list[Reply]:
    conversation = RedisConversation(clock, lambda _: None, lambda _conversation, _reason: None)
    try:
        try:
            await connect(conversation)
        except CancelledError:
            raise
        except Exception as error:
            raise StoreDown(f"cannot connect: {error}") from None
        asked = gatherResults([conversation.ask(command) for command in commands], consumeErrors=True)
        replies: list[Reply] = await asked
    except FirstError as first:
        raise first.subFailure.value or first from None
    finally:
        conversation.drop("done")
    for reply in replies:
        if isinstance(reply, ReplyError):
            raise StoreDown(str(reply)[:200])
    return replies


def _as_down(failure: Failure, timeout_s: float) -> Failure:
    """All that can go wrong on the way is the same to who asked."""
    if failure.check(StoreDown):
        return failure
    kind = failure.trap(OutOfTime, CancelledError)
    raise StoreDown(f"no answer within {timeout_s:g} s" if kind is OutOfTime else "given up")
