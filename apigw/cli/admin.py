"""The running gateway, asked at its admin listener. Raises Refused when nobody answers there."""

import http.client
import json
from typing import Any, Final

from apigw.cli.refusals import Refused
from apigw.cli.settings import Settings

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 64 * 1024 * 1024  # /config of 100,000 routes
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # where to reach what listens everywhere


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """The JSON object of a page: /status, /config."""
    section = settings.main.admin
    host = _ANY.get(section.address, section.address)
    where = f"[{host}]:{section.port}" if ":" in host else f"{host}:{section.port}"
    connection = http.client.HTTPConnection(host, section.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "application/json"})
        answer = connection.getresponse()
        body = answer.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Refused(f"no gateway answers at its admin listener {where}: {said}; is it running?") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise Refused(f"the admin listener {where} answers {path} with status {answer.status}")
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if type(found) is not dict:
        raise Refused(f"what answers at {where} is no admin listener of a gateway: {path} is no JSON object")
    return found
