#!/usr/bin/env bash
# Makes or updates .venv, the environment of `make demo`, `make test` and `make lint`.
# Ends with a line that says which Python and TensorFlow it holds.
#
#   tools/make_env.sh          .venv: Python 3.6 with TensorFlow 1.10; without a 3.6, or
#                              with a GPU from 2018 on, the newest supported Python with
#                              a TensorFlow that suits it
#   tools/make_env.sh 1.9      .venv-1.9, beside it; also 1.10, 1.15 and 2
#   tools/make_env.sh --find   only print the Python that .venv would use
#
# PYTHON=/path/to/python chooses the interpreter; GPU=1 or GPU=0 the build of TensorFlow,
# by default that for a GPU if there is one. Exit status 2: no usable Python.
#
# .venv.incomplete exists while .venv is being written; after an interruption .venv is
# made anew. The writer holds a lock on .venv.lock. .venv/requirements.txt is the list
# last installed.
set -euo pipefail

fail() {
    printf 'make_env.sh: %s\n' "$1" >&2
    exit "${2:-2}"
}

# Runs in a candidate: prints its version and, on a second line, the interpreter to make
# an environment with (within an environment, the one it was made from).
probe='
import os, sys
print("%d.%d" % sys.version_info[:2])
prefix = getattr(sys, "real_prefix", getattr(sys, "base_prefix", sys.prefix))
python = os.path.join(prefix, "bin", "python%d.%d" % sys.version_info[:2])
print(python if prefix != sys.prefix and os.path.exists(python) else sys.executable)
'

# Runs the probe in program $1 and sets $version and $found; fails if it does not run.
look_at() {
    version='' found=''
    [ -f "$1" ] && [ -x "$1" ] && found=$("$1" -c "$probe" </dev/null 2>/dev/null) \
        || return 1
    version=${found%%$'\n'*} found=${found#*$'\n'}
    [ -x "$found" ]
}

# Whether Python $1 can make environments; on Debian, venv is a separate package.
makes_environments() {
    "$1" -c 'import venv, ensurepip, ssl, zlib' </dev/null >/dev/null 2>&1
}

is_wanted() {
    [[ " $wanted " = *" $1 "* ]]
}

# Sets $card to the newest NVIDIA card, and $age to its compute capability without the
# point (89 for 8.9); 0 without a card, or if the driver does not report it.
look_at_cards() {
    local line capability
    card='' age=0
    while IFS= read -r line; do
        capability=${line##*, }
        [[ $capability =~ ^[0-9]+\.[0-9]$ && ${capability/./} -gt $age ]] || continue
        age=${capability/./} card="${line%, *} (compute capability $capability)"
    done < <(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>/dev/null)
}

# Whether the GPU build of TensorFlow for Python $1 supports the card. CUDA 9.0 goes up
# to 7.0 (V100); cuDNN 9 starts at 7.5 (T4, RTX 20). See docs/versions.md.
knows_card() {
    case $1 in
        3.6) [ "$age" -le 70 ] ;;
        3.7) [ "$age" = 0 ] ;;
        *) [ "$age" = 0 ] || [ "$age" -ge 75 ] ;;
    esac
}

