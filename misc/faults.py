"""What misc.fault_campaign does to the stages, and the tables of what came of it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from misc.studies.batch import fork, free_port, run_command
from scripts.artefact import digest
from scripts.cli import ROOT

PATIENCE_SECONDS = 1800  # a run that takes longer counts as one that hangs; a busy machine is slow
MEASURED = {"seconds", "images_per_second", "peak_memory_bytes", "code", "hardware"}  # what differs from run to run
METHODS = ("finetune", "joint", "er", "agem", "derpp", "task_arithmetic")
Case = tuple[str, str, Callable[[], dict]]  # the fault, the stage, and what tries it


@dataclass(frozen=True)
class Stage:
    """A command with small settings, but for the folder it writes to; with how many processes it is tried, and whether so many
    write what one writes (training adds gradients up in another order).
    """

    name: str
    module: str
    flags: list[str]
    output_flag: str
    processes: tuple[int, ...] = field(default=(1,))
    alike: bool = True

    def words(self, output: Path) -> list[str]:
        """The command line that writes below `output`."""
        return [self.module, *self.flags, self.output_flag, str(output)]

    def undisturbed(self, processes: int, work: Path) -> Path:
        """Where its undisturbed run lies."""
        return work / "undisturbed" / (self.name if self.alike or processes == 1 else f"{self.name}-{processes}")


def write_images(folder: Path, train: int = 6, test: int = 2) -> None:
    """A folder data set of a few real digits of each class."""
    from distillation.datasets import decode, load_split
    from distillation.distilled_set import write_image
    from distillation.synthesis import to_pil
    for part, count in (("train", train), ("test", test)):
        split = load_split("digits", "data", part)
        for label, entry in enumerate(split.classes):
            for place, image in enumerate(decode(split, split.rows_of(label)[:count], 32)):
                path = f"{part}/{entry['name']}/{place}.png"
                if not (folder / path).exists():
                    write_image(folder, path, to_pil(image))


def stages(work: Path) -> list[Stage]:
    """Every stage, in an order in which each finds what it reads in the undisturbed runs of those before it."""
    whole = work / "undisturbed"
    images = ["--dataset", "folder", "--data_dir", f"{work / 'images'}"]
    small = ["--arch", "shufflenet_v2_x0_5"]
    distilled = f"{whole / 'gen_syn_image' / 'digits_ipc2_4_s0.5_g2.0_kmexpand1'}"
    diffusion = ["-s", "0.5", "-g", "2", "--num_inference_steps", "8", "--batch_size", "4"]
    return [
        Stage("gen_prototype", "distillation.gen_prototype", ["--ipc", "2"], "--save_prototype_path", (1, 2)),
        Stage("gen_syn_image", "distillation.gen_syn_image",
              ["--prototype_path", f"{whole / 'gen_prototype' / 'digits-ipc2-kmexpand1'}", "--ipc", "4", *diffusion],
              "--save_init_image_path", (1, 2)),
        Stage("distill", "distillation.distill", ["--ipc", "2", *diffusion], "--save_init_image_path", (1, 2)),
        Stage("train_teacher", "matching.train_teacher",
              [*images, *small, "--epochs", "4", "--batch-size", "20", "--save-seconds", "0"], "--output-dir", (1, 2),
              alike=False),
        Stage("generate_soft_label", "matching.generate_soft_label",
              ["--data", distilled, "--teacher", f"{whole / 'train_teacher'}", "--epochs", "12", "--input-size", "32",
               "--mix-type", "cutmix", "--use-fp16"], "--fkd-path", (1, 2)),
        Stage("train_FKD", "validate.train_FKD",
              ["--train-dir", distilled, "--fkd-path", f"{whole / 'generate_soft_label'}", *images, "--model",
               "shufflenet_v2_x0_5", "--epochs", "8", "--batch-size", "10", "--save-seconds", "0"], "--output-dir", (1, 2),
              alike=False),
        *[Stage(f"train_continual ({method})", "continual.train_continual",
                [*images, *small, "--distilled", distilled, "--method", method, "--tasks", "2", "--steps", "4",
                 "--batch-size", "4", "--replay-batch-size", "4", "--buffer-size", "20", "--start", "task1",
                 "--refit-head", "2", "--save-seconds", "0"], "--output-dir") for method in METHODS],
        Stage("train_ldm", "distillation.train_ldm",
              [*images, "--vae_channels", "8", "8", "8", "--unet_channels", "16", "16", "--text_width", "16", "--vae_steps",
               "6", "--unet_steps", "6", "--batch_size", "8", "--save_seconds", "0"], "--output_dir"),
    ]


class Attempt:
    """A command in forks of this process, one process group; what they print goes to `log`."""

    def __init__(self, words: list[str], processes: int, log: Path):
        self.log, self.began = log, time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        launcher = [{}] if processes == 1 else launched(processes)
        self.left: list[int] = []
        for environment in launcher:
            group = self.left[0] if self.left else 0
            child = fork(partial(_work, environment=environment, group=group, log=log), words)
            with contextlib.suppress(OSError):  # the child does the same; whoever comes first
                os.setpgid(child, group or child)
            self.left.append(child)
        self.group, self.codes = self.left[0], []

    def wait(self, seconds: float) -> bool:
        """Wait until all processes ended; False if they did not within `seconds`."""
        until = time.perf_counter() + seconds
        while self.left:
            for child in list(self.left):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self.left.remove(child)
                    self.codes.append(os.waitstatus_to_exitcode(status))
            if self.left and time.perf_counter() >= until:
                return False
            time.sleep(0.005)
        return True

    def kill(self) -> None:
        """SIGKILL to all at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, signal.SIGKILL)
        self.wait(PATIENCE_SECONDS)

    def finish(self) -> int:
        """Wait for the end; the exit code, of several processes the highest, or -9 where it had to be killed."""
        if not self.wait(PATIENCE_SECONDS):
            self.kill()
        return max(self.codes, key=abs)

    def printed(self) -> str:
        """What it printed, with paths below the repository's root."""
        return self.log.read_text(encoding="utf-8", errors="replace").replace(f"{ROOT}/", "")

    def said(self) -> list[str]:
        """The lines that say an error."""
        text = self.printed()
        return ["a traceback"] if "Traceback" in text else [
            line for line in text.splitlines() if line.startswith("error: ")]


