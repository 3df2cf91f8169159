"""Speed and memory of the stages, compared with the plain way to the same result.

    python -m misc.benchmark distillation

Variants take turns in one run, so other work on the machine slows all of them. Compare the ratios; the result file has every
timing. `python -m misc.report tables` writes the tables of misc/benchmark.md from the result files.
"""

import os
import tempfile
from pathlib import Path

from scripts.artefact import code_version, hardware, package_versions
from scripts.cli import InputError, Parser, run
from scripts.files import read_json, write_json

# key of a measurement: (what is measured, what it is compared with, aim); * needs an accelerator
ROWS = {
    "distillation": {
        "synthesis": ("Digits made, images/s", "one by one, diffusers' pipeline", "at least 3 on 2 cores"),
        "encoding": ("Files encoded, digits-ldm, images/s", "decoding and encoding in turn", ""),
        "waiting": ("Time waiting for files, digits-ldm (%)", "", "below 10 on an accelerator"),
        **{f"stable_diffusion_{size}": (f"* Stable Diffusion v1.5's architecture, float16, batch {size}, images/s",
                                        "one by one, diffusers' pipeline", "") for size in (8, 16, 32)},
        "stable_diffusion_memory": ("* The same, device memory at batch 32 (GB)", "", ""),
        "encoding_large": ("* Files encoded, Stable Diffusion's autoencoder, images/s", "decoding and encoding in turn", ""),
        "waiting_large": ("* Time waiting for files, Stable Diffusion's autoencoder (%)", "", "below 10")},
    "scale": {
        **{f"prototypes_{count}_{ipc}": (f"Prototypes of {count:,} images of 32 pixels, IPC {ipc} (s)",
                                         "the autoencoder's forward passes alone", "at most 1.3" if count == 60000 else "")
           for count, ipc in ((1000, 10), (10000, 10), (10000, 50), (60000, 10))},
        "share_files": ("Of the largest: waiting for decoded images (%)", "", ""),
        "share_kmeans": ("Of the largest: k-means (%)", "", "")},
    "memory": {f"memory_{name}": (f"Peak memory of {name}, 60,000 images in 100 classes (MB)", "6,000 images in 10 classes",
                                  aim)
               for name, aim in (("gen_prototype", "below 1.10"), ("gen_syn_image", "below 1.10"), ("train_teacher", ""),
                                 ("train_continual", ""))},
    "methods": {f"{name}{unit}_{ipc}": (f"{title}, IPC {ipc}, {shown} an image", "D4M" if name != "d4m" else "", "")
                for ipc in (1, 10) for unit, shown in (("", "seconds"), ("_flops", "GFLOP"))
                for name, title in (("d4m", "D4M, with encoding and k-means"), ("sre2l", "SRe2L, given the teacher"),
                                    ("mtt", "MTT, with its experts"))},
    "matching": {
        **{f"views_{size}_{mix}": (f"Views of {size} pixels, {name}, images/s of one core",
                                   "torchvision's functions on Pillow images", "at least 4")
           for size in (224, 32) for mix, name in (("cutmix", "CutMix"), ("none", "no mixing"))},
        "labels": ("Soft labels, 500 images of 32 pixels, ResNet-18, images/s", "the network's forward pass alone",
                   "at least 0.9"),
        "student": ("Student, the same, images/s", "forward, backward and optimiser alone", "at least 0.9"),
        "training": ("* Relabelling and an epoch of ResNet-18, 224 pixels, images/s", "files and Pillow, 8 workers",
                     "at least 3")},
    "continual": {
        "overhead": ("ER step beside forward, backward and optimiser (%)", "", "at most 10"),
        "agem": ("A-GEM step, times a fine-tune step", "", "at most 2.1"),
        "derpp": ("DER++ step, times a fine-tune step", "", "at most 3.1"),
        "pixels": ("Augmentation and buffer of an ER step (ms)", "", "at most 1")},
    "start": {
        "finished": ("A finished stage again (s)", "importing torch alone", "at most 1 s"),
        "random": ("gen_syn_image --method random, 100 images (s)", "importing torch alone", "at most 3 s"),
        "quickstart": ("A finished quickstart again, QUICK=1 (s)", "importing torch alone", "at most 12 s")}}
