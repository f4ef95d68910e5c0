"""The running configuration as it may be shown: names and units of the file, no secrets (GET /config)."""

from typing import Any

from apigw.config.documents import MAIN_FILE
from apigw.config.model import Config


def redacted(config: Config) -> dict[str, Any]:
    """JSON-ready, with every default written out, so that it could be a main file again.

    Passwords and credentials in URLs are "***".
    """
    document: Any = MAIN_FILE.show(config)  # type: ignore[arg-type]  # has the attributes of a MainFile
    return {"version": config.version, "sources": [str(path) for path in config.sources], **document}
