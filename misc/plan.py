"""Time, disk and memory of every stage, before a run: units of work divided by rates.

    python -m misc.plan --dataset digits --from runs/quickstart
    IPC=50 python -m misc.plan --dataset imagenet --gpus 8 --tflops 20

Settings come from scripts/settings/<dataset>.sh and from the environment, as for the scripts; METHOD, LABELS and PROTOCOL
decide which stages there are. Rates are units per second of one process: measured in a finished run, which may be short; given
in a file {"unit": rate}; or --tflops divided by operations.
"""

import math
import os
import subprocess
from collections import Counter
from pathlib import Path

from distillation import gen_syn_image
from scripts.cli import ROOT, InputError, Parser, check_range, run
from scripts.files import one_line
from validate.protocols import PROTOCOLS

# classes, training images, test images, pixels; ImageNet's images vary
SIZES = {"fashion_mnist": (10, 60_000, 10_000, 32), "cifar10": (10, 50_000, 10_000, 32), "cifar100": (100, 50_000, 10_000, 32),
         "tiny_imagenet": (200, 100_000, 10_000, 64), "imagenet": (1000, 1_281_167, 50_000, 224)}
METHODS = "finetune joint er agem derpp task_arithmetic"  # as in continual/continual.sh; METHODS= (empty) leaves the stage out
CHOICES = {"METHOD": (*gen_syn_image.METHODS, "sre2l", "mtt"), "LABELS": ("soft", "hard"), "PROTOCOL": (*PROTOCOLS, "")}
COUNTS = ("IPC", "STEPS", "EPOCHS", "TEACHER_EPOCHS", "INPUT_SIZE", "KEEP_TOPK", "TASKS", "BATCH_SIZE", "BUFFER_SIZE")
RANGES = {**dict.fromkeys(COUNTS, (1, float("inf"))), "STRENGTH": (0, 1), "KEEP_EPOCHS": (1e-9, 1)}
START_STEPS = 40    # of Task Arithmetic's common start


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--dataset", default="digits", choices=("digits", "folder", *SIZES))
    parser.add_argument("--gpus", default=1, type=int, least=1, help="processes that share a stage")
    rates = parser.add_mutually_exclusive_group(required=True)
    rates.add_argument("--from", dest="finished", metavar="RUN", help="measure rates from the result files of a finished run")
    rates.add_argument("--rates", metavar="FILE", help="JSON file of rates")
    rates.add_argument("--tflops", type=float, help="TFLOP/s that a GPU sustains; an assumption")
    parser.add_argument("--json", default=None, metavar="FILE", help="result file")
    args = parser.parse_args()
    if args.tflops is not None:
        check_range("--tflops", args.tflops, 1e-3)
    return args


def main(args):
    from misc.report.section import plain
    from scripts.artefact import code_version, hardware, package_versions
    from scripts.files import read_json, write_json
    settings = read_settings(args.dataset)
    data = data_of(args.dataset, settings)
    if args.rates:
        rates, source = check_rates(read_json(Path(args.rates))), f"given in {args.rates}"
    elif args.finished:
        rates, source = rates_of(Path(args.finished)), f"measured in {args.finished}"
    else:
        rates = None
        source = f"computed from operations at {args.tflops:g} TFLOP/s (an assumption); k-means measured on {hardware()}"
    try:
        rates = computed(settings, data, args.tflops) if rates is None else rates
        stages = plan(settings, data, rates, args.gpus)
    except InputError:
        raise
    except (ValueError, ZeroDivisionError) as error:    # no number, no tasks, or lengths that do not fit the streams
        raise InputError(f"a setting of {args.dataset}: {error}") from None
    result = {"kind": "plan", "dataset": args.dataset, "ipc": int(settings["IPC"]), "gpus": args.gpus, "rates": source,
              "stages": stages, "seconds": sum(stage["seconds"] or 0 for stage in stages),
              "code": code_version(), "packages": package_versions()}
    print(plain(report(result)))
    if args.json:
        write_json(Path(args.json), result)


def read_settings(dataset: str) -> dict[str, str]:
    """The variables of a stage script. Raises InputError where the shell fails."""
    done = subprocess.run(["sh", "-c", "set -a; . scripts/settings.sh; env -0"], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "DATASET": dataset, "OLDPWD": os.getcwd()})
    if done.returncode:
        raise InputError(f"scripts/settings/{dataset}.sh: expected settings, found {' '.join(done.stderr.split())[-300:]}")
    settings = dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)
    check_settings(settings)
    return settings


