#!/bin/sh
# Make .venv ready: sh tools/venv.sh REQUIREMENTS_FILE...
#
# Finds a Python that OneFlow 0.9.0 has a wheel for, makes .venv with it and
# installs the files' packages. Where all that was done before, it does nothing
# and takes a tenth of a second. A .venv that this script left half-made, or
# whose Python is gone, is made again; one that somebody else made is used if
# it fits and otherwise left alone.
set -u
cd "$(dirname "$0")/.." || exit 1

mark=.venv/.made-by-make    # this script made it, and may make it again
done_mark=.venv/.installed  # what was installed, to the end

say() { printf '%s\n' "$*" >&2; }
fail() { say "make: $*"; exit 2; }

# Does this Python run, is it 3.8 to 3.10, can it make environments?
fits() {
    "$1" -c 'import sys, venv, ensurepip
sys.exit(not ((3, 8) <= sys.version_info[:2] <= (3, 10) and sys.maxsize > 2**32))' >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" && printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3.10 python3.9 python3.8 python3 python; do
        if fits "$candidate"; then command -v "$candidate"; return; fi
    done
    for version in 3.10 3.9 3.8; do
        for candidate in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            if fits "$candidate"; then printf '%s\n' "$candidate"; return; fi
        done
    done
    command -v uv >/dev/null 2>&1 || return
    for version in 3.10 3.9 3.8; do
        candidate=$(uv python find --no-project "$version" 2>/dev/null) || continue
        if fits "$candidate"; then printf '%s\n' "$candidate"; return; fi
    done
    uv python install 3.10 >&2 && uv python find --no-project 3.10
}

# Are the pinned packages there, in these versions? (Somebody may have changed them by hand.)
pins_hold() {
    .venv/bin/python - "$@" >/dev/null 2>&1 <<'PYTHON'
import re, sys
from importlib.metadata import version
for path in sys.argv[1:]:
    for name, pin in re.findall(r"^([\w-]+)==([\w.]+)", open(path).read(), re.M):
        if version(name) != pin:
            sys.exit(1)
PYTHON
}

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "OneFlow 0.9.0 runs on Linux x86-64 only (on Windows: in WSL); this is $(uname -s) $(uname -m)"

wanted=$(cat "$@" | cksum) || exit 1
installed=
[ -f "$done_mark" ] && installed=$(cat "$done_mark")
case "$installed" in *"$wanted"*) fits .venv/bin/python && pins_hold "$@" && exit 0 ;; esac

if [ -e .venv ] || [ -L .venv ]; then
    if ! fits .venv/bin/python || { [ -f "$mark" ] && [ ! -f "$done_mark" ]; }; then
        [ -f "$mark" ] || fail ".venv is here already and has no working Python 3.8 to 3.10 in it, which OneFlow 0.9.0 needs: remove it (rm -rf .venv) and run make again"
        say "make: .venv is broken or half-made; making it again"
        rm -rf .venv
    fi
fi
if [ ! -e .venv ]; then
    python=$(find_python)
    [ -n "$python" ] || fail "no Python 3.8 to 3.10 found, and OneFlow 0.9.0 has no wheel for others: install one with 'uv python install 3.10', 'pyenv install 3.10' or your package manager (with its venv module), or name one: make PYTHON=/path/to/python3.10"
    say "make: setting up .venv with $("$python" --version) (once; about 1.5 GB to download, 4.5 GB on disk)"
    mkdir .venv && : >"$mark" && "$python" -m venv .venv || fail "could not make .venv with $python"
fi
for file in "$@"; do set -- "$@" -r "$file"; shift; done
quiet=; [ -t 2 ] || quiet=-q
.venv/bin/python -m pip install $quiet --disable-pip-version-check "$@" >&2 ||
    fail "installing the packages failed (see above); run make again to go on"
printf '%s\n%s\n' "$installed" "$wanted" >"$done_mark"
