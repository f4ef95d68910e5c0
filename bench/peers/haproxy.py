"""HAProxy from the distribution: one thread, tokens verified by its jwt_verify, the limiter a stick table."""

import shutil

import job
from identity import AUDIENCE, ISSUER
from processes import Process, free_port
from world import World

from peers.base import Missing, Running

# Braces of HAProxy are doubled for str.format. The access log is its standard output.
_CONFIGURATION = """
global
  nbthread 1
  expose-experimental-directives
  maxconn 4000
  tune.ssl.default-dh-param 2048
  ssl-default-bind-options ssl-min-ver TLSv1.2
  log stdout format raw local0

defaults
  mode http
  log global
  timeout client 75s
  timeout http-request 10s
  timeout http-keep-alive 75s
  timeout connect 1s
  timeout server 10s
  option http-keep-alive
  http-reuse always
  unique-id-format %{{+X}}o%ci%cp%Ts%rt%pid
  unique-id-header X-Request-ID

backend users_rate
  stick-table type string len 64 size 100k expire 2m store http_req_rate({window_s}s)
backend limited_rate
  stick-table type string len 64 size 100k expire 2m store http_req_rate({window_s}s)

frontend https
  bind 127.0.0.1:{port} ssl crt {bundle} alpn http/1.1
  http-request normalize-uri path-merge-slashes
  http-request normalize-uri path-strip-dotdot
  http-request set-var(txn.path) path
  http-request del-header X-User-ID
  http-request del-header X-User-Scopes
  http-request set-var(txn.token) http_auth_bearer
  http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')
  http-request return status 401 content-type application/json string '{{"error": "invalid_token"}}' unless {{ var(txn.alg) -m str RS256 }}
  http-request return status 401 content-type application/json string '{{"error": "invalid_token"}}' unless {{ var(txn.token),jwt_verify(txn.alg,"{public_key}") -m int 1 }}
  http-request set-var(txn.user) var(txn.token),jwt_payload_query('$.sub')
  http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
  http-request set-var(txn.now) date()
  http-request return status 401 content-type application/json string '{{"error": "invalid_token"}}' if {{ var(txn.exp),sub(txn.now) -m int lt -30 }}
  http-request return status 401 content-type application/json string '{{"error": "invalid_token"}}' unless {{ var(txn.token),jwt_payload_query('$.iss') -m str {issuer} }}
  http-request return status 401 content-type application/json string '{{"error": "invalid_token"}}' unless {{ var(txn.token),jwt_payload_query('$.aud') -m str {audience} }}
  acl users path_beg {prefix}/users/
  acl limited path_beg {prefix}/limited/
  http-request return status 404 content-type application/json string '{{"error": "route_not_found"}}' unless users or limited
  http-request track-sc0 var(txn.user) table users_rate if users
  http-request track-sc0 var(txn.user) table limited_rate if limited
  http-request return status 429 content-type application/json string '{{"error": "rate_limit_exceeded"}}' if users {{ sc_http_req_rate(0,users_rate) gt {limit} }}
  http-request return status 429 content-type application/json string '{{"error": "rate_limit_exceeded"}}' if limited {{ sc_http_req_rate(0,limited_rate) gt {limited} }}
  http-request set-header X-User-ID %[var(txn.user)]
  http-request set-header X-User-Scopes %[var(txn.token),jwt_payload_query('$.scope')]
  http-request del-header Authorization
  http-request replace-path {prefix}(/.*) \\1
  http-request set-header X-Forwarded-For %[src]
  http-request capture req.hdr(User-Agent) len 128
  log-format '{{"timestamp":"%t","request_id":"%ID","method":"%HM","path":"%[var(txn.path),json]","status":%ST,"client_ip":"%ci","user_agent":"%[capture.req.hdr(0),json]","user_id":"%[var(txn.user),json]","backend_service":"%b","backend_instance":"%si:%sp","total_latency_ms":%Ta,"upstream_latency_ms":%Tr,"request_bytes":%U,"response_bytes":%B,"error_type":"%ts"}}'
  default_backend backend

backend backend
  server one 127.0.0.1:{backend_port} pool-max-conn 100
"""


class Haproxy:
    name = "haproxy"
    notes = "limiter local, no Redis, no JWKS"
    uses_redis = False

    def start(self, world: World) -> Running:
        binary = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
        if binary is None:
            raise Missing("apt-get install haproxy")
        folder = world.subfolder(self.name)
        port = free_port()
        (folder / "haproxy.cfg").write_text(
            _CONFIGURATION.format(
                port=port,
                bundle=world.identity.bundle_file,
                public_key=world.identity.public_key_file,
                issuer=ISSUER,
                audience=AUDIENCE,
                prefix=job.PREFIX,
                limit=job.LIMIT,
                limited=job.LIMITED,
                window_s=job.WINDOW_S,
                backend_port=world.backend_port,
            )
        )
        log_file = folder / "output.log"
        process = Process(self.name, [binary, "-db", "-f", str(folder / "haproxy.cfg")], log_file)
        process.wait_for_port(port)
        return Running(process, port, log_file)
