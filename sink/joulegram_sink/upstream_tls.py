"""TLS towards a destination: contexts that follow their files, and whether files changed."""

from __future__ import annotations

import logging
import ssl
from threading import Lock
from typing import TYPE_CHECKING

from joulegram_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from joulegram_sink.upstream_destination import Destination, Tls

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file when it was written, its size and which it is; None of one that is not there."""

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


class FollowedContext:
    """The context of a destination, made anew when its files were; the old one stays while the new ones are not whole.

    Args:
        destination: as errors and the log name it.
        tls: its files.
        alpn: what the server is asked to speak.

    Raises:
        ConfigError: as `client_context`.
    """

    def __init__(self, destination: Destination, tls: Tls, *alpn: str) -> None:
        self._destination = destination
        self._tls = tls
        self._alpn = alpn
        self._lock = Lock()
        self._stamp = stamp(tls.files)
        self._context = self._made()

    def get(self) -> ssl.SSLContext:
        """The context for the files as they are now; safe for threads."""
        if not self._tls.files:
            return self._context
        with self._lock:
            now = stamp(self._tls.files)
            if now != self._stamp:
                self._stamp = now
                try:
                    self._context = self._made()
                except ConfigError as error:
                    log.warning("destination %r keeps its TLS files as they were: %s", self._destination.name, error)
            return self._context

    def _made(self) -> ssl.SSLContext:
        context = client_context(self._tls, f"{self._destination.section}.tls")
        if self._alpn:
            context.set_alpn_protocols(list(self._alpn))
        return context