def launched(processes: int) -> list[dict]:
    """What a launcher tells each of its processes."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _work(words: list[str], environment: dict, group: int, log: Path) -> int:
    with contextlib.suppress(OSError):
        os.setpgid(0, group)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(to, stream)
    os.environ.update(environment)
    os.chdir(ROOT)
    return run_command(words)


def undisturbed(stage: Stage, processes: int, work: Path) -> float:
    """Run a stage to its end, unless it is done; returns the seconds that took."""
    folder = stage.undisturbed(processes, work)
    note = folder.with_name(f"{folder.name}.seconds")
    if not note.exists():
        shutil.rmtree(folder, ignore_errors=True)
        attempt = Attempt(stage.words(folder), 1 if stage.alike else processes, work / "logs" / f"{folder.name}.log")
        if attempt.finish():
            raise RuntimeError(f"{stage.name}: expected exit code 0, found {attempt.codes}, see {attempt.log}")
        note.write_text(f"{time.perf_counter() - attempt.began:.3f}")
    return float(note.read_text())


def kill(stage: Stage, processes: int, seconds: float, seed: int, place: int, work: Path) -> dict:
    """Kill a run, resume it and compare. A run that is over before its time counts for nothing and another time is drawn."""
    rng, folder = random.Random(f"{seed}/{place}"), work / "killed"
    early = 0
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        after = rng.uniform(0, seconds)
        attempt = Attempt(stage.words(folder), processes, work / "logs" / "killed.log")
        if not attempt.wait(after - (time.perf_counter() - attempt.began)):
            break
        early += 1
    attempt.kill()
    there = sum(path.is_file() for path in folder.rglob("*"))
    partials = sum(1 for _ in folder.rglob("*.partial"))
    return {"stage": stage.name, "processes": processes, "after_seconds": round(after, 3), "of_seconds": seconds,
            "over_before": early, "files_there": there, "torn_files": partials,
            **resumed(stage, processes, folder, work, f"{place:04d}")}


def resumed(stage: Stage, processes: int, folder: Path, work: Path, name: str) -> dict:
    """Give the same command again and compare with the undisturbed run; what went wrong is kept."""
    attempt = Attempt(stage.words(folder), processes, work / "logs" / "resumed.log")
    code = attempt.finish()
    found, wanted = contents(folder), contents(stage.undisturbed(processes, work))
    differ = sorted(path for path in found.keys() | wanted.keys() if found.get(path) != wanted.get(path))
    if code or differ:
        shutil.copytree(folder, work / "wrong" / name, dirs_exist_ok=True)
        shutil.copy(attempt.log, work / "wrong" / f"{name}.log")
    return {"resumed_exit": code, "same": not code and not differ, "differ": differ[:5]}


def contents(folder: Path) -> dict[str, str]:
    """What each file below `folder` holds: its digest, of JSON what it says without what is measured."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _content(path: Path) -> str:
    if path.name == "README.md" and (path.parent / "model_index.json").exists():
        return "the card of a checkpoint, which says seconds"
    if path.name not in ("manifest.json", "result.json", "metrics.jsonl"):
        return digest(path)
    lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
    return json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True)


def _timeless(found):
    if isinstance(found, dict):
        # of a manifest's digests, those of files that say seconds
        timed = MEASURED | {"result.json"} | ({"README.md"} if "model_index.json" in found else set())
        return {key: _timeless(value) for key, value in found.items() if key not in timed}
    return [_timeless(value) for value in found] if isinstance(found, list) else found


def disk_cases(stages: list[Stage], work: Path) -> list[Case]:
    """A disk too small for what a stage writes, and one that takes nothing; then the same command on a sound disk."""
    return [(fault, stage.name, partial(disk_case, stage, work, fault == "full disk"))
            for fault in ("full disk", "read-only folder") for stage in stages]


