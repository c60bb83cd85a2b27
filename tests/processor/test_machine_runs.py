"""Runs as the machine makes them of spans and control records: when they end, whose they are, what a late span does."""

from __future__ import annotations

from simulators.machine_node import OF_RUN, RUN, Node
from simulators.traces import T0, TRACE, S, span, trace_id


def test_a_run_is_ended_by_the_command_that_was_run() -> None:
    """A control record settles what waits of the run and ends it with the command's status."""
    node = Node()
    node.log.control("run.start", RUN, pid=11)
    node.log.traces(span(2, T0, T0 + S, parent=1), resource=OF_RUN | {"process.pid": 12})
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S, processes={11: S // 3})
    assert node.pids == {11}  # the run's process speaks for its spans
    node.log.control("run.end", RUN, status="error", ended_by="command_exit")
    node.feed()
    (run,) = node.runs
    assert (run.ended_by, run.status, run.energy_uj, run.energy_scope) == ("command_exit", "error", 300, "process")
    node.log.control("run.end", "run-unheard-of", status="ok")
    assert len(node.feed().runs) == 1


def test_a_process_that_is_forgotten_speaks_for_nobody() -> None:
    """After a `joulegram run` that was killed, later spans get the host's energy, not a dead process's nothing."""
    node = Node()
    node.log.control("run.start", RUN, pid=11, alone=True)
    node.tick(1, cpu_uj=900, busy_ns=S, total_ns=S, processes={11: S // 3})
    node.feed()
    assert node.machine.names_processes
    node.log.control("run.forget", RUN)
    node.log.traces(span(2, T0 + S, T0 + 2 * S), resource={"kfm.run_id": "run-next-0001"})
    node.tick(2, cpu_uj=900, busy_ns=S, total_ns=S)
    node.feed()
    assert not node.machine.names_processes
    assert node.lines[-1]["energy"]["scope"] == "host"
    assert node.lines[-1]["energy"]["total_uj"] == 900


def test_a_run_ends_when_nothing_comes_of_it_any_more() -> None:
    """Idle timeout in log time, which ticks alone drive on."""
    node = Node(max_wait_ns=S, run_idle_ns=10 * S)
    node.log.traces(span(2, T0, T0 + S, parent=1), resource=OF_RUN)
    node.tick(1).tick(10)
    assert node.runs == []
    node.tick(11)
    assert [(run.ended_by, run.status, run.revision) for run in node.runs] == [("idle_timeout", "unset", 1)]


def test_late_spans_make_a_revision() -> None:
    """Never a silent rewrite: after a quiet while a second revision has what came late, ended as the first was."""
    node = Node(run_quiet_ns=3 * S)
    node.log.traces(span(1, T0, T0 + S, name="etl.job", status=1), resource=OF_RUN)
    node.tick(1)
    node.log.traces(span(2, T0 + S, T0 + 2 * S, trace=trace_id(1)), resource=OF_RUN)
    node.tick(2).tick(4)
    assert [run.revision for run in node.runs] == [1]
    node.tick(5)
    first, second = node.runs
    assert (second.revision, second.ended_by, second.spans) == (2, first.ended_by, 2)
    assert (first.energy_uj, second.energy_uj) == (1_000_000, 2_000_000)
    assert second.recorded_ns > first.recorded_ns
    assert len(node.tick(20).runs) == 2


def test_spans_that_name_no_run_are_of_the_default_run() -> None:
    """`default_run`: unless span or resource names one."""
    node = Node(default_run="run-default-1")
    node.log.traces(span(1, T0, T0 + S), span(2, T0, T0 + S, attributes={"job.id": RUN}))
    node.log.traces(span(3, T0, T0 + S), resource={"kfm.run_id": "../etc/passwd"})
    node.tick(1)
    assert [line["run_id"] for line in node.lines] == ["run-default-1", RUN, "run-default-1"]


def test_a_trace_is_a_run_only_with_its_root() -> None:
    """Neither id nor `etl.job`: spans are joined, their run is the trace, and nothing is published of it."""
    node = Node(max_wait_ns=S, run_idle_ns=5 * S)
    node.log.traces(span(1, T0, T0 + S))
    node.log.traces(span(2, T0, T0 + S, name="etl.job", trace=trace_id(1)))
    node.tick(1).tick(50)
    assert [line["run_id"] for line in node.lines] == [TRACE.hex(), trace_id(1).hex()]
    assert [run.run_id for run in node.runs] == [trace_id(1).hex()]


def test_a_node_of_a_run_has_no_gpu_energy_where_none_was_read() -> None:
    """D-10: a run that had GPU energy once does not make a later node's missing one into nothing."""
    node = Node()
    node.log.traces(span(1, T0, T0 + S, name="etl.node.a"), resource=OF_RUN)
    node.tick(1, cpu_uj=5, gpu_uj=7)
    node.log.traces(span(2, T0 + S, T0 + 2 * S, name="etl.node.b"), resource=OF_RUN)
    node.tick(2)
    node.log.control("run.end", RUN)
    first, second = node.feed().runs[0].nodes
    assert (first.gpu_uj, second.gpu_uj) == (7, None)
