"""The file of bearer tokens: which headers it lets in, how it is followed, and what is never said of it."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulegram_pipeline.errors import ConfigError
from joulegram_receiver.tokens import TokenFile
from simulators.token_files import FIRST, KEY, SECOND, bearer, tokens, write

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "text",
    [
        f"{FIRST}\n{SECOND}\n",
        f"# team a\n{FIRST}\n\n# team b\n  {SECOND}  ",
        f"{FIRST}\r\n{SECOND}\r\n",
        f"{SECOND}\n{FIRST}\n{FIRST}",
    ],
    ids=["one a line", "comments and blanks", "lines of Windows", "twice"],
)
def test_each_token_of_the_file_lets_in(tmp_path: Path, text: str) -> None:
    """Any of them, in any order, whatever else the file holds."""
    known = tokens(tmp_path, text)
    assert [known.refusal([bearer(token)]) for token in (FIRST, SECOND)] == [None, None]


HEADERS_THAT_DO: dict[str, str | bytes] = {
    "as the standard writes it": f"Bearer {FIRST}",
    "another case of the scheme": f"bEARER {FIRST}",
    "several spaces": f"Bearer   {FIRST} ",
    "bytes": f"Bearer {FIRST}".encode(),
}


@pytest.mark.parametrize("value", HEADERS_THAT_DO.values(), ids=HEADERS_THAT_DO)
def test_a_header_that_lets_in(tmp_path: Path, value: str | bytes) -> None:
    """RFC 6750 with what RFC 9110 allows around it."""
    assert tokens(tmp_path).refusal([value]) is None


HEADERS_THAT_DO_NOT: dict[str, tuple[list[str | bytes], str]] = {
    "none": ([], "got no authorization header, expected 'authorization: Bearer <token>'"),
    "an empty one": ([""], "of another form"),
    "a token without its scheme": ([FIRST], "of another form"),
    "another scheme": ([f"Basic {FIRST}"], "of another form"),
    "a scheme without a token": (["Bearer "], "of another form"),
    "two tokens": ([f"Bearer {FIRST} {SECOND}"], "of another form"),
    "two headers": ([bearer(FIRST), bearer(SECOND)], "of another form"),
    "a token that is not known": ([bearer("third")], "that is not known here"),
    "the beginning of one": ([bearer(FIRST[:-1])], "that is not known here"),
    "one with more at its end": ([bearer(FIRST + "x")], "that is not known here"),
    "another case": ([bearer(FIRST.upper())], "that is not known here"),
    "a line feed": ([f"Bearer {FIRST}\n"], "of another form"),
    "not ASCII": (["Bearer prüfung"], "of another form"),
    "bytes that are no text": ([b"Bearer \xff\xfe"], "of another form"),
    "a comment of the file": ([bearer("#")], "of another form"),
}


@pytest.mark.parametrize(("values", "expected"), HEADERS_THAT_DO_NOT.values(), ids=HEADERS_THAT_DO_NOT)
def test_a_header_that_does_not(tmp_path: Path, values: list[str | bytes], expected: str) -> None:
    """The answer says what was expected and repeats nothing that was sent."""
    refusal = tokens(tmp_path, f"# comment\n{FIRST}\n{SECOND}\n").refusal(values)
    assert refusal is not None
    assert expected in refusal
    assert FIRST not in refusal
    assert SECOND not in refusal


B64TOKEN = st.from_regex(r"\A[A-Za-z0-9\-._~+/]{1,40}={0,2}\Z")


@given(known=st.sets(B64TOKEN, min_size=1, max_size=5), asked=B64TOKEN)
def test_a_token_lets_in_if_and_only_if_it_is_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], asked: str
) -> None:
    """The law, for any tokens."""
    found = tokens(tmp_path_factory.mktemp("t"), "\n".join(known))
    assert (found.refusal([bearer(asked)]) is None) == (asked in known)
    assert all(found.refusal([bearer(each)]) is None for each in known)


def test_every_known_token_is_compared_whatever_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time tells neither where a token differs nor which one it is: digests, all of them, by compare_digest."""
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def count(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    known = tokens(tmp_path, f"{FIRST}\n{SECOND}\nthird\n")
    monkeypatch.setattr(hmac, "compare_digest", count)
    for asked in (FIRST, "third", "unknown", "x" * 4000):
        compared.clear()
        known.refusal([bearer(asked)])
        assert compared == [(32, 32)] * 3


BAD_FILES: dict[str, tuple[str | bytes, str, str]] = {
    "an empty file": ("", KEY, "one bearer token at least"),
    "comments alone": ("# nobody\n\n", KEY, "one bearer token at least"),
    "a token with a space": (f"{FIRST}\nhunter2 swordfish\n", f"{KEY}, line 2", "one bearer token: letters, digits"),
    "a token in quotes": ("'hunter2'\n", f"{KEY}, line 1", "one bearer token"),
    "a token with its header": ("Bearer: hunter2\n", f"{KEY}, line 1", "one bearer token"),
    "no text": (b"\x00\xffhunter2\n", f"{KEY}, line 1", "one bearer token"),
}


@pytest.mark.parametrize(("text", "key", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_at_the_start_is_a_config_error(tmp_path: Path, text: str | bytes, key: str, expected: str) -> None:
    """Key, path and line are quoted; the line is not."""
    with pytest.raises(ConfigError) as error:
        tokens(tmp_path, text)
    assert error.value.key == key
    assert expected in error.value.expected
    assert str(tmp_path / "tokens") in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_file_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{KEY}: got '{tmp_path}/none', expected a readable file of bearer tokens"):
        TokenFile(tmp_path / "none", KEY)


def test_tokens_are_rotated_without_a_restart(tmp_path: Path) -> None:
    """The new one lets in and the old one no longer, from the next request on."""
    known = tokens(tmp_path, FIRST)
    assert known.refusal([bearer(SECOND)])
    write(tmp_path, f"{FIRST}\n{SECOND}")
    assert (known.refusal([bearer(FIRST)]), known.refusal([bearer(SECOND)])) == (None, None)
    write(tmp_path, SECOND)
    assert known.refusal([bearer(FIRST)])
    assert known.refusal([bearer(SECOND)]) is None


def test_a_broken_new_file_keeps_the_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Empty, broken, gone: each is logged and counted once, without what it holds; nobody is locked out."""
    failures: list[None] = []
    known = tokens(tmp_path, FIRST, on_failure=lambda: failures.append(None))
    for count, text in enumerate(["", "hunter2 x", None], 1):
        if text is None:
            (tmp_path / "tokens").unlink()
        else:
            write(tmp_path, text)
        for _ in range(3):
            assert known.refusal([bearer(FIRST)]) is None
        assert len(failures) == count
    assert len([record for record in caplog.records if "stays in use" in record.message]) == 3
    assert "hunter2" not in caplog.text
    assert FIRST not in caplog.text


def test_a_file_that_all_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, with its mode; a stricter one is not."""
    tokens(tmp_path)
    assert caplog.text == ""
    (tmp_path / "tokens").chmod(0o644)
    TokenFile(tmp_path / "tokens", KEY)
    assert f"{KEY}: got '{tmp_path}/tokens' of mode 0644, which every user can read" in caplog.text


def test_no_token_stays_in_memory_to_be_printed(tmp_path: Path) -> None:
    """Digests alone."""
    known = tokens(tmp_path)
    assert FIRST.encode() not in b"".join(known._followed.current())
    assert FIRST not in repr(known) + repr(vars(known)) + repr(vars(known._followed))
