"""What the file may say by its contract but this version cannot do. To build a feature is to delete its row."""

from typing import Callable, Iterator

from attrs import frozen

from apigw.config.parse import Draft

Use = tuple[object, str]  # a record and the key that asks for the feature


@frozen
class Unavailable:
    """`what` completes "WHAT: not available in this version"; `hint` says what to do instead."""

    what: str
    uses: Callable[[Draft], Iterator[Use]]
    hint: str = ""


def _workers(draft: Draft) -> Iterator[Use]:
    if draft.config.gateway.workers != 1:
        yield draft.config.gateway, "workers"


def _source(draft: Draft) -> Iterator[Use]:
    if draft.config.config.source != "files":
        yield draft.config.config, "source"


def _kafka(draft: Draft) -> Iterator[Use]:
    return ((sink, "type") for sink in draft.config.access_log.sinks if sink.type == "kafka")


def _websocket(draft: Draft) -> Iterator[Use]:
    return ((route, "websocket") for route in draft.config.routes if route.websocket)


ROWS = (
    Unavailable("workers other than 1", _workers, "leave it out or write 1"),
    Unavailable("a config.source other than files", _source),
    Unavailable("the access log sink kafka", _kafka, "use file or stdout"),
    Unavailable("websocket routes", _websocket),
)


def check_availability(draft: Draft, now_s: float) -> None:
    """One problem for each use of what this version has not."""
    for row in ROWS:
        hint = f"; {row.hint}" if row.hint else ""
        for record, key in row.uses(draft):
            draft.refuse(record, key, f"{row.what}: not available in this version{hint}")
