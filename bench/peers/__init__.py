"""The gateways that are compared: one module each, all doing the job of job.py."""

from peers.apigw import Apigw
from peers.base import Missing, Peer, Running
from peers.envoy import Envoy
from peers.haproxy import Haproxy
from peers.nginx import Nginx
from peers.python import aiohttp, textbook

ALL: dict[str, Peer] = {
    peer.name: peer
    for peer in (Apigw(), Envoy(), textbook(), Haproxy(), Nginx(), aiohttp(), Envoy("envoy-cached", cached=True))
}
DEFAULT = ("apigw", "envoy", "textbook", "haproxy", "nginx+lua", "aiohttp")
QUICK = ("apigw", "envoy", "textbook")

__all__ = ["ALL", "DEFAULT", "QUICK", "Missing", "Peer", "Running"]
