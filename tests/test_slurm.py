"""The Slurm job: the same stage scripts, started once for each GPU; nodes and GPUs are processes on this machine."""

import json
import os
import re

import pytest
from conftest import IPC, SIZE, artefact, free_port, shell

from scripts.cli import ROOT

SBATCH = ROOT / "scripts" / "slurm" / "stage.sbatch"
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % (SLURM_NTASKS / SLURM_NNODES))) "$@" & tasks="${tasks:-} $!"
done
for task in $tasks; do wait "$task" || code=$?; done
exit "${code:-0}"
"""


def files_of(folder) -> dict:
    """Digests by file."""
    return json.loads((folder / "manifest.json").read_text())["files"]


@pytest.fixture
def cluster(tmp_path):
    """`srun` and `scontrol` of two nodes with one task each, and the environment of a job on them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\nprintf '127.0.0.1\\nelsewhere\\n'\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "PORT": str(free_port())}


def test_two_nodes_write_what_one_process_writes(cluster, prototypes, checkpoint, image_data, tmp_path):
    settings = {"DATASET": "folder", "DATA": image_data, "CHECKPOINT": checkpoint, "IPC": IPC, "SIZE": SIZE, "ENCODE_BATCH": 5,
                "RUN": tmp_path, "LAUNCH": "srun sh scripts/slurm/launch.sh"}
    done = shell("distillation/gen_prototype.sh", **cluster, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("36 prototypes") == 1
    assert files_of(artefact(tmp_path / "prototypes")) == files_of(prototypes.folder)


@pytest.fixture
def job(cluster, tmp_path):
    """Everything of the job but its work: what it would start, two tasks on each node, is printed instead."""
    command = tmp_path / "bin" / "python"
    command.write_text('#!/bin/sh\n[ $# = 1 ] || echo "$RANK of $WORLD_SIZE" "$LOCAL_RANK" "$MASTER_ADDR" "$@"\n')
    command.chmod(0o755)

    def lines(**env: str) -> list[str]:
        done = shell(SBATCH, **{**cluster, "SLURM_NTASKS": "4", "SLURM_GPUS_ON_NODE": "2", **env})
        assert (done.returncode, done.stderr) == (0, "")
        return sorted(done.stdout.splitlines())
    return lines


@pytest.mark.parametrize("stage, module", [
    ("distillation/gen_prototype.sh", "distillation.gen_prototype"), ("matching/matching.sh", "matching.generate_soft_label"),
    ("validate/train_FKD.sh", "validate.train_FKD"), ("continual/continual.sh", "continual.train_continual")])
def test_a_job_starts_its_stage_on_every_gpu(job, stage, module):
    lines = job(STAGE=stage, DATASET="imagenet", COMPARISON="")
    assert [line.split(" -m ")[0] for line in lines] == [f"{rank} of 4 {rank % 2} 127.0.0.1" for rank in range(4)]
    assert all(f" -m {module} " in line and "--dataset imagenet" in line for line in lines)


def test_a_job_whose_tasks_are_not_its_gpus_is_refused(cluster):
    refused = shell(SBATCH, **cluster, STAGE="distillation/gen_prototype.sh", SLURM_GPUS_ON_NODE="4")
    assert refused.returncode == 2 and "--ntasks-per-node: expected a process for each of 4 GPUs, found 1" in refused.stderr


def test_an_array_gives_each_task_its_value(job):
    line, *_ = job(STAGE="distillation/gen_prototype.sh", SLURM_ARRAY_TASK_ID="3")
    assert "--seed 3 " in line
    line, *_ = job(STAGE="validate/train_FKD.sh", SLURM_ARRAY_TASK_ID="1", VARY="MODEL", VALUES="resnet18 resnet50")
    assert "--model resnet50 " in line and "--seed 0 " in line


def test_a_job_leaves_time_to_stop_and_asks_for_its_stage(cluster):
    """SIGTERM comes a minute before the limit, to the steps, and commands end within 30 seconds of it."""
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", SBATCH.read_text()))
    assert asked["signal"] == "TERM@60" and asked["job-name"] == "stage"
    refused = shell(SBATCH, **cluster)
    assert refused.returncode and "STAGE: expected a stage script" in refused.stderr
