"""Why runs end early: a loss is not finite, or a signal came. The second signal ends the program at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
            self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _asked(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        print(
            f"\n{signal.Signals(signum).name}: stopping after this tick, then saving; once more to exit at once",
            file=sys.stderr,
            flush=True,
        )
