"""The frame of a program: what every one of them does with flags, wrong settings, progress, pipes and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging
from tqdm import tqdm

from experiments.report.workdir import Workdir
from experiments.training.progress import NonFiniteLoss
from experiments.training.stopping import Stopped
from jaxdecouple.asynchronous import ServerLost, WorkersLost

SECONDS = 10  # between two lines on the progress, where it is not a terminal that shows it

_FREE_SPACE = "free some space, and give the same command again"
_HINTS = {errno.ENOSPC: _FREE_SPACE, errno.EDQUOT: _FREE_SPACE, errno.EFBIG: _FREE_SPACE}
_HINTS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow this user to use it, or write another path")
_HINTS |= {errno.ENAMETOOLONG: "write a shorter path"}


def start(main: Callable[[list[str]], object]) -> None:
    """Runs a program, whose --help shows its flags, wherever they are defined; absl shows the main module's alone."""
    for module, defined in list(flags.FLAGS.flags_by_module_dict().items()):
        if module.startswith("experiments."):
            for flag in defined:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main)


def define_workdir() -> None:
    """The flags that say where results go."""
    flags.DEFINE_string("workdir", "", "directory for the results, new or empty; empty: a new one below runs/")
    flags.DEFINE_bool("overwrite", False, "replace the run that the workdir holds: delete the files that it lists")


def workdir(name: str, **inputs: str) -> pathlib.Path:
    """The directory that the flags name, or a new one, ``runs/name``.

    Args:
      name: of a new one.
      **inputs: by the names of their flags, files that the program will read.

    Raises:
      ValueError: it is in use.
    """
    path = pathlib.Path(flags.FLAGS.workdir).expanduser() if flags.FLAGS.workdir else Workdir.unused(f"runs/{name}")
    Workdir.check(path, overwrite=flags.FLAGS.overwrite, inputs=inputs)
    return path


def bar(total: int, unit: str, initial: int = 0) -> tqdm:
    """Shows progress: a bar on a terminal, elsewhere a line every few seconds."""
    settings = {"total": total, "unit": unit, "initial": initial, "leave": False}
    if sys.stderr.isatty():
        return tqdm(**settings)
    return tqdm(
        **settings, file=_Lines(), mininterval=SECONDS, maxinterval=SECONDS, delay=SECONDS, miniters=1, ncols=99
    )


class _Lines:
    """A file for tqdm that has each of its bars on a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Lines are written at once."""


@contextlib.contextmanager
def frame(argv: Sequence[str], *, interrupted: str) -> Iterator[None]:
    """Turns what goes wrong within into a message on one line, without a traceback.

    Args:
      argv: what is left of the command line besides flags; nothing should be.
      interrupted: what to say of the results after Ctrl-C.

    Raises:
      UsageError: there are other arguments than flags.
      SystemExit: settings that cannot be used, a run that diverged or lost its server, or Ctrl-C.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are flags: --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    try:
        yield
        sys.stdout.flush()
    except (ValueError, NonFiniteLoss, ServerLost, WorkersLost) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _HINTS:
            raise
        sys.exit(f"error: {error}; {_HINTS[error.errno]}")
    except Stopped as stopped:
        _leave(str(stopped), stopped.signum)
    except KeyboardInterrupt:
        _leave(f"\ninterrupted; {interrupted}", signal.SIGINT)


def _leave(message: str, signum: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(128 + signum)  # as a shell says it of a program that a signal ended