def check_settings(s: dict[str, str]) -> None:
    """Raise InputError for a value that no stage takes."""
    for name, known in CHOICES.items():
        if s[name] not in known:
            raise InputError(f"{name}: expected {', '.join(filter(None, known))}, found {s[name]}")
    for name, (least, most) in RANGES.items():
        try:
            number = float(s[name] or least)
        except ValueError:
            raise InputError(f"{name}: expected a number, found {s[name]}") from None
        check_range(name, number, least, most)


def data_of(dataset: str, settings: dict) -> tuple[int, int, int, int]:
    """Classes, training images, test images and pixels of a data set; with VALIDATION the images held out are the test's."""
    held_out = settings["VALIDATION"] or "0"
    if not held_out.isdecimal():
        raise InputError(f"VALIDATION: expected a number of images, found {held_out}")
    if dataset in SIZES:
        classes, train, test, side = SIZES[dataset]
        check_range("VALIDATION", int(held_out), 0, train - 1)
        return classes, train - int(held_out), int(held_out) or test, side
    from distillation.datasets import load_splits
    train, test = load_splits(name=dataset, data_dir=settings["DATA"], validation=int(held_out))
    return len(train.classes), len(train.labels), len(test.labels), int(settings["INPUT_SIZE"])


def units_of(s: dict, data: tuple[int, int, int, int]) -> dict[str, dict[str, int]]:
    """Stage -> unit -> count, for settings `s`. METHOD, LABELS and PROTOCOL decide which stages there are."""
    classes, train, *_ = data
    made, epochs, method, kind = classes * int(s["IPC"]), int(s["EPOCHS"]), s["METHOD"], labels_of(s)
    stages = {}
    if method in ("d4m", "prototype"):
        stages["prototypes"] = {"images encoded": train, "classes clustered": classes}
    steps = {"d4m": int(float(s["STRENGTH"]) * int(s["STEPS"])), "noise": int(s["STEPS"])}
    stages["images"] = {"guided steps": made * steps[method]} if method in steps else {f"images of METHOD={method}": made}
    methods, streams, kinds = continual_lists(s)
    if not s["WEIGHTS"] and (kind != "hard" or methods and "soft" in kinds):
        stages["teacher"] = {"teacher's views trained": train * int(s["TEACHER_EPOCHS"])}
    if kind == "stored":
        stages["soft labels"] = {"views labelled": made * max(1, round(epochs * float(s["KEEP_EPOCHS"])))}
    stages["student"] = {"student's views trained": made * epochs}
    if kind == "asked":
        stages["student"]["views labelled"] = made * epochs
    lengths = s.get("TASK_STEPS" if s["SCHEDULE"] == "steps" else "TASK_EPOCHS", "").split()
    if len(streams) == 1:
        lengths = lengths[:1] if streams == ["real"] else lengths[-1:]     # as continual.sh does
    if methods and lengths:
        steps = 0
        for stream, length in zip(streams, lengths * (1 if len(lengths) > 1 else len(streams)), strict=True):
            batches = (train if stream == "real" else made) / int(s["TASKS"]) / int(s["BATCH_SIZE"])
            steps += int(length) if s["SCHEDULE"] == "steps" else math.ceil(float(length) * batches)
        each = (steps + int(s.get("SAME_STEPS") or 0)) * len(kinds) * int(s["TASKS"])
        stages["continual"] = {f"{method} steps": (each + START_STEPS * (method == "task_arithmetic")) * len(s["SEEDS"].split())
                               for method in methods}
    return stages


def labels_of(s: dict) -> str:
    """The labels of students: "hard", "stored" soft ones, or "asked" of the teacher for every batch (PROTOCOL=rded)."""
    return "hard" if s["LABELS"] == "hard" else "asked" if s["PROTOCOL"] == "rded" else "stored"


def continual_lists(s: dict) -> tuple[list[str], list[str], list[str]]:
    """METHODS, STREAMS and STREAM_LABELS, with the defaults of continual.sh. Raises InputError for names that it has not."""
    expected = {"METHODS": METHODS, "STREAMS": "real random distilled", "STREAM_LABELS": "hard soft",
                "SCHEDULE": "epochs steps"}
    usual = {**expected, "STREAM_LABELS": "hard"}
    found = {name: s.get(name, usual[name]).split() for name in expected}
    for name, words in expected.items():
        if unknown := [one for one in found[name] if one not in words.split()]:
            raise InputError(f"{name}: expected some of {words}, found {unknown[0]}")
    return found["METHODS"], found["STREAMS"], found["STREAM_LABELS"]


def check_rates(rates) -> dict[str, float]:
    """The content of a file of rates. Raises InputError where it has no numbers above 0."""
    if not isinstance(rates, dict) or not all(type(rate) in (int, float) and rate > 0 for rate in rates.values()):
        raise InputError('--rates: expected a file {"unit": units per second}, such as {"guided steps": 12.5}, found another')
    return rates


