"""TLS towards a destination: contexts for HTTP, credentials for gRPC, and whether their files changed."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    import grpc

    from joulegram_sink.upstream_destination import Tls

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file when it was written, its size and which it is; None of one that is not there."""

# OpenSSL knows the system's roots as a directory, gRPC wants them in one file.
_SYSTEM_ROOTS = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def stamp(paths: tuple[Path, ...]) -> Stamp:
    """What tells a file that was replaced from the one it was."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def client_context(tls: Tls, key: str) -> ssl.SSLContext:
    """A context that checks the server, against the system's roots or those of `ca_file`.

    Args:
        tls: its files are read.
        key: the section, as errors quote it.

    Raises:
        ConfigError: a file that cannot be read or is not PEM, or one of certificate and key alone.
    """
    if (tls.cert_file is None) != (tls.key_file is None):
        given, missing = ("cert_file", "key_file") if tls.key_file is None else ("key_file", "cert_file")
        path = tls.cert_file or tls.key_file
        raise ConfigError(f"{key}.{given}", str(path), f"{key}.{missing} beside it: a client needs both or neither")
    if tls.min_version not in _VERSIONS:
        raise ConfigError(f"{key}.min_version", tls.min_version, "1.2 or 1.3")
    try:
        context = ssl.create_default_context(cafile=None if tls.ca_file is None else str(tls.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{key}.ca_file", str(tls.ca_file), f"a readable PEM file of certificates ({error})"
        ) from error
    context.minimum_version = _VERSIONS[tls.min_version]
    if tls.cert_file is not None:
        try:
            # A callable, because without one an encrypted key would ask for its password at the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"{key}.cert_file",
                str(tls.cert_file),
                f"readable PEM files of a certificate and, in {str(tls.key_file)!r}, its unencrypted key ({error})",
            ) from error
    return context


def channel_credentials(tls: Tls, key: str) -> grpc.ChannelCredentials:
    """The same for gRPC.

    Raises:
        ConfigError: as `client_context`, or a `min_version` that gRPC cannot promise.
    """
    import grpc  # noqa: PLC0415 - as in upstream_transport

    client_context(tls, key)
    if tls.min_version != "1.2":
        raise ConfigError(
            f"{key}.min_version", tls.min_version, "1.2 for gRPC, whose library offers no other; or https://"
        )
    return grpc.ssl_channel_credentials(
        root_certificates=_roots(tls),
        private_key=None if tls.key_file is None else tls.key_file.read_bytes(),
        certificate_chain=None if tls.cert_file is None else tls.cert_file.read_bytes(),
    )


def _roots(tls: Tls) -> bytes | None:
    if tls.ca_file is not None:
        return tls.ca_file.read_bytes()
    for path in (ssl.get_default_verify_paths().cafile, *_SYSTEM_ROOTS):
        if path and Path(path).is_file():
            return Path(path).read_bytes()
    return None  # takes the roots that gRPC ships
