#!/usr/bin/env bash
# Makes .venv, the environment that `make demo`, `make test` and `make lint` use, or
# brings it up to date. Ends with a line that says which Python and TensorFlow it holds.
#
#   tools/make_env.sh          .venv: Python 3.6 with TensorFlow 1.10; without a 3.6, the
#                              newest supported Python with the TensorFlow that suits it
#   tools/make_env.sh 1.9      .venv-1.9, beside it; also 1.10, 1.15 and 2
#   tools/make_env.sh --find   only print the Python that would be used for .venv
#
# PYTHON=/path/to/python chooses the interpreter; GPU=1 or GPU=0 the build of TensorFlow,
# which is otherwise that for a GPU where there is one. Exit status 2: none to use.
#
# .venv.incomplete is there while .venv is being written: it is made anew after an
# interruption. .venv.lock holds the number of the process that writes it.
# .venv/requirements.txt is the list that was installed last.
set -euo pipefail

supported="Python 3.6 (TensorFlow 1.10), 3.7 (1.15) and 3.10 to 3.13 (2.21)"

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

# Whether Python $1 can make environments: on Debian, venv is a package of its own.
makes_environments() {
    "$1" -c 'import venv, ensurepip, ssl, zlib' </dev/null >/dev/null 2>&1
}

# Whether Python version $1 is one of those to use.
is_wanted() {
    case " $wanted " in
        *" $1 "*) ;;
        *) return 1 ;;
    esac
}

# The lists of packages for Python version $1: one, or that for a GPU and that without.
lists() {
    case $venv:$1 in
        *-1.9:*) echo requirements/1.9.txt ;;
        *:3.6) echo requirements.txt requirements/cpu.txt ;;
        *:3.7) echo requirements/1.15.txt ;;
        *) echo requirements/2-gpu.txt requirements/2.txt ;;
    esac
}

