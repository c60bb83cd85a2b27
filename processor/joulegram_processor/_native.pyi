# The compiled module: what each function takes and gives. None is a refusal: the caller runs its own Python.

from collections.abc import Callable
from typing import Any

from joulegram_pipeline.span_rows import Row

VERSION: int

def extract(
    payload: bytes,
    exact: tuple[bytes, ...],  # names that select a span, UTF-8
    prefixes: tuple[bytes, ...],  # what a name that selects a span may begin with
    wanted: dict[bytes, str],  # span attributes that are read, by their keys in UTF-8
    attributes: frozenset[str],  # keys among them that select a span
    place: Callable[[dict[str, Any]], tuple[str | None, int]],  # run and process by a resource's attributes
    run_of: Callable[[dict[str, Any]], str | None],  # the run a span's own attributes name
    /,
) -> (
    tuple[
        int,
        list[Row],
        list[int],
        list[str],
        list[int],
        dict[int, dict[str, Any]],
        dict[bytes, bytes],
        set[bytes],
        list[Row],
    ]
    | None
): ...  # the fields of an Extract, in order
