# shellcheck shell=sh
# Sourced by the programs in bin/: runs the stage of the same name with the project's Python.
# Stages that need no package run on any python3 before `make setup` has been called.
root=${0%/*}/..
python=${VENV:-$root/.venv}/bin/python
[ -x "$python" ] || python=python3
PYTHONPATH=$root/py${PYTHONPATH:+:$PYTHONPATH} exec "$python" -c 'import signal, sys
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main can put Ctrl-C in a line
from saepub.cli import main
main(sys.argv.pop(1))' "${0##*/}" "$@"
