"""A running gateway, asked at its admin listener. Raises Refused when nobody answers there."""

import http.client
import json
from typing import Any, Final

from attrs import frozen

from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 64 * 1024 * 1024  # /config of 100,000 routes
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens everywhere


@frozen
class Admin:
    """Where an admin listener is, as it is reached. `str` is HOST:PORT."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """The JSON object of a page of the gateway that has this configuration: /status, /config."""
    section = settings.main.admin
    return ask_at(Admin(_ANY.get(section.address, section.address), section.port), path)


def ask_at(admin: Admin, path: str) -> dict[str, Any]:
    """The same of the gateway that is there."""
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Refused(f"no gateway answers at its admin listener {admin}: {said}; is it running?") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Refused(f"the admin listener {admin} answers {path} with status {answer.status}")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if type(found) is not dict:
        raise Refused(f"what answers at {admin} is no admin listener of a gateway: {path} is no JSON object")
    return found
