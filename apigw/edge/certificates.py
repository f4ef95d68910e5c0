"""TLS contexts from certificate files: TLS 1.2 and later, the certificate chosen by SNI.

A context lives as long as its files' bytes: a reload that changes no certificate keeps it, and with it the
keys of its session tickets, so that clients resume across reloads.
"""

import hashlib
import ssl
from pathlib import Path

from cryptography import x509

from apigw.config.model import Certificate, TLSSection

_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}
# Mozilla's "intermediate" for TLS 1.2: forward secrecy and AEAD only; TLS 1.3 has its own list.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class Certified:
    """One certificate's context, the host names it is for, and its end of validity (epoch seconds)."""

    __slots__ = ("context", "names", "expires_s")

    def __init__(self, certificate: Certificate, min_version: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[min_version]
        context.set_ciphers(_CIPHERS)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["http/1.1"])
        # Without a password OpenSSL asks for one on the terminal, and the process waits.
        context.load_cert_chain(certificate.cert_file, certificate.key_file, password="")
        leaf = x509.load_pem_x509_certificate(certificate.cert_file.read_bytes())
        self.context = context
        self.names = _names(leaf)
        self.expires_s = leaf.not_valid_after_utc.timestamp()


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


class CertificateStore:
    """Keeps contexts by what they were made of: file bytes and TLS version. One store a worker."""

    def __init__(self) -> None:
        self._contexts: dict[bytes, Certified] = {}

    def serve(self, section: TLSSection, listener: str) -> "ServerNames":
        """Raises OSError or ssl.SSLError when a file cannot be used; nothing has changed then.

        `listener`: its "address:port"; contexts are not shared between listeners, which choose differently.
        """
        return ServerNames([self._certified(one, section.min_version, listener) for one in section.certificates])

    def _certified(self, certificate: Certificate, min_version: str, listener: str) -> Certified:
        material = b"\0".join(
            [listener.encode(), min_version.encode(), _digest(certificate.cert_file), _digest(certificate.key_file)]
        )
        known = self._contexts.get(material)
        if known is None:
            known = self._contexts[material] = Certified(certificate, min_version)
        return known

    def keep_only(self, in_use: "list[ServerNames]") -> None:
        """Forget the contexts that no listener serves any more."""
        used = {id(certified) for names in in_use for certified in names.certified}
        self._contexts = {key: value for key, value in self._contexts.items() if id(value) in used}


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


class ServerNames:
    """The certificates of one listener; the first is for clients that name no host or an unknown one."""

    def __init__(self, certified: list[Certified]) -> None:
        self.certified = certified
        self._by_name: dict[str, ssl.SSLContext] = {}
        for one in certified:
            for name in one.names:
                self._by_name.setdefault(name, one.context)
        self.default = certified[0].context

    def take_effect(self) -> None:
        """Choose by these names from now on. Apart from the making: the first context may be in use by older ones."""
        self.default.sni_callback = self._choose

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is None:
            return
        name = name.lower()
        context = self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
        if context is not None:
            connection.context = context
