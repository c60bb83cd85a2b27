"""Keys of scopes: what a resource names, what a tick counted, and when the two mean the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_processor.scopes import HOST, board_key, board_of, candidates, key_of

LONG = "3f4a9c0b" * 8
UID = "0f1e2d3c-4b5a-4697-8899-aabbccddeeff"

RESOURCES: dict[str, tuple[dict[str, Any], int | str]] = {
    "a number": ({"process.pid": 4242}, 4242),
    "digits": ({"process.pid": "4242"}, 4242),
    "none": ({}, HOST),
    "a truth": ({"process.pid": True}, HOST),
    "init, which everything descends from": ({"process.pid": 1}, HOST),
    "negative": ({"process.pid": -5}, HOST),
    "too large": ({"process.pid": 2**31}, HOST),
    "too many digits": ({"process.pid": "9" * 5000}, HOST),
    "other digits": ({"process.pid": "٤٢"}, HOST),
    "a fraction": ({"process.pid": 42.0}, HOST),
    "a container, whose process ids are its own": ({"process.pid": 42, "container.id": "abc"}, "container/abc"),
    "a pod": ({"process.pid": 42, "k8s.pod.uid": "u"}, "pod/u"),
    "a container of a pod": ({"container.id": "abc", "k8s.pod.uid": "u"}, "pod/u/container/abc"),
    "a container as Kubernetes writes it": ({"container.id": "containerd://abc"}, "container/abc"),
    "a container without a name": ({"process.pid": 42, "container.id": ""}, HOST),
    "a container that is a path": ({"process.pid": 42, "container.id": "a/b"}, HOST),
    "a pod that is a number": ({"process.pid": 42, "k8s.pod.uid": 7}, HOST),
    "a container that is too long": ({"container.id": "a" * 257}, HOST),
    "a container that is too long, of a pod": ({"container.id": "a" * 257, "k8s.pod.uid": "u"}, "pod/u"),
}


@pytest.mark.parametrize(("resource", "wanted"), RESOURCES.values(), ids=RESOURCES.keys())
def test_whom_a_resource_names(resource: dict[str, Any], wanted: int | str) -> None:
    """S0-06: a container before a pod before a process, and only what can be one of this node's."""
    assert key_of(resource) == wanted


SAME: dict[str, tuple[str, tuple[str, ...]]] = {
    "a container by its whole id": (f"container/{LONG}", ("container/" + LONG[:12],)),
    "a container by the short one": ("container/" + LONG[:12], ("container/" + LONG[:12],)),
    "in capitals": (f"container/{LONG.upper()}", ("container/" + LONG[:12],)),
    "an id that is no digest": ("container/task-1234567890-1", ("container/task-1234567890-1",)),
    "a container of a pod": (f"pod/{UID}/container/{LONG}", ("container/" + LONG[:12], "pod/" + UID.replace("-", ""))),
    "a pod": (f"pod/{UID}", ("pod/" + UID.replace("-", ""),)),
    "a static pod": ("pod/" + UID.replace("-", ""), ("pod/" + UID.replace("-", ""),)),
    "a board": ("board/abc", ("board/abc",)),
    "something else": ("unit/ssh.service", ()),
}


@pytest.mark.parametrize(("key", "wanted"), SAME.values(), ids=SAME.keys())
def test_where_a_key_may_be_counted(key: str, wanted: tuple[str, ...]) -> None:
    """The nearest first; an id counts the same however it is written."""
    assert candidates(key) == wanted


@pytest.mark.parametrize("text", ["GPU-4a1b", "gpu-4a1b", "4A1B"])
def test_a_span_names_a_board_by_its_uuid(text: str) -> None:
    """As NVML writes it, as the agent's domain is called, or bare."""
    assert board_of({"hw.id": text}) == board_key("gpu-4a1b") == "board/4a1b"


def test_a_span_without_a_board_names_none() -> None:
    """No attribute, an empty one, or one that is no text."""
    assert [board_of(values) for values in ({}, {"hw.id": ""}, {"hw.id": 0})] == [None] * 3


@given(st.dictionaries(st.sampled_from(["container.id", "k8s.pod.uid", "process.pid"]), st.text() | st.integers()))
def test_whatever_a_resource_says_has_a_key(resource: dict[str, Any]) -> None:
    """Any values: the host, a process, or a key that may be counted somewhere."""
    key = key_of(resource)
    assert candidates(key) if isinstance(key, str) else key >= HOST
