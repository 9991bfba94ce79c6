#!/usr/bin/env bash
# Runs something of this checkout in a virtual environment of its own, which it sets up first where needed.
# `./run.sh help` says what can be run; BUILD.md says how the environment is chosen.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail
{ true 8<&0; } 2>/dev/null || exec </dev/null

top=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)

usage() {
  cat <<'EOF'
usage: ./run.sh [WORD] [ARGUMENTS]

  compare    compare the methods: python -m experiments.compare ARGUMENTS; the word may be left out
  train      train one model:     python -m experiments.train ARGUMENTS
  benchmark  measure speed, host time and memory of all methods: python -m experiments.benchmark ARGUMENTS
  plan       plan a pipeline for devices that need not be there:  python -m experiments.plan ARGUMENTS
  test       run the tests, several at once: python -m pytest ARGUMENTS, on the CPU unless JAX_PLATFORMS is set
  python     run the environment's Python
  setup      set the environment up and print the path of its Python
  pythons    list the Pythons that can be used, the preferred one first; sets nothing up
  help       show this

All but the last two first make sure of a virtual environment in .venv/, one for each Python version and
kind of JAX. That takes a minute or more the first time, and no time afterwards.

  PYTHON=python3.12       use this Python, a name or a path, instead of the newest that suits
  JAXDECOUPLE_JAX=cpu     use this JAX (cpu, cuda12, cuda13) instead of what the NVIDIA driver allows
EOF
}

say() { printf 'run.sh: %s\n' "$*" >&2; }
die() { say "$@"; exit 2; }

# ---- Which JAX. CUDA 13 needs driver 580 and compute capability 7.5, CUDA 12 driver 525 and 5.2.

choose_jax() {
  variant=${JAXDECOUPLE_JAX:-}
  case "$variant" in
    cpu | cuda12 | cuda13) return ;;
    ?*) die "JAXDECOUPLE_JAX=$variant is not known; expected cpu, cuda12 or cuda13, or unset to have it chosen" ;;
  esac
  variant=cpu
  local gpus driver
  if gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) && [ -n "$gpus" ]; then
    :
  elif nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidiactl ]; then
    # Not the driver's /proc entry alone: containers without a GPU see their host's.
    driver=$(grep -oE -m 1 '[0-9]{3}\.[0-9]+' /proc/driver/nvidia/version 2>/dev/null) || driver=580
    gpus="$driver, unknown"
  else
    return 0
  fi
  variant=$(awk -F ', *' '
    { driver = $1 + 0; capability = $2 + 0 ? $2 + 0 : 99 }
    driver < 580 || capability < 7.5 { below13 = 1 }
    driver < 525 || capability < 5.2 { below12 = 1 }
    END { print below12 ? "cpu" : below13 ? "cuda12" : "cuda13" }' <<<"$gpus")
  if [ "$variant" = cpu ]; then
    say "too old for JAX, so the CPU is used; NVIDIA driver and compute capability: ${gpus//$'\n'/; }"
  fi
}

# ---- Which Python. 3.14 comes last: all it needs exists, but the tests have not been run with it.

# Answers "3.13|executable|digest of all that an environment depends on", or says why this Python will not do.
probe_code='
import sys
if sys.version_info < (3, 11):
    sys.exit("is Python %d.%d; 3.11 or newer is needed" % sys.version_info[:2])
import hashlib, os.path, pathlib, sysconfig
minor = "%d.%d" % sys.version_info[:2]
if sys.implementation.name != "cpython" or sys.maxsize < 2**32:
    sys.exit("is not a 64-bit CPython, and JAX exists for no other")
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    sys.exit("is a free-threaded Python, which not every requirement supports")
try:
    import ctypes, ensurepip, ssl, venv, zlib
except ImportError as error:
    sys.exit("%s, so it makes no virtual environments (Debian, Ubuntu: apt install python%s-venv)" % (error, minor))
top, variant = sys.argv[1:]
executable = sys._base_executable  # not that of an active virtual environment
parts = [top, variant, sys.version, os.path.realpath(executable)]
for file in [pathlib.Path(top, "requirements.txt"), *sorted(pathlib.Path(top, "requirements").glob("*.txt"))]:
    parts.append(file.read_text(encoding="utf-8"))
print(minor, executable, hashlib.sha256("\0".join(parts).encode()).hexdigest(), sep="|")
'

# The paths of every program of that name on PATH, and in pyenv, which need not have all its versions on PATH.
named() {
  type -aP "$1" || true
  case "$1" in
    python3.*) printf '%s\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/${1#python}".*/bin/"$1" | sort -rV ;;
  esac
}

