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
  report     write a page about a run, finished or under way: python -m experiments.report RUN
  lm         compare methods on a language model:                 python -m experiments.language_models ARGUMENTS
  plan       plan a pipeline for devices that need not be there:  python -m experiments.plan ARGUMENTS
  docs       build the documentation into site/; `./run.sh docs serve` shows it while it is written
  package    build wheel and source package into dist/, and try the wheel in an empty environment
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
  if ! gpus=$(nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null) || [ -z "$gpus" ]; then
    # Not the driver's /proc entry alone: containers without a GPU see their host's.
    nvidia-smi -L >/dev/null 2>&1 || [ -e /dev/nvidiactl ] || return 0
    driver=$(grep -oE -m 1 '[0-9]{3}\.[0-9]+' /proc/driver/nvidia/version 2>/dev/null) || driver=580
    gpus="$driver, unknown"
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

pythons=(python3.13 python3.12 python3.11 python3.14)

# Answers "3.13|executable|which build that is", or says why this Python will not do.
probe_code='
import os.path, sys
minor = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11) or sys.implementation.name != "cpython" or sys.maxsize < 2**32 or "free-thr" in sys.version:
    sys.exit("is %s, not a 64-bit CPython 3.11 or newer with a GIL" % sys.version)
try:
    import ctypes, ensurepip, ssl, venv, zlib
except ImportError as error:
    sys.exit("%s, so it makes no virtual environments (Debian, Ubuntu: apt install python%s-venv)" % (error, minor))
executable = sys._base_executable  # not that of an active virtual environment
print(minor, executable, os.path.realpath(executable) + " " + sys.version.replace("\n", " "), sep="|")
'

# Sets minor, python and build from the first Python that will do, of these names or paths. Not all that pyenv has need be
# on PATH.
tried=''
find_python() {
  local name path answer
  for name; do
    while IFS= read -r path; do
      if answer=$("$path" -I -c "$probe_code" 2>&1 </dev/null); then
        IFS='|' read -r minor python build <<<"$answer"
        return 0
      fi
      answer=${answer//$'\n'/ }
      tried+=$'\n'"  $path: ${answer:0:200}"
    done < <(type -aP "$name"; compgen -G "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/${name#python}.*/bin/$name" | sort -rV)
  done
  return 1
}

choose_python() {
  local names=("${pythons[@]}" python3 python)
  if [ -n "${PYTHON:-}" ]; then names=("$PYTHON"); fi
  find_python "${names[@]}" || die "no usable Python from 3.11 to 3.14 among: ${names[*]}. Tried:${tried:- nothing, as there is none on PATH or in pyenv}
Install one, or name it: PYTHON=python3.13 ./run.sh, or PYTHON=/path/to/python3.13 ./run.sh"
}

# ---- The environment: a virtual environment, into which uv puts the versions of uv.lock.

uv_version=0.13.8

# What an environment depends on. Its copy there, written last, says that the environment is whole and the one asked for.
stamp() {
  printf '%s\n' "$top" "$build" "uv $uv_version"
  cat "$top/uv.lock"
}
is_ready() { [ -x "$venv/bin/python" ] && cmp -s "$venv/complete" <(stamp 2>/dev/null); }

# Runs share an environment (LOCK_SH, 1); one that sets it up has it alone (LOCK_EX, 2). The lock belongs to descriptor 9, so
# it lives as long as this shell and the program that takes its place. LOCK_NB is 4. Some file systems have no locks.
hold() { "$python" -I -c 'import fcntl, sys; fcntl.flock(9, int(sys.argv[1]))' "$1" 2>/dev/null; }
lock() { hold $(($1 + 4)) || { say "waiting for another run, which is $2 $venv"; hold "$1" || true; }; }

ensure_environment() {
  venv=$top/.venv/py$minor-$variant
  if ! { mkdir -p "$top/.venv" && : >>"$venv.lock"; } 2>/dev/null; then
    is_ready || die "cannot write to $top/.venv, where the virtual environment belongs"
    return 0
  fi
  exec 9<>"$venv.lock"
  lock 1 'setting up'
  until is_ready; do
    lock 2 'setting up or using'
    is_ready || set_up
    lock 1 'setting up'
  done
}

set_up() {
  local cost='about a minute, 1.8 GB' extras=(--extra data --extra plots --extra ray --group programs --group test --group docs)
  case "$variant" in
    cuda*) cost='some minutes, 5.5 GB'; extras+=(--extra "$variant") ;;
  esac
  say "setting up ${venv#"$top"/} ($cost) ..."
  trap interrupted INT TERM
  rm -rf "$venv"
  : >"$venv.log"
  logged "$python" -I -m venv "$venv"
  logged "$venv/bin/python" -I -m pip --disable-pip-version-check --no-input install --progress-bar off "uv==$uv_version"
  configure_uv
  logged "${uv[@]}" export --quiet --project "$top" --frozen --no-emit-project --no-annotate --no-header "${extras[@]}" \
    --output-file "$venv/requirements.txt"
  logged "${uv[@]}" pip install --compile-bytecode ${no_index:+--no-index} --requirements "$venv/requirements.txt"
  stamp >"$venv/complete.new"
  mv "$venv/complete.new" "$venv/complete"
  trap - INT TERM
}

