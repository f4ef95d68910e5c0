"""`apigwctl VERB`: the list of verbs, and the one place where what went wrong becomes a sentence and a status.

0   done                       also a read that found nothing
1   refused or failed          one sentence on standard error, never a traceback
2   wrong usage
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

import apigw
from apigw.cli.backends import backends
from apigw.cli.check import check
from apigw.cli.drain import drain
from apigw.cli.explain import explain
from apigw.cli.keys import keys
from apigw.cli.logs import logs
from apigw.cli.refusals import NAME, Refused, usage_sentence, warn
from apigw.cli.reload import reload
from apigw.cli.routes import routes
from apigw.cli.settings import Settings
from apigw.cli.status import status
from apigw.cli.tokens import tokens
from apigw.cli.usage import usage
from apigw.errors import ConfigurationError, StoreDown

DONE, FAILED, WRONG_USAGE = 0, 1, 2


@click.group(name=NAME, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(apigw.__version__, message=f"{NAME} %(version)s")
@click.option(
    "--config",
    "main_file",
    type=click.Path(path_type=Path),
    default=Path("/etc/apigw/apigw.yaml"),
    envvar="APIGW_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The gateway's main configuration file.",
)
@click.pass_context
def verbs(context: click.Context, main_file: Path) -> None:
    """What an operator does with a gateway by hand. Status: 0 done, 1 refused or failed, 2 wrong usage."""
    context.obj = Settings(main_file)


for verb in (status, routes, backends, explain, check, reload, drain, logs, usage, keys, tokens):
    verbs.add_command(verb)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status. `arguments` without the program's name; None: those of the process."""
    try:
        outcome = verbs.main(arguments, prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return WRONG_USAGE
    except click.UsageError as error:
        warn(usage_sentence(error))
        return WRONG_USAGE
    except click.ClickException as error:
        warn(error.format_message())
    except ConfigurationError as error:
        print(error, file=sys.stderr)
    except (Refused, StoreDown) as refused:
        warn(str(refused))
    except (click.Abort, KeyboardInterrupt):
        warn("stopped")
    except BrokenPipeError:  # `apigwctl logs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter's own flush at the end
    except OSError as error:
        warn(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except Exception as error:  # its words may hold anything, a secret too
        warn(f"a defect of apigwctl itself: {type(error).__name__} at {_place(error)}; please report it")
    return FAILED


def _place(error: BaseException) -> str:
    """FILE:LINE of ours where it was raised, or through which it came."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "apigw" in Path(frame.filename).parts] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


if __name__ == "__main__":
    sys.exit(main())
