"""nginx with its Lua module, as Kong and APISIX use it: token by luaossl, limiter in Redis, three commands in one write."""

import shutil
from pathlib import Path

import job
from identity import AUDIENCE, ISSUER
from processes import Process, free_port
from world import REPOSITORY, World

from peers.base import Missing, Running

_MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
_LUA_LIBRARIES = ("/usr/share/lua/5.1/openssl/pkey.lua", "/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so")

_CONFIGURATION = """
{modules}
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 12000; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_timeout 75s; keepalive_requests 100000000; default_type application/json;
  lua_package_path '{apps}/?.lua;;';
  lua_shared_dict metrics 1m;
  init_by_lua_block {{
    gateway = require("nginx_gateway").new{{
      public_key_file = "{public_key}", issuer = "{issuer}", audience = "{audience}", redis_port = {redis_port}, window_s = {window_s},
    }}
  }}
  log_format entry escape=json '{{"timestamp":"$time_iso8601","request_id":"$request_id","method":"$request_method",'
    '"path":"$request_uri","status":$status,"client_ip":"$remote_addr","user_agent":"$http_user_agent","user_id":"$user_id",'
    '"backend_service":"$proxy_host","backend_instance":"$upstream_addr","total_latency_ms":"$request_time",'
    '"upstream_latency_ms":"$upstream_response_time","request_bytes":$request_length,"response_bytes":$body_bytes_sent}}';
  access_log {folder}/access.log entry;
  upstream backend {{ server 127.0.0.1:{backend_port}; keepalive 100; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} ssl backlog=1024;
    ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
    set $user_id ''; set $user_scopes '';
    proxy_http_version 1.1; proxy_set_header Connection '';
    proxy_set_header X-User-ID $user_id; proxy_set_header X-User-Scopes $user_scopes; proxy_set_header Authorization '';
    proxy_set_header X-Request-ID $request_id; proxy_set_header X-Forwarded-For $remote_addr;
    log_by_lua_block {{ gateway.count() }}
    location {prefix}/users/ {{ access_by_lua_block {{ gateway.admit("users", {limit}) }} proxy_pass http://backend/users/; }}
    location {prefix}/limited/ {{ access_by_lua_block {{ gateway.admit("limited", {limited}) }} proxy_pass http://backend/limited/; }}
    location / {{ return 404 '{{"error": "route_not_found"}}'; }}
  }}
}}
"""


class Nginx:
    name = "nginx+lua"
    notes = "key from a file, no JWKS"
    uses_redis = True

    def start(self, world: World) -> Running:
        binary = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        modules = [_module(name) for name in _MODULES]
        if binary is None or None in modules or not all(Path(path).exists() for path in _LUA_LIBRARIES):
            raise Missing("apt-get install nginx libnginx-mod-http-lua lua-luaossl lua-cjson")
        folder = world.subfolder("nginx-lua")
        port = free_port()
        (folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                modules="".join(f"load_module {path};\n" for path in modules),
                folder=folder,
                port=port,
                apps=REPOSITORY / "bench/apps",
                public_key=world.identity.public_key_file,
                issuer=ISSUER,
                audience=AUDIENCE,
                redis_port=world.redis_port,
                window_s=job.WINDOW_S,
                backend_port=world.backend_port,
                certificate=world.identity.certificate_file,
                key=world.identity.key_file,
                prefix=job.PREFIX,
                limit=job.LIMIT,
                limited=job.LIMITED,
            )
        )
        command = [binary, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        process = Process(self.name, command, folder / "output.log")
        process.wait_for_port(port)
        return Running(process, port, folder / "access.log")


def _module(name: str) -> Path | None:
    return next(
        (
            path
            for path in map(Path, (f"/usr/lib/nginx/modules/{name}", f"/usr/share/nginx/modules/{name}"))
            if path.exists()
        ),
        None,
    )