# Reorders $wanted: Pythons that support the card first; with GPU=1, only those.
mind_the_card() {
    local version knowing='' others=''
    look_at_cards
    for version in $wanted; do
        if knows_card "$version"; then knowing+=" $version"; else others+=" $version"; fi
    done
    if [ "${GPU:-}" = 1 ] && [ -n "$others" ]; then
        [ -n "$knowing" ] || fail \
            "GPU=1: $venv cannot serve the $card; docs/versions.md says what can"
        [ "$age" -gt 70 ] && supported="Python 3.10 to 3.13 (TensorFlow 2.21)" \
            || supported="Python 3.6 (TensorFlow 1.10)"
        supported+=" for the $card" others=''
    fi
    wanted=$knowing$others wanted=${wanted# }
}

# Candidates, one per line, the cheapest to look up first.
candidates() {
    local name
    for name in python3.6 python3.1{3,2,1,0} python3.7 python3 python; do
        type -aP "$name" || true
    done
    printf '%s/bin/python\n' "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.{6,1[0-3],7}* \
        "${CONDA_PREFIX:-}" "${HOME:-}"/{mini,ana}conda3{,/envs/*} \
        "${HOME:-}"/{miniforge3,mambaforge}{,/envs/*} "${HOME:-}"/.conda/envs/*
    if type -P conda >/dev/null; then
        conda env list </dev/null 2>/dev/null | sed -n 's|^[^#/]*\(/.*\)|\1/bin/python|p'
    fi
}

# Sets $version and $found: PYTHON, or the first candidate whose version comes first in
# $wanted; one that cannot make environments only if there is no other.
find_python() {
    local candidate before rank best=999 chosen='' unfit=''
    if [ -n "${PYTHON:-}" ]; then
        look_at "$(type -P -- "$PYTHON")" || fail \
            "PYTHON=$PYTHON does not exist or does not run; supported are $supported"
        is_wanted "$version" \
            || fail "PYTHON=$PYTHON is Python $version; $venv can be made with $supported"
        return
    fi
    while IFS= read -r candidate; do
        look_at "$candidate" || continue
        if ! is_wanted "$version"; then
            [[ $unfit = *" $found:"* ]] \
                || unfit+="  found $found: Python $version, which does not fit"$'\n'
            continue
        fi
        before=" $wanted " before=${before%%" $version "*} rank=${#before}
        [ "$rank" -lt "$best" ] || continue
        makes_environments "$found" || rank=$((rank + 500))
        [ "$rank" -lt "$best" ] || continue
        best=$rank chosen=$version=$found
        [ "$best" -gt 0 ] || break
    done < <(candidates)
    version=${chosen%%=*} found=${chosen#*=}
    [ -z "$chosen" ] || return 0
    printf '%s\n' >&2 \
        "make_env.sh: no Python for $venv found. It can be made with (64 bit)" \
        "$supported." \
        "${unfit:-  found none on PATH, in pyenv's versions or in conda's environments}" \
        "Get one in one of these ways, then run the same command again:" \
        "  Debian, Ubuntu:  sudo apt-get install python3 python3-venv" \
        "  conda:           conda create -n python313 python=3.13" \
        "  pyenv:           pyenv install 3.13" \
        "  or name one that lies elsewhere:  make PYTHON=/path/to/python3.13 ..." \
        "Python 3.6, for the baseline TensorFlow 1.10, is had from conda (python=3.6)" \
        "or pyenv (pyenv install 3.6.15)."
    exit 2
}

# Waits until no other process writes $venv, and keeps others out until this process and
# all that it started have ended; then the system releases the lock.
lock() {
    { : >>"$venv.lock"; } 2>/dev/null || fail \
        "$PWD: no file can be written there; change its permissions or copy it elsewhere"
    exec 9>>"$venv.lock"
    "$found" -c '
import fcntl, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another process is making %s: waiting for it" % sys.argv[1], flush=True)
        fcntl.flock(9, fcntl.LOCK_EX)
except OSError as error:
    print("%s cannot be locked (%s): run one make at a time" % (sys.argv[1], error))
' "$venv"
}

# The lists of packages for Python $1: first that for a GPU, if there is one, then that
# for the CPU; GPU=1 and GPU=0 leave only one of them.
lists() {
    local gpu='' cpu
    case $venv:$1 in
        *-1.9:*) cpu=requirements/1.9.txt ;;
        *:3.6) gpu=requirements.txt cpu=requirements/cpu.txt ;;
        *:3.7) cpu=requirements/1.15.txt ;;
        *) gpu=requirements/2-gpu.txt cpu=requirements/2.txt ;;
    esac
    case ${GPU:-} in
        0) gpu='' ;;
        1) cpu='' ;;
    esac
    echo $gpu $cpu
}

