"""Experiments: flag-driven programs over importable functions."""

import signal
import sys

# A program begins (`python -m`) and has yet to load what it needs: until it can say more, Ctrl-C just ends it.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
