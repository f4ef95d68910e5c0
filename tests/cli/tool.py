"""apigwctl in the tests' own process: its status and what it printed."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from apigw.cli.main import main
from tests.servers import free_port

Sections = dict[str, Any]


@frozen
class Ran:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Tool:
    """apigwctl with a configuration of the test's; change `sections` before run()."""

    def __init__(self, folder: Path) -> None:
        self.main_file = folder / "apigw.yaml"
        self.sections: Sections = {
            "listeners": [{"address": "127.0.0.1", "port": 8080}],
            "admin": {"port": free_port()},  # where nobody answers: a gateway of this machine is not to be touched
            "auth": {"api_keys": {"database_url": f"sqlite:///{folder / 'keys.db'}"}},
            "rate_limits": {
                "tiers": [{"tier": "partner", "limit": 5, "window_seconds": 60, "per": "api_key"}],
            },
            "routes": [
                {
                    "route_id": "orders",
                    "pattern": "/orders/*",
                    "methods": ["GET"],
                    "backend_service": "self",
                    "auth_type": "api_key",
                    "required_scopes": ["orders:read"],
                }
            ],
        }

    def run(self, *arguments: str, stdin: str = "", write: bool = True) -> Ran:
        """`apigwctl --config FILE ARGUMENTS`. Never raises: a traceback is a defect, whatever the cause."""
        if write:
            self.main_file.write_text(yaml.safe_dump(self.sections))
        return run("--config", str(self.main_file), *arguments, stdin=stdin)

    def refused(self, *arguments: str, status: int = 1, write: bool = True) -> str:
        """The one sentence with which it says no."""
        ran = self.run(*arguments, write=write)
        assert ran.status == status, ran
        assert ran.out == "" and ran.err.startswith("apigwctl: ") and ran.err.count("\n") == 1, ran
        return ran.err


def run(*arguments: str, stdin: str = "") -> Ran:
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main(arguments)
    finally:
        sys.stdin = before
    return Ran(status, out.getvalue(), err.getvalue())