def plan(s: dict, data: tuple[int, int, int, int], rates: dict[str, float], gpus: int) -> list[dict]:
    """Every stage's units, rates, seconds of `gpus` processes, bytes on disk and least memory of one process.

    A stage with a unit that has no rate has None seconds.
    """
    needed, stages = bytes_of(s, data), []
    for stage, units in units_of(s, data).items():
        processes, (disk, memory) = 1 if stage == "continual" else gpus, needed[stage]
        spent = [math.ceil(count / processes) / rates[unit] if unit in rates else None for unit, count in units.items()]
        listed = [{"what": unit, "count": count, "per_second": rates.get(unit)} for unit, count in units.items()]
        stages.append({"stage": stage, "seconds": None if None in spent else sum(spent), "disk_bytes": disk,
                       "memory_bytes": memory, "units": listed})
    return stages


def bytes_of(s: dict, data: tuple[int, int, int, int]) -> dict[str, tuple[int, int]]:
    """Stage -> bytes on disk, and in memory: weights (in training also gradients and AdamW's moments), images and latents."""
    from scripts.networks import build_empty
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    classes, train, test, side = data
    made, view = classes * int(s["IPC"]), 3 * int(s["INPUT_SIZE"]) ** 2
    parts = diffusion(s["CHECKPOINT"])
    vae, unet = (sum(parameter.nbytes for parameter in part.parameters()) for part in parts)
    size = int(s["SIZE"] or parts[0].config.sample_size)
    latent = 4 * math.prod(StableDiffusionGenLatentsPipeline(parts[0]).latent_shape(size))
    teacher, student, learner = (sum(value.nbytes for value in build_empty(*each).state_dict().values())
                                 for each in classifiers(s, data))
    kept = min(int(s["KEEP_TOPK"] or classes), classes)
    label = 29 + 2 * kept + (0 if kept == classes else 2 + kept * (1 if classes <= 256 else 2))  # draws, logits, their classes
    views = units_of(s, data).get("soft labels", {}).get("views labelled", 0)
    methods, streams, kinds = continual_lists(s)
    buffered = len(set(methods) - {"finetune", "joint"})
    runs = (len(streams) + bool(s.get("SAME_STEPS"))) * buffered * len(kinds) * len(s["SEEDS"].split())
    buffers = runs * int(s["BUFFER_SIZE"])
    return {"prototypes": (made * (latent + 16), vae + 2 * latent * math.ceil(train / classes)),
            "images": (made * 3 * int(s["IMAGE_SIZE"] or min(size, 224)) ** 2 // 2, vae + unet + made * latent),  # PNG: half
            "teacher": (teacher, 4 * teacher + (train + test) * view),
            "soft labels": (views * label, teacher + made * (view + 4 * classes)),
            "student": (student, 4 * student + (made + test) * view + (teacher if labels_of(s) == "asked" else 0)),
            "continual": (buffers * (3 * side ** 2 + 8), 4 * learner + 2 * (train + test) * 3 * side ** 2)}  # whole, by task


def diffusion(checkpoint: str) -> tuple:
    """VAE and UNet without weights: of a local checkpoint, else Stable Diffusion v1.5's architecture."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from distillation.checkpoints import local_folder
    from distillation.ldm import stable_diffusion_v15
    with torch.device("meta"):
        if not Path(checkpoint).is_dir():
            return stable_diffusion_v15()[:2]
        try:
            return tuple(kind.from_config(kind.load_config(local_folder(checkpoint), subfolder=name))
                         for name, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel)))
        except OSError as error:
            expected = f"CHECKPOINT {checkpoint}: expected a Stable Diffusion checkpoint"
            raise InputError(f"{expected}, found {one_line(error)}") from None


def classifiers(s: dict, data: tuple[int, int, int, int]) -> list[tuple[str, int, str, int]]:
    """Architecture, classes, stem and pixels of the teacher, the student and the network of continual learning."""
    return [(s["TEACHER_ARCH"], data[0], s["TEACHER_STEM"], int(s["INPUT_SIZE"])),
            (s["MODEL"], data[0], s["STEM"], int(s["INPUT_SIZE"])), ("resnet18", data[0], "imagenet", data[3])]


def rates_of(finished: Path) -> dict[str, float]:
    """Units per second over all results below a folder. Raises InputError where there is none."""
    from scripts.files import read_json
    counts, seconds = Counter(), Counter()
    for path in finished.rglob("result.json"):
        try:
            for unit, count, spent in measured_units(read_json(path)):
                counts[unit] += count
                seconds[unit] += spent
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: expected the result of a stage, found none ({error!r})") from None
    if not counts:
        raise InputError(f"--from: expected a run with result.json files, found none in {finished}")
    return {unit: counts[unit] / max(seconds[unit], 1e-9) for unit in counts}


def measured_units(result: dict):
    """Unit, count and seconds in the result of one stage."""
    found = {**result, **result["metrics"]} if isinstance(result.get("metrics"), dict) else result
    config, kind = found.get("config", {}), found.get("kind")
    seconds = {name: took * found.get("processes", 1) for name, took in found.get("seconds", {}).items()}     # of one process
    if found.get("resumed") or kind == "prototypes" and not {"encode", "cluster"} <= seconds.keys():
        return      # seconds of a part of the work
    if kind == "prototypes":
        yield "images encoded", found["images"], seconds["encode"]
        yield "classes clustered", found["classes"], seconds["cluster"]
    elif kind == "distilled" and config["method"] == "d4m":
        yield "guided steps", found["images"] * int(config["strength"] * config["num_inference_steps"]), seconds["synthesise"]
    elif kind == "soft_labels":
        yield "views labelled", found["views"], seconds["relabel"]
    elif kind in ("teacher", "student"):
        yield f"{kind}'s views trained", found["train_images"] * config["epochs"], seconds["train"]
    elif kind == "continual":
        yield f"{config['method']} steps", found["steps"], seconds["train"]


def computed(s: dict, data: tuple[int, int, int, int], tflops: float) -> dict[str, float]:
    """Rates by floating-point operations; k-means, which runs on the CPU, is measured here on noise."""
    import time

    import torch

    from continual.metrics import counted, flops_of_pass
    from distillation.prototypes import find_prototypes
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    (vae, unet), (teacher, student, learner) = diffusion(s["CHECKPOINT"]), classifiers(s, data)
    size = int(s["SIZE"] or vae.config.sample_size)
    shape, text = StableDiffusionGenLatentsPipeline(vae).latent_shape(size), unet.config.cross_attention_dim
    with torch.device("meta"):
        encoded = counted(lambda: vae.encode(torch.empty(1, 3, size, size)))
        guided = counted(lambda: unet(torch.empty(2, *shape), torch.ones(1), torch.empty(2, 77, text)))
    batch, replay = int(s["BATCH_SIZE"]), int(s["REPLAY_BATCH_SIZE"])
    images = {method: batch + replay * {"er": 1, "agem": 1, "derpp": 2}.get(method, 0) for method in METHODS.split()}
    latents = torch.randn(math.ceil(data[1] / data[0]), *shape)
    began = time.process_time()
    find_prototypes(latents, int(s["IPC"]), int(s["KM_EXPAND"] or 0) or None, 0, kmeans=s["KMEANS"])
    operations = {"images encoded": encoded, "guided steps": guided,
                  "teacher's views trained": flops_of_pass(*teacher, "training", 2) / 2,
                  "student's views trained": flops_of_pass(*student, "training", 2) / 2,
                  "views labelled": flops_of_pass(*teacher, "forward", 2) / 2,
                  **{f"{method} steps": count * flops_of_pass(*learner, "training", 2) / 2 for method, count in images.items()}}
    return {"classes clustered": 1 / (time.process_time() - began),
            **{unit: tflops * 1e12 / count for unit, count in operations.items()}}


def report(result: dict) -> list:
    """The plan as a table, with its assumptions."""
    from misc.report.section import NONE, Section
    rows = [(one["stage"], "; ".join(f"{unit['count']:,} {unit['what']}" for unit in one["units"]),
             "; ".join(f"{unit['per_second']:,.2f}" if unit["per_second"] else NONE for unit in one["units"]),
             NONE if one["seconds"] is None else f"{one['seconds'] / 60:,.1f}", size(one["disk_bytes"]),
             size(one["memory_bytes"])) for one in result["stages"]]
    unknown = any(one["seconds"] is None for one in result["stages"])
    rows.append(("total of the stages with rates" if unknown else "total", NONE, NONE, f"{result['seconds'] / 60:,.1f}",
                 size(sum(one["disk_bytes"] for one in result["stages"])), NONE))
    says = (f"IPC {result['ipc']}, processes: {result['gpus']}. Rates: {result['rates']}. The time of continual is "
            "that of one process, without a teacher's passes; processes divide the other stages without loss. Reading files "
            "and starting processes are not counted. Memory is that of weights, images and latents; activations come on top.")
    return [Section("Plan", says, ("Stage", "Units", "Units/s of one process", "Time (min)", "On disk", "Memory"), tuple(rows))]


def size(count: int) -> str:
    """Megabytes or gigabytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    run(parse_args, main)
