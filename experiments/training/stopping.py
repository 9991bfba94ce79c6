"""Why runs end early: a loss is not finite, or a signal came. The second signal ends the program at once."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from types import FrameType, TracebackType

_HANG_UP = getattr(signal, "SIGHUP", None)  # the terminal went away, as where a connection is lost; not on Windows


class NonFiniteLoss(ArithmeticError):
    """The loss became NaN or infinite."""


class Stopped(Exception):
    """A run ended early, as it was asked to.

    Attributes:
      signum: the signal that asked.
    """

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def stopping_signals() -> list[int]:
    """Those that ask a run to stop. `nohup` has it go on when its terminal goes away."""
    hangs_up = _HANG_UP is not None and signal.getsignal(_HANG_UP) != signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([_HANG_UP] if hangs_up else [])]


def leave_terminal(signum: int) -> None:
    """After a hang-up, has nothing more written to a terminal, which would be an error."""
    for stream in (1, 2) if signum == _HANG_UP else ():
        if stat.S_ISCHR(os.fstat(stream).st_mode):  # no file and no pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class StopRequest:
    """Listens for the signals within a ``with`` statement; elsewhere they do what they did before.

    Attributes:
      signum: the signal that came, or ``None``.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python hands signals to no other
            self._before = {number: signal.signal(number, self._asked) for number in stopping_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for number in self._before:
            signal.signal(number, signal.SIG_DFL)
        leave_terminal(signum)
        print(
            f"\n{signal.Signals(signum).name}: stopping after this tick, then saving; once more to exit at once",
            file=sys.stderr,
            flush=True,
        )
