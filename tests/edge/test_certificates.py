"""TLS contexts: what is offered, which certificate a name gets, and what a reload keeps."""

import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from apigw.config.model import Certificate, TLSSection
from apigw.edge.certificates import CertificateStore, ServerNames
from tests.edge.authority import certificate


def shake_hands(names: ServerNames, host: str | None, **client: Any) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """(client's, server's) ends of a handshake in memory. Raises ssl.SSLError as either side does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for name, value in client.items():
        if callable(getattr(context, name)):
            getattr(context, name)(value)
        else:
            setattr(context, name, value)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = context.wrap_bio(back, there, server_hostname=host)
    far = names.default.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        for end in (near, far):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return near, far


def subject(near: ssl.SSLObject) -> str:
    der = near.getpeercert(True)
    assert der is not None
    name = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    return name.removeprefix("CN=")


@pytest.fixture
def names(tmp_path: Path) -> ServerNames:
    certificates = (
        certificate(tmp_path, "first"),
        certificate(tmp_path, "api", "api.example.com", "www.example.com"),
        certificate(tmp_path, "any", "*.example.com"),
    )
    names = CertificateStore().serve(TLSSection(certificates), "127.0.0.1:8443")
    names.take_effect()
    return names


@pytest.mark.parametrize(
    ("host", "served"),
    [
        (None, "first"),
        ("unknown.org", "first"),
        ("api.example.com", "api"),
        ("API.Example.COM", "api"),
        ("www.example.com", "api"),
        ("other.example.com", "any"),
        ("a.b.example.com", "first"),
        ("example.com", "first"),
    ],
)
def test_the_certificate_is_chosen_by_the_name_that_the_client_asks_for(
    names: ServerNames, host: str | None, served: str
) -> None:
    near, _ = shake_hands(names, host)
    assert subject(near) == served


def test_only_http_1_1_is_offered(names: ServerNames) -> None:
    near, _ = shake_hands(names, "api.example.com", set_alpn_protocols=["h2", "http/1.1"])
    assert near.selected_alpn_protocol() == "http/1.1"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_versions_before_1_2_are_refused(names: ServerNames, version: ssl.TLSVersion) -> None:
    with pytest.raises(ssl.SSLError):
        shake_hands(names, None, minimum_version=version, maximum_version=version, set_ciphers="ALL:@SECLEVEL=0")


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA"])
def test_ciphers_without_forward_secrecy_or_authentication_are_refused(names: ServerNames, cipher: str) -> None:
    with pytest.raises(ssl.SSLError):
        shake_hands(names, None, maximum_version=ssl.TLSVersion.TLSv1_2, set_ciphers=cipher)


def test_a_listener_may_ask_for_1_3(tmp_path: Path) -> None:
    section = TLSSection((certificate(tmp_path, "first"),), min_version="TLSv1.3")
    names = CertificateStore().serve(section, "a")
    assert shake_hands(names, None)[0].version() == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        shake_hands(names, None, maximum_version=ssl.TLSVersion.TLSv1_2)


def test_a_reload_keeps_the_context_of_files_that_did_not_change(tmp_path: Path) -> None:
    """And with it the session tickets' keys: clients resume across reloads."""
    store = CertificateStore()
    section = TLSSection((certificate(tmp_path, "one"), certificate(tmp_path, "two")))
    before = store.serve(section, "a")
    certificate(tmp_path, "two")
    after = store.serve(section, "a")
    assert after.certified[0] is before.certified[0]
    assert after.certified[1] is not before.certified[1]
    assert store.serve(section, "b").certified[0] is not before.certified[0]
    store.keep_only([after])
    assert store.serve(section, "a").certified[1] is after.certified[1]


def test_the_end_of_validity_is_told_in_epoch_seconds(tmp_path: Path) -> None:
    names = CertificateStore().serve(TLSSection((certificate(tmp_path, "one"),)), "a")
    assert names.certified[0].expires_s == pytest.approx(time.time() + 86_400, abs=60)


def test_files_that_cannot_be_used_raise_and_change_nothing(tmp_path: Path) -> None:
    store = CertificateStore()
    good, other = certificate(tmp_path, "good"), certificate(tmp_path, "other")
    mixed = Certificate(good.cert_file, other.key_file)
    with pytest.raises(ssl.SSLError):
        store.serve(TLSSection((mixed,)), "a")
    with pytest.raises(OSError):
        store.serve(TLSSection((Certificate(tmp_path / "none.crt", tmp_path / "none.key"),)), "a")


def test_an_encrypted_key_is_an_error_not_a_question_on_the_terminal(tmp_path: Path) -> None:
    locked = certificate(tmp_path, "locked", password=b"secret")
    with pytest.raises((ssl.SSLError, OSError)):
        CertificateStore().serve(TLSSection((locked,)), "a")
