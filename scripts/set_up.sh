# shellcheck shell=sh
# Sourced from the root by quickstart.sh, test.sh and the studies: makes `python` one that has what requirements.txt asks for.
# The active Python is used if it has it all; otherwise .venv is made and filled.
if ! { command -v python >/dev/null 2>&1 && python scripts/check_requirements.py 2>/dev/null; }; then
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "set-up: expected Python 3.11 or later, found $("${PYTHON:-python3}" --version 2>&1); name one with PYTHON=..." >&2
        exit 2
    }
    [ -x .venv/bin/python ] || { echo "set-up: making .venv"; "${PYTHON:-python3}" -m venv .venv; }
    export PATH="$PWD/.venv/bin:$PATH"
    python scripts/check_requirements.py || {
        echo "set-up: installing requirements.txt into .venv (several GB with the CUDA build of torch; once)"
        python -m pip install --quiet -r requirements.txt
    }
fi
echo "set-up: using $(command -v python)"