# Prints what Python $1, of version $2, lacks to use a GPU; nothing if it can.
lacking() {
    local answer
    if ! knows_card "$2"; then
        echo "Python $2's cannot serve the $card (docs/versions.md)"
        return
    elif [ "$2" != 3.6 ]; then
        nvidia-smi -L >/dev/null 2>&1 || echo "no NVIDIA driver answers"
        return
    fi
    answer=$("$1" -c '
import ctypes
for name in ("cuda.so.1", "cudart.so.9.0", "cublas.so.9.0", "cufft.so.9.0",
             "curand.so.9.0", "cusolver.so.9.0", "cudnn.so.7"):
    ctypes.CDLL("lib" + name)' 2>&1) && return
    answer=${answer##*Error: }
    echo "${answer%%:*} does not load (it needs CUDA 9.0 and cuDNN 7)"
}

# The name and version of the TensorFlow in list $1.
tensorflow_of() {
    grep -m 1 -oE '^tensorflow[a-z-]*==[0-9.]+[0-9]' "$1" 2>/dev/null || true
}

# Runs pip in $venv quietly: its output goes to $venv/install.log, and on a terminal one
# line shows the current package.
run_pip() {
    local status=0 word rest
    PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
        "$venv/bin/python" -m pip "$@" 2>&1 | tee -a "$venv/install.log" \
        | while read -r word rest; do
            if [ -t 1 ] && [ "$word" = Collecting ]; then
                printf '\r\033[K  %s' "${rest%% *}"
            fi
        done || status=1
    [ ! -t 1 ] || printf '\r\033[K'
    [ $status = 0 ] && return
    # If nothing was replaced yet (no network, say), the old environment is still whole.
    if [ -f "$venv/requirements.txt" ] \
            && ! grep -q '^Installing collected' "$venv/install.log"; then
        rm -f "$venv.incomplete"
    fi
    tail -n 15 "$venv/install.log" | cut -c 1-500 >&2
    fail "pip failed (above; all of it: $venv/install.log); the same command tries again" 1
}

is_half_made() {
    [ -e "$venv.incomplete" ] || [ -e "$venv/incomplete" ]
}

# Whether $venv is whole and matches its list; if so, prints what it holds. Sets $holds,
# its Python version.
is_up_to_date() {
    local list pin why="the baseline, TensorFlow 1.10, needs Python 3.6"
    look_at "$venv/bin/python" || true
    holds=$version
    ! is_half_made || holds=''
    is_wanted "$holds" && [ -f "$venv/requirements.txt" ] || return 1
    for list in $(lists "$holds"); do
        [ "$(grep == "$list")" = "$(grep == "$venv/requirements.txt")" ] || continue
        pin=$(tensorflow_of "$list")
        [ "$holds" != 3.6 ] || why="another Python"
        echo "$venv: Python $holds, ${pin/==/ } ($list); $why:" \
            "make PYTHON=/path/to/python ..."
        return
    done
    return 1
}

main() {
    local holds python wish list cpu lack build='' old new what pip
    if [ -n "${PYTHON:-}" ]; then
        find_python  # reports an unusable PYTHON even if $venv exists
        wanted=$version
    fi
    ! is_up_to_date || return 0
    is_wanted "$holds" || find_python
    python=$found wish=$version
    [ -n "$(lists "$wish")" ] || fail \
        "GPU=1: no list is for a GPU and Python $wish; the head of $(GPU=0 lists "$wish") says what to do"
    makes_environments "$python" || fail \
        "$python cannot make environments (its venv, ensurepip, ssl or zlib is missing); on Debian and Ubuntu: sudo apt-get install python$wish-venv"
    trap '[ ! -t 1 ] || echo; fail "stopped; the same command tries again" 130' INT TERM
    lock
    ! is_up_to_date || return 0  # another process made it meanwhile

    read -r list cpu < <(lists "$wish")
    if [ -n "$cpu" ]; then
        lack=$(lacking "$python" "$wish")
        build="TensorFlow for a GPU; for the CPU: GPU=0"$'\n'
        [ -z "$lack" ] || list=$cpu \
            build="TensorFlow for the CPU: $lack; for a GPU: GPU=1"$'\n'
    fi
    old=$(tensorflow_of "$venv/requirements.txt") new=$(tensorflow_of "$list")
    what="holds ${holds:+Python }${holds:-no Python}${old:+ and ${old/==/ }}"
    if is_half_made; then
        rm -rf "$venv"
    elif [ -e "$venv" ] && [ "$holds:${old%%=*}" != "$wish:${new%%=*}" ]; then
        [ -n "$old" ] || fail \
            "$venv is there, but not of this script's making, and $what; move it away and try again"
        echo "$venv $what: it is made anew"
        : >"$venv.incomplete"
        rm -rf "$venv"
    fi
    : >"$venv.incomplete"
    if [ ! -e "$venv" ]; then
        echo "making $venv with $python"
        "$python" -m venv "$venv" || fail "$python -m venv failed (above)" 1
    fi

    : >"$venv/install.log"
    echo "${build}installing $list (the first time: $(sed -n 's/^# Download: //p' "$list"))"
    pip=$(sed -n 's/^#.* pip install \(pip==.*\)/\1/p' "$list")  # which pip takes it
    # shellcheck disable=SC2086
    run_pip install $pip
    run_pip install --no-deps -r "$list"
    "$venv/bin/python" -c 'import tensorflow' >>"$venv/install.log" 2>&1 || {
        grep -iE 'error|illegal' "$venv/install.log" | tail -n 3 | cut -c 1-500 >&2 || true
        fail "TensorFlow is installed but does not import ($venv/install.log); a common cause is a processor without AVX, or an incomplete CUDA 9.0" 1
    }
    cp "$list" "$venv/requirements.txt"
    rm "$venv.incomplete"
    echo "$venv is ready after $SECONDS s"
    is_up_to_date
}

if [[ ${PYTHON:-} = */* && $PYTHON != /* ]]; then
    PYTHON=$PWD/$PYTHON
fi
CDPATH='' cd "$([[ $0 != */* ]] || printf '%s/' "${0%/*}").."
[[ ${GPU:-} = [01] || -z ${GPU:-} ]] || fail "GPU=$GPU: it is 1 or 0, or left out"
# The Python versions to use, best first, and the folder to make
wanted='3.6 3.13 3.12 3.11 3.10 3.7' venv=.venv-${1:-}
supported="Python 3.6 (TensorFlow 1.10), 3.7 (1.15) and 3.10 to 3.13 (2.21)"
case ${1:-} in
    ''|--find) venv=.venv ;;
    1.9|1.10) wanted='3.6' supported="Python 3.6" ;;
    1.15) wanted='3.7' supported="Python 3.7" ;;
    2) wanted='3.13 3.12 3.11 3.10' supported="Python 3.10 to 3.13" ;;
    *) fail "usage: tools/make_env.sh [1.9 | 1.10 | 1.15 | 2 | --find]" ;;
esac
age=0 card=''
[ "${GPU:-}" = 0 ] || mind_the_card
if [ "${1:-}" = --find ]; then
    find_python
    printf '%s\n' "$found"
else
    main
fi
