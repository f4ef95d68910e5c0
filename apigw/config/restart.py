"""What a reload cannot change: it is read once, at the start of the process."""

from typing import Callable

from apigw.config.model import Config
from apigw.errors import ConfigurationError

_RESTART_ONLY: dict[str, Callable[[Config], object]] = {
    "gateway.instance_name": lambda config: config.gateway.instance_name,
    "gateway.workers": lambda config: config.gateway.workers,
    "gateway.state_dir": lambda config: config.gateway.state_dir,
    "admin": lambda config: config.admin,
    "redis": lambda config: config.redis,
    "rate_limits.store": lambda config: config.rate_limits.store,
    "access_log": lambda config: config.access_log,
    "config.source": lambda config: config.config.source,
    "config.poll_seconds": lambda config: config.config.poll_s,
}


def refuse_restart_only(old: Config, new: Config) -> None:
    """Raises ConfigurationError naming every key whose change needs a restart."""
    changed = [key for key, read in _RESTART_ONLY.items() if read(old) != read(new)]
    if changed:
        raise ConfigurationError(tuple(f"{key}: a change needs a restart, not a reload" for key in changed))