def disk_case(stage: Stage, work: Path, full: bool) -> dict:
    """One of them, on a tmpfs."""
    folder = work / "disk"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = sum(path.stat().st_size for path in stage.undisturbed(1, work).rglob("*") if path.is_file())
    try:
        mount("-t", "tmpfs", "-o", f"size={max(16, wanted // 2048)}k" if full else "ro", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError) as error:
        return {"skipped": f"mount is not permitted here ({error})"}
    try:
        attempt = Attempt(stage.words(folder / "out"), 1, work / "logs" / "disk.log")
        code, said = attempt.finish(), attempt.said()
        mount("-o", "remount,rw,size=1g", folder)
        return {"exit": code, "said": said, **resumed(stage, 1, folder / "out", work, "disk")}
    finally:
        subprocess.run(["umount", folder], check=True)


def mount(*words) -> None:
    """Mount; raises CalledProcessError or OSError."""
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def input_cases(stages: list[Stage], work: Path) -> list[Case]:
    """Damaged artefacts, each given to what reads it."""
    named = {stage.name: stage for stage in stages}
    return [("truncated safetensors file", "gen_syn_image", partial(truncated, named["gen_syn_image"], work)),
            ("manifest edited by hand", "misc.verify", partial(verified, edit_manifest, work)),
            ("two class folders swapped", "misc.verify", partial(verified, swap_classes, work))]


def truncated(stage: Stage, work: Path) -> dict:
    """Prototypes of which one file lost its last bytes."""
    spoilt = work / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(work / "undisturbed" / "gen_prototype" / "digits-ipc2-kmexpand1", spoilt)
    victim = sorted(spoilt.glob("*.safetensors"))[3]
    os.truncate(victim, victim.stat().st_size - 100)
    flags = [*stage.flags]
    flags[flags.index("--prototype_path") + 1] = str(spoilt)
    attempt = Attempt([stage.module, *flags, stage.output_flag, str(work / "killed")], 1, work / "logs" / "input.log")
    return {"exit": attempt.finish(), "said": attempt.said()}


def verified(spoil: Callable[[Path], None], work: Path) -> dict:
    """What misc.verify says of a distilled set that was spoilt."""
    spoilt = work / "spoilt"
    shutil.rmtree(spoilt, ignore_errors=True)
    shutil.copytree(next((work / "undisturbed" / "gen_syn_image").iterdir()), spoilt)
    spoil(spoilt)
    attempt = Attempt(["misc.verify", str(spoilt)], 1, work / "logs" / "input.log")
    code = attempt.finish()
    return {"exit": code, "said": attempt.said() or attempt.printed().splitlines()[:1]}


def edit_manifest(folder: Path) -> None:
    """Give the first image another label."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["rows"][0]["label"] = 5
    path.write_text(json.dumps(manifest))


def swap_classes(folder: Path) -> None:
    """Exchange the images of the first two classes, names kept."""
    first, second = (sorted(path for path in folder.iterdir() if path.is_dir())[place] for place in (0, 1))
    for one, other in zip(sorted(first.iterdir()), sorted(second.iterdir()), strict=True):
        one_bytes = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(one_bytes)


CASES: dict[str, Callable] = {"disk": disk_cases, "input": input_cases}


def report(result: dict) -> str:
    """Both tables of misc/faults.md."""
    return f"{kills_table(result)}\n\n{cases_table(result)}"


def kills_table(result: dict) -> str:
    """Kills by stage and number of processes."""
    from misc.report.tables import markdown_table
    groups: dict[tuple, list[dict]] = {}
    for one in result["kills"]:
        groups.setdefault((one["stage"], one["processes"]), []).append(one)
    rows = [[stage, str(processes), str(len(ones)), str(sum(one["same"] for one in ones)),
             str(sum(one["files_there"] > 0 for one in ones)), str(sum(one["torn_files"] > 0 for one in ones)),
             f"{min(one['after_seconds'] for one in ones):.1f} to {max(one['after_seconds'] for one in ones):.1f} "
             f"of {ones[0]['of_seconds']:.1f}"] for (stage, processes), ones in groups.items()]
    same = sum(one["same"] for one in result["kills"])
    return (f"{same} of {len(result['kills'])} killed runs ended byte-identical to the undisturbed run after one resume "
            f"(seed {result['seed']}; {result['hardware']}).\n\n"
            + markdown_table(["Stage", "Processes", "Kills", "Byte-identical after the resume", "Killed with files written",
                              "Killed in mid-file", "Killed after (s)"], rows))


def cases_table(result: dict) -> str:
    """Faults, what the command said, and what the same command made of it afterwards."""
    from misc.report.tables import markdown_table
    rows = [[one["fault"], one["stage"], "skipped" if "skipped" in one else str(one["exit"]),
             one.get("skipped") or " ".join(one["said"]).removeprefix("error: ").replace("|", "\\|"),
             {True: "byte-identical", False: "differs", None: "-"}[one.get("same")]] for one in result["cases"]]
    return markdown_table(["Fault", "Stage", "Exit code", "Message", "The same command afterwards"], rows)
