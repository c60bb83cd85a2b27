# The compiled module: what each function takes and gives. None is a refusal: the caller runs its own Python.

from collections.abc import Callable
from typing import Any

from joulegram_pipeline.records import LedgerLine
from joulegram_pipeline.span_rows import Row
from joulegram_processor.attribution_cpu import Part, Slab

VERSION: int

def extract(
    payload: bytes,
    exact: tuple[bytes, ...],  # names that select a span, UTF-8
    prefixes: tuple[bytes, ...],  # what a name that selects a span may begin with
    wanted: dict[bytes, str],  # span attributes that are read, by their keys in UTF-8
    attributes: frozenset[str],  # keys among them that select a span
    place: Callable[[dict[str, Any]], tuple[str | None, int | str]],  # run and scope by a resource's attributes
    run_of: Callable[[dict[str, Any]], str | None],  # the run a span's own attributes name
    /,
) -> (
    tuple[
        int,
        list[Row],
        list[int],
        list[str],
        list[int | str],
        dict[int, dict[str, Any]],
        dict[bytes, bytes],
        set[bytes],
        list[Row],
    ]
    | None
): ...  # the fields of an Extract, in order
def holds(payload: bytes, mark: bytes, /) -> bool: ...
def innermost(
    starts: list[int],  # ns
    ends: list[int],
    above: list[int | None],  # the index of each span's parent
    homes: list[int] | None,  # the process each is nested in; None where they are all in one
    /,
) -> bytes | None: ...  # the pieces, packed for `sweep`
def sweep(
    pieces: bytes,  # as `innermost` gave them
    scope: int,  # the spans of this home
    homes: list[int] | None,  # None where all are
    since: int,  # ns; a piece from before is refused
    taken: list[tuple[int, int]],  # time given already, sorted and disjoint
    rows: list[tuple[int, int, int, int, int]],  # start, end, and the scope's pots by kind in uJ
    starts: list[int],
    ends: list[int],
    keys: list[bytes],
    own: tuple[list[int], list[int], list[int]],  # of 0; what each span gets is put in, also before a refusal
    /,
) -> list[tuple[int, int]] | None: ...  # the time swept
def share(
    slabs: list[Slab],
    parts: list[Part],
    order: list[int],  # the spans of the parts, by index, each once
    kind: int,
    beside: list[Part],  # of spans that nobody asks for: what they get is nobody's yet
    /,
) -> tuple[list[int], list[int]] | None: ...  # uJ by span in this order, and by slab
def join(
    # mg/kWh, square_ppm of the interval, whether there is DRAM, whether attributes are wanted, g/kWh, the prefixes of
    # the doubles with the ratio among them, the texts by label, gas, basis, bound, method
    what: tuple[int, int, bool, bool, float, tuple[bytes, ...], tuple[bytes, ...], str, str, str, str],
    # energy by kind in uJ (cpu, cpu of descendants, dram, dram of descendants), then as in `ColumnJoiner.join`
    columns: tuple[
        list[int],
        list[int],
        list[int],
        list[int],
        list[bytes],  # parents
        list[int],  # labels
        list[Row],
        list[int],  # origins
        list[dict[str, Any]],  # extras
        list[str],  # runs
    ],
    ticks: list[tuple[int, int, int]],  # start, end and uJ of all pots, of the rows the spans lie in
    chosen: list[int],
    names: dict[str, tuple[str, str]],
    name: Callable[[str, dict[str, Any]], tuple[str, str]],
    run_texts: dict[str, str],  # by run, of all that are chosen
    lsn: int,
    ordinal: int,
    /,
) -> tuple[list[LedgerLine], list[bytes], list[int], list[int]] | None: ...
def splice(
    payload: bytes,
    chosen: list[int] | None,  # indices of spans, growing; None for all
    additions: list[bytes | None] | list[bytes],  # for each: what its end gains, or None to leave the span out
    /,
) -> bytes | None: ...
