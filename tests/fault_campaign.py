"""Kill every stage at random times, resume it and compare the files; then fill its disk and make its folder read-only.

    python -m tests.fault_campaign --kills 200 --output misc/results/faults.json

The same command after a kill has to end in the bytes of an undisturbed run; measured values are not compared. Runs are forked
from a process that has loaded the libraries, so that kills fall into work, not into imports. Disk cases need root, to mount.
"""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from continual.train_continual import METHODS
from misc.studies.warm import LOADED
from scripts.artefact import code_version, hardware, package_versions
from scripts.cli import ROOT, Parser, Progress, run
from scripts.files import digest, write_json

PATIENCE_SECONDS = 600  # a run that takes longer counts as one that hangs
MEASURED = {"seconds", "images_per_second", "peak_memory_bytes", "code", "hardware", "result.json", "README.md"}
FORK = multiprocessing.get_context("fork")


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--kills", default=200, type=int, help="kills, in turn over stages and numbers of processes")
    parser.add_argument("--jobs", default=2, type=int, help="cases that run at once")
    parser.add_argument("--output", default="misc/results/faults.json", help="result file")
    return parser.parse_args()


def main(args):
    os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    folders = ("distillation", "matching", "validate", "continual")
    own = [f"{folder}.{path.stem}" for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    for name in (*LOADED, *own):
        importlib.import_module(name)
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    importlib.import_module("tests.tiny_continual").write_data(work)  # with one thread: a fork of more would hang
    arms = [(stage, processes) for stage in stages(work) for processes in stage.processes]
    seconds = [undisturbed(stage, 1 if stage.alike else processes)
               for stage, processes in Progress(arms, desc="undisturbed", unit="run")]
    with ProcessPoolExecutor(args.jobs, FORK) as pool:
        kills = [pool.submit(kill, *arms[n % len(arms)], seconds[n % len(arms)], work / f"kill-{n}") for n in range(args.kills)]
        disks = [pool.submit(fill_disk, stage, fault, work / f"{fault}-{stage.name}")
                 for fault in ("full disk", "read-only folder") for stage in dict.fromkeys(stage for stage, _ in arms)]
        kills = [case.result() for case in Progress(kills, desc="kills", unit="kill")]
        disks = [case.result() for case in Progress(disks, desc="disks", unit="case")]
    rows = [{"stage": stage.name, "processes": processes, "seconds": seconds[n], "kills": len(kills[n::len(arms)]),
             **{key: sum(one[key] for one in kills[n::len(arms)]) for key in ("identical", "with_files", "mid_file")}}
            for n, (stage, processes) in enumerate(arms)]
    write_json(Path(args.output), {"kind": "faults", "kills": rows, "disks": disks, "code": code_version(),
                                   "packages": package_versions(), "hardware": hardware()})
    identical, recognised = sum(one["identical"] for one in kills), sum(one["recognised"] for one in disks)
    print(f"{identical} of {len(kills)} killed runs resumed byte-identical, {recognised} of {len(disks)} disk cases recognised")
    if identical < len(kills) or recognised < len(disks):
        sys.exit(f"error: compare the folders that are left in {work} with the undisturbed runs there")
    shutil.rmtree(work)


@dataclass(frozen=True)
class Stage:
    """A command with small settings. `alike`: one and two processes write the same bytes; in training their sums differ."""

    work: Path
    name: str
    command: str
    output_flag: str = "--output-dir"
    processes: tuple[int, ...] = (1,)
    alike: bool = False

    def attempt(self, processes: int, output: Path, log: Path, seconds: float = PATIENCE_SECONDS) -> int:
        """Run in forks of this process, killed after `seconds`; returns the exit code, of several the largest, -9 if killed."""
        until, words = time.perf_counter() + seconds, [*self.command.split(), self.output_flag, str(output)]
        ranks = [FORK.Process(target=in_fork, args=(words, environment, log)) for environment in launched(processes)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(max(0, until - time.perf_counter()))
        for rank in [rank for rank in ranks if rank.is_alive()]:
            (os.killpg if os.getpgid(rank.pid) == rank.pid else os.kill)(rank.pid, signal.SIGKILL)  # with its children
        for rank in ranks:
            rank.join()
        return max((rank.exitcode for rank in ranks), key=abs)

    def whole(self, processes: int) -> Path:
        """The folder of the undisturbed run."""
        return self.work / (self.name if self.alike or processes == 1 else f"{self.name}-{processes}")


def in_fork(words: list[str], environment: dict, log: Path) -> None:
    """Run a command in this process, the first of its group, as a launcher would with `environment`."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    with open(log, "a", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        sys.argv, entry = words, importlib.import_module(words[0])
        run(entry.parse_args, entry.main)


def launched(processes: int) -> list[dict]:
    """The environment that a launcher gives to each of its processes; nothing for one process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)] if processes > 1 else [{}]


