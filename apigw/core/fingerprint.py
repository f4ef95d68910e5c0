"""What a program looks like wherever it calls from: the key of tiers per fingerprint.

Note [What a fingerprint is]
  For bots that change their address with each request (design part 14). It is made of what a program says of itself
  without thinking of it: User-Agent, Accept, Accept-Language, Accept-Encoding, and the names of its headers in the
  order of its sending. It is no identity: all copies of one browser share it, and who reads this can change it with
  each request. Hence no address is in it, unless the tier asks for the network, and no credential ever is.
"""

from hashlib import sha256

from apigw.core.client_address import network_of
from apigw.exchange import ClientRequest


def fingerprint(request: ClientRequest, client_ip: str | None = None) -> str:
    """32 hex digits; 3 us for a browser's ten headers, the request's own bytes are the bound.

    client_ip: given when programs of different networks (IPv4 /24, IPv6 /48) are to count apart.
    """
    fields = request.fields
    parts = [fields.get(name, b"") for name in (b"user-agent", b"accept", b"accept-language", b"accept-encoding")]
    parts.append(b"" if client_ip is None else network_of(client_ip).encode("utf-8", "replace"))
    parts += [lower for _, lower, _ in request.headers]
    return sha256(b"\n".join(parts)).hexdigest()[:32]  # no value and no name has a newline