# Sets minor, python and digest from the first Python that suits, of a list of paths, one a line.
tried=''
first_suitable() {
  local path answer
  while IFS= read -r path; do
    [ -f "$path" ] && [ -x "$path" ] || continue
    if answer=$("$path" -I -c "$probe_code" "$top" "$variant" 2>&1 </dev/null); then
      IFS='|' read -r minor python digest <<<"$answer"
      return 0
    fi
    answer=${answer//$'\n'/ }
    tried+=$'\n'"  $path: ${answer:0:200}"
  done <<<"$1"
  return 1
}

choose_python() {
  local name
  if [ -n "${PYTHON:-}" ]; then
    case "$PYTHON" in
      */*) first_suitable "$PYTHON" && return ;;
      *) first_suitable "$(named "$PYTHON")" && return ;;
    esac
    die "PYTHON=$PYTHON cannot be used:${tried:- there is no such program}
Set PYTHON to a Python from 3.11 to 3.14, a name (python3.12) or a path, or unset it to have one chosen."
  fi
  for name in python3.13 python3.12 python3.11 python3.14 python3 python; do
    first_suitable "$(named "$name")" && return
  done
  die "no usable Python was found, on PATH or in pyenv; one from 3.11 to 3.14 is needed. Tried:${tried:- nothing}
Install one, or name it: PYTHON=/path/to/python3.13 ./run.sh"
}

list_pythons() {
  local name
  for name in python3.13 python3.12 python3.11 python3.14; do
    if first_suitable "$(named "$name")"; then printf '%s %s\n' "$minor" "$python"; fi
  done
}

# ---- The environment.

# A file with the digest, written last, says that the environment is whole and is the one asked for.
is_ready() { [ -x "$venv/bin/python" ] && [ "$(cat "$venv/complete" 2>/dev/null)" = "$digest" ]; }

# Runs share an environment (LOCK_SH); one that sets it up has it alone (LOCK_EX). The lock belongs to descriptor 9, so it
# lives as long as this shell and the program that takes its place.
lock_code='
import fcntl, sys
mode, owner = sys.argv[1:]
try:
    fcntl.flock(9, getattr(fcntl, mode) | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"run.sh: waiting for another run, which is {owner}", file=sys.stderr)
    try:
        fcntl.flock(9, getattr(fcntl, mode))
    except KeyboardInterrupt:
        sys.exit(130)
except OSError:
    pass  # a file system without locks
'
lock() { "$python" -I -c "$lock_code" "$@"; }

ensure_environment() {
  venv=$top/.venv/py$minor-$variant
  log=$venv.log
  if ! { mkdir -p "$top/.venv" && : >>"$venv.lock"; } 2>/dev/null && ! is_ready; then
    die "cannot write to $top/.venv, where the virtual environment belongs"
  fi
  if [ -w "$venv.lock" ]; then exec 9<>"$venv.lock"; fi
  lock LOCK_SH "setting up $venv"
  until is_ready; do
    lock LOCK_EX "setting up or using $venv"
    is_ready || build
    lock LOCK_SH "setting up $venv"
  done
}

build() {
  local cost='about a minute, 1.3 GB' requirements=(-r "$top/requirements.txt")
  case "$variant" in
    cuda*) cost='some minutes, 5 GB'; requirements+=(-r "$top/requirements/$variant.txt") ;;
  esac
  say "setting up ${venv#"$top"/} ($cost) ..."
  trap interrupted INT TERM
  rm -rf "$venv"
  : >"$log"
  logged "$python" -I -m venv "$venv"
  logged "$venv/bin/python" -I -m pip --disable-pip-version-check --no-input install --progress-bar off "${requirements[@]}"
  printf '%s\n' "$digest" >"$venv/complete.new"
  mv "$venv/complete.new" "$venv/complete"
  trap - INT TERM
}

# Runs a step of the set-up in the background, so that a signal is answered at once.
child=''
logged() {
  local status=0
  "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  wait "$child" || status=$?
  child=''
  [ "$status" -eq 0 ] || failed
}

interrupted() {
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || true
    wait "$child" 2>/dev/null || true
  fi
  say "interrupted; the next run begins the set-up again"
  exit 130
}

failed() {
  grep -v '^WARNING' "$log" | tail -n 12 >&2 || true
  say "setting up $venv failed; above is the end of $log"
  if grep -qE 'NewConnectionError|NameResolutionError|ConnectTimeout|ProxyError|SSLError' "$log"; then
    say "the package index could not be reached; check the network and pip's settings (pip config list, PIP_* variables)"
  elif grep -q 'No space left on device' "$log"; then
    say "the disk is full"
  fi
  exit 1
}

# ---- What to run.

word=compare
case "${1--}" in
  compare | train | benchmark | plan | test | python | setup | pythons) word=$1; shift ;;
  help | -h | --help) usage; exit 0 ;;
  -*) ;;
  *) say "there is no '$1' to run"; usage >&2; exit 2 ;;
esac

choose_jax
if [ "$word" = pythons ]; then list_pythons; exit 0; fi
choose_python
ensure_environment
export PYTHONPATH="$top${PYTHONPATH:+:$PYTHONPATH}"
case "$word" in
  # -P: from within another checkout, still this one's code
  compare | train | benchmark | plan) exec "$venv/bin/python" -P -m "experiments.$word" "$@" ;;
  test)
    cd "$top"
    export JAX_PLATFORMS="${JAX_PLATFORMS-cpu}"
    # Most of the time goes to compilation, which takes one core; -n 0 runs them in one process.
    exec "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@" ;;
  python) exec "$venv/bin/python" "$@" ;;
  setup) printf '%s\n' "$venv/bin/python" ;;
esac
