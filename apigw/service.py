"""`twistd apigw --config FILE`: the options and the service tree, in start order.

Importing this module installs the lean reactor, unless one is installed already; twistd imports it before
it asks for a reactor. No other module imports the reactor.
"""

import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.python import usage

import apigw
from apigw.config.model import Config
from apigw.errors import ConfigurationError
from apigw.net import reactor as lean
from apigw.supervisor import apart

if "twisted.internet.reactor" not in sys.modules:
    lean.install()

from twisted.internet import reactor  # noqa: E402
from twisted.internet.protocol import Factory  # noqa: E402

from apigw.net.names import Names  # noqa: E402
from apigw.worker import Worker  # noqa: E402

_reactor: Any = reactor  # which is a module to a type checker
_reactor.installNameResolver(Names(_reactor))


class Options(usage.Options):
    """The command line of the daemon; everything else stands in the configuration file."""

    optParameters = [["config", "c", "/etc/apigw/apigw.yaml", "The main configuration file."]]
    longdesc = f"apigw {apigw.__version__}, an API gateway. Signals: HUP reloads, USR1 reopens logs, TERM drains."

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"apigw {apigw.__version__}")
        raise SystemExit(0)


def load(main_file: Path) -> Config:
    """The configuration of the files as they are now. Raises ConfigurationError with every problem."""
    return apart.load(main_file, hostname=socket.gethostname(), now_s=time.time())


def makeService(options: Options) -> MultiService:
    """The service tree. A bad configuration ends the process with status 1 and its problems on stderr."""
    main_file = Path(options["config"]).absolute()
    for number in (signal.SIGHUP, signal.SIGUSR1):  # until the worker handles them: either kills by default
        signal.signal(number, signal.SIG_IGN)
    Factory.noisy = False  # else every health check writes two lines, when its connection starts and stops
    try:
        config = load(main_file)
        worker = Worker(reactor, main_file, config, load, time.time)
    except ConfigurationError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        print(f"apigw cannot start: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    service = MultiService()
    service.setName("apigw")
    worker.setServiceParent(service)
    return service