# names of benchmarks -> functions of misc/measurements.py
SECTIONS = {"distillation": ("synthesis", "encoding", "stable_diffusion", "encoding_large"),
            "scale": ("scale",), "memory": ("memory",),
            "matching": ("views", "networks", "training"), "continual": ("steps",), "methods": ("methods",),
            "start": ("starts",)}
ON_ACCELERATOR = ("stable_diffusion", "encoding_large", "training")


def parse_args():
    parser = Parser(__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, sections in SECTIONS.items():
        listed = ", ".join(sections)
        own = benchmarks.add_parser(name, help=listed)
        own.add_argument("--only", nargs="+", default=sections, choices=sections, metavar="NAME",
                         help=f"of {listed}; other rows of the result file stay")
        own.add_argument("--repetitions", default=1 if name == "memory" else 5, type=int, least=1,
                         help="rounds; one to warm up comes before them, except for memory")
        own.add_argument("--output", default=f"misc/results/benchmark_{name}.json", help="result file")
    return parser.parse_args()


def main(args):
    from accelerate import Accelerator

    from misc import measurements
    from misc.report.section import plain
    from scripts.parallel import require_one_process
    accelerator = Accelerator()
    require_one_process(accelerator, "benchmark")
    before, options, output = conditions(), {"repetitions": args.repetitions}, Path(args.output)
    part, rows = {*args.only} != {*SECTIONS[args.benchmark]}, {}
    earlier = rows_of(output, {"benchmark": args.benchmark, "options": options, **before}) if part and output.exists() else {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for name in args.only:
            if accelerator.device.type != "cpu" or name not in ON_ACCELERATOR:
                rows.update(getattr(measurements, name)(Path(scratch), accelerator.device, args.repetitions))
    result = {"kind": "benchmark", "benchmark": args.benchmark, "options": options, "rows": {**earlier, **rows},
              "earlier": sorted(earlier.keys() - rows.keys()), **before, "load_at_end": conditions()["load"],
              "code": code_version(), "packages": package_versions()}
    write_json(output, result)
    print(plain(report(result)))
    print(f"written to {args.output}")


def rows_of(path: Path, wanted: dict) -> dict:
    """The rows of an earlier result. Raises InputError where benchmark, machine or rounds are not those `wanted`."""
    result = read_json(path)
    for name in ("benchmark", "hardware", "cores", "threads", "options"):
        if result.get(name) != wanted[name]:
            raise InputError(f"{path}: expected {name} {wanted[name]}, found {result.get(name)}; choose another --output")
    return result["rows"]


def report(result: dict) -> list:
    """The table of a result, with a row for each measurement that was not run."""
    from misc.report.section import NONE, NOT_RUN, Section
    rows = []
    for key, (what, other, aim) in ROWS[result["benchmark"]].items():
        found = result["rows"].get(key)
        cells = [NOT_RUN] * 3 if found is None else [NONE if found.get(name) is None else number(found[name])
                                                     for name in ("here", "other", "ratio")]
        rows.append((what, cells[0], f"{cells[1]}, {other}" if other and found else other or NONE, cells[2] if other else NONE,
                     aim or NONE))
    rounds = result["options"]["repetitions"]
    timed = f"medians of {rounds} rounds in which variants take turns" if rounds > 1 else "one round"
    says = (f"One run on {result['hardware']}, {result['cores']} cores, load {result['load']:.1f} before and "
            f"{result['load_at_end']:.1f} after it; {timed}. A run fails where the results of both ways differ. "
            "Rows with * need an accelerator.")
    if earlier := [ROWS[result["benchmark"]][key][0] for key in result.get("earlier", []) if key in ROWS[result["benchmark"]]]:
        says += f" Of an earlier run on this machine: {'; '.join(earlier)}."
    return [Section(f"Speed and memory: {result['benchmark']}", says, ("What", "Here", "Compared with", "Ratio", "Aim"),
                    tuple(rows))]


def number(value: float) -> str:
    """About three digits."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def conditions() -> dict:
    """The machine, the number of threads, and the load."""
    import torch
    return {"hardware": hardware(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2)}


if __name__ == "__main__":
    run(parse_args, main)
