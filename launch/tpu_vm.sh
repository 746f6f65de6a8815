#!/bin/bash
# Creates a slice of Cloud TPU VMs, runs dpr-jax on it, and deletes it.
#
#   launch/tpu_vm.sh create   ask for the slice as a queued resource, and wait
#   launch/tpu_vm.sh setup    install dpr-jax on every host, mount the bucket
#   launch/tpu_vm.sh run STAGE --config=... --workdir=...
#                             run dpr-jax on all hosts as one run
#   launch/tpu_vm.sh resume STAGE ...
#                             run; if the slice is preempted, create it again
#                             and resume from the last checkpoint, until done
#   launch/tpu_vm.sh status | logs | delete
#
# Settings come from the environment:
#   NAME        name of the slice (dpr-jax)
#   PROJECT     project of Google Cloud (gcloud's default)
#   ZONE        zone of Google Cloud (us-west4-a)
#   TYPE        v5litepod-8, v5litepod-256, v6e-8, ... (v5litepod-8)
#   RUNTIME     software of the hosts (v2-alpha-tpuv5-lite; v2-alpha-tpuv6e)
#   SPOT        1 = preemptible, which is cheaper (0)
#   SOURCE      argument of pip install (the checkout of this script)
#   BUCKET      bucket to mount at /mnt/bucket with gcsfuse (none)
#   ATTEMPTS    most attempts of resume (20)
set -euo pipefail

NAME=${NAME:-dpr-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-0}
SOURCE=${SOURCE:-}
BUCKET=${BUCKET:-}
ATTEMPTS=${ATTEMPTS:-20}
WAIT_SECONDS=${WAIT_SECONDS:-30}
HERE=$(cd "$(dirname "$0")/.." && pwd)

say() { echo "tpu_vm: $*" >&2; }

where() {
  printf -- '--zone=%s\n' "$ZONE"
  if [[ -n ${PROJECT:-} ]]; then printf -- '--project=%s\n' "$PROJECT"; fi
}

mapfile -t WHERE < <(where)

resource() {
  gcloud compute tpus queued-resources "$1" "$NAME" "${WHERE[@]}" "${@:2}"
}

everywhere() {
  gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker=all \
    --command="$1"
}

state() {
  resource describe --format='value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local spot=()
  if [[ $SPOT == 1 ]]; then spot=(--spot); fi
  case $(state) in
    NONE)
      resource create --node-id="$NAME" --accelerator-type="$TYPE" \
        --runtime-version="$RUNTIME" "${spot[@]}" ;;
    FAILED | SUSPENDED)
      delete
      create
      return ;;
  esac
  local now
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in
      FAILED | SUSPENDED | NONE)
        say "$NAME is $now: there is no slice; run \`$0 status\` for the reason"
        return 1 ;;
    esac
    say "$NAME is $now"
    sleep "$WAIT_SECONDS"
  done
  say "$NAME is ready"
}

setup() {
  local what='dpr-jax[tpu]'
  if [[ -n $SOURCE ]]; then
    what=$SOURCE
  else
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    tar -czf "$archive" -C "$HERE" --exclude=__pycache__ dpr_jax configs \
      setup.py pyproject.toml constraints.txt README.md LICENSE NOTICE
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:dpr-jax.tar.gz" \
      "${WHERE[@]}" --worker=all
    rm -f "$archive"
    everywhere 'mkdir -p dpr-jax && tar -xzf dpr-jax.tar.gz -C dpr-jax'
    what='./dpr-jax[tpu] -c dpr-jax/constraints.txt'
  fi
  everywhere "python3 -m venv venv && venv/bin/pip install -q $what"
  if [[ -n $BUCKET ]]; then
    everywhere "command -v gcsfuse >/dev/null || { echo 'gcsfuse is missing:\
 see docs/tpu.md' >&2; exit 1; }
      sudo mkdir -p /mnt/bucket && sudo chmod 777 /mnt/bucket
      mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs \
        --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
        $BUCKET /mnt/bucket"
  fi
}

run() {
  if [[ $# -eq 0 ]]; then
    say "run needs a stage: $0 run train --config=... --workdir=..."
    return 2
  fi
  local quoted
  quoted=$(printf '%q ' "$@")
  # A process left by an aborted run would still hold the TPU.
  everywhere "pkill -f '[v]env/bin/dpr-jax' || true
    cd dpr-jax 2>/dev/null || true
    exec ~/venv/bin/dpr-jax $quoted --pod 2>&1 | tee -a ~/dpr-jax.log
    exit \${PIPESTATUS[0]}"
}

resume() {
  local attempt code
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    create
    if ((attempt > 1)) || [[ ${SETUP:-0} == 1 ]]; then setup; fi
    if run "$@"; then
      return 0
    else
      code=$?
    fi
    case $code in
      2) return 2 ;; # a bad setting: trying again does not help
      130) return 130 ;;
    esac
    say "attempt $attempt of $ATTEMPTS ended with $code; $NAME is $(state)"
    sleep "$WAIT_SECONDS"
  done
  return 1
}

delete() {
  resource delete --force --quiet
}

main() {
  local command=${1:-}
  if [[ $# -gt 0 ]]; then shift; fi
  case $command in
    create | setup | run | resume | delete) "$command" "$@" ;;
    status) resource describe ;;
    logs) everywhere 'tail -n 50 ~/dpr-jax.log' ;;
    *)
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit 2 ;;
  esac
}

main "$@"
