#!/bin/sh
# Make .venv in the current folder: every package of requirements.lock by hash, byte-compiled, and this project, editable.
# usage: make_venv.sh STAMP      (called by `make setup`; the stamp is written last)
# It may be killed at any point: an install that did not finish is started over.
set -eu
stamp=$1
venv=.venv
unfinished=$venv/unfinished

choose_python() {
    if [ -n "${PYTHON:-}" ]; then candidates=$PYTHON; else candidates="python3.12 python3.11 python3.13 python3"; fi
    for candidate in $candidates; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11, 3.12 or 3.13 is needed; tried: $candidates." >&2
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12)" >&2
    echo "or name it: make setup PYTHON=/path/to/python3.12" >&2
    exit 3
}

# two at once would take the folder from under each other's feet; the system drops the lock of one that was killed
if [ -z "${NIGHTJAR_SETUP_LOCKED:-}" ] && command -v flock >/dev/null 2>&1; then
    mkdir -p .nightjar
    NIGHTJAR_SETUP_LOCKED=yes exec flock .nightjar/setup.lock sh "$0" "$@"
fi

unset PYTHONDONTWRITEBYTECODE PYTHONHOME VIRTUAL_ENV
if [ -e "$unfinished" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python=$(choose_python)
    rm -rf "$venv"
    mkdir "$venv"
    : > "$unfinished"
    echo "setup: .venv with $("$python" --version)"
    if ! "$python" -m venv "$venv"; then
        rm -rf "$venv"
        echo "error: $python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 3
    fi
fi
: > "$unfinished"

echo "setup: packages of requirements.lock (a minute or two the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
    -r infra/local/uv-requirements.txt
# uv does not read pip's settings: pass on a package index of one's own
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    index=${PIP_INDEX_URL:-$("$venv/bin/python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ]; then
        UV_DEFAULT_INDEX=$index
        export UV_DEFAULT_INDEX
    fi
fi
UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
UV_PYTHON_DOWNLOADS=never
export UV_HTTP_TIMEOUT UV_PYTHON_DOWNLOADS
uv() { "$venv/bin/uv" --quiet "$@"; }
uv pip sync --python "$venv/bin/python" --require-hashes --compile-bytecode requirements.lock
uv pip install --python "$venv/bin/python" --no-deps --no-build-isolation --offline --editable .
rm -f "$unfinished"
: > "$stamp"
