#!/usr/bin/env bash
# Makes .venv, the environment that `make demo`, `make test` and `make lint` use.
#
#   ./make_env.sh          make .venv, or bring it up to date; nothing to do: no output
#   ./make_env.sh --find   only print the Python 3.6 that would be used
#
# PYTHON=/path/to/python chooses the interpreter. Exit status 2: no Python 3.6 to use.
#
# While .venv/incomplete exists, .venv is being written: it is made anew after an
# interruption. .venv/requirements.txt is the list that was installed last.
set -euo pipefail

fail() {
    printf 'make_env.sh: %s\n' "$1" >&2
    exit "${2:-2}"
}

# Runs in the candidate: prints its version and, on a second line, the interpreter to
# make an environment with (for one inside an environment: the one it was made from).
probe='
import os, sys
print("%d.%d" % sys.version_info[:2])
prefix = getattr(sys, "real_prefix", getattr(sys, "base_prefix", sys.prefix))
python = os.path.join(prefix, "bin", "python%d.%d" % sys.version_info[:2])
inside = prefix != sys.prefix and os.path.exists(python)
print(python if inside else sys.executable)
'

# The version and path of program $1 into $version and $found; fails if it does not run.
look_at() {
    local answer
    version='' found=''
    [ -f "$1" ] && [ -x "$1" ] || return 1
    answer=$("$1" -c "$probe" </dev/null 2>/dev/null) || return 1
    version=${answer%%$'\n'*}
    found=${answer#*$'\n'}
    [ -x "$found" ]
}

try() {
    look_at "$1" && [ "$version" = 3.6 ]
}

# Candidates, one a line, those that cost least first.
candidates() {
    local name folder line
    for name in python3.6 python3 python; do
        type -aP "$name" || true
    done
    for folder in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.6*; do
        printf '%s\n' "$folder/bin/python"
    done
    if [ -n "${CONDA_PREFIX:-}" ]; then
        printf '%s\n' "$CONDA_PREFIX/bin/python"
    fi
    for folder in "${HOME:-}"/{mini,ana}conda3{,/envs/*} \
            "${HOME:-}"/{miniforge3,mambaforge}{,/envs/*} "${HOME:-}"/.conda/envs/*; do
        printf '%s\n' "$folder/bin/python"
    done
    if type -P conda >/dev/null; then
        conda env list </dev/null 2>/dev/null | while IFS= read -r line; do
            case $line in
                \#*) ;;
                */*) printf '%s\n' "/${line#*/}/bin/python" ;;
            esac
        done
    fi
}

# Sets $found.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        candidate=$(type -P -- "$PYTHON") \
            || fail "PYTHON=$PYTHON: there is no such program; give a Python 3.6"
        look_at "$candidate" || fail "PYTHON=$PYTHON does not run; give a Python 3.6"
        [ "$version" = 3.6 ] \
            || fail "PYTHON=$PYTHON is Python $version; TensorFlow 1.10 needs Python 3.6"
        return
    fi
    while IFS= read -r candidate; do
        if try "$candidate"; then
            return
        fi
    done < <(candidates)
    printf '%s\n' >&2 \
        "make_env.sh: no Python 3.6 found. TensorFlow 1.10 runs on Python 3.6 (64 bit) and" \
        "no newer one. Looked on PATH and among pyenv's versions and conda's environments." \
        "Get it in one of these ways, then run the same command again:" \
        "  pyenv:   pyenv install 3.6.15" \
        "  conda:   conda create -n python36 python=3.6" \
        "  Ubuntu:  sudo add-apt-repository ppa:deadsnakes/ppa" \
        "           sudo apt-get install python3.6 python3.6-venv" \
        "  or name one that lies elsewhere:  make PYTHON=/path/to/python3.6 ..."
    exit 2
}

# Prints the first library of the GPU build that does not load in Python $1.
missing_library() {
    "$1" - <<'PROBE'
import ctypes
for name in ("libcuda.so.1", "libcudart.so.9.0", "libcublas.so.9.0", "libcufft.so.9.0",
             "libcurand.so.9.0", "libcusolver.so.9.0", "libcudnn.so.7"):
    try:
        ctypes.CDLL(name)
    except OSError:
        print(name)
        break
PROBE
}

