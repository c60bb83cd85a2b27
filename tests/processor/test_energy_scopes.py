"""Containers, pods and boards: in the host's pot until a span names them, then a pot of their own."""

from __future__ import annotations

import json

import pytest

from joulegram_processor.energy_store import EnergyStore
from joulegram_processor.scopes import BY_CONTAINER, BY_HOST, BY_POD, BY_PROCESS, HOST
from simulators.traces import S, tick, tick_batch

BOX, POD = "3f4a9c0b" * 8, "0f1e2d3c-4b5a-4697-8899-aabbccddeeff"
IN_POD, OF_POD = f"pod/{POD}/container/{BOX}", f"pod/{POD}"


def nothing(scope: int, start_ns: int, end_ns: int) -> bool:
    """No energy was given to anybody."""
    del scope, start_ns, end_ns
    return False


def filled(rows: int = 3, *, lookback_s: int = 120) -> EnergyStore:
    """In each second 100 uJ: process 11 spent 10 %, the container 20 %, the rest of its pod 30 %, others 40 %."""
    store = EnergyStore(retention_ns=10**15, lookback_ns=lookback_s * S)
    for seq in range(1, rows + 1):
        add(store, seq)
    return store


def add(store: EnergyStore, seq: int) -> None:
    one = tick(
        seq,
        (seq - 1) * S,
        seq * S,
        cpu_uj=100,
        gpu_uj=1000,
        static_uj=0,
        busy_ns=1000,
        total_ns=2 * S,
        processes={11: 100},
        containers={IN_POD: 200, OF_POD: 300},
        on_gpu={0: 3, 11: 1},
    )
    store.add(tick_batch(one))


def pots(store: EnergyStore, *scopes: int) -> list[tuple[int, ...]]:
    """CPU energy of these scopes, row by row."""
    return [tuple(row.pot(scope)[0] for scope in scopes) for row in store.rows]


def test_what_nobody_names_is_the_hosts() -> None:
    """Containers take nothing from spans without a key until a span asks for them."""
    store = filled()
    assert pots(store, 11, HOST) == [(10, 90)] * 3
    assert store.scopes() == [HOST, 11]


def test_a_container_that_is_named_has_its_own_pot_from_before() -> None:
    """Also in the seconds before its first span came, and in those that follow."""
    store = filled()
    box = store.resolve("container/" + BOX[:12], nothing)
    add(store, 4)
    assert pots(store, HOST, 11, box) == [(70, 10, 20)] * 4
    assert store.resolve(IN_POD, nothing) == box
    assert [row.cpu_ns for row in store.rows] == [{HOST: 700, 11: 100, box: 200}] * 4
    assert store.label(box) == BY_CONTAINER


def test_a_pod_holds_its_containers_until_one_is_named() -> None:
    """Named first, the pod has all of it; then the container takes its own out again."""
    store = filled()
    pod = store.resolve(OF_POD, nothing)
    assert pots(store, HOST, pod) == [(40, 50)] * 3
    box = store.resolve(IN_POD, nothing)
    assert pots(store, HOST, pod, box) == [(40, 30, 20)] * 3
    assert [store.label(scope) for scope in (pod, box, 11, HOST)] == [BY_POD, BY_CONTAINER, BY_PROCESS, BY_HOST]


def test_a_container_no_tick_counted_is_in_its_pod() -> None:
    """The nearest that is known; where nothing is, the host."""
    store = filled()
    assert store.resolve(f"pod/{POD}/container/never-seen", nothing) == store.resolve(OF_POD, nothing) != HOST
    assert store.resolve("container/never-seen", nothing) == HOST


def test_a_board_is_its_own_without_what_processes_had_of_it() -> None:
    """1000 uJ, a quarter by a named process; the rest is the board's, for who names it."""
    store = filled()
    assert [row.pot(11)[2] for row in store.rows] == [250] * 3
    board = store.resolve("board/0", nothing)
    assert [(row.pot(board), row.host[2]) for row in store.rows] == [((0, 0, 750), 0)] * 3


def test_a_row_of_which_something_was_given_stays_whole() -> None:
    """The second row was given in part out of the host's pot: nothing of it is given twice."""
    store = filled()

    def given(scope: int, start_ns: int, end_ns: int) -> bool:
        return scope == HOST and start_ns < S + 5 and end_ns > S

    box = store.resolve(IN_POD, given)
    assert pots(store, HOST, box) == [(70, 20), (90, 0), (70, 20)]


def test_beyond_the_lookback_nothing_is_parted() -> None:
    """Rows older than it have forgotten who was in them."""
    store = filled(6, lookback_s=2)
    box = store.resolve(IN_POD, nothing)
    assert pots(store, box) == [(0,)] * 4 + [(20,)] * 2
    assert store.named_from[box] == 4 * S


def test_what_was_not_seen_for_the_lookback_is_forgotten() -> None:
    """A container that is gone is no scope any more for a span that names it now."""
    store = filled(2, lookback_s=2)
    for seq in range(3, 7):
        store.add(tick_batch(tick(seq, (seq - 1) * S, seq * S, cpu_uj=100, busy_ns=1, total_ns=2 * S)))
    assert store.resolve(IN_POD, nothing) == HOST


def test_a_restart_parts_the_same_rows() -> None:
    """From the snapshot and the archive: every row as it was, those that stayed whole among them."""
    store = filled(8, lookback_s=5)
    pod = store.resolve(OF_POD, lambda scope, start_ns, end_ns: start_ns == 6 * S)
    add(store, 9)
    box = store.resolve(IN_POD, lambda scope, start_ns, end_ns: scope == pod and start_ns == 5 * S)
    add(store, 10)
    again = EnergyStore(retention_ns=10**15, lookback_ns=5 * S)
    again.load_scopes(json.loads(json.dumps(store.dump_scopes())))
    for seq in range(1, 11):
        add(again, seq)
    assert again.rows == store.rows
    assert again.dump_scopes() == store.dump_scopes()
    assert pots(store, HOST, pod, box)[3:] == [
        (40, 50, 0),
        (40, 30, 20),
        (40, 50, 0),
        (70, 0, 20),
        (40, 30, 20),
        (40, 30, 20),
        (40, 30, 20),
    ]


@pytest.mark.parametrize("containers", [{IN_POD: 200}, {IN_POD: 200, OF_POD: 0}], ids=str)
def test_a_pod_that_spent_nothing_itself_has_no_pot(containers: dict[str, int]) -> None:
    """Once its only container took its own out, there is none, as if there had never been one."""
    ticks = [tick(1, 0, S, cpu_uj=100, static_uj=0, busy_ns=1000, total_ns=2 * S, containers=containers)]
    store, again = EnergyStore(retention_ns=10**15), EnergyStore(retention_ns=10**15)
    store.add(tick_batch(*ticks))
    pod = store.resolve(OF_POD, nothing)
    assert pots(store, HOST, pod) == [(80, 20)]
    box = store.resolve(IN_POD, nothing)
    assert [row.processes.keys() for row in store.rows] == [{box}]
    again.load_scopes(json.loads(json.dumps(store.dump_scopes())))
    again.add(tick_batch(*ticks))
    assert again.rows == store.rows
