#!/bin/sh
# Starts a command on every GPU of every node of a Slurm job; srun runs this once on each node. What is given goes to torch's
# launcher: LAUNCH="srun sh scripts/slurm/launch.sh" sh distillation/gen_prototype_imgnt.sh
set -eu

GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}                   # processes per node
HEAD=${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}          # jobs on one node must not share it

# SIGTERM is for the command's processes, which stop with exit code 0; the launcher, which would end with an error, ignores it
(
    trap '' TERM
    exec python -m torch.distributed.run \
        --signals-to-handle SIGINT,SIGHUP,SIGQUIT \
        --nnodes "$SLURM_JOB_NUM_NODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$GPUS" \
        --master-addr "$HEAD" --master-port "$PORT" \
        "$@"
) &
LAUNCHER=$!
trap 'pkill -TERM -P "$LAUNCHER"' TERM
while :; do
    if wait "$LAUNCHER"; then CODE=0; else CODE=$?; fi
    kill -0 "$LAUNCHER" 2>/dev/null || exit "$CODE"       # else it was the wait that SIGTERM ended
done
