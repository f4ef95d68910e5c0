"""What stands around the gateways: identity, backend, Redis, a temporary folder. One for a whole benchmark."""

import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import job
from identity import Identity
from processes import Process, free_port

REPOSITORY = Path(__file__).resolve().parent.parent
INTERPRETER = REPOSITORY / ".venv/bin/python"

_NGINX_BACKEND = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; default_type application/json; keepalive_timeout 600s; keepalive_requests 100000000;
  open_file_cache max=10 inactive=1h; open_file_cache_valid 1h;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    root {folder}/www;
    location / {{ rewrite ^ /answer.json break; add_header {header} $http_x_user_id always; }}
  }}
}}
"""


class World:
    """A context manager: everything is up inside it and gone after it."""

    def __init__(self, tokens: int = job.TOKENS) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="apigw-bench-"))
        self.identity = Identity(self.folder)
        self.tokens = [self.identity.token(f"user-{number}") for number in range(tokens)]
        self.backend_port = free_port()
        self.redis_port = free_port()
        self._processes: list[Process] = []

    def __enter__(self) -> Self:
        try:
            self._start_backend()
            self.redis = self._start_redis()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def subfolder(self, name: str) -> Path:
        """A new, empty folder for one process."""
        return Path(tempfile.mkdtemp(prefix=name + "-", dir=self.folder))

    def requests(self, port: int, path: str = job.PATH) -> list[str]:
        return [job.request(port, path, token) for token in self.tokens]

    def _start_backend(self) -> None:
        folder = self.subfolder("backend")
        (folder / "www").mkdir()
        (folder / "www/answer.json").write_bytes(job.answer_body())
        nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        if nginx:
            text = _NGINX_BACKEND.format(folder=folder, port=self.backend_port, header=job.SEEN_USER_HEADER)
            (folder / "nginx.conf").write_text(text)
            command = [nginx, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        else:
            command = [str(INTERPRETER), str(REPOSITORY / "bench/apps/backend.py"), str(self.backend_port)]
        backend = Process("backend", command, folder / "output.log")
        self._processes.append(backend)
        backend.wait_for_port(self.backend_port)

    def _start_redis(self) -> Process:
        server = shutil.which("redis-server")
        if server is None:
            raise SystemExit("the benchmark needs redis-server: apt-get install redis-server")
        folder = self.subfolder("redis")
        command = [server, "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        redis = Process("redis", command, folder / "output.log", cwd=folder)
        self._processes.append(redis)
        redis.wait_for_port(self.redis_port)
        return redis
