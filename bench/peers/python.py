"""The two gateways that a Python user would write: textbook Twisted, and aiohttp on uvloop; each in its environment."""

import json

import job
from environments import NotInstalled, environment
from identity import AUDIENCE, ISSUER
from processes import Process, free_port
from world import REPOSITORY, World

from peers.base import Missing, Running


class PythonPeer:
    """A program of bench/apps that reads apps/settings.py's Settings."""

    uses_redis = True
    notes = ""

    def __init__(self, name: str, environment_name: str, program: str) -> None:
        self.name = name
        self._environment = environment_name
        self._program = REPOSITORY / "bench/apps" / program

    def start(self, world: World) -> Running:
        try:
            interpreter = environment(self._environment) / "bin/python"
        except NotInstalled as error:
            raise Missing(str(error)) from error
        folder = world.subfolder(self.name)
        port = free_port()
        settings = {
            "port": port, "backend": f"http://127.0.0.1:{world.backend_port}", "redis_port": world.redis_port,
            "certificate_file": str(world.identity.certificate_file), "key_file": str(world.identity.key_file),
            "jwks_file": str(world.identity.jwks_file), "issuer": ISSUER, "audience": AUDIENCE,
            "access_log": str(folder / "access.log"), "prefix": job.PREFIX, "window_s": job.WINDOW_S,
            "limits": {"users": job.LIMIT, "limited": job.LIMITED},
        }  # fmt: skip
        (folder / "settings.json").write_text(json.dumps(settings))
        command = [str(interpreter), str(self._program), str(folder / "settings.json")]
        process = Process(self.name, command, folder / "output.log")
        process.wait_for_port(port)
        return Running(process, port, folder / "access.log")


def textbook() -> PythonPeer:
    return PythonPeer("textbook", "textbook", "textbook_gateway.py")


def aiohttp() -> PythonPeer:
    return PythonPeer("aiohttp", "aiohttp", "aiohttp_gateway.py")
