"""What a verb works with: the configuration file that the daemon has, read as far as the verb needs it.

main     the main file: sections that say where things are. A team's file with an error does not stand in the way
         of revoking a key; an error in the main file does, since what it means is then a guess
whole    everything valid, as the daemon would want it
"""

import socket
import time
from functools import cached_property
from pathlib import Path

from apigw.cli.refusals import NAME, Refused
from apigw.config import files
from apigw.config.model import APIKeysSection, Config, RedisSection
from apigw.config.parse import Draft


class Settings:
    """The configuration of `--config`. Nothing is read until somebody asks."""

    def __init__(self, main_file: Path) -> None:
        self.main_file = main_file

    @cached_property
    def draft(self) -> Draft:
        """All files, not validated. Raises Refused when the main file has an error."""
        if not self.main_file.exists():
            raise Refused(f"{self.main_file} does not exist; --config FILE names another configuration")
        draft, _ = files.read_draft(self.main_file, hostname=socket.gethostname())
        wrong = [problem for problem in draft.problems.in_order() if problem.file == str(self.main_file)]
        if wrong:
            more = f"; and {len(wrong) - 1} more, see {NAME} check" if len(wrong) > 1 else ""
            raise Refused(f"{wrong[0]}{more}")
        return draft

    @property
    def main(self) -> Config:
        """The sections of the main file, and what else could be read. Raises Refused."""
        return self.draft.config

    @cached_property
    def whole(self) -> Config:
        """Raises ConfigurationError."""
        return files.load(self.main_file, hostname=socket.gethostname(), now_s=time.time())

    @property
    def complete(self) -> bool:
        """Whether every included file could be read: only then is a name that is not there wrong."""
        draft = self.draft
        return draft.complete and not draft.problems.found

    def redis(self, why: str) -> RedisSection:
        """Raises Refused where the configuration has no Redis, with `why` it is needed."""
        section = self.main.redis
        if section is None:
            raise Refused(f"{self.main_file} has no section redis: {why}")
        return section

    def api_keys(self) -> APIKeysSection:
        """Raises Refused where the configuration has no API keys."""
        section = self.main.api_keys
        if section is None:
            raise Refused(f"{self.main_file} has no section auth.api_keys, so there is no database of API keys")
        return section
