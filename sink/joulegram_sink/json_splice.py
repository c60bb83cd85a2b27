"""Sets a member of an object in JSON text and leaves every other character as it was.

Invariants:
    * the text is checked whole, by the grammar of RFC 8259, before anything is changed; a key that stands
      twice in one object is refused, because readers differ in which of the two they believe;
    * setting the same member to the same value twice gives the same text as setting it once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from joulegram_pipeline.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MAX_DEPTH = 200


@dataclass(frozen=True, slots=True)
class Node:
    """A value in the text: where it begins and ends, and its members if it is an object."""

    start: int
    end: int
    members: dict[str, Member] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object: where its key begins and ends, and its value."""

    key_start: int
    key_end: int
    value: Node


def scan(text: str) -> Node:
    """Check a JSON text and find its objects' members. A byte order mark before it is let stand.

    Raises:
        DocumentError: quoting the place where the text is not JSON, a repeated key, or nesting beyond 200.
    """
    start = _skip(text, 1 if text.startswith("\ufeff") else 0)
    node = _value(text, start, 0)
    end = _skip(text, node.end)
    if end != len(text):
        raise _error(text, end, "the end of the text")
    return node


def set_member(text: str, path: Sequence[str], value: Any) -> str:
    """Set the member at `path`: its value is replaced whole, or it is added as the last of its object.

    Added text follows the layout around it: line ends, indentation and the space after colons.

    Args:
        text: a JSON text whose root is an object with members.
        path: keys from the root; all but the last name objects that are there.
        value: any JSON value.

    Raises:
        DocumentError: the text is not JSON, or an object on the path is missing.
    """
    root = scan(text)
    parent = find(text, root, path[:-1])
    layout = _layout(text, root, parent, len(path))
    key = path[-1]
    members = parent.members or {}
    if key in members:
        old = members[key].value
        return text[: old.start] + layout.value(value) + text[old.end :]
    member = f"{json.dumps(key, ensure_ascii=False)}:{layout.gap}{layout.value(value)}"
    if members:
        at = max(each.value.end for each in members.values())
        separator = layout.newline + layout.indent if layout.lines else layout.gap
        return f"{text[:at]},{separator}{member}{text[at:]}"
    at = parent.start + 1
    if layout.lines:
        inside = text[at : parent.end - 1]
        close = "" if "\n" in inside else layout.newline + layout.unit * (len(path) - 1)
        member = f"{layout.newline}{layout.indent}{member}{close}"
    return text[:at] + member + text[at:]


def find(text: str, root: Node, path: Sequence[str]) -> Node:
    """The object at `path`.

    Raises:
        DocumentError: there is none; the path and what stands there are quoted.
    """
    node = root
    for depth in range(len(path) + 1):
        if node.members is None:
            name = ".".join(path[:depth]) or "the document"
            found = text[node.start : node.end][:80]
            raise DocumentError(f"{name}: got {found!r}, expected an object", f"{name}: expected an object")
        if depth < len(path):
            member = node.members.get(path[depth])
            if member is None:
                raise DocumentError(f"{'.'.join(path[: depth + 1])}: got no such member, expected an object")
            node = member.value
    return node


@dataclass(frozen=True, slots=True)
class _Layout:
    """How text is written at one place: on lines of its own or not, and with which white space."""

    lines: bool
    newline: str
    indent: str
    unit: str
    gap: str

    def value(self, value: Any) -> str:
        try:
            if not self.lines:
                separators = ("," + self.gap, ":" + self.gap)
                return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=separators)
            written = json.dumps(
                value, ensure_ascii=False, allow_nan=False, indent=self.unit, separators=(",", ":" + self.gap)
            )
        except ValueError as error:
            raise DocumentError(f"got {value!r}, expected a value JSON can hold: {error}") from error
        return written.replace("\n", self.newline + self.indent)


def _layout(text: str, root: Node, parent: Node, depth: int) -> _Layout:
    """The layout for members of `parent`; a function of what never changes when they are set."""
    newline = "\r\n" if "\r\n" in text else "\n"
    first_of_root = min(root.members.values(), key=_key_start) if root.members else None
    gap = ""
    unit: str | None = None
    if first_of_root is not None:
        after_colon = text[first_of_root.key_end : first_of_root.value.start].partition(":")[2]
        gap = " " if after_colon else ""
        unit = _line_indent(text, root, first_of_root)
    if parent.members:
        indent = _line_indent(text, parent, min(parent.members.values(), key=_key_start))
    else:
        indent = None if unit is None else unit * depth
    return _Layout(
        lines=indent is not None,
        newline=newline,
        indent=indent or "",
        unit="  " if unit is None else unit,
        gap=gap,
    )


def _key_start(member: Member) -> int:
    return member.key_start


def _line_indent(text: str, parent: Node, first: Member) -> str | None:
    """White space before the first member on its line; None if it stands on the line of the brace."""
    _, feed, indent = text[parent.start + 1 : first.key_start].rpartition("\n")
    return indent if feed else None


def _value(text: str, at: int, depth: int) -> Node:
    if depth > _MAX_DEPTH:
        raise _error(text, at, f"nesting of at most {_MAX_DEPTH}")
    opening = text[at : at + 1]
    if opening == "{":
        return _object(text, at, depth)
    if opening == "[":
        return _array(text, at, depth)
    match = (_STRING if opening == '"' else _SCALAR).match(text, at)
    if match is None:
        raise _error(text, at, "a JSON value")
    return Node(at, match.end())


def _object(text: str, at: int, depth: int) -> Node:
    start = at
    members: dict[str, Member] = {}
    at = _skip(text, at + 1)
    if text.startswith("}", at):
        return Node(start, at + 1, members)
    while True:
        match = _STRING.match(text, at)
        if match is None:
            raise _error(text, at, "a key in quotes")
        key = json.loads(match.group())
        if key in members:
            raise _error(text, at, f"key {key!r} once in its object")
        colon = _skip(text, match.end())
        if not text.startswith(":", colon):
            raise _error(text, colon, "a colon")
        value = _value(text, _skip(text, colon + 1), depth + 1)
        members[key] = Member(at, match.end(), value)
        at = _skip(text, value.end)
        if text.startswith("}", at):
            return Node(start, at + 1, members)
        if not text.startswith(",", at):
            raise _error(text, at, "a comma or a closing brace")
        at = _skip(text, at + 1)


def _array(text: str, at: int, depth: int) -> Node:
    start = at
    at = _skip(text, at + 1)
    if text.startswith("]", at):
        return Node(start, at + 1)
    while True:
        at = _skip(text, _value(text, at, depth + 1).end)
        if text.startswith("]", at):
            return Node(start, at + 1)
        if not text.startswith(",", at):
            raise _error(text, at, "a comma or a closing bracket")
        at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _error(text: str, at: int, expected: str) -> DocumentError:
    line = text.count("\n", 0, at) + 1
    got = text[at : at + 40]
    return DocumentError(f"line {line}: got {got!r}, expected {expected}", f"line {line}: expected {expected}")
