# shellcheck shell=sh disable=SC2154,SC2086
# Sourced by the programs in bin/, with their real path in self: runs the jq filter or the Python
# stage of the same name. A stage behaves the same in any shell: Python's -I ignores PYTHON*
# variables, the user's site-packages and modules in the current directory, and jq reads no ~/.jq.
# Stages that need no package run on any python3 before `make setup`.
root=${self%/*/*}
name=${self##*/}
story=$root/jq/$name.jq

python() {
    venv=${SAEPUB_VENV:-$root/.venv}
    # .env may set it too; only bin/settings reads that.
    if [ -z "${SAEPUB_VENV:-}" ] && [ "$name" != settings ] && grep -qs VENV "$root/.env"; then
        venv=$("$root/bin/settings" --value VENV) || exit
    fi
    python=$venv/bin/python
    if ! [ -x "$python" ]; then
        python=${PYTHON:-python3}
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || {
            told=$("$python" --version 2>&1 | tr '\n' ' ')
            case $told in
                Python*) told="${told}is too old" ;;
                *) told="can't run $python: ${told% }" ;;
            esac
            echo "$name: $told; set PYTHON to python 3.11 or later" >&2
            exit 1
        }
    fi
    # Until main handles Ctrl-C, it ends the program silently. Python itself would print a
    # traceback, so the signal is blocked until Python has started, if env can block it.
    held='env --block-signal=INT'
    $held true 2> /dev/null || held=
    exec $held "$python" -I -S -X utf8 -c 'import _signal
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
_signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGINT])
import site, sys
site.main()
sys.path.insert(0, sys.argv.pop(1))
from saepub.cli import program
program(sys.argv.pop(1))' "$root/py" "$name" "$@"
}

[ -f "$story" ] || python "$@"
. "$root/py/about.sh"
if [ $# -gt 0 ]; then
    echo "usage: $name [--help] [--version] < LINES" >&2
    exit 2
fi
command -v jq > /dev/null || {
    echo "$name: jq is not installed; get it with: apt install jq, brew install jq or conda install jq" >&2
    exit 1
}
# A filter that needs EXCLUDE reads it from the environment.
if grep -q 'ENV\.EXCLUDE' "$story"; then
    EXCLUDE=$("$root/bin/settings" --value EXCLUDE) || exit
    export EXCLUDE
fi
# Its first line has jq's options.
read -r _ _ _ options < "$story"
HOME=/dev/null exec jq "$options" "$story"