# uv has settings of its own (UV_*, uv.toml). Where those are silent, pip's hold (PIP_*, pip.conf). As for pip, a package may
# come from any index; the hashes of uv.lock see to it that it is the one meant.
configure_uv() {
  local settings variable value
  settings=$("$venv/bin/python" -I -m pip config list | sed 's/\\n/ /g')
  of_pip() { sed -n "s/^[^=]*\.$1='\(.*\)'\$/\1/p" <<<"$settings" | head -n 1; }
  no_index=$(of_pip no-index | grep -iE '^(1|true|yes|on)$') || true
  uv=(env UV_PYTHON="$venv/bin/python" UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT="$venv")
  uv+=(UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}")
  for variable in UV_DEFAULT_INDEX=index-url UV_INDEX=extra-index-url UV_FIND_LINKS=find-links \
    UV_INSECURE_HOST=trusted-host SSL_CERT_FILE=cert ALL_PROXY=proxy; do
    value=$(of_pip "${variable#*=}")
    variable=${variable%=*}
    if [ "$variable" = UV_FIND_LINKS ]; then value=${value// /,}; fi
    if [ -n "$value" ] && [ -z "${!variable:-}" ]; then uv+=("$variable=$value"); fi
  done
  if [ ! -w "${HOME:-}" ]; then uv+=(UV_CACHE_DIR="${UV_CACHE_DIR:-$top/.venv/cache}"); fi
  uv+=("$venv/bin/uv")
}

# Runs a step of the set-up in the background, so that a signal is answered at once.
logged() {
  "$@" >>"$venv.log" 2>&1 </dev/null &
  wait "$!" || failed
}

interrupted() {
  kill "$!" 2>/dev/null || true
  wait || true
  say "interrupted; the next run begins the set-up again"
  exit 130
}

failed() {
  grep -v '^WARNING' "$venv.log" | tail -n 12 >&2 || true
  say "setting up $venv failed; above is the end of $venv.log"
  if grep -q 'No space left on device' "$venv.log"; then
    say "the disk is full"
  elif grep -qE 'ConnectionError|NameResolutionError|ConnectTimeout|ProxyError|SSLError|from versions: none|Failed to fetch|sending request' "$venv.log"; then
    say "the package index could not be reached; check the network and the settings of pip and uv (pip config list, PIP_*, UV_*)"
  fi
  exit 1
}

# ---- The wheel, tried where nothing but what its extras name is installed, in the versions of uv.lock. There the types of
# the pages' code are checked as well.

package() {
  configure_uv
  trial=$(mktemp -d)
  trap 'rm -rf "$trial"' EXIT
  rm -rf "$top/dist"
  "${uv[@]}" build --quiet --no-create-gitignore --out-dir "$top/dist" "$top"
  "${uv[@]}" venv --quiet --python "$venv/bin/python" "$trial/env"
  set -- "$top"/dist/*.whl
  "${uv[@]}" pip install --quiet ${no_index:+--no-index} --python "$trial/env" --constraints "$venv/requirements.txt" "$1[data,plots]"
  "${uv[@]}" pip check --python "$trial/env"
  cd "$trial"
  env -u PYTHONPATH "$trial/env/bin/python" -I "$top/.ci/trial.py" "$1"
  "$venv/bin/python" -P "$top/.ci/examples.py" "$trial/examples"
  env -u PYTHONPATH "$venv/bin/python" -P -m basedpyright --level error --pythonpath "$trial/env/bin/python" -p "$trial/examples"
}

# ---- What to run.

word=compare
case "${1--}" in
  compare | train | benchmark | lm | plan | report | docs | package | test | python | setup | pythons) word=$1; shift ;;
  help | -h | --help) usage; exit 0 ;;
  -*) ;;
  *) say "there is no '$1' to run"; usage >&2; exit 2 ;;
esac

choose_jax
if [ "$word" = pythons ]; then
  for name in "${pythons[@]}"; do
    if find_python "$name"; then printf '%s %s\n' "$minor" "$python"; fi
  done
  exit 0
fi
choose_python
ensure_environment
export PYTHONPATH="$top${PYTHONPATH:+:$PYTHONPATH}"
case "$word" in
  # -P: from within another checkout, still this one's code
  lm) exec "$venv/bin/python" -P -m experiments.language_models "$@" ;;
  compare | train | benchmark | plan | report) exec "$venv/bin/python" -P -m "experiments.$word" "$@" ;;
  test)
    cd "$top"
    export JAX_PLATFORMS="${JAX_PLATFORMS-cpu}"
    # Most of the time goes to compilation, which takes one core; -n 0 runs them in one process.
    exec "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "$@" ;;
  docs)
    cd "$top"
    if [ $# = 0 ]; then set -- build --strict --quiet; fi
    export NO_MKDOCS_2_WARNING=1  # a notice of the theme, not on these pages
    exec "$venv/bin/python" -P -m mkdocs "$@" ;;
  package) package ;;
  python) exec "$venv/bin/python" "$@" ;;
  setup) printf '%s\n' "$venv/bin/python" ;;
esac
