#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on every worker; it is copied there with the code.
#
#   tpu_host.sh install PYTHON_VERSION         makes ~/ard_env, with JAX for TPUs and the code
#   tpu_host.sh run ID PROGRAM [ARGUMENT...]   runs the program, or follows it if ID is running already
#   tpu_host.sh logs                           shows the newest run's output, and what follows
#   tpu_host.sh stop                           SIGTERM to the newest run: it saves and ends
#   tpu_host.sh idle                           fails while a run goes on
#
# A run does not depend on the ssh connection that started it: gcloud repeats a command whose connection
# broke, and then finds the run by its ID. Output and exit code are kept in ~/ard_runs/ID.
set -euo pipefail
runs=$HOME/ard_runs

follow() { # FOLDER: the output from its beginning until the program has ended, then its exit code
    local folder=$1 tail_pid
    tail -n +1 -F "$folder/log" 2>/dev/null &
    tail_pid=$!
    while [[ ! -s $folder/code ]] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; do sleep 1; done
    sleep 1 # the log's last lines, and the code itself
    kill "$tail_pid" 2>/dev/null || true
    [[ -s $folder/code ]] || { echo "the program was killed" >&2; exit 137; }
    # Stopped on request: not 75, on which tpu_pod.sh would start it again.
    [[ ! -e $folder/stopped ]] || exit 143
    exit "$(cat "$folder/code")"
}

idle() {
    local folder
    for folder in "$runs"/*; do
        if [[ -e $folder/pid && ! -s $folder/code ]] && kill -0 "$(cat "$folder/pid")" 2>/dev/null; then
            echo "the run ${folder##*/} goes on here: see launch/tpu_pod.sh logs, or stop it" >&2
            exit 2
        fi
    done
}

newest() {
    local folders=("$runs"/*) # sorted by name, which is the time
    [[ -d ${folders[-1]} ]] || { echo "no run on this worker" >&2; exit 2; }
    echo "${folders[-1]}"
}

action=${1-}
case $action in
    install)
        python3 -m pip install --quiet --user uv
        uv=$HOME/.local/bin/uv
        [[ -x $HOME/ard_env/bin/python ]] || "$uv" venv --quiet --python "$2" "$HOME/ard_env"
        "$uv" pip install --quiet --python "$HOME/ard_env/bin/python" -e "$HOME/ard_jax[tpu]"
        ;;
    run)
        folder=$runs/$2
        shift 2
        cd "$HOME/ard_jax"
        if [[ ! -e $folder ]]; then
            idle
            mkdir -p "$folder"
            # shellcheck disable=SC2016 # expanded by the inner shell
            nohup setsid bash -c 'folder=$1; shift
                "$@" & echo $! >"$folder/program"; wait $!; echo $? >"$folder/code"' \
                run "$folder" "$@" >"$folder/log" 2>&1 </dev/null &
            echo $! >"$folder/pid"
        fi
        sleep 1
        follow "$folder"
        ;;
    logs)
        folder=$(newest)
        follow "$folder"
        ;;
    idle) idle ;;
    stop)
        folder=$(newest)
        touch "$folder/stopped"
        echo "SIGTERM to $(cat "$folder/program") of $folder"
        kill -TERM "$(cat "$folder/program")" || true
        ;;
    *) echo "tpu_host.sh: unknown action '$action'" >&2; exit 2 ;;
esac
