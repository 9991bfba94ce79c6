"""The frame of a program: what every one of them does with flags, wrong settings, progress, pipes and Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from tqdm import tqdm

from experiments import settings
from experiments.report.workdir import Workdir
from experiments.training.launching import TERMINAL
from experiments.training.stopping import NonFiniteLoss, Stopped
from jaxdecouple.errors import DataWarning, did_you_mean

_SHOW_WARNING = warnings.showwarning
MANY = 20  # flags: more than that are not all explained at once
SECONDS = 10  # between two lines on the progress, where it is not a terminal that shows it

_FREE_SPACE = "free some space, and give the same command again"
_HINTS = {errno.ENAMETOOLONG: "write a shorter path"}
_HINTS |= {errno.ENOSPC: _FREE_SPACE, errno.EDQUOT: _FREE_SPACE, errno.EFBIG: _FREE_SPACE}
_HINTS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "allow this user to use it, or write another path")
_HINTS |= dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ELOOP), "write another path")
_TELLING = {  # what RuntimeErrors of pathlib and JAX say, which have no class of their own, and what to do
    "home directory": "write a whole path in place of ~",
    "Unable to initialize backend": "set JAX_PLATFORMS to one that is here, or not at all",
    "RESOURCE_EXHAUSTED": "write a smaller --batch_size, or a smaller model",
}
_INDENT: dict[str, Any] = {"subsequent_indent": "      "}
_HELP = {"help", "h", "?", "helpshort", "helpfull"}


def start(main: Callable[[list[str]], object]) -> None:
    """Runs a program; its flags are defined."""
    asked = [argument.lstrip("-") for argument in sys.argv[1:] if argument.startswith("-")]
    if _HELP & set(asked):
        with contextlib.suppress(BrokenPipeError):
            print(_help("helpfull" in asked), flush=True)
        os._exit(0)  # at once, whether or not anybody still reads
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, "w"))
    sys.stdout.reconfigure(line_buffering=True)  # a file or a pipe, too, gets each line at once
    app.run(main, flags_parser=parse)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """What is left of a command line when its flags have been read.

    Raises:
      SystemExit: a flag is unknown, or its value is not of its type.
    """
    try:
        return values(argv)
    except flags.UnrecognizedFlagError as error:
        hint = did_you_mean(error.flagname, list(values), cutoff=0.5)
        sys.exit(f"error: there is no flag --{error.flagname}; {hint}write one that --help lists")
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}; --help says what it takes")


def _help(full: bool) -> str:
    """The program's docstring and flags, by groups; unless all are asked for, uncommon ones by name alone."""
    own = [flag for module, found in flags.FLAGS.flags_by_module_dict().items() if _ours(module) for flag in found]
    groups: dict[str, list[flags.Flag]] = {}
    for flag in sorted(own, key=lambda flag: settings.shown(flag.name)[0]):
        groups.setdefault(settings.shown(flag.name)[1], []).append(flag)
    all_of_them = full or len(own) <= MANY
    lines = [str(sys.modules["__main__"].__doc__ or "").strip()]
    for group, found in groups.items():
        explained = [flag for flag in found if all_of_them or settings.shown(flag.name)[2]]
        entries = [f"  {_explained(flag)}" for flag in explained]
        if others := [f"--{flag.name}" for flag in found if flag not in explained]:
            entries.append(f"  and {', '.join(others)}")
        lines += ["", f"{group}:", *(line for entry in entries for line in textwrap.wrap(entry, 99, **_INDENT))]
    return "\n".join(lines if all_of_them else [*lines, "", "--helpfull explains all of them."])


def _explained(flag: flags.Flag) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, "", []) else f" (default: {str(flag.default_as_str).strip(chr(39))})"
    return f"{name}: {flag.help}{default}"


def _ours(module: str) -> bool:
    return module.startswith("experiments.") or module == sys.argv[0]


def define_workdir() -> None:
    """The flags that say where results go."""
    flags.DEFINE_string("workdir", "", "directory for the results, new or empty; empty: a new one below runs/")
    flags.DEFINE_bool("overwrite", False, "replace the run that the workdir holds: delete the files that it lists")
    for name in ("workdir", "overwrite"):
        settings.show(name, "the run", common=True)


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


def bar(total: int, unit: str, initial: int = 0, *, shown: bool = True) -> tqdm:
    """Shows progress: a bar on a terminal, elsewhere a line every few seconds; or nothing, if it is not to be shown."""
    how = {"total": total, "unit": unit, "initial": initial, "leave": False, "disable": not shown}
    if sys.stderr.isatty() or os.environ.get(TERMINAL) == "1":
        return tqdm(**how)
    line = "{desc}{n_fmt} of {total_fmt} after {elapsed}, {remaining} to go, {rate_fmt}{postfix}"
    every = {"mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS, "miniters": 1}
    return tqdm(**how, **every, file=_Lines(), bar_format=line)


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
      SystemExit: settings that cannot be used, a run that diverged or lost its server, or Ctrl-C.
    """
    if len(argv) > 1:
        sys.exit(f"error: unexpected argument {argv[1]!r}; settings are flags: --name=value")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `experiments` has it while a program begins
        signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = _warn
    sys.unraisablehook = _unraisable
    try:
        yield
        sys.stdout.flush()
    except (ValueError, NonFiniteLoss) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _HINTS:
            raise
        sys.exit(f"error: {error}; {_HINTS[error.errno]}")
    except MemoryError as error:
        sys.exit(f"error: there is not enough memory ({error}); write smaller numbers")
    except Stopped as stopped:
        _leave(str(stopped), stopped.signum)
    except KeyboardInterrupt:
        _leave(f"\ninterrupted; {interrupted}", signal.SIGINT)
    except Exception as error:
        advice = next((advice for words, advice in _TELLING.items() if words in str(error)), None)
        if isinstance(error, RuntimeError) and advice is not None:
            sys.exit(f"error: {str(error).splitlines()[0].rstrip('.')}; {advice}")
        if not _is_loss_of_workers(error):
            raise
        sys.exit(f"error: {error}")


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """On one line; where a warning about data came from says nothing to who gave them."""
    if issubclass(category, DataWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        _SHOW_WARNING(message, category, *place, **more)


def _unraisable(report: Any) -> None:
    """Of a save that failed, as on a full disk, Orbax's threads say later that nobody waits for them; that was said."""
    if not (isinstance(report.exc_value, RuntimeError) and "Event loop is closed" in str(report.exc_value)):
        sys.__unraisablehook__(report)


def _is_loss_of_workers(error: Exception) -> bool:
    methods = sys.modules.get("jaxdecouple.asynchronous")  # imported here, it would cost each program a second
    return methods is not None and isinstance(error, (methods.ServerLost, methods.WorkersLost))


def _leave(message: str, signum: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(128 + signum)  # as a shell says it of a program that a signal ended
