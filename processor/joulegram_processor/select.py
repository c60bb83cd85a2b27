"""Which spans are joined: by name pattern, or because they carry an attribute."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selector:
    """The spans joulegram joins; all others travel on untouched.

    Args:
        names: exact names, or a prefix followed by ``*``.
        attributes: attribute keys whose presence selects a span.
    """

    names: tuple[str, ...] = ("etl.job", "etl.*")
    attributes: tuple[str, ...] = ("kfm.node",)

    @property
    def exact(self) -> frozenset[str]:
        return frozenset(name for name in self.names if not name.endswith("*"))

    @property
    def prefixes(self) -> tuple[str, ...]:
        return tuple(name[:-1] for name in self.names if name.endswith("*"))
