"""Who is let in, and when those refused may come again."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_receiver.admission import Admission, Hold
from joulegram_receiver.intake_refusals import OverloadError

CAP = 1000


def test_bytes_are_held_and_given_back() -> None:
    """Held while the request is inside, whatever becomes of it."""
    gate = Admission(CAP)
    with gate.enter(600) as hold:
        hold.grow(300)
        assert gate.held_bytes == 900
    assert gate.held_bytes == 0
    with pytest.raises(ZeroDivisionError), gate.enter(5):
        raise ZeroDivisionError
    assert gate.held_bytes == 0


def test_above_the_cap_nobody_is_let_in() -> None:
    """Refused at once, in numbers; those inside are not touched."""
    gate = Admission(CAP)
    with gate.enter(600):
        with pytest.raises(OverloadError) as refusal:
            gate.enter(401)
        assert str(refusal.value) == (
            "600 bytes of requests are in flight, got 401 more, expected at most 1000 together; try again"
        )
        with pytest.raises(OverloadError):
            gate.check(401)
        with gate.enter(400):
            assert gate.held_bytes == CAP
    gate.check(401)


def test_one_request_alone_always_has_room() -> None:
    """Its size has a limit of its own; one that could never get in would be tried for ever."""
    gate = Admission(CAP)
    with gate.enter(CAP + 1):
        pass
    with gate.enter(1) as hold:
        hold.grow(CAP)
        assert gate.held_bytes == CAP + 1


def test_a_request_that_grows_beside_another_is_stopped() -> None:
    """What it held stays counted until it leaves."""
    gate = Admission(CAP)
    with gate.enter(500), gate.enter(0) as hold:
        hold.grow(500)
        with pytest.raises(OverloadError):
            hold.grow(1)
        assert gate.held_bytes == CAP
    assert gate.held_bytes == 0


def test_the_delay_grows_with_what_was_refused_and_falls_when_it_is_served() -> None:
    """From 1 s to 30 s, and back to 1 s when nobody is inside."""
    gate = Admission(CAP)
    delays = [gate.retry_after_s()]
    with gate.enter(CAP):
        for _ in range(8):
            with pytest.raises(OverloadError) as refusal:
                gate.enter(500)
            delays.append(refusal.value.retry_after_s)
    assert (delays[0], delays[-1]) == (1, 30)
    assert all(one <= other for one, other in pairwise(delays))
    assert len(set(delays)) > 4
    assert gate.retry_after_s() == 1


def test_what_was_not_served_will_return() -> None:
    """A disk that fails makes a debt of what it did not take."""
    gate = Admission(CAP)
    for _ in range(9):
        with gate.enter(500) as hold:
            hold.will_return()
    assert gate.retry_after_s() == 30
    with gate.enter(1):
        pass
    assert gate.retry_after_s() == 1


@pytest.mark.parametrize(("fullness", "delay_s"), [(0.0, 1), (0.25, 2), (0.5, 8), (0.75, 17), (1.0, 30), (7.0, 30)])
def test_the_delay_grows_with_the_backlog(fullness: float, delay_s: int) -> None:
    """Whatever is fuller, the receiver or what comes after it, counts."""
    assert Admission(CAP, lambda: fullness).retry_after_s() == delay_s


def test_a_full_backlog_lets_nobody_in() -> None:
    """Not even one alone: it would wait behind what is there."""
    full = [1.0]
    gate = Admission(CAP, lambda: full[0])
    with pytest.raises(OverloadError, match="no room for 7 more bytes") as refusal:
        gate.enter(7)
    assert refusal.value.retry_after_s == 30
    full[0] = 0.99
    with gate.enter(7):
        pass


@given(st.lists(st.tuples(st.booleans(), st.integers(0, CAP)), max_size=60))
def test_the_cap_holds(steps: list[tuple[bool, int]]) -> None:
    """Whoever comes and goes: the cap, or one request alone; and nothing is left behind."""
    gate = Admission(CAP)
    inside: list[Hold] = []
    for comes, size in steps:
        if comes or not inside:
            with contextlib.suppress(OverloadError):
                inside.append(gate.enter(size))
        else:
            inside.pop(size % len(inside)).__exit__(None, None, None)
        assert gate.held_bytes == sum(hold.size for hold in inside)
        assert gate.held_bytes <= CAP
        assert 1 <= gate.retry_after_s() <= 30
    for hold in inside:
        hold.__exit__(None, None, None)
    assert gate.held_bytes == 0


def test_the_age_is_that_of_the_oldest_inside() -> None:
    """Whoever came first and has not left, in whatever order they leave."""
    gate = Admission(CAP)
    assert gate.oldest_s() is None
    first, second = gate.enter(1), gate.enter(1)
    first.begun_s -= 20
    second.begun_s -= 10
    with second:
        with first:
            assert 20 <= (gate.oldest_s() or 0) < 30
        assert 10 <= (gate.oldest_s() or 0) < 20
    assert gate.oldest_s() is None
