#!/usr/bin/env bash
# Runs the program on every worker of a Cloud TPU slice (TPU VMs, by gcloud).
#
#   launch/tpu_pod.sh run  --name N --zone Z [options] -- --config=... --config.workdir=gs://bucket/run
#   launch/tpu_pod.sh logs|stop|state|delete --name N --zone Z
#
# run copies the code to all workers, installs it and starts the program on all of them, where JAX finds the
# others by itself. Everything after -- goes to python -m ard_jax.main. The output of all workers is shown;
# breaking the connection or Ctrl-C leaves the run running.
#
#   logs                shows worker 0's output, from its beginning and on
#   stop                SIGTERM on all workers: the run saves and ends; not started again
#   state               READY, PREEMPTED, ...
#   delete              deletes the TPU VM, which ends its costs
#
#   --name N            name of the TPU VM
#   --zone Z            its zone, e.g. us-central2-b
#   --project P         the Cloud project (gcloud's own setting)
#   --type T            makes the TPU VM if it does not exist, and again when it was preempted: v4-32, ...
#   --version V         its software (tpu-ubuntu2204-base; v6e: v2-alpha-tpuv6e)
#   --spot              makes it a cheaper one that can be taken away
#   --internal-ip       connects by internal addresses, from a machine in the same network
#   --python-version V  Python on the workers (3.12)
#   --skip-install      the code is there already
#   --retries N         starts again after an interruption (exit code 75 or preempted), N times at most (3)
#   --dry-run           prints the commands only
#   --help              this text
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

action=${1-} name="" zone="" type="" version=tpu-ubuntu2204-base python=3.12 retries=3
dry_run=0 spot=0 install=1 place=() route=()
case $action in
    run | logs | stop | state | delete) shift ;;
    --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "the first argument is run, logs, stop, state or delete, got '$action'; see --help" ;;
esac
while [[ $# -gt 0 ]]; do
    case $1 in
        --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=1; shift; continue ;;
        --spot) spot=1; shift; continue ;;
        --internal-ip) route=(--internal-ip); shift; continue ;;
        --skip-install) install=0; shift; continue ;;
        --) break ;;
        --name) need_value "$@"; name=$2 ;;
        --zone) need_value "$@"; zone=$2 ;;
        --project) need_value "$@"; place+=("--project=$2") ;;
        --type) need_value "$@"; type=$2 ;;
        --version) need_value "$@"; version=$2 ;;
        --python-version) need_value "$@"; python=$2 ;;
        --retries) need_number "$@"; retries=$2 ;;
        *) fail "unknown option $1; the program's own arguments come after --; see --help" ;;
    esac
    shift 2
done
[[ -n $name ]] || fail "--name is missing; see --help"
[[ -n $zone ]] || fail "--zone is missing; see --help"
[[ $action != run || ${1-} == -- ]] || fail "-- and the program's arguments are missing; see --help"
[[ $action == run || $# -eq 0 ]] || fail "$action takes no arguments after --"
shift $(($# > 0))
place=("--zone=$zone" ${place[@]+"${place[@]}"})
tpu=(gcloud compute tpus tpu-vm)

on_workers() { # WHICH WORD...: the words as one command on worker WHICH, or on all
    local which=$1
    shift
    run "${tpu[@]}" ssh "$name" "${place[@]}" ${route[@]+"${route[@]}"} "--worker=$which" \
        "--command=$(quote "$@")"
}

state() {
    "${tpu[@]}" describe "$name" "${place[@]}" '--format=value(state)' 2>/dev/null || echo NONE
}

create() { # makes the TPU VM where there is none in use
    local now=NONE more=()
    if ((dry_run == 0)); then now=$(state); fi
    [[ $now != READY && $now != CREATING && $now != STARTING ]] || return 0
    [[ $now == NONE ]] || run "${tpu[@]}" delete "$name" "${place[@]}" --quiet
    ((spot == 0)) || more=(--spot)
    install=1
    run "${tpu[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--version=$version" \
        ${more[@]+"${more[@]}"}
}

copy_and_install() {
    local archive=ard_jax.tar.gz folder=${TMPDIR:-/tmp} worker=ard_jax/launch/tpu_host.sh
    if ((dry_run == 0)); then folder=$(mktemp -d); fi
    run tar -czf "$folder/$archive" -C "$(dirname "$here")" --exclude=__pycache__ \
        ard_jax configs launch setup.py pyproject.toml README.md LICENSE
    run "${tpu[@]}" scp "$folder/$archive" "$name:$archive" "${place[@]}" ${route[@]+"${route[@]}"} --worker=all
    if ((dry_run == 0)); then rm -r "$folder"; fi
    # The new code takes the old one's place whole, a module that was removed must not stay; but not under
    # a run that goes on.
    on_workers all sh -c "if [ -e $worker ]; then bash $worker idle; fi && rm -rf ard_jax && mkdir ard_jax &&\
 tar -xzf $archive -C ard_jax"
    on_workers all bash "$worker" install "$python"
    install=0
}

run_once() { # sets `code`
    local id=ID
    if ((dry_run == 0)); then id=$(date +%Y%m%d-%H%M%S); fi
    code=0
    # tpu_host.sh works in ~/ard_jax.
    on_workers all bash ard_jax/launch/tpu_host.sh run "$id" ../ard_env/bin/python -m ard_jax.main "$@" || code=$?
}

case $action in
    logs) on_workers 0 bash ard_jax/launch/tpu_host.sh logs ;;
    stop) on_workers all bash ard_jax/launch/tpu_host.sh stop ;;
    state) run "${tpu[@]}" describe "$name" "${place[@]}" '--format=value(state)' ;;
    delete) run "${tpu[@]}" delete "$name" "${place[@]}" --quiet ;;
    run)
        for ((attempt = 0; ; attempt++)); do
            [[ -z $type ]] || create
            ((install == 0)) || copy_and_install
            run_once "$@"
            ((dry_run == 0)) || exit 0
            if ((code == 0 || attempt >= retries)); then break; fi
            # A slice that was taken away ends ssh in its own ways; only its state tells.
            now=$(state)
            [[ $code == "$EXIT_PREEMPTED" || ($now != READY && -n $type) ]] || break
            echo "interrupted (code $code, the TPU is $now); starting again ($((attempt + 1)) of $retries)"
        done
        exit "$code"
        ;;
esac
