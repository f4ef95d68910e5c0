"""apigw: an API gateway on Twisted.

The way of a request, by file:

    net/transport.py, net/tls.py   bytes in, decrypted
    edge/channel.py                one strict HTTP/1.1 request at a time, in order       400 408 431
    gateway.py                     the stages below, in order, composed as Resources
      stages/request_id.py         X-Request-ID and the trace context
      stages/canonical_path.py     one spelling of a path                                400
      stages/routing.py            the route of this snapshot                            404 405
      stages/...                   CORS, admission, authentication, rate limits, body    204 401 403 413 429 503
      upstream/proxy.py            a pooled connection to an instance, both directions   502 503 504
    edge/request.py                headers of the answer, then its body with backpressure
    edge/ledger.py                 after the answer: access log and metrics, each in its own guard
"""

__version__ = "0.1.0"
