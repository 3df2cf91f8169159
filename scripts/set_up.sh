# shellcheck shell=sh
# Sourced from the root by quickstart.sh, test.sh and the studies: makes `python` one that has what REQUIREMENTS asks for.
# The active Python is used if it has it all; otherwise .venv is made and filled. CONSTRAINTS=oldest takes the versions of
# constraints-oldest.txt instead, in .venv-oldest, by the oldest Python there is.
REQUIREMENTS=${REQUIREMENTS:-requirements.txt} VENV=.venv${CONSTRAINTS:+-$CONSTRAINTS}
enough() { python scripts/check_requirements.py "$REQUIREMENTS" ${CONSTRAINTS:+"constraints-$CONSTRAINTS.txt"}; }
if [ -n "${CONSTRAINTS:-}" ] && [ ! -f "constraints-$CONSTRAINTS.txt" ]; then
    echo "CONSTRAINTS: expected oldest or nothing, found $CONSTRAINTS" >&2
    exit 2
fi
if ! { command -v python >/dev/null 2>&1 && enough 2>/dev/null; }; then
    recent='import sys; sys.exit(sys.version_info < (3, 10))'
    [ -n "${PYTHON:-}" ] || for PYTHON in ${CONSTRAINTS:+python3.10 python3.11 python3.12} python3; do
        "$PYTHON" -c "$recent" 2>/dev/null && break
    done
    "$PYTHON" -c "$recent" || {
        echo "set-up: expected Python 3.10 or later, found $("$PYTHON" --version 2>&1); name one with PYTHON=..." >&2
        exit 2
    }
    [ -x "$VENV/bin/python" ] || { echo "set-up: making $VENV"; "$PYTHON" -m venv "$VENV"; }
    export PATH="$PWD/$VENV/bin:$PATH"
    enough || {
        echo "set-up: installing $REQUIREMENTS into $VENV (several GB with the CUDA build of torch; once)"
        python -m pip install --quiet -r "$REQUIREMENTS" ${CONSTRAINTS:+-c "constraints-$CONSTRAINTS.txt"}
    }
fi
echo "set-up: using $(command -v python)"
