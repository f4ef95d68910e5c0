"""`apigwctl check`: is a configuration valid? As the daemon would judge it, and nothing is changed."""

import socket
import sys
import time
from pathlib import Path

import attrs
import click

from apigw.cli.settings import Settings
from apigw.cli.show import document, json_option
from apigw.config import files
from apigw.errors import ConfigurationError


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path), help="A main file; default: that of --config.")
@json_option
@click.pass_context
def check(context: click.Context, file: Path | None, as_json: bool) -> None:
    """Read and validate a configuration: every problem at once, with file, line and what was probably meant."""
    settings: Settings = context.obj
    main_file = file or settings.main_file
    try:
        config = files.load(main_file, hostname=socket.gethostname(), now_s=time.time())
    except ConfigurationError as error:
        if as_json:
            found = [attrs.asdict(problem) for problem in error.problems]  # type: ignore[arg-type]
            document({"valid": False, "version": None, "problems": found})
        else:
            print(error, file=sys.stderr)
        context.exit(1)
    if as_json:
        document({"valid": True, "version": config.version, "problems": []})
        return
    routes, backends = len(config.routes), len(config.backends)
    print(f"{main_file}: valid, version {config.version}, {routes} routes, {backends} backends")
