# The compiled module: `Watch` is that of cpu_watch.py, whose docstrings say what each method does.

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Self

from joulegram.cpu_account import ThreadState

VERSION: int

class Watch:
    def __new__(
        cls,
        variable: ContextVar[Any],
        key: str,
        running_loop: Callable[[], object],
        wall_ns: Callable[[], int] | None = None,
        cpu_ns: Callable[[], int] | None = None,
    ) -> Self: ...
    @property
    def key(self) -> str: ...
    def state(self) -> ThreadState: ...  # one of its own with the same attributes
    def forget(self) -> None: ...
    def attach(self, context: Any, /) -> Token[Any]: ...
    def detach(self, token: Token[Any], /) -> None: ...
    def change(
        self, state: ThreadState, here: Mapping[str, object] | None, there: Mapping[str, object] | None, /
    ) -> None: ...
    def begin(self, span: Any, /) -> None: ...
    def end(self, span: Any, /) -> int | None: ...
