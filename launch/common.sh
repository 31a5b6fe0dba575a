# Shared by the launch scripts; not run by itself.
# shellcheck shell=bash

# Exit code of a run that was interrupted, has saved everything and wants to be started again.
# shellcheck disable=SC2034 # the others use it
readonly EXIT_PREEMPTED=75

fail() {
    echo "ERROR: $*" >&2
    exit 2
}

# Prints words so that any POSIX shell reads the very same words back.
quote() {
    local word out=()
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
            out+=("$word")
        else
            out+=("'${word//\'/\'\\\'\'}'")
        fi
    done
    echo "${out[*]}"
}

# Prints a command, then runs it unless --dry-run was given (dry_run=1).
run() {
    echo "+ $(quote "$@")"
    [[ ${dry_run:-0} == 1 ]] || "$@"
}

# The comment at the head of a script is its help.
help_of() {
    sed -n '2,/^[^#]/{/^#SBATCH/d;/^#/s/^# \{0,1\}//p}' "$1"
}

# need_value OPTION [VALUE]: fails where the value was forgotten.
need_value() {
    [[ $# -ge 2 && -n $2 && $2 != -- ]] || fail "$1 needs a value; see --help"
}

need_number() {
    [[ ${2-} =~ ^[0-9]+$ ]] || fail "$1 needs a whole number, got '${2-}'"
}