def stages(work: Path) -> list[Stage]:
    """Every stage; each reads the undisturbed runs of those before it."""
    new, two, data = partial(Stage, work), (1, 2), f"--dataset folder --data-dir {work}/real"
    prototypes, distilled = "gen_prototype/folder-ipc2-kmexpand1", f"{work}/gen_syn_image/folder_ipc2_4_s0.5_g2.0_kmexpand1"
    diffusion = "-s 0.5 -g 2 --num-inference-steps 6 --batch-size 4"
    views, small, save = "--input-size 32 --mix-type cutmix", "--arch shufflenet_v2_x0_5", "--save-seconds 0"
    student = f"validate.train_FKD --train-dir {distilled} {data} --model shufflenet_v2_x0_5 --epochs 6 --batch-size 8 {save}"
    continual = (f"continual.train_continual {data} {small} --distilled {distilled} --tasks 2 --steps 3 --batch-size 4 "
                 f"--buffer-size 20 --replay-batch-size 4 --start task1 --start-steps 2 --scale 0.5 1 --refit-head 2 {save}")
    return [
        new("gen_prototype", f"distillation.gen_prototype {data} --ipc 2", "--save-prototype-path", two, alike=True),
        new("gen_syn_image", f"distillation.gen_syn_image --dataset folder --prototype-path {work}/{prototypes} --ipc 4 "
            f"{diffusion}", "--save-init-image-path", two, alike=True),
        new("distill", f"distillation.distill {data} --ipc 2 {diffusion}", "--save-init-image-path", two, alike=True),
        new("train_teacher", f"matching.train_teacher {data} {small} --epochs 4 --batch-size 20 --save-seconds 0",
            processes=two),
        new("generate_soft_label", f"matching.generate_soft_label --data {distilled} --teacher {work}/train_teacher --epochs 9 "
            f"{views} --use-fp16", "--fkd-path", two, alike=True),
        new("train_FKD (stored)", f"{student} --fkd-path {work}/generate_soft_label", processes=two),
        new("train_FKD (on the fly)", f"{student} --mode on-the-fly --teacher {work}/train_teacher {views}"),
        *[new(f"train_continual ({method})", f"{continual} --method {method}") for method in METHODS],
        new("train_ldm", f"distillation.train_ldm {data} --vae-channels 8 8 8 --unet-channels 16 16 --text-width 16 "
            "--vae-steps 6 --unet-steps 6 --batch-size 8 --save-seconds 0")]


@cache
def undisturbed(stage: Stage, processes: int) -> float:
    """Run a stage to its end; returns its seconds."""
    folder, began = stage.whole(processes), time.perf_counter()
    if code := stage.attempt(processes, folder, log := folder.with_name(f"{folder.name}.log")):
        sys.exit(f"error: {stage.name} ended with exit code {code}, see {log}")
    return round(time.perf_counter() - began, 3)


def kill(stage: Stage, processes: int, seconds: float, folder: Path) -> dict:
    """Kill a run, resume it and compare. A run that ends before its time is repeated with another time."""
    rng = random.Random(folder.name)
    while stage.attempt(processes, folder, folder.with_name(f"{folder.name}-killed.log"), rng.uniform(0, seconds)) != -9:
        shutil.rmtree(folder, ignore_errors=True)
    endings = [path.suffix for path in folder.rglob("*") if path.is_file()]
    return {"with_files": bool(endings), "mid_file": ".partial" in endings,
            "identical": resumed(stage, processes, folder, folder.with_name(f"{folder.name}.log"))}


def fill_disk(stage: Stage, fault: str, folder: Path) -> dict:
    """Run a stage on a tmpfs of half the size it needs, or a read-only one; then on one that is large and writable."""
    size = sum(path.stat().st_size for path in stage.whole(1).rglob("*") if path.is_file())
    log, mount = folder.with_name(f"{folder.name}.log"), partial(subprocess.run, check=True, capture_output=True)
    folder.mkdir()
    mount(["mount", "-t", "tmpfs", "-o", f"size={max(16, size // 2048)}k" if fault == "full disk" else "ro", "tmpfs", folder])
    try:
        code = stage.attempt(1, folder / "out", log)
        printed = log.read_text().replace(f"{folder}/", "")
        mount(["mount", "-o", "remount,rw,size=1g", folder])
        identical = resumed(stage, 1, folder / "out", log)
    finally:
        mount(["umount", folder])
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    return {"fault": fault, "stage": stage.name, "exit": code, "message": " ".join(lines), "identical": identical,
            "recognised": code == 3 and len(lines) == 1 and "Traceback" not in printed and identical}


def resumed(stage: Stage, processes: int, output: Path, log: Path) -> bool:
    """Run the same command again; whether it ends in the files of the undisturbed run, which are then removed."""
    if same := stage.attempt(processes, output, log) == 0 and contents(output) == contents(stage.whole(processes)):
        shutil.rmtree(output)
    return same


def contents(folder: Path) -> dict[str, str]:
    """The content of each file below `folder`: its digest, or JSON without measured values."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _unmeasured(path) if path.suffix in (".json", ".jsonl") else digest(path)
            for name, path in found.items() if not (name == "README.md" and "model_index.json" in found)}  # which has seconds


def _unmeasured(path: Path) -> str:
    """JSON, or lines of JSON, without measured values and the digests of files that have some."""
    text = path.read_text()
    parse = partial(json.loads, object_hook=lambda found: {key: found[key] for key in found if key not in MEASURED})
    return str([parse(part) for part in ([text] if path.suffix == ".json" else text.splitlines())])


if __name__ == "__main__":
    run(parse_args, main)
