#!/usr/bin/env bash
# The papers' CIFAR-10 table within a time budget: teachers, seven methods, AutoAttack, the table.
#
#   launch/reproduce_cifar10.sh --hours=2 --data-dir=TFDS_FOLDER [options]
#
# The same command continues, on this machine or another; then --hours can be left out. docs/reproduce.md
# says what is done and how to carry the work from machine to machine.
#
#   --hours=H             time for everything; the schedule is made for it at the first start
#   --workdir=DIR         folder of the work (runs/reproduce_cifar10)
#   --data-dir=DIR        TFDS folder with cifar10 ($TFDS_DATA_DIR, else ~/tensorflow_datasets)
#   --clean-teacher=DIR   an imported ResNet-56 as clean teacher; without: it is trained
#   --device=D            auto, cpu, gpu or tpu (auto)
#   --precision=P         float32 or bfloat16, in training (float32)
#   --methods=A,B,...     some of sat,trades,rslad,mtard,ciard,dard,ciard_dard (all)
#   --seeds=N             seeds of each student (1)
#   --measure=M           programs that are measured first: few, all, or auto by the budget (auto)
#   --session-hours=H     stops after so long with everything saved, exit code 75 (no limit)
#   --whole-runs          begins nothing that this session cannot finish
#   --unpack=DIR          first puts back what another machine packed
#   --pack=DIR            in the end packs what the next machine needs, whatever the exit code
#   --pack-limit=BYTES    of that; what is least needed is left out (no limit)
#   --python=PATH         the interpreter (python)
#   --dry-run             prints the commands only
#   --help                this text
#
# Exit code: 0 when the table is complete, 75 when the same command is to be given again, 1 when a method
# failed, 2 for a mistake. Ctrl-C or SIGTERM: the run saves and ends.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

workdir=runs/reproduce_cifar10 python=python dry_run=0 unpack="" pack="" limit="" arguments=()
while [[ $# -gt 0 ]]; do
    # --option=value and --option value are the same.
    if [[ $1 == --*=* ]]; then
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
    fi
    case $1 in
        --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=1; shift; continue ;;
        --whole-runs) arguments+=("$1"); shift; continue ;;
        --hours | --data-dir | --clean-teacher | --device | --precision | --methods | --seeds | --measure | --session-hours)
            need_value "$@"; arguments+=("$1=$2") ;;
        --workdir) need_value "$@"; workdir=$2 ;;
        --python) need_value "$@"; python=$2 ;;
        --unpack) need_value "$@"; unpack=$2 ;;
        --pack) need_value "$@"; pack=$2 ;;
        --pack-limit) need_number "$@"; limit=$2 ;;
        *) fail "unknown option $1; see --help" ;;
    esac
    shift 2
done
[[ -z $limit || -n $pack ]] || fail "--pack-limit needs --pack; see --help"

export PYTHONUNBUFFERED=1 PYTHONPATH="${here%/*}${PYTHONPATH:+:$PYTHONPATH}"
program=("$python" -m ard_jax.reproduce "--workdir=$workdir")
if [[ -n $unpack ]]; then
    run "${program[@]}" "--unpack=$unpack"
fi

pid=""
# shellcheck disable=SC2329 # the trap calls it
forward() { [[ -z $pid ]] || kill -TERM "$pid" 2>/dev/null || true; }
trap forward TERM INT

echo "+ $(quote "${program[@]}" ${arguments[@]+"${arguments[@]}"})"
code=0
if ((!dry_run)); then
    # In the background it ignores the terminal's Ctrl-C; `forward` passes it on, once.
    "${program[@]}" ${arguments[@]+"${arguments[@]}"} &
    pid=$!
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal ended the wait, not the program
        code=0
        wait "$pid" || code=$?
    done
fi
if [[ -n $pack ]]; then
    run "${program[@]}" "--pack=$pack" ${limit:+"--pack-limit=$limit"}
fi
exit "$code"
