# shellcheck shell=sh disable=SC2154
# Sourced for --help, which prints the comment at the top of $story, and --version.
case ${1-} in
    --help | -h)
        sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$story"
        exit
        ;;
    --version)
        sed -n "s/^__version__ = \"\(.*\)\"/${self##*/} (saepub) \1/p" "${story%/*/*}/py/saepub/__init__.py"
        exit
        ;;
esac
