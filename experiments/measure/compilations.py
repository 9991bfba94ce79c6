"""Compilations: how many there are, and how long they take, while a piece of a program runs."""

from __future__ import annotations

import time
from types import TracebackType

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"
_EVENTS = (COMPILED, "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")


class Compilations:
    """Counts while it is entered as a context, whatever is compiled in this process.

    A function that comes out of JAX's persistent cache counts like any other, but takes less time.

    Attributes:
      count: how often XLA was asked for an executable: once for each function, device and set of shapes.
    """

    def __init__(self) -> None:
        self.count = 0
        self._spans: list[tuple[float, float]] = []

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    @property
    def seconds(self) -> float:
        """Spent on tracing, lowering and compiling; a function traced within another's tracing counts once."""
        total, reached = 0.0, float("-inf")
        for start, end in sorted(self._spans):
            total += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        return total

    def _hear(self, event: str, seconds: float, **details: str | int) -> None:
        if event in _EVENTS:
            end = time.perf_counter()
            self._spans.append((end - seconds, end))
            self.count += event == COMPILED
