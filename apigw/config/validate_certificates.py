"""Certificates: readable, a pair, valid now, and fit for OpenSSL; all before a listener is touched."""

import ssl
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from apigw.config.model import Certificate
from apigw.config.parse import Draft
from apigw.config.reading import Unreadable, read_bounded

MAX_PEM_BYTES = 1_048_576


class _Unfit(Exception):
    """A file that cannot be used. The message completes "KEY PATH ..."."""


def check_certificates(draft: Draft, now_s: float) -> None:
    """Every pair of every listener, whatever is wrong with the others."""
    for listener in draft.config.listeners:
        if listener.tls is None or not draft.sound(listener, "tls"):
            continue
        for certificate in listener.tls.certificates:
            _check_pair(draft, certificate, now_s)


def _check_pair(draft: Draft, certificate: Certificate, now_s: float) -> None:
    chain, public = None, None
    try:
        chain = _chain(certificate.cert_file)
        _check_validity(chain, now_s)
    except (_Unfit, Unreadable) as error:
        draft.refuse(certificate, "cert_file", f"cert_file {certificate.cert_file} {error}")
    try:
        public = _public_of(certificate.key_file)
    except (_Unfit, Unreadable) as error:
        draft.refuse(certificate, "key_file", f"key_file {certificate.key_file} {error}")
    if not chain or public is None:
        return
    if _spki(public) != chain[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
        message = f"key_file {certificate.key_file} does not match the certificate in {certificate.cert_file}"
        draft.refuse(certificate, "key_file", message)
        return
    _check_usable(draft, certificate)


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _chain(path: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(read_bounded(path, MAX_PEM_BYTES))
        for certificate in chain:
            certificate.public_key(), certificate.not_valid_after_utc, certificate.not_valid_before_utc
        return chain
    except UnsupportedAlgorithm:
        raise _Unfit("has a key of an unsupported kind") from None
    except (ValueError, x509.InvalidVersion):
        raise _Unfit("is not a PEM certificate") from None


def _check_validity(chain: list[x509.Certificate], now_s: float) -> None:
    now = datetime.fromtimestamp(now_s, timezone.utc)
    for index, certificate in enumerate(chain):
        which = "" if index == 0 else f" (certificate {index + 1} of the chain)"
        if certificate.not_valid_after_utc < now:
            raise _Unfit(f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}{which}")
        if certificate.not_valid_before_utc > now:
            raise _Unfit(f"is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}{which}")


def _public_of(path: Path) -> PublicKeyTypes:
    try:
        return load_pem_private_key(read_bounded(path, MAX_PEM_BYTES), password=None).public_key()
    except TypeError:
        raise _Unfit("is encrypted; a daemon has nobody to ask for the password, store it without") from None
    except UnsupportedAlgorithm:
        raise _Unfit("has a key of an unsupported kind") from None
    except ValueError:
        raise _Unfit("is not a PEM private key") from None


def _check_usable(draft: Draft, certificate: Certificate) -> None:
    """OpenSSL has the last word: a key too short or a signature too weak for its security level."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate.cert_file, certificate.key_file)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        message = f"cert_file {certificate.cert_file} is refused by OpenSSL: {str(reason).replace('_', ' ').lower()}"
        draft.refuse(certificate, "cert_file", message)
