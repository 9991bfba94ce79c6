"""Kills processes that a test has started."""

from __future__ import annotations

import os
import pathlib
import signal

from jaxdecouple import asynchronous


class Killer:
    """Kills one process after another, each with its words in its command line, when the last one has been replaced."""

    def __init__(self, *words: str):
        self._words, self.killed = words, 0
        self._known: set[int] = set()  # processes like the last that was killed, at that time
        self._since = 0  # the outer iteration after which all of them were there

    def go_on(self, record: asynchronous.Record) -> None:
        """Kills the next one three outer iterations later, so that a checkpoint has what became of the last."""
        if self.killed == len(self._words):
            return
        if self.killed and self._known.issuperset(descendants(self._words[self.killed - 1])):
            self._since = record.outer
        elif record.outer >= self._since + 3:
            found = descendants(self._words[self.killed])
            os.kill(found[-1], signal.SIGKILL)
            self._known, self._since, self.killed = set(found), record.outer, self.killed + 1


def descendants(words: str) -> list[int]:
    """Processes of which this one is an ancestor, with these words in their command lines."""
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return sorted(pid for pid in parents if pid != os.getpid() and ours(pid) and words in _command(pid))


def _command(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
