"""The Slurm examples: the same stage scripts, started on every node; the nodes are processes on this machine."""

import json
import os
import re
import subprocess

import pytest

from misc.studies.batch import free_port
from scripts.cli import ROOT

SBATCH = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
NODES = 2
SRUN = f"""#!/bin/sh
for node in $(seq 0 {NODES - 1}); do
    SLURM_NODEID=$node "$@" & nodes="${{nodes:-}} $!"
done
for node in $nodes; do wait "$node" || code=$?; done
exit "${{code:-0}}"
"""


def files_of(folder) -> dict:
    """Digests by file."""
    return json.loads((folder / "manifest.json").read_text())["files"]


@pytest.fixture
def cluster(tmp_path):
    """`srun` and `scontrol` of two nodes, and the environment of a job on them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/sh\nprintf '127.0.0.1\\nelsewhere\\n'\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": str(NODES),
            "SLURM_JOB_NODELIST": "node[1-2]", "PORT": str(free_port()), "IPC": "1"}


def test_two_nodes_write_what_one_process_writes(cluster, tmp_path):
    for name, launch in (("one", {}), ("nodes", {"LAUNCH": "srun sh scripts/slurm/launch.sh"})):
        done = subprocess.run(["sh", "distillation/gen_prototype_digits.sh"], cwd=ROOT, capture_output=True, text=True,
                              env={**cluster, **launch, "RUN": str(tmp_path / name)})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("10 prototypes") == 1
    one, nodes = (tmp_path / name / "prototypes" / "digits-ipc1-kmexpand1" for name in ("one", "nodes"))
    assert files_of(one) == files_of(nodes)


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.name)
def test_a_job_runs_a_stage_script_with_the_command_that_srun_starts(path, cluster, tmp_path):
    """Everything of the job but its GPUs: what it would start on each node is printed instead."""
    command = tmp_path / "bin" / "python"
    command.write_text('#!/bin/sh\necho "$SLURM_NODEID" "$@"\n')
    command.chmod(0o755)
    done = subprocess.run(["sh", str(path)], cwd=ROOT, capture_output=True, text=True, env=cluster)
    assert (done.returncode, done.stderr) == (0, "")
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[0] for line in lines] == ["0", "1"]
    module = re.search(r"-m ((?:distillation|matching|validate|continual)\.\w+)", lines[0])[1]
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    if "launch.sh" in path.read_text():
        assert "--node-rank 0" in lines[0] and "--node-rank 1" in lines[1] and "--master-addr 127.0.0.1" in lines[1]
        assert f"--nnodes {NODES}" in lines[0]


@pytest.mark.parametrize("path", SBATCH, ids=lambda path: path.name)
def test_a_job_leaves_time_to_stop(path):
    """SIGTERM comes a minute before the limit, to the steps, and commands end within 30 seconds of it."""
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", path.read_text()))
    assert asked["signal"] == "TERM@60" and asked["job-name"] == path.stem