# pip in .venv, quietly: its output goes to .venv/install.log, and on a terminal one line
# shows which of the $1 packages it has come to.
run_pip() {
    local total=$1 count=0 word rest
    shift
    PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
        .venv/bin/python -m pip "$@" 2>&1 | tee -a .venv/install.log \
        | while read -r word rest; do
            [ -t 1 ] || continue
            case $word in
                Collecting)
                    count=$((count + 1))
                    printf '\r\033[K  %d/%d %s' "$count" "$total" "${rest%% *}" ;;
                Installing) printf '\r\033[K  unpacking' ;;
            esac
        done || {
            clear_line
            # Nothing was replaced yet (no network, say): what was there is still whole.
            grep -q '^Installing collected' .venv/install.log || rm -f .venv/incomplete
            tail -n 15 .venv/install.log | cut -c 1-500 >&2
            fail "pip failed (above; all of it: .venv/install.log); the same command tries again" 1
        }
    clear_line
}

clear_line() {
    if [ -t 1 ]; then
        printf '\r\033[K'
    fi
}

main() {
    local list lacking other size
    # Made before, by this script, and the list has not changed since: nothing to do.
    if [ -f .venv/requirements.txt ] && [ ! -e .venv/incomplete ] && try .venv/bin/python; then
        for list in requirements.txt requirements-cpu.txt; do
            if [ "$(<"$list")" = "$(<.venv/requirements.txt)" ]; then
                return
            fi
        done
    fi
    trap 'clear_line; fail "stopped; the same command makes .venv anew" 130' INT TERM

    if [ -e .venv/incomplete ] || { [ -f .venv/requirements.txt ] && ! try .venv/bin/python; }; then
        rm -rf .venv
    fi
    if [ ! -e .venv ]; then
        find_python
        "$found" -c 'import venv, ensurepip, ssl, zlib' 2>/dev/null || fail \
            "$found cannot make environments (its venv, ensurepip, ssl or zlib is missing); on Debian and Ubuntu: sudo apt-get install python3.6-venv"
        echo "making .venv with $found"
        mkdir .venv
        : >.venv/incomplete
        "$found" -m venv .venv || fail "$found -m venv failed (above)" 1
    elif ! try .venv/bin/python; then
        fail ".venv is there, but holds no Python 3.6; move it away and try again"
    fi

    : >.venv/incomplete
    : >.venv/install.log
    lacking=$(missing_library .venv/bin/python)
    if [ -z "$lacking" ]; then
        list=requirements.txt other=tensorflow size=450
        echo "GPU build of TensorFlow: CUDA 9.0 and cuDNN 7 are here"
    else
        list=requirements-cpu.txt other=tensorflow-gpu size=260
        echo "CPU build of TensorFlow: $lacking does not load (the GPU build needs CUDA 9.0 and cuDNN 7)"
    fi
    echo "installing $list (the first time: $size MB to download, 1 to 3 minutes)"
    run_pip 2 install pip==21.3.1 wheel==0.37.1
    run_pip 1 uninstall --yes "$other"
    run_pip "$(grep -c '^[^#].*==' "$list")" install --no-deps -r "$list"
    .venv/bin/python -c 'import tensorflow' >>.venv/install.log 2>&1 || {
        grep -iE 'error|illegal' .venv/install.log | tail -n 3 | cut -c 1-500 >&2 || true
        fail "TensorFlow is installed but does not import (.venv/install.log); a common cause is a processor without AVX, or an incomplete CUDA 9.0" 1
    }
    cp "$list" .venv/requirements.txt
    rm .venv/incomplete
    echo ".venv is ready after $SECONDS s"
}

case ${PYTHON:-} in
    /*) ;;
    */*) PYTHON=$PWD/$PYTHON ;;
esac
case $0 in
    */*) cd "${0%/*}" ;;
esac
if [ -n "${PYTHON:-}" ] && [ "${1:-}" != --find ]; then
    (find_python)  # a PYTHON that cannot be used is said even if .venv is there
fi
case ${1:-} in
    "") main ;;
    --find) find_python; printf '%s\n' "$found" ;;
    *) fail "usage: ./make_env.sh [--find]" ;;
esac
