#!/usr/bin/env bash
# Runs the program on this machine: in one process, or in several that work as one.
#
#   launch/local.sh [options] -- --config=configs/ciard_digits.py ...
#
# Everything after -- goes to python -m ard_jax.main. One process uses all GPUs or TPUs of the machine, so
# that more than one is for tests, or for GPUs shared out among processes.
#
#   --processes N         number of processes (1)
#   --devices N           simulated CPU devices in each process; 0: the machine's real ones (0)
#   --gpus-per-process N  process i sees GPUs i*N to i*N+N-1; 0: all see all (0)
#   --port P              port on which the processes meet (a free one)
#   --retries N           starts again after an interruption (exit code 75), N times at most (3)
#   --grace S             seconds that processes get to end when one has failed (60)
#   --python PATH         the interpreter (python)
#   --dry-run             prints the commands only
#   --help                this text
#
# Process 0 writes to the terminal, the others to files that are named when one of them fails. Ctrl-C or
# SIGTERM reaches all processes, which save and end; it is not started again then.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

processes=1 devices=0 gpus=0 port="" retries=3 grace=60 python=python dry_run=0
while [[ $# -gt 0 ]]; do
    case $1 in
        --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=1; shift; continue ;;
        --) break ;;
        --processes) need_number "$@"; processes=$2 ;;
        --devices) need_number "$@"; devices=$2 ;;
        --gpus-per-process) need_number "$@"; gpus=$2 ;;
        --port) need_number "$@"; port=$2 ;;
        --retries) need_number "$@"; retries=$2 ;;
        --grace) need_number "$@"; grace=$2 ;;
        --python) need_value "$@"; python=$2 ;;
        *) fail "unknown option $1; the program's own arguments come after --; see --help" ;;
    esac
    shift 2
done
[[ ${1-} == -- ]] || fail "-- and the program's arguments are missing; see --help"
shift
((processes > 0)) || fail "--processes must be at least 1"
program=("$python" -m ard_jax.main "$@")
if [[ -z $port && $processes -gt 1 ]]; then
    port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
fi

# Sets `variables` to the environment of one process.
environment_of() {
    local index=$1 first=$(($1 * gpus))
    variables=(PYTHONUNBUFFERED=1)
    if ((processes > 1)); then
        variables+=("ARD_COORDINATOR=127.0.0.1:$port" "ARD_NUM_PROCESSES=$processes" "ARD_PROCESS_ID=$index")
    fi
    if ((devices > 0)); then
        variables+=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
    fi
    if ((gpus > 0)); then
        variables+=("CUDA_VISIBLE_DEVICES=$(seq -s , "$first" $((first + gpus - 1)))")
    fi
}

pids=() codes=() stopped=0 logs=""
# shellcheck disable=SC2329 # the trap calls it
forward() {
    stopped=1
    ((${#pids[@]} == 0)) || kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap forward TERM INT

start_all() {
    local index
    pids=() codes=()
    for ((index = 0; index < processes; index++)); do
        environment_of "$index"
        echo "+ $(quote env "${variables[@]}" "${program[@]}")"
        ((dry_run)) && continue
        # In the background they ignore the terminal's Ctrl-C; `forward` passes it on, once.
        if ((index == 0)); then
            env "${variables[@]}" "${program[@]}" &
        else
            env "${variables[@]}" "${program[@]}" >"$logs/process$index.log" 2>&1 &
        fi
        pids+=($!)
    done
}

# Waits for all; sets `code`: 75 if a process asks for a restart, else that of the first that failed.
wait_all() {
    local index running failed_at=""
    code=0
    while :; do
        running=0
        for index in "${!pids[@]}"; do
            [[ -z ${codes[index]-} ]] || continue
            if kill -0 "${pids[index]}" 2>/dev/null; then
                running=$((running + 1))
                continue
            fi
            codes[index]=0
            wait "${pids[index]}" || codes[index]=$?
            ((codes[index] != 0)) || continue
            [[ -n $failed_at ]] || failed_at=$SECONDS
            ((code != 0 && codes[index] != EXIT_PREEMPTED)) || code=${codes[index]}
        done
        ((running > 0)) || return 0
        if [[ -n $failed_at ]] && ((SECONDS - failed_at > grace)); then
            echo "a process has failed, the others have not ended in $grace seconds: killing them" >&2
            kill -KILL "${pids[@]}" 2>/dev/null || true
        fi
        sleep 0.2 || true # a signal ends the sleep
    done
}

((dry_run || processes == 1)) || logs=$(mktemp -d "${TMPDIR:-/tmp}/ard_jax.XXXXXX")
for ((attempt = 0; ; attempt++)); do
    start_all
    ((dry_run)) && exit 0
    wait_all
    if ((code == 0 || code != EXIT_PREEMPTED || stopped || attempt >= retries)); then
        break
    fi
    echo "interrupted; starting again ($((attempt + 1)) of $retries)"
done
if [[ -n $logs ]]; then
    for index in "${!codes[@]}"; do
        if ((index > 0 && codes[index] != 0 && codes[index] != EXIT_PREEMPTED)); then
            echo "process $index ended with code ${codes[index]}; the end of $logs/process$index.log:" >&2
            tail -n 20 "$logs/process$index.log" >&2
        fi
    done
    ((code != 0 && code != EXIT_PREEMPTED)) || rm -r "$logs"
fi
exit "$code"
