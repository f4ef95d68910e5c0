"""How a verb says no: one sentence on standard error, with the place and the nearest right answer.

status 1   Refused: what was asked for cannot be, or did not happen
status 2   click.UsageError: the command line means nothing
"""

import sys
from collections.abc import Collection
from typing import Final

import click

from apigw.config.problems import Problems, shown

NAME: Final = "apigwctl"


class Refused(Exception):
    """The message is the whole sentence; it holds no secret."""


def nearest(word: str, names: Collection[str]) -> str:
    """`; did you mean 'orders'?`, or nothing."""
    meant = Problems().nearest(word, names)
    return "" if meant is None else f"; did you mean {shown(meant)}?"


def warn(sentence: str) -> None:
    """It happened, but not quite as it should."""
    print(f"{NAME}: {sentence}", file=sys.stderr)


def usage_sentence(error: click.UsageError) -> str:
    """What is wrong with a command line, and where its help is."""
    said = error.format_message().strip().rstrip(".")
    where = error.ctx.command_path if error.ctx is not None else NAME
    end = "" if said.endswith(("?", "?)")) else ";"
    return f"{said[:1].lower()}{said[1:]}{end} see {where} --help"
