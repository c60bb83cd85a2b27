"""Laws of spans that are known when others are settled: nobody gains or loses by who is settled first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from joulegram_processor import native
from joulegram_processor.attribution import Columns, attribute
from joulegram_processor.attribution_cpu import MAX_CUTS, MAX_STRETCHES
from processor.compiled import COMPILED
from processor.test_attribution import Spec, by_number, columns, key, store_of, ticks, trees
from simulators.traces import tick

if TYPE_CHECKING:
    import pytest

    from joulegram_pipeline.energy import Tick
    from joulegram_processor.claims import Claims

KINDS = range(3)


def families(spans: list[Spec]) -> list[list[int]]:
    """The spans that hang together by parents: a trace is settled whole."""
    home = list(range(len(spans)))
    for _ in spans:
        for number, (_, _, parent, _) in enumerate(spans):
            if parent is not None and parent < len(spans):
                home[number] = home[parent] = min(home[number], home[parent])
    return [[at for at, first in enumerate(home) if first == each] for each in sorted(set(home))]


def with_cpu(spans: list[Spec], numbers: list[int], cpu_ns: dict[int, int]) -> Columns:
    made = columns(spans, numbers)
    made.cpu_ns = {at: cpu_ns[number] for at, number in enumerate(numbers) if number in cpu_ns}
    return made


def settled(
    made: list[Tick], spans: list[Spec], groups: list[list[int]], cpu_ns: dict[int, int]
) -> tuple[dict[bytes, tuple[int, int, int]], dict[int, Claims]]:
    """What each span gets where these are settled one after the other, all of them known from the beginning."""
    store = store_of(made)
    claimed: dict[int, Claims] = {}
    found: dict[bytes, tuple[int, int, int]] = {}
    for at, group in enumerate(groups):
        waiting = [number for later in groups[at + 1 :] for number in later]
        own = with_cpu(spans, group, cpu_ns)
        attribute(store, claimed, own, with_cpu(spans, waiting, cpu_ns))
        found |= by_number(own)
    return found, claimed


@given(ticks(), trees(), st.data())
@settings(max_examples=400, deadline=None)
def test_who_is_settled_first_is_nothing(made: list[Tick], spans: list[Spec], data: st.DataObject) -> None:
    """Issue 5: the same result for any order; each settlement may round a microjoule of each kind away in each tick."""
    groups = data.draw(st.permutations(families(spans)))
    together, _ = settled(made, spans, [list(range(len(spans)))], {})
    apart, _ = settled(made, spans, groups, {})
    most = len(groups) * (len(made) + 2 * len(spans) + 1)
    for name, own in together.items():
        assert all(abs(own[kind] - apart[name][kind]) <= most for kind in KINDS)
    for kind in KINDS:
        assert sum(own[kind] for own in apart.values()) == sum(own[kind] for own in together.values())


@given(ticks(), trees(), st.data())
@settings(max_examples=300, deadline=None)
def test_nothing_is_given_twice_whoever_says_its_cpu_time(
    made: list[Tick], spans: list[Spec], data: st.DataObject
) -> None:
    """Σ given + Σ left = Σ energy of the time claimed, whatever part of the spans says what it spent."""
    cpu_ns = data.draw(st.dictionaries(st.integers(0, len(spans) - 1), st.integers(0, 40)))
    found, claimed = settled(made, spans, data.draw(st.permutations(families(spans))), cpu_ns)
    store = store_of(made)
    for kind in KINDS:
        given_uj = sum(own[kind] for own in found.values())
        left_uj = sum(left[kind] for times in claimed.values() for *_, left in times.leftovers)
        whole = sum(
            store.energy(low, high, scope)[kind] for scope, times in claimed.items() for low, high in times.items
        )
        assert given_uj + left_uj == whole
        assert all(own[kind] >= 0 for own in found.values())


TWO_SECONDS = [tick(1, 0, 1000, cpu_uj=1_000_000), tick(2, 1000, 2000, cpu_uj=1_000_000)]
SHORT, LONG = (0, 1000, None, 0), (0, 2000, None, 0)


def test_a_span_that_ends_first_leaves_the_other_its_share() -> None:
    """Two traces share a second, the longer has another for itself: 0.5 J and 1.5 J, whoever is settled first."""
    for groups in ([[0], [1]], [[1], [0]], [[0, 1]]):
        found, claimed = settled(TWO_SECONDS, [SHORT, LONG], groups, {})
        assert [own[0] for own in found.values()] == [500_000, 1_500_000][:: 1 if groups[0][0] == 0 else -1]
        assert all(not times.leftovers for times in claimed.values())


def test_the_share_lies_where_both_are_open() -> None:
    """A span that is known, and open for the last tenth of the other, has half of that tenth and no more."""
    found, _ = settled(TWO_SECONDS, [SHORT, (900, 600, None, 0)], [[0], [1]], {})
    assert [own[0] for own in found.values()] == [950_000, 50_000 + 500_000]


def test_an_unrelated_span_changes_no_more_than_the_split_says() -> None:
    """Issue 5: one more of three takes a third of what the others have while it is open, from neither more."""
    before, _ = settled(TWO_SECONDS, [LONG, LONG], [[0], [1]], {})
    after, _ = settled(TWO_SECONDS, [LONG, LONG, SHORT], [[0], [2], [1]], {})
    assert [own[0] for own in before.values()] == [1_000_000, 1_000_000]
    assert sorted(own[0] for own in after.values()) == [333_334, 833_333, 833_333]


def test_who_comes_when_all_is_given_is_late_and_not_said_to_have_spent_nothing() -> None:
    """It gets nothing, and that is noted; who finds its own part left, or had no energy to get, is not late."""
    store = store_of(TWO_SECONDS)
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns([LONG], [0]), columns([LONG], [0]))
    other = columns([LONG], [0])
    attribute(store, claimed, other)
    assert (other.own[0], other.late) == ([1_000_000], set())
    late = columns([SHORT, (0, 3000, None, 0), (2500, 100, None, 0), (0, 0, None, 0)], [0, 1, 2, 3])
    attribute(store, claimed, late)
    assert (late.own[0], late.late) == ([0, 0, 0, 0], {0, 1})


def test_who_comes_where_there_was_nothing_to_get_is_not_late() -> None:
    """The tick had no energy: none of it was given to others."""
    store = store_of([tick(1, 0, 1000, cpu_uj=0), tick(2, 1000, 2000, cpu_uj=1_000_000)])
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns([LONG], [0]))
    late = columns([SHORT, (1000, 500, None, 0)], [0, 1])
    attribute(store, claimed, late)
    assert (late.own[0], late.late) == ([0, 0], {1})


def test_who_spent_less_than_a_microjoule_of_what_is_left_is_not_late() -> None:
    """Half of the tick is left; a nanosecond of its thousand is worth a tenth of a microjoule."""
    store = store_of([tick(1, 0, 1000, cpu_uj=100, busy_ns=1000, total_ns=1000)])
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, with_cpu([SHORT], [0], {0: 500}))
    late = with_cpu([SHORT], [0], {0: 1})
    attribute(store, claimed, late)
    assert (late.own[0], late.late) == ([0], set())


def test_more_that_wait_than_time_is_cut_for_share_what_there_is() -> None:
    """Beyond `MAX_CUTS` what is left is kept in even stretches: each is off by little, and what nobody got is left."""
    count = 2 * MAX_CUTS
    made = [tick(at + 1, at * 10**6, (at + 1) * 10**6, cpu_uj=10**9) for at in range(2)]
    spans: list[Spec] = [(0, 2 * 10**6, None, 0)]
    spans += [(at * 10**6 // count, 10**6, None, 0) for at in range(count)]
    everyone = range(len(spans))
    found, claimed = settled(made, spans, [[0], *([*everyone][at::3] for at in (1, 2, 3))], {})
    together, _ = settled(made, spans, [list(everyone)], {})
    left = sum(uj for times in claimed.values() for _, _, (uj, _, _) in times.leftovers)
    assert sum(own[0] for own in together.values()) == 2 * 10**9
    assert sum(own[0] for own in found.values()) + left == 2 * 10**9
    assert left < 10**6
    assert all(abs(own[0] - together[key][0]) <= together[key][0] // 20 for key, own in found.items())


def test_few_of_many_that_wait_get_what_lies_where_they_are_open() -> None:
    """Steps of 2 ms, far apart beside a long job: however many boundaries they have, each has half of its 2 ms."""
    for count in (MAX_CUTS // 2 - 1, MAX_CUTS, MAX_STRETCHES):
        made = [tick(1, 0, 10**6, cpu_uj=10**7)]
        width = 10**6 // count
        spans: list[Spec] = [(0, 10**6, None, 0)]
        spans += [(at * width + 100, 200, None, 0) for at in range(count)]
        found, claimed = settled(made, spans, [[0], [*range(1, count + 1)]], {})
        assert [own[0] for own in found.values()] == [10**7 - 1_000 * count] + [1_000] * count
        assert all(not times.leftovers for times in claimed.values())


def test_of_more_that_wait_the_widest_gaps_between_are_kept() -> None:
    """Beyond `MAX_STRETCHES` those closest to each other are one, which costs them what lies between."""
    count = 2 * MAX_STRETCHES
    made = [tick(1, 0, count * 1_000, cpu_uj=count * 10_000)]
    # In pairs, the two of a pair a hundredth of their length apart.
    spans: list[Spec] = [(0, count * 1_000, None, 0)]
    spans += [(at // 2 * 2_000 + at % 2 * 404, 400, None, 0) for at in range(count)]
    found, _ = settled(made, spans, [[0], [*range(1, count + 1)]], {})
    assert found.pop(key(0))[0] == count * 8_000
    assert all(2_000 * 0.98 < own[0] <= 2_000 for own in found.values())


def test_who_waited_and_has_less_than_a_microjoule_is_not_late() -> None:
    """A third of a thousandth of 100 uJ rounds to nothing; that it was known is kept. A stranger is late."""
    made = [tick(1, 0, 1000, cpu_uj=100), tick(2, 1000, 2000, cpu_uj=100)]
    spans: list[Spec] = [(0, 1000, None, 0), (500, 1, None, 0), (500, 1, None, 0)]
    store = store_of(made)
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns(spans, [0]), columns(spans, [1, 2]))
    for number, beside in ((1, [2]), (2, [])):
        known = columns(spans, [number])
        attribute(store, claimed, known, columns(spans, beside))
        assert (known.own[0], known.late) == ([0], set())
    stranger = columns([(500, 1, None, 0), (400, 10, None, 0)], [0, 1])
    attribute(store, claimed, stranger)
    assert stranger.late == {0, 1}


def test_who_waits_and_spent_nothing_keeps_nobodys_place() -> None:
    """A span that says it had no CPU time asks for nothing: who comes later beside it is late."""
    spans: list[Spec] = [LONG, LONG, SHORT]
    store = store_of(TWO_SECONDS)
    claimed: dict[int, Claims] = {}
    attribute(store, claimed, columns(spans, [0]), with_cpu(spans, [1], {1: 0}))
    late = columns(spans, [2])
    attribute(store, claimed, late)
    assert (late.own[0], late.late) == ([0], {0})


@COMPILED
def test_compiled_or_not_each_scope_is_told_apart_as_finely(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long span of the node does not change to whom a process's microjoules are rounded, nor does a compiler."""
    made = [tick(1, 0, 6400, cpu_uj=1_000_003, busy_ns=6400, total_ns=6400, processes={7: 3200})]
    spans: list[Spec] = [(0, 6400, None, 0), *((at, 100 - 3 * at, None, 7) for at in range(3))]
    waiting: list[Spec] = [*spans, (10, 2, None, 7), (50, 2, None, 7)]
    found = []
    for loaded in (native.LOADED, None):
        monkeypatch.setattr(native, "LOADED", loaded)
        store = store_of(made)
        claimed: dict[int, Claims] = {}
        own = columns(spans, [0, 1, 2, 3])
        attribute(store, claimed, own, columns(waiting, [4, 5]))
        found.append((own.own, {scope: times.dump() for scope, times in claimed.items()}))
    assert found[0] == found[1]
