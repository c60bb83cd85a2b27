"""Certificate authorities and the leaf certificates they sign, made in memory and written as a pair of PEM files.

Keys are of P-256: made in a millisecond, and taken by every TLS library here.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificateIssuerPrivateKeyTypes,
        CertificatePublicKeyTypes,
    )


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with its key, as PEM."""

    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    def write(self, directory: Path, name: str = "tls") -> tuple[Path, Path]:
        """``<name>.crt`` and ``<name>.key``, each replaced in one step; the key is for its owner alone."""
        directory.mkdir(parents=True, exist_ok=True)
        cert, key = directory / f"{name}.crt", directory / f"{name}.key"
        for path, pem in ((cert, self.cert_pem), (key, self.key_pem)):
            new = path.with_suffix(".new")
            new.write_bytes(pem)
            new.chmod(0o600)
            new.replace(path)
        return cert, key


class Authority:
    """A certificate authority of a test.

    Args:
        name: its common name.
    """

    def __init__(self, name: str = "test authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        key_usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        self._cert = (
            _builder(self._name, self._name, self._key.public_key(), days=30)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = self._cert.public_bytes(serialization.Encoding.PEM)

    def write(self, path: Path) -> Path:
        """The authority's certificate at `path`, replaced in one step."""
        new = path.with_suffix(".new")
        new.write_bytes(self.pem)
        return new.replace(path)

    def issue(
        self,
        name: str = "localhost",
        *,
        days: float = 2,
        key: CertificateIssuerPrivateKeyTypes | None = None,
    ) -> Leaf:
        """A certificate for `name`, ``localhost`` and the loopback addresses, as server and as client.

        Args:
            name: its common name, by which a test tells two apart.
            days: until it expires; below 0 it has expired.
            key: for one that is not of P-256.
        """
        own = ec.generate_private_key(ec.SECP256R1()) if key is None else key
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in sorted({name, "localhost"})]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        cert = (
            _builder(_name(name), self._name, own.public_key(), days=days)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            cert.public_bytes(serialization.Encoding.PEM),
            own.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )


def common_name(cert_der: bytes | None) -> str:
    """The common name of a certificate as a TLS client got it."""
    assert cert_der is not None, "got no certificate"
    (attribute,) = x509.load_der_x509_certificate(cert_der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(attribute.value)


class MountedSecret:
    """A directory as Kubernetes mounts a secret: files are links through ``..data``, which one rename swaps.

    Args:
        directory: of the mount.
        files: names and their content.
    """

    def __init__(self, directory: Path, files: dict[str, bytes]) -> None:
        self._directory = directory
        self._version = 0
        directory.mkdir(parents=True, exist_ok=True)
        self.swap(files)
        for name in files:
            (directory / name).symlink_to(f"..data/{name}")

    def swap(self, files: dict[str, bytes]) -> None:
        """All files at once become these; the version before is deleted, as the kubelet does."""
        before = self._directory / f"..version{self._version}"
        self._version += 1
        version = self._directory / f"..version{self._version}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            (version / name).chmod(0o600)
        link = self._directory / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self._directory / "..data")
        if before.exists():
            for path in before.iterdir():
                path.unlink()
            before.rmdir()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: CertificatePublicKeyTypes, days: float
) -> x509.CertificateBuilder:
    end = datetime.now(UTC) + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=60))
        .not_valid_after(end)
    )
