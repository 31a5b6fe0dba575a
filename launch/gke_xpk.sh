#!/usr/bin/env bash
# Runs the program on TPU slices of a GKE cluster that was made with xpk (pip install xpk).
#
#   launch/gke_xpk.sh run --cluster C --workload W --tpu-type v5litepod-16 [options] -- \
#       --config=... --config.workdir=gs://bucket/run
#   launch/gke_xpk.sh logs|stop|state --cluster C [--workload W]
#
# run submits a workload and returns. Everything after -- goes to python -m ard_jax.main on every worker,
# where JAX finds the others by itself.
#
#   logs                       shows the output of the first worker, and what follows (needs kubectl)
#   stop                       deletes the workload: SIGTERM, on which the program saves and ends
#   state                      lists the cluster's workloads
#
#   --cluster C                the GKE cluster
#   --workload W               a new name for this run
#   --tpu-type T               a slice: v5litepod-16, v4-32, v6e-16, ...
#   --num-slices N             number of slices (1)
#   --project P, --zone Z      where the cluster is (gcloud's own settings)
#   --docker-image I           an image with the code installed; without it this folder is copied into
#   --base-docker-image I      ... this image (python:3.12), and installed at the start of each worker
#   --priority P               very-low ... very-high (medium)
#   --spot                     cheaper capacity that can be taken away
#   --retries N                restarts after an interruption (exit code 75, or a node that is lost) (10)
#   --grace S                  seconds between SIGTERM and SIGKILL (120)
#   --dry-run                  prints the command only
#   --help                     this text
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

action=${1-} cluster="" workload="" tpu_type="" slices=1 image="" base=python:3.12 retries=10 grace=120
dry_run=0 place=() more=()
case $action in
    run | logs | stop | state) shift ;;
    --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
    *) fail "the first argument is run, logs, stop or state, got '$action'; see --help" ;;
esac
while [[ $# -gt 0 ]]; do
    case $1 in
        --help) help_of "${BASH_SOURCE[0]}"; exit 0 ;;
        --dry-run) dry_run=1; shift; continue ;;
        --spot) more+=(--spot); shift; continue ;;
        --) break ;;
        --cluster) need_value "$@"; cluster=$2 ;;
        --workload) need_value "$@"; workload=$2 ;;
        --tpu-type) need_value "$@"; tpu_type=$2 ;;
        --num-slices) need_number "$@"; slices=$2 ;;
        --project) need_value "$@"; place+=("--project=$2") ;;
        --zone) need_value "$@"; place+=("--zone=$2") ;;
        --docker-image) need_value "$@"; image=$2 ;;
        --base-docker-image) need_value "$@"; base=$2 ;;
        --priority) need_value "$@"; more+=("--priority=$2") ;;
        --retries) need_number "$@"; retries=$2 ;;
        --grace) need_number "$@"; grace=$2 ;;
        *) fail "unknown option $1; the program's own arguments come after --; see --help" ;;
    esac
    shift 2
done
[[ -n $cluster ]] || fail "--cluster is missing; see --help"
[[ -n $workload || $action == state ]] || fail "--workload is missing; see --help"
place=("--cluster=$cluster" ${place[@]+"${place[@]}"})

case $action in
    state) run xpk workload list "${place[@]}" ;;
    stop) run xpk workload delete "${place[@]}" "--workload=$workload" ;;
    logs) # the cluster has to be kubectl's current one: gcloud container clusters get-credentials
        run kubectl logs --follow --tail=-1 \
            "--selector=xpk.google.com/workload=$workload,jobset.sigs.k8s.io/job-index=0,\
batch.kubernetes.io/job-completion-index=0"
        ;;
    run)
        [[ ${1-} == -- ]] || fail "-- and the program's arguments are missing; see --help"
        shift
        [[ -n $tpu_type ]] || fail "--tpu-type is missing; see --help"
        program=$(quote exec python -m ard_jax.main "$@")
        # xpk writes the command into one line of YAML, and Kubernetes replaces $(NAME) in it.
        [[ $program != *$'\n'* ]] || fail "the program's arguments must not have line breaks"
        # shellcheck disable=SC2016
        [[ $program != *'$('* ]] || fail 'the program'\''s arguments must not have $(...): Kubernetes reads it'
        if [[ -n $image ]]; then
            what=("--docker-image=$image")
        else
            what=("--base-docker-image=$base" "--script-dir=$(dirname "$here")")
            program="pip install --quiet -e '.[tpu]' && $program"
        fi
        run xpk workload create "${place[@]}" "--workload=$workload" "--tpu-type=$tpu_type" \
            "--num-slices=$slices" "${what[@]}" "--max-restarts=$retries" \
            "--restart-on-exit-codes=$EXIT_PREEMPTED" "--termination-grace-period-seconds=$grace" \
            ${more[@]+"${more[@]}"} "--command=$program"
        ;;
esac
