#!/usr/bin/env bash
# Installs and starts a training run on every host of a Cloud TPU slice. Not tested on a real slice.
#
#   TPU=my-tpu ZONE=us-east5-a REPOSITORY=https://… launch/tpu-pod.sh \
#     --config gpt3-13b --config mesh-v4-32 --config /mnt/share/my-data.yaml --train.run_dir /mnt/share/runs/13b
#
# To stop it with a checkpoint: TPU=… ZONE=… launch/tpu-pod.sh stop
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"

on_all_hosts() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

if [ "${1:-}" = stop ]; then
  on_all_hosts 'kill -TERM "$(cat ~/gpt3_jax/train.pid)"'
  exit
fi

: "${REPOSITORY:?address to clone gpt3_jax from}"
on_all_hosts "
  set -e
  [ -d ~/gpt3_jax ] || git clone $(printf %q "$REPOSITORY") ~/gpt3_jax
  cd ~/gpt3_jax
  [ -d .venv ] || python3 -m venv .venv
  .venv/bin/pip install --quiet -c constraints.txt -e '.[tpu]'"

# Started in the background, because the run must outlive this connection. The hosts wait for one another.
on_all_hosts "
  set -e
  cd ~/gpt3_jax
  nohup .venv/bin/gpt3-jax train ${*:+$(printf '%q ' "$@")} >> train.log 2>&1 < /dev/null &
  echo \$! > train.pid"

echo "running; follow it with:"
echo "  gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=0 --command='tail -f ~/gpt3_jax/train.log'"
