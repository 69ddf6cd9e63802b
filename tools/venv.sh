#!/bin/sh
# Make .venv ready: sh tools/venv.sh REQUIREMENTS_FILE...
#
# Finds or installs Python 3.10, makes .venv with it and installs the files'
# packages in the versions that constraints.txt names. Where all that was done
# before, it does nothing and takes a tenth of a second. A .venv that this script
# made is made again if it is half-made or has no working Python 3.10; one that
# somebody else made is used if it has one and otherwise left alone.
set -u
cd "$(dirname "$0")/.." || exit 1

mark=.venv/.made-by-make    # this script made it, and may make it again
done_mark=.venv/.installed  # what was installed, to the end
name_one="name a Python 3.10: make PYTHON=/path/to/python3.10"

say() { printf 'make: %s\n' "$*" >&2; }
fail() { say "$@"; exit 2; }

runs() { "$@" >/dev/null 2>&1; }

# Does this Python run, is it 3.10, can it make environments?
fits() {
    runs "$1" -c 'import sys, venv, ensurepip
sys.exit(sys.version_info[:2] != (3, 10) or sys.maxsize < 2**32)'
}

find_python() {
    for candidate in python3.10 python3 python "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.10.*/bin/python; do
        if fits "$candidate"; then command -v "$candidate"; return; fi
    done
}

# Sets $python to a Python 3.10 that uv installs: the uv on PATH, or one in .uv/,
# which whatever Python 3 is there installs.
install_python() {
    # Asked in /, since here pyenv's python3 obeys .python-version.
    python3=$(cd / && python3 -c 'import sys; print(sys.executable)' 2>/dev/null)
    has_venv() { runs "$python3" -c 'import venv, ensurepip'; }
    runs uv --version || runs .uv/bin/uv --version || has_venv || runs "$python3" -m pip --version ||
        fail "no Python 3.10 here, nor uv, nor a python3 with venv or pip to install them: install uv or python3-venv (Debian: apt install python3-venv), or $name_one"
    say "no Python 3.10 here; installing one with uv"
    uv=uv
    if ! runs uv --version; then
        uv=.uv/bin/uv
        export UV_PYTHON_INSTALL_DIR="${UV_PYTHON_INSTALL_DIR:-$PWD/.uv/python}"
        if ! runs $uv --version; then
            rm -rf .uv
            if has_venv; then
                "$python3" -m venv .uv && .uv/bin/python -m pip install -qq -c constraints.txt uv
            else  # as Debian's without python3-venv
                "$python3" -m pip install -qq -c constraints.txt --target .uv uv
            fi >&2 || fail "installing uv failed (see above; it needs Python 3.8 or newer): install uv yourself, or $name_one"
        fi
    fi
    export UV_PYTHON_INSTALL_BIN=0 UV_PYTHON_PREFERENCE=only-managed
    $uv python install -q 3.10 && python=$($uv python find 3.10) ||
        fail "installing Python 3.10 failed (see above): $name_one"
}

# Are the files' packages there, and all packages in the versions of constraints.txt?
# (Somebody may have changed them by hand.)
pins_hold() {
    .venv/bin/python - "$@" >/dev/null 2>&1 <<'PYTHON'
import re, sys
from importlib.metadata import PackageNotFoundError, version
for path in ["constraints.txt", *sys.argv[1:]]:
    for name, pin in re.findall(r"^([\w.-]+)==([\w.]+)", open(path).read(), re.M):
        try:
            if version(name) != pin:
                sys.exit(1)
        except PackageNotFoundError:
            if path != "constraints.txt":
                sys.exit(1)
PYTHON
}

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    fail "OneFlow 0.9.0 runs on Linux x86-64 only (on Windows: in WSL); this is $(uname -s) $(uname -m)"

wanted=$(cat constraints.txt "$@" | cksum) || exit 1
installed=
[ -f "$done_mark" ] && installed=$(cat "$done_mark")
case "$installed" in *"$wanted"*) fits .venv/bin/python && pins_hold "$@" && exit 0 ;; esac

if [ -e .venv ] || [ -L .venv ]; then
    if ! fits .venv/bin/python || { [ -f "$mark" ] && [ ! -f "$done_mark" ]; }; then
        [ -f "$mark" ] || fail ".venv is here already and has no working Python 3.10 in it, which OneFlow 0.9.0 needs: remove it (rm -rf .venv) and run make again"
        say ".venv is half-made or has no working Python 3.10; making it again"
        rm -rf .venv
    fi
fi
if [ ! -e .venv ]; then
    python=${PYTHON:-$(find_python)}
    [ -n "$python" ] || install_python
    fits "$python" || fail "$python is not a Python 3.10 with venv, which OneFlow 0.9.0 needs: $name_one"
    say "setting up .venv with $("$python" --version) (once; about 1.5 GB to download, 4.5 GB on disk)"
    mkdir .venv && : >"$mark" && "$python" -m venv .venv || fail "could not make .venv with $python"
fi
runs .venv/bin/python -m pip --version || runs .venv/bin/python -m ensurepip  # uv makes it without pip
for file in "$@"; do set -- "$@" -r "$file"; shift; done
quiet=; [ -t 2 ] || quiet=-q
.venv/bin/python -m pip install $quiet --disable-pip-version-check -c constraints.txt "$@" >&2 ||
    fail "installing the packages failed (see above); run make again to go on"
printf '%s\n%s\n' "$installed" "$wanted" >"$done_mark"
