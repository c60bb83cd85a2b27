"""Counts joined spans into their runs, one by one or a whole column at once."""

from __future__ import annotations

from operator import mul
from typing import TYPE_CHECKING, Any, TypeVar

from joulegram_pipeline.energy import Method
from joulegram_pipeline.span_rows import END, NAME, SPAN, START, STATUS, TRACE
from joulegram_processor.intensity.carbon import carbon_ug
from joulegram_processor.runs import MAX_NODES, MAX_PATH, MAX_TRACES, Run
from joulegram_processor.scopes import LABELS
from joulegram_processor.spans import NODE_PREFIX, ROOT_NAME, node_of, shortened, status_text

if TYPE_CHECKING:
    from joulegram_pipeline.span_rows import Row
    from joulegram_processor.attribution import Columns
    from joulegram_processor.join import Joined
    from joulegram_processor.join_columns import Portion

_Item = TypeVar("_Item")


class Tally:
    """Counts joined spans into their runs.

    Args:
        runs: by id; runs that are not there yet are added.
    """

    def __init__(self, runs: dict[str, Run]) -> None:
        self._runs = runs

    def add(
        self, spans: Columns, index: int, row: Row, run_id: str, extras: dict[str, Any], joined: Joined, log_ns: int
    ) -> None:
        """Count one span in."""
        own = (spans.own[0][index], spans.own[1][index], spans.own[2][index])
        run = self._run(run_id, log_ns, row[START], row[END])
        run.spans += 1
        run.cpu_uj += own[0]
        run.dram_uj += own[1]
        run.gpu_uj += own[2]
        run.kinds |= kinds_mask(joined.kinds)
        run.methods.add(joined.method)
        if joined.reason is not None:
            run.reasons.add(joined.reason)
        if joined.method != Method.UNAVAILABLE.value:
            run.scopes.add(joined.scope)
        if joined.exclusive_ug is not None:
            run.with_carbon += 1
            run.priced.add(f"{joined.method}/{joined.resolution}")
            run.carbon_ug += joined.exclusive_ug
            run.carbon_uj += sum(own)
            run.factor_weighted += sum(own) * joined.mg_per_kwh
            run.align_sq += joined.align_ug * joined.align_ug
            run.upper_bound = run.upper_bound or joined.upper_bound
        elif joined.carbon_reason is not None:
            run.carbon_reasons.add(joined.carbon_reason)
        energy = joined.line["energy"]
        self._describe(
            run,
            row,
            bool(spans.parents[index]),
            extras,
            (energy.get("cpu_uj"), energy.get("gpu_uj"), energy.get("total_uj"), joined.line["carbon"].get("ug")),
        )

    def add_columns(self, portion: Portion, carbons: list[int], aligns: list[int], log_ns: int) -> set[str]:
        """Count the spans of a portion in, with the figures they were joined with; returns the ids of their runs."""
        what, spans, chosen, runs = portion.uniform, portion.group.spans, portion.chosen, portion.group.runs
        by_run: dict[str, list[int]] = {}
        if len(set(runs[chosen[0] : chosen[-1] + 1])) == 1:
            by_run[runs[chosen[0]]] = list(range(len(chosen)))
        else:
            for at, index in enumerate(chosen):
                by_run.setdefault(runs[index], []).append(at)
        method, segment = what.window.method, what.segment
        for run_id, places in by_run.items():
            indices = [chosen[at] for at in places]
            cpu, dram, gpu = (sum(_taken(column, indices)) for column in spans.own)
            misaligned = _taken(aligns, places)
            run = self._run(run_id, log_ns, min(_taken(spans.starts, indices)), max(_taken(spans.ends, indices)))
            run.spans += len(indices)
            run.cpu_uj += cpu
            run.dram_uj += dram
            run.gpu_uj += gpu
            run.kinds |= kinds_mask(what.window.kinds)
            run.methods.add(method)
            run.scopes.update(LABELS[label] for label in set(_taken(spans.labels, indices)))
            run.with_carbon += len(indices)
            run.priced.add(f"{method}/{segment.resolution}")
            run.carbon_ug += sum(_taken(carbons, places))
            run.carbon_uj += cpu + dram + gpu
            run.factor_weighted += (cpu + dram + gpu) * segment.mg_per_kwh
            run.align_sq += sum(map(mul, misaligned, misaligned))
            run.upper_bound = run.upper_bound or segment.upper_bound
            self._describe_columns(run, portion, indices, _taken(carbons, places))
        return set(by_run)

    def _run(self, run_id: str, log_ns: int, start_ns: int, end_ns: int) -> Run:
        run = self._runs.get(run_id)
        if run is None:
            run = self._runs[run_id] = Run(run_id, log_ns, started_ns=start_ns, ended_ns=end_ns)
        run.changed_ns = log_ns
        run.started_ns = min(run.started_ns, start_ns)
        run.ended_ns = max(run.ended_ns, end_ns)
        return run

    def _describe_columns(self, run: Run, portion: Portion, indices: list[int], carbons: list[int]) -> None:
        """`_describe` for those spans that can tell a document something it does not know yet."""
        spans, rows, extras = portion.group.spans, portion.group.rows, portion.group.extras
        mg_per_kwh = portion.uniform.segment.mg_per_kwh
        if len(run.traces) < MAX_TRACES:
            for trace in dict.fromkeys(row[TRACE] for row in _taken(rows, indices)):
                self._trace(run, trace)
        begins = NODE_PREFIX if len(run.nodes) < MAX_NODES else ROOT_NAME
        telling = [
            (index, ug)
            for index, ug in zip(indices, carbons, strict=True)
            if extras[index] or (name := rows[index][NAME]).startswith(begins) or name == ROOT_NAME
        ]
        for index, ug in telling:
            row, extra = rows[index], extras[index]
            own = [column[index] for column in spans.own]
            kids = [column[index] for column in spans.kids]
            total = sum(own) + sum(kids)
            figures = (
                own[0] + kids[0],
                None,  # what is uniform has no GPU energy
                total,
                carbon_ug(total, mg_per_kwh) if any(kids) else ug,
            )
            self._describe(run, row, bool(spans.parents[index]), extra, figures)

    def _describe(
        self,
        run: Run,
        row: Row,
        has_parent: bool,
        extras: dict[str, Any],
        figures: tuple[int | None, int | None, int | None, int | None],
    ) -> None:
        """What documents say of single spans: nodes, the root, the Item."""
        self._trace(run, row[TRACE])
        node = node_of(row[NAME], extras)
        if node is not None and len(run.nodes) < MAX_NODES:
            run.nodes.append([node, row[TRACE].hex(), row[SPAN].hex(), str(row[START]), str(row[END]), *figures])
        if row[NAME] == ROOT_NAME and not has_parent:
            run.root = row[SPAN].hex()
            run.status = status_text(row[STATUS])
            run.ended_by = run.ended_by or "root_span"
            kind = extras.get("job.type")
            if isinstance(kind, str) and kind:
                run.job_type = shortened(kind)
        item = extras.get("kfm.stac_item")
        if isinstance(item, str) and 0 < len(item) <= MAX_PATH:
            run.stac_item = item

    @staticmethod
    def _trace(run: Run, trace: bytes) -> None:
        if len(run.traces) < MAX_TRACES:
            trace_id = trace.hex()
            run.traces.add(trace_id)
            run.is_trace = run.is_trace or trace_id == run.run_id


def _taken(column: list[_Item], indices: list[int]) -> list[_Item]:
    """Some of a column, by growing index; as a slice where they follow each other, which they mostly do."""
    first, last = indices[0], indices[-1] + 1
    if last - first == len(indices):
        return column[first:last]
    return list(map(column.__getitem__, indices))


def kinds_mask(kinds: tuple[bool, bool, bool]) -> int:
    """Kinds as bits, in the order of `KINDS`."""
    return kinds[0] | kinds[1] << 1 | kinds[2] << 2
