#!/bin/sh
# ./bootstrap.sh demo | test | install | docs [behavegpt arguments]
# Makes .venv with the pinned CPU packages of constraints/cpu.txt (once), then runs the demo or the tests, or builds the site.
# Needs Python 3.11, 3.12 or 3.13; uses uv where it can be had and pip otherwise.
set -eu
cd "$(dirname "$0")"
command=${1:-demo}
[ $# -eq 0 ] || shift

say() { printf '%s\n' "$*" >&2; }

choose_python() {
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 || continue
        "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || continue
        printf '%s' "$name"
        return
    done
    say "bootstrap: no Python 3.11, 3.12 or 3.13 found; install one, or name it: PYTHON=/path/to/python ./bootstrap.sh"
    exit 2
}

pip_setting() { .venv/bin/python -m pip config get "$1" 2>/dev/null; }

install_package() { # package: . or .[extras]
    if .venv/bin/python -m uv --version >/dev/null 2>&1 || .venv/bin/python -m pip install -q uv >/dev/null 2>&1; then
        # uv does not read pip's settings: hand on a folder of wheels if pip was given one
        links=$(pip_setting :env:.find-links || pip_setting global.find-links || true)
        if [ -n "$links" ]; then set -- "$1" --find-links "$links"; else set -- "$1" --torch-backend cpu; fi
        package=$1
        shift
        if .venv/bin/python -m uv pip install -q -p .venv/bin/python "$@" -c constraints/cpu.txt -e "$package"; then
            return
        fi
        say "bootstrap: uv could not install; trying pip"
        set -- "$package"
    fi
    .venv/bin/python -m pip install -q -c constraints/cpu.txt -e "$1"
}

ensure() { # name, package
    stamp=.venv/.installed-$1-$(cat constraints/cpu.txt setup.cfg | cksum | cut -d' ' -f1)
    [ -f "$stamp" ] && return
    python=$(choose_python)
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    say "bootstrap: installing into .venv (about 1 GB, once)"
    install_package "$2"
    : >"$stamp"
}

case $command in
demo)
    ensure base .
    exec .venv/bin/behavegpt demo "$@"
    ;;
test)
    ensure test '.[test,check,docs]'
    exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not gpu" "$@"
    ;;
docs)
    ensure test '.[test,check,docs]'
    exec make docs
    ;;
install)
    ensure test '.[test,check,docs]'
    ;;
*)
    say "usage: ./bootstrap.sh demo | test | install | docs"
    exit 2
    ;;
esac
