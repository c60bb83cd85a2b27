"""A file of bearer tokens, written anew as a mount does it, and two tokens to put in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joulegram_receiver.tokens import TokenFile

if TYPE_CHECKING:
    from pathlib import Path


KEY = "receiver.protocols.http.auth.bearer_token_file"
FIRST, SECOND = "first-5f3a9c~token", "second+token/=="


def write(path: Path, text: str | bytes) -> Path:
    file = path / "tokens"
    new = path / "tokens.new"
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.chmod(0o600)
    return new.replace(file)


def tokens(path: Path, text: str | bytes = f"{FIRST}\n{SECOND}\n", **options: Any) -> TokenFile:
    return TokenFile(write(path, text), KEY, **{"reload_interval_s": 0.0} | options)


def bearer(token: str) -> str:
    return f"Bearer {token}"
