"""The frame of a program: what every one of them does with flags, wrong settings and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging

from experiments.training.progress import NonFiniteLoss
from experiments.training.stopping import Stopped
from jaxdecouple.asynchronous import ServerLost, WorkersLost


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
    flags.DEFINE_bool("overwrite", False, "replace the run that the workdir holds")


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
    except (ValueError, NonFiniteLoss, ServerLost, WorkersLost) as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        sys.exit(f"error: {error}; free some space, and give the same command again")
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signum)  # as a shell says it of a program that a signal ended
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {interrupted}")