# Candidates, one a line, those that cost least first.
candidates() {
    local name folder line
    for name in python3.6 python3.1{3,2,1,0} python3.7 python3 python; do
        type -aP "$name" || true
    done
    for folder in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.{6,1[0-3],7}*; do
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

# Sets $version and $found: PYTHON, or else the first candidate of the version that comes
# first in $wanted; one that cannot make environments only if there is no other.
find_python() {
    local candidate seen=' ' lame='' unfit='' first=${wanted%% *}
    if [ -n "${PYTHON:-}" ]; then
        candidate=$(type -P -- "$PYTHON") \
            || fail "PYTHON=$PYTHON: there is no such program; supported are $supported"
        look_at "$candidate" \
            || fail "PYTHON=$PYTHON does not run; supported are $supported"
        is_wanted "$version" \
            || fail "PYTHON=$PYTHON is Python $version; $venv can be made with $supported"
        return
    fi
    while IFS= read -r candidate; do
        look_at "$candidate" || continue
        if ! is_wanted "$version"; then
            unfit+="  found $candidate: Python $version, which does not fit"$'\n'
            continue
        fi
        case $seen in
            *" $version="*) continue ;;
        esac
        if ! makes_environments "$found"; then
            lame=${lame:-$version=$found}
        elif [ "$version" = "$first" ]; then
            return
        else
            seen+="$version=$found"$'\n '
        fi
    done < <(candidates)
    for version in $wanted; do
        case $seen in
            *" $version="*)
                found=${seen#*" $version="} found=${found%%$'\n'*}
                return ;;
        esac
    done
    if [ -n "$lame" ]; then
        version=${lame%%=*} found=${lame#*=}
        return
    fi
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

# Waits until no other process writes $venv, and keeps others off until this one ends.
lock() {
    local holder patience=0
    until mkdir "$venv.lock" 2>/dev/null; do
        [ -d "$venv.lock" ] || fail \
            "$PWD: no file can be written there; change its permissions or copy it elsewhere"
        holder=$(cat "$venv.lock/holder" 2>/dev/null) || holder=''
        patience=$((patience + 1))
        if [ -n "$holder" ] && ! kill -0 "$holder" 2>/dev/null \
                || [ -z "$holder" ] && [ "$patience" -gt 10 ]; then
            rm -rf "$venv.lock"  # its process was killed
            continue
        fi
        [ "$patience" != 1 ] || echo "process $holder is making $venv: waiting for it"
        sleep 1
    done
    echo $$ >"$venv.lock/holder"
    trap 'rm -rf "$venv.lock"' EXIT
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

# pip in $venv, quietly: its output goes to $venv/install.log, and on a terminal one line
# shows which of the $1 packages it has come to.
run_pip() {
    local total=$1 count=0 word rest
    shift
    PIP_USER=no PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
        "$venv/bin/python" -m pip "$@" 2>&1 | tee -a "$venv/install.log" \
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
            if [ -f "$venv/requirements.txt" ]; then
                grep -q '^Installing collected' "$venv/install.log" \
                    || rm -f "$venv.incomplete"
            fi
            tail -n 15 "$venv/install.log" | cut -c 1-500 >&2
            fail "pip failed (above; all of it: $venv/install.log); the same command tries again" 1
        }
    clear_line
}

clear_line() {
    if [ -t 1 ]; then
        printf '\r\033[K'
    fi
}

# The last line: what list $1 has put into $venv, which holds Python $2.
say_which() {
    local pin choice="make PYTHON=/path/to/python ..."
    pin=$(grep -m 1 '^tensorflow.*==' "$1")
    pin=${pin%%;*}
    if [ "$2" = 3.6 ]; then
        choice="another Python: $choice"
    else
        choice="the baseline, TensorFlow 1.10, needs Python 3.6: $choice"
    fi
    echo "$venv: Python $2, ${pin/==/ } ($1); $choice"
}

# Whether $venv, which holds Python $1, is whole and of its list: then says so.
is_up_to_date() {
    local list
    is_wanted "$1" && [ -f "$venv/requirements.txt" ] && [ ! -e "$venv.incomplete" ] \
        || return 1
    for list in $(lists "$1"); do
        case ${GPU:-}:$list in
            1:*cpu.txt|1:*/2.txt|0:requirements.txt|0:*gpu.txt) continue ;;
        esac
        if [ "$(<"$list")" = "$(<"$venv/requirements.txt")" ]; then
            say_which "$list" "$1"
            return
        fi
    done
    return 1
}

# Of the two lists $1 and $2, for a GPU and without, sets $list to the one for this
# machine. $3: the Python of $venv.
choose_list() {
    local lacking
    if [ -n "${GPU:-}" ]; then
        lacking=${GPU#1}
    elif [ "$3" = 3.6 ]; then
        lacking=$(missing_library "$venv/bin/python")
        lacking=${lacking:+"$lacking does not load (it needs CUDA 9.0 and cuDNN 7)"}
    else
        lacking=$(nvidia-smi -L 2>&1 >/dev/null) && lacking='' \
            || lacking="no NVIDIA driver answers"
    fi
    if [ -z "$lacking" ]; then
        list=$1
        echo "TensorFlow for a GPU${GPU:+ (GPU=$GPU)}; for the CPU: GPU=0"
    else
        list=$2
        [ -n "${GPU:-}" ] || echo "TensorFlow for the CPU: $lacking; for a GPU: GPU=1"
    fi
}

main() {
    local list size other='' pip holds=''
    if look_at "$venv/bin/python"; then
        holds=$version
    fi
    if [ -n "${PYTHON:-}" ]; then
        find_python  # a PYTHON that cannot be used is said even if $venv is there
        wanted=$version
    fi
    if is_up_to_date "$holds"; then
        return
    fi
    lock
    if look_at "$venv/bin/python"; then  # another process may have made it meanwhile
        holds=$version
    fi
    if is_up_to_date "$holds"; then
        return
    fi
    trap 'clear_line; fail "stopped; the same command makes $venv anew" 130' INT TERM

    if [ -e "$venv.incomplete" ] || [ -e "$venv/incomplete" ]; then
        rm -rf "$venv"
    elif [ -e "$venv" ] && ! is_wanted "$holds"; then
        [ -f "$venv/requirements.txt" ] || fail \
            "$venv is there, but not of this script's making, and holds ${holds:+Python }${holds:-no Python}; move it away and try again"
        echo "$venv holds ${holds:+Python }${holds:-no Python}: it is made anew"
        rm -rf "$venv"
    fi
    : >"$venv.incomplete"
    if [ ! -e "$venv" ]; then
        find_python
        makes_environments "$found" || {
            rm "$venv.incomplete"
            fail "$found cannot make environments (its venv, ensurepip, ssl or zlib is missing); on Debian and Ubuntu: sudo apt-get install python$version-venv"
        }
        echo "making $venv with $found"
        "$found" -m venv "$venv" || fail "$found -m venv failed (above)" 1
        holds=$version
    fi

    : >"$venv/install.log"
    list=$(lists "$holds")
    if [ "$list" != "${list#* }" ]; then
        # shellcheck disable=SC2086
        choose_list $list "$holds"
        case $list in
            requirements.txt) other=tensorflow ;;
            */cpu.txt) other=tensorflow-gpu ;;
            */2-gpu.txt) other=tensorflow-cpu ;;
            */2.txt) other=tensorflow ;;
        esac
    fi
    case $list in
        requirements.txt) size=450 ;;
        */1.15.txt) size=330 ;;
        */2.txt) size=490 ;;
        */2-gpu.txt) size=3500 ;;
        *) size=260 ;;
    esac
    echo "installing $list (the first time: $size MB to download, 1 to 3 minutes)"
    # The head of the list says which pip takes it.
    pip=$(sed -n 's/^#.* pip install \(pip==.*\)/\1/p' "$list")
    # shellcheck disable=SC2086
    run_pip 2 install $pip
    if [ -n "$other" ]; then
        run_pip 1 uninstall --yes "$other"
    fi
    run_pip "$(grep -c '^[^#].*==' "$list")" install --no-deps -r "$list"
    "$venv/bin/python" -c 'import tensorflow' >>"$venv/install.log" 2>&1 || {
        grep -iE 'error|illegal' "$venv/install.log" | tail -n 3 | cut -c 1-500 >&2 || true
        fail "TensorFlow is installed but does not import ($venv/install.log); a common cause is a processor without AVX, or an incomplete CUDA 9.0" 1
    }
    cp "$list" "$venv/requirements.txt"
    rm "$venv.incomplete"
    echo "$venv is ready after $SECONDS s"
    say_which "$list" "$holds"
}

case ${PYTHON:-} in
    /*) ;;
    */*) PYTHON=$PWD/$PYTHON ;;
esac
case $0 in
    */*) cd "${0%/*}/.." ;;
    *) cd .. ;;
esac
# The Python versions to use, the best first, and the folder to make.
wanted='3.6 3.13 3.12 3.11 3.10 3.7' venv=.venv-${1:-}
case ${1:-} in
    ''|--find) venv=.venv ;;
    1.9|1.10) wanted='3.6' supported="Python 3.6" ;;
    1.15) wanted='3.7' supported="Python 3.7" ;;
    2) wanted='3.13 3.12 3.11 3.10' supported="Python 3.10 to 3.13" ;;
    *) fail "usage: tools/make_env.sh [1.9 | 1.10 | 1.15 | 2 | --find]" ;;
esac
if [ "${1:-}" = --find ]; then
    find_python
    printf '%s\n' "$found"
else
    main
fi
