#!/bin/sh
# One process of a Slurm job: srun runs this once for each GPU, and accelerate reads what it sets as it does with a launcher of
# its own. SIGTERM reaches every process directly.
#   LAUNCH="srun sh scripts/slurm/launch.sh" sh distillation/gen_prototype_imgnt.sh
set -eu

TASKS=$((SLURM_NTASKS / SLURM_NNODES))
if [ "${SLURM_GPUS_ON_NODE:-$TASKS}" != "$TASKS" ]; then
    echo "error: --ntasks-per-node: expected a process for each of $SLURM_GPUS_ON_NODE GPUs, found $TASKS" >&2
    exit 2
fi
HEAD=${HEAD:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}  # jobs on one node must not share it

export WORLD_SIZE="$SLURM_NTASKS" RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" MASTER_ADDR="$HEAD" MASTER_PORT="$PORT"
exec python "$@"
