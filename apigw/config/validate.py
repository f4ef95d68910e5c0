"""What is wrong with a draft as a whole: the list of all checks. Each notes every problem it finds."""

from pathlib import Path
from typing import Callable

import attrs

from apigw.config.model import Config
from apigw.config.parse import Draft
from apigw.config.validate_availability import check_availability
from apigw.config.validate_certificates import check_certificates
from apigw.config.validate_discovery import check_discovery
from apigw.config.validate_listeners import check_listeners
from apigw.config.validate_names import check_duplicates, check_references
from apigw.config.validate_routes import check_routes
from apigw.config.validate_sections import check_backends, check_sections
from apigw.config.version import version_of

Check = Callable[[Draft, float], None]

CHECKS: tuple[Check, ...] = (
    check_sections,
    check_listeners,
    check_certificates,
    check_backends,
    check_discovery,
    check_duplicates,
    check_references,
    check_routes,
    check_availability,
)


def validate(draft: Draft, now_s: float) -> None:
    """Notes the draft's problems in `draft.problems`. `now_s`: epoch seconds, for dates and certificates.

    Reads the certificate, key and JWKS files that the draft names; waits for nothing else.
    """
    for check in CHECKS:
        check(draft, now_s)


def validated(draft: Draft, now_s: float, sources: tuple[Path, ...] = ()) -> Config:
    """The configuration of a draft in which nothing is wrong, with its version.

    Raises ConfigurationError with the problems of reading and of `validate`.
    """
    validate(draft, now_s)
    draft.problems.raise_if_any()
    config = attrs.evolve(draft.config, sources=sources)
    return attrs.evolve(config, version=version_of(config))
