"""TLS of the listeners, from files that are followed: a new certificate is served without a restart.

Invariants:
    * what is in use was read whole: the files were the same before the read and after it;
    * a broken new version never replaces a good one, and is logged and counted once;
    * the key's bytes are in no message and no repr;
    * where `client_ca_file` is set, who has no certificate of that authority gets no connection.

A connection keeps the certificates it began with; what changes holds from the next handshake on.
"""

from __future__ import annotations

import logging
import ssl
import stat
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography import x509

log = logging.getLogger(__name__)

Value = TypeVar("Value")
MinVersion = Literal["1.2", "1.3"]

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_TRIES = 5
_DAY_S = 86_400.0


class Followed(Generic[Value]):
    """What was read from files, read again when they have changed; safe to ask from any thread.

    A file has changed when its device, inode, size or times have: a rename over it, a write into it, and the swap of a
    link on the way to it, which is how Kubernetes replaces a mounted secret.

    Args:
        paths: the files.
        read: their content, checked; raises ConfigError where it cannot be used.
        interval_s: how long the files are not looked at again.
        on_failure: called once for each new version that cannot be used.

    Raises:
        ConfigError: of `read`, for the version that is there at the start.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], Value],
        interval_s: float,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._interval_s = interval_s
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._tried = self._signature()
        self._value = self._read_whole()
        self._looked_s = time.monotonic()

    def current(self) -> Value:
        """The last version that could be used."""
        with self._lock:
            now_s = time.monotonic()
            if now_s - self._looked_s >= self._interval_s:
                self._looked_s = now_s
                self._look()
            return self._value

    def _look(self) -> None:
        if self._signature() == self._tried:
            return
        try:
            self._value = self._read_whole()
        except ConfigError as error:
            log.warning("%s; what was read before stays in use", error)
            if self._on_failure is not None:
                self._on_failure()
        else:
            log.info("read again, because changed: %s", ", ".join(str(path) for path in self._paths))

    def _read_whole(self) -> Value:
        # A read during a swap mixes two versions: it counts, good or bad, only if nothing moved meanwhile.
        for _ in range(_TRIES - 1):
            self._tried = self._signature()
            try:
                value = self._read()
            except ConfigError:
                if self._signature() == self._tried:
                    raise
            else:
                if self._signature() == self._tried:
                    return value
        self._tried = self._signature()
        return self._read()

    def _signature(self) -> tuple[tuple[int, ...] | None, ...]:
        found: list[tuple[int, ...] | None] = []
        for path in self._paths:
            try:
                now = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns))
        return tuple(found)


def warn_if_world_readable(path: Path, key: str) -> None:
    """Log a warning where every user of the machine can read a file that holds a secret."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # whoever reads it says so
    if mode & stat.S_IROTH:
        log.warning("%s: got %r of mode %04o, which every user can read, expected 0640 or less", key, str(path), mode)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a listener's certificates are, all PEM; names as in the Collector's configtls.

    Args:
        cert_file: the server's certificate, then the chain to its authority.
        key_file: its key, without a passphrase.
        client_ca_file: authorities whose clients are let in (mTLS); None asks clients for nothing.
        min_version: the oldest TLS that is spoken.
        reload_interval_s: how long the files are not looked at again.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    min_version: MinVersion = "1.2"
    reload_interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Material:
    """One version of the files, checked."""

    expires: datetime
    context: ssl.SSLContext


class Certificates:
    """The certificates of one listener.

    Args:
        files: where they are.
        key: the section of the configuration, for messages, as ``receiver.protocols.grpc.tls``.
        on_failure: called once for each new version of the files that cannot be used.

    Raises:
        ConfigError: a file cannot be read or is not what it should be; quotes key and path.
    """

    def __init__(self, files: TlsFiles, key: str, on_failure: Callable[[], None] | None = None) -> None:
        self._files = files
        self._key = key
        paths = [files.cert_file, files.key_file, *([files.client_ca_file] if files.client_ca_file else [])]
        self._followed = Followed(paths, lambda: _read(files, key), files.reload_interval_s, on_failure)
        warn_if_world_readable(files.key_file, f"{key}.key_file")
        if self.days_left() <= 0:
            log.warning("%s.cert_file: %s expired %.1f days ago", key, files.cert_file, -self.days_left())

    def days_left(self) -> float:
        """Days until the first certificate of the chain in use expires; below 0 where one has.

        It looks at the files as a handshake does, so that a scrape of this number tells of a broken version early.
        """
        return (self._followed.current().expires - datetime.now(UTC)).total_seconds() / _DAY_S

    def ssl_context(self, alpn: str = "http/1.1") -> ssl.SSLContext:
        """For a listener; each handshake is given the newest version, its client authorities included.

        Args:
            alpn: what is spoken there, as ALPN names it: ``http/1.1``, or ``h2`` for gRPC.
        """
        return _FollowingContext.of(self._followed, alpn)


class _FollowingContext(ssl.SSLContext):
    """Begins each connection in the newest version's own context.

    One context that takes new files in would not do: authorities can be added to it and none taken away, and its
    cache would let a client resume a session (TLS 1.2) that an authority since removed had vouched for.
    """

    _followed: Followed[_Material]
    _alpn: str

    @classmethod
    def of(cls, followed: Followed[_Material], alpn: str) -> _FollowingContext:
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._followed = followed
        context._alpn = alpn
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self._current().wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        return self._current().wrap_socket(*arguments, **options)

    def _current(self) -> ssl.SSLContext:
        context = self._followed.current().context
        context.set_alpn_protocols([self._alpn])
        return context


def _read(files: TlsFiles, key: str) -> _Material:
    # 7 MiB that a sidecar without TLS does not pay.
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
        load_pem_private_key,
    )

    cert_pem = _bytes(files.cert_file, f"{key}.cert_file")
    key_pem = _bytes(files.key_file, f"{key}.key_file")
    chain = _certificates(cert_pem, files.cert_file, f"{key}.cert_file")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    try:
        own = load_pem_private_key(key_pem, password=None).public_key().public_bytes(*form)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        expected = f"a PEM private key without a passphrase ({type(error).__name__})"
        raise ConfigError(f"{key}.key_file", str(files.key_file), expected) from None
    try:
        belongs = own == chain[0].public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm) as error:
        expected = f"a certificate of a key that is known ({error})"
        raise ConfigError(f"{key}.cert_file", str(files.cert_file), expected) from error
    if not belongs:
        expected = f"the key of the first certificate in {str(files.cert_file)!r}"
        raise ConfigError(f"{key}.key_file", str(files.key_file), expected)
    if files.client_ca_file is not None:
        client_ca_pem = _bytes(files.client_ca_file, f"{key}.client_ca_file")
        _certificates(client_ca_pem, files.client_ca_file, f"{key}.client_ca_file")
    try:
        context = _context(files)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{key}.cert_file", str(files.cert_file), f"a certificate TLS takes ({error})") from error
    return _Material(min(each.not_valid_after_utc for each in chain), context)


def _bytes(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(key, str(path), f"a readable PEM file ({error.strerror or error})") from error


def _certificates(pem: bytes, path: Path, key: str) -> list[x509.Certificate]:
    from cryptography import x509  # noqa: PLC0415 - as above

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(key, str(path), f"one PEM certificate or several ({error})") from error


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[files.min_version]
    context.load_cert_chain(files.cert_file, files.key_file)
    if files.client_ca_file is not None:
        context.load_verify_locations(cafile=files.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
