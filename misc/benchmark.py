"""Speed and memory of the stages, compared with the plain way to the same result.

    python -m misc.benchmark distillation
    python -m misc.benchmark precision
    python -m misc.benchmark clustering
    python -m misc.benchmark matching
    python -m misc.benchmark continual
    python -m misc.benchmark start
    python -m misc.benchmark scale
    python -m misc.benchmark memory
    python -m misc.benchmark methods

Variants take turns in one run, so other work on the machine slows all of them. Compare the ratios; the result file has every
timing. `python -m misc.report tables` writes the tables of misc/benchmark.md from the result files.
"""

import importlib
import io
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path

from scripts.artefact import code_version, hardware, package_versions, read_manifest
from scripts.cli import DIGITS_LDM, ROOT, Parser, Progress, check_range, run
from scripts.files import read_json, write_json

SCALES = ((1000, 10), (10000, 10), (10000, 50), (60000, 10))  # images, IPC
# key of a measurement: (what is measured, what it is compared with, aim); * needs an accelerator, ** bfloat16 units
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
    "precision": {
        "peak": ("Matrix product, float32, GFLOP/s", "", ""),
        "peak_bf16": ("** Matrix product, bfloat16, GFLOP/s", "float32", ""),
        "unet": ("UNet of digits-ldm, float32, images/s", "", ""),
        "share": ("Of that peak (%)", "", ""),
        "unet_compiled": ("The same, compiled, images/s", "float32", ""),
        "unet_bf16": ("** The same, bfloat16, images/s", "float32", ""),
        "unet_bf16_compiled": ("** The same, bfloat16 and compiled, images/s", "float32", "at least 1.9"),
        "share_bf16": ("** Of the bfloat16 peak (%)", "", "at least 70"),
        "prior": ("Training this UNet, float32, images/s", "", ""),
        "prior_bf16": ("** Training this UNet, bfloat16, images/s", "float32", "at least 1.5")},
    "scale": {
        **{f"prototypes_{count}_{ipc}": (f"Prototypes of {count:,} images of 32 pixels, IPC {ipc} (s)",
                                         "the autoencoder's forward passes alone", "at most 1.3" if count == 60000 else "")
           for count, ipc in SCALES},
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
    "clustering": {f"inertia_{ipc}_{expand}": (f"Inertia on digits, IPC {ipc}, --km_expand {expand}", "without --km_expand", "")
                   for ipc in (10, 50) for expand in (1, 2, 5, 10)},
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
PAPER = ("--strength", 0.7, "--num_inference_steps", 50, "--guidance_scale", 8, "--image_size", 224)
DIGITS = ("--strength", 0.7, "--num_inference_steps", 20, "--guidance_scale", 2, "--negative_prompt", "")
SMALL_PARENT = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""  # a process's peak counts the memory of its parent at the start, so a small process starts the command


def parse_args():
    parser = Parser(__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    for name, sections in SECTIONS.items():
        listed = ", ".join(sections)
        own = benchmarks.add_parser(name, help=listed)
        own.add_argument("--only", nargs="+", default=list(sections), choices=sections, metavar="NAME", help=f"of {listed}")
        own.add_argument("--repetitions", default=1 if name == "memory" else 5, type=int,
                         help="rounds, after one warm-up round (memory: one, without)")
        own.add_argument("--output", default=f"misc/results/benchmark_{name}.json", help="result file")
        if name == "continual":
            own.add_argument("--batch-size", default=32, type=int, help="stream images a step, and as many buffer images")
            own.add_argument("--size", default=32, type=int, help="pixels")
    args = parser.parse_args()
    check_range("--repetitions", args.repetitions, 1)
    return args


def main(args):
    from accelerate import Accelerator

    from misc.report.section import plain
    from scripts.parallel import require_one_process
    accelerator = Accelerator()
    require_one_process(accelerator, "benchmark")
    options = {name: value for name, value in vars(args).items() if name not in ("benchmark", "output", "only")}
    before, rows = conditions(), {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        for name in args.only:
            rows.update(SECTIONS[args.benchmark][name](Path(scratch), accelerator.device, **options))
    result = {"kind": "benchmark", "benchmark": args.benchmark, "options": options, "rows": rows, **before,
              "load_at_end": conditions()["load"], "code": code_version(), "packages": package_versions()}
    write_json(Path(args.output), result)
    print(plain(report(result)))
    print(f"written to {args.output}")


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
            "Rows with * need an accelerator, with ** a processor with bfloat16 units.")
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


# timing

def interleaved(variants: dict[str, Callable[[], float | None]], repetitions: int, title: str,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each variant, run in turn, after a warm-up round. A variant that returns a number has measured itself."""
    import torch
    wait = torch.accelerator.synchronize if torch.accelerator.is_available() else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in Progress(range(repetitions + 1), desc=title, unit="round"):
        for name, work in variants.items():
            wait()
            began = clock()
            own = work()
            wait()
            if repetition:
                seconds[name].append(clock() - began if own is None else own)
    return seconds


def compared(seconds: dict[str, list[float]], here: int, other: int, **facts) -> dict:
    """A row: images per second of "here" and "other", and the median over rounds of the ratio."""
    each = {"here": [spent / here for spent in seconds["here"]], "other": [spent / other for spent in seconds["other"]]}
    return {**{name: 1 / statistics.median(spent) for name, spent in each.items()},
            "ratio": median_ratio(each["other"], each["here"]),
            "seconds": {name: [round(spent, 4) for spent in seconds[name]] for name in each}, **facts}


def slower(seconds: dict[str, list[float]]) -> dict:
    """A row: the median seconds of "here" and "other", and the median over rounds of the ratio."""
    return {**{name: statistics.median(spent) for name, spent in seconds.items()},
            "ratio": median_ratio(seconds["here"], seconds["other"]),
            "seconds": {name: [round(one, 4) for one in spent] for name, spent in seconds.items()}}


def median_ratio(first: list[float], second: list[float]) -> float:
    """The median over rounds of first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def check_close(name: str, here, other, limit: float) -> float:
    """The largest difference of two tensors or arrays; raises RuntimeError above `limit`."""
    found = float(abs(here - other).max())
    if not found <= limit:
        raise RuntimeError(f"{name}: expected the same results, at most {limit} apart, found {found:.4g}")
    return found


# stages

def stage(scratch: Path, module: str, output_flag: str, *flags) -> tuple[Path, dict]:
    """Run a stage in this process, in a new folder; returns its artefact and the seconds in its `result.json`."""
    entry, root = importlib.import_module(module), Path(tempfile.mkdtemp(dir=scratch))
    before, sys.argv = sys.argv, [module, *map(str, flags), output_flag, str(root)]
    try:
        with redirect_stdout(io.StringIO()):
            entry.main(entry.parse_args())
    finally:
        sys.argv = before
    folder = next(root.rglob("manifest.json")).parent
    return folder, read_json(folder / "result.json")["seconds"]


def write_photos(root: Path, classes: int, per_class: int, side: int, part: str = "train") -> Path:
    """Write JPEG files, coarse noise under fine, below root/part/<class>; returns `root`."""
    import numpy as np
    from PIL import Image
    for label in range(classes):
        folder = root / part / f"class{label:03d}"
        folder.mkdir(parents=True)
        for index in range(per_class):
            rng = np.random.default_rng([label, index])
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
            fine = rng.integers(-8, 9, (side, side, 1))
            Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(folder / f"{index:05d}.jpg")
    return root


def write_stable_diffusion(scratch: Path) -> str:
    """A checkpoint of Stable Diffusion v1.5's architecture with random weights in half precision (2 GB)."""
    import torch

    from distillation.ldm import byte_level_tokenizer, new_scheduler, stable_diffusion_v15
    from distillation.ldm_folder import write_checkpoint
    folder = scratch / "stable-diffusion"
    if not folder.exists():
        torch.manual_seed(0)
        vae, unet, text_encoder = (part.half() for part in stable_diffusion_v15())
        write_checkpoint(folder, vae=vae, unet=unet, text_encoder=text_encoder, scheduler=new_scheduler("epsilon"),
                         tokenizer=byte_level_tokenizer(folder / "tokenizer"))
    return str(folder)


# distillation

def synthesis(scratch: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, how: tuple = DIGITS, ipc: int = 6,
              stock_images: int = 12) -> Iterator[tuple[str, dict]]:
    """All images in one batch against some of them one by one, in float32."""
    import torch
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        prototypes, _ = stage(scratch, "distillation.gen_prototype", "--save_prototype_path", "--ipc", ipc,
                              "--diffusion_checkpoints_path", checkpoint)
        size = 10 * ipc
        rows = compare_synthesis(scratch, device, repetitions, checkpoint, prototypes, "float32", (size,), stock_images, how)
        yield "synthesis", rows[size]


def stable_diffusion(scratch: Path, device, repetitions: int) -> Iterator[tuple[str, dict]]:
    """The paper's setting by batch size; needs an accelerator."""
    if device.type == "cpu":
        return
    checkpoint, photos, sizes = write_stable_diffusion(scratch), write_photos(scratch / "large", 4, 40, 512), (8, 16, 32)
    prototypes, _ = stage(scratch, "distillation.gen_prototype", "--save_prototype_path", "--ipc", 8, "--dataset", "folder",
                          "--data_dir", photos, "--diffusion_checkpoints_path", checkpoint)
    rows = compare_synthesis(scratch, device, repetitions, checkpoint, prototypes, "float16", sizes, 2, PAPER)
    yield from ((f"stable_diffusion_{size}", row) for size, row in rows.items())
    if rows[32]["device_bytes"]:
        yield "stable_diffusion_memory", {"here": rows[32]["device_bytes"] / 1e9}


def compare_synthesis(scratch: Path, device, repetitions: int, checkpoint: str, prototypes: Path, dtype: str,
                      sizes: tuple[int, ...], stock_images: int, how: tuple) -> dict[int, dict]:
    """A row for each batch size: gen_syn_image against diffusers' pipeline one by one, on the same prototypes."""
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    from distillation.checkpoints import load_pipeline
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    flags = ("--prototype_path", prototypes, "--diffusion_checkpoints_path", checkpoint, "--dtype", dtype, *how)
    made, memory = {}, dict.fromkeys(sizes)

    def here(size: int) -> float:
        made[size], seconds = stage(scratch, "distillation.gen_syn_image", "--save_init_image_path", "--batch_size", size,
                                    *flags)
        return seconds["synthesise"]
    for size in sizes if torch.cuda.is_available() else ():  # before the other pipeline takes its share
        torch.cuda.reset_peak_memory_stats()
        here(size)
        memory[size] = torch.cuda.max_memory_allocated()
    networks = load_pipeline(StableDiffusionLatents2ImgPipeline, checkpoint, device, dtype).components
    pipeline = StableDiffusionImg2ImgPipeline(**networks, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    seconds = interleaved({
        **{size: partial(here, size) for size in sizes},
        "other": lambda: make_stock(pipeline, prototypes, made[sizes[0]], scratch / "stock", stock_images)}, repetitions,
        f"synthesis, {dtype}")
    images = len(read_json(made[sizes[0]] / "manifest.json")["rows"])
    limit = 1 if dtype == "float32" else 255
    apart = max(check_close("synthesis", pixels(made[sizes[0]] / path.relative_to(scratch / "stock")), pixels(path), limit)
                for path in (scratch / "stock").rglob("*.png"))
    return {size: compared({"here": seconds[size], "other": seconds["other"]}, images, stock_images, apart=f"{apart:.0f}/255",
                           device_bytes=memory[size]) for size in sizes}


def make_stock(pipeline, prototypes: Path, made: Path, output: Path, count: int) -> None:
    """Make and write the first images of a distilled set one by one with diffusers' own pipeline, as D4M's released code."""
    from PIL import Image

    from distillation.prototypes import read_prototypes
    from scripts.randomness import generator_for
    manifest, (classes, found, _) = read_manifest(made, "distilled"), read_prototypes(prototypes)
    config = manifest["config"]
    how = {name: config[name] for name in ("negative_prompt", "strength", "num_inference_steps", "guidance_scale")}
    side = config["image_size"]
    for row in manifest["rows"][:count]:
        index = [row[name] for name in ("label", "prototype", "repeat")]
        image = pipeline(prompt=classes[index[0]]["prompt"], image=found[index[0]].centroids[index[1]][None],
                         generator=generator_for(config["seed"], "image", *index), **how).images[0]
        (output / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (image if image.size == (side, side) else image.resize((side, side), Image.BICUBIC)).save(output / row["file_name"])


def pixels(path: Path):
    """The pixels of an image as integers."""
    import numpy as np
    from PIL import Image
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def encoding(scratch: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, files: int = 512, side: int = 256,
             ending: str = "") -> Iterator[tuple[str, dict]]:
    """Files to latents: decoded ahead in four threads against decoding and encoding in turn, 64 at once."""
    import numpy as np
    import torch
    from PIL import Image

    from distillation.checkpoints import load_pipeline
    from distillation.datasets import load_split
    from distillation.encoding import Encoding, encode_classes
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, device)
    split = load_split("folder", write_photos(scratch / f"photos-{side}-{files}", 4, files // 4, side), "train")
    size, vae, latents, waits = pipeline.size_pixels, pipeline.vae, {}, []

    def here():
        waits.append({})
        latents["here"] = torch.cat([each.latents for each in encode_classes(
            pipeline, split, list(range(4)), size, Encoding(0, "mean"), waits[-1])])

    @torch.inference_mode()
    def other():
        parts = []
        for rows in np.arange(files).reshape(4, -1):
            for part in np.array_split(rows, -(-len(rows) // 64)):
                images = np.stack([np.asarray(split.read(int(row)).resize((size, size), Image.BILINEAR)) for row in part])
                signed = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
                parts.append(vae.encode(signed).latent_dist.mean.float().cpu() * vae.config.scaling_factor)
        latents["other"] = torch.cat(parts)
    seconds = interleaved({"here": here, "other": other}, repetitions, f"encoding, {Path(checkpoint).name}")
    spread = latents["other"].std()
    apart = check_close("encoding", latents["here"] / spread, latents["other"] / spread, 0.01)
    yield f"encoding{ending}", compared(seconds, files, files, apart=f"{apart:.0e} standard deviations")
    yield f"waiting{ending}", {"here": 100 * statistics.median(spent["wait"] / spent["encode"] for spent in waits[1:])}


def encoding_large(scratch: Path, device, repetitions: int) -> Iterator[tuple[str, dict]]:
    """The same with Stable Diffusion's autoencoder at 512 pixels; needs an accelerator."""
    if device.type != "cpu":
        yield from encoding(scratch, device, repetitions, write_stable_diffusion(scratch), side=500, ending="_large")


def precision(scratch: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, batch_size: int = 50, passes: int = 4,
              side: int = 2048) -> Iterator[tuple[str, dict]]:
    """A checkpoint's UNet as gen_syn_image loads it, its training as in train_ldm, and matrix products, by precision."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distillation.gen_syn_image import load_images_pipeline
    from distillation.synthesis import latent_shape
    from scripts.training import has_bfloat16

    @torch.inference_mode()
    def repeat(operation: Callable, *inputs) -> None:
        for _ in range(passes):
            operation(*inputs)
    variants, images = {}, passes * batch_size
    for dtype, ending in (("float32", ""), ("bfloat16", "_bf16"))[:1 + has_bfloat16(device.type)]:
        for compiled in ("", "_compiled"):
            loaded = load_images_pipeline(Namespace(diffusion_checkpoints_path=checkpoint, revision=None, dtype=dtype,
                                                    compile=compiled), device)
            latents = torch.randn(batch_size, *latent_shape(loaded)).to(device, loaded.unet.dtype)
            variants["unet" + ending + compiled] = partial(repeat, loaded.unet, latents, 500,
                                                           loaded.embed(["a prompt"]).repeat(batch_size, 1, 1))
        matrix = torch.randn(side, side).to(device, loaded.unet.dtype)
        variants["peak" + ending] = partial(repeat, torch.mm, matrix, matrix)
        variants["prior" + ending] = partial(train_prior, scratch, loaded, batch_size, passes, bool(ending))
    with FlopCounterMode(display=False) as counter:
        variants["unet"]()
    seconds = interleaved(variants, repetitions, "precision")
    products, unet = passes * 2 * side ** 3 / 1e9, counter.get_total_flops() / 1e9
    for name, spent in seconds.items():
        amount = products if name.startswith("peak") else images
        yield name, compared({"here": spent, "other": seconds[name.split("_")[0]]}, amount, amount)
    for name, peak, network in (("share", "peak", "unet"), ("share_bf16", "peak_bf16", "unet_bf16_compiled")):
        if peak in seconds:
            yield name, {"here": 100 * unet / products * median_ratio(seconds[peak], seconds[network])}


def train_prior(scratch: Path, loaded, images: int, steps: int, bf16: bool) -> None:
    """Steps of training a UNet like the loaded one, on random latents."""
    import torch

    from distillation import ldm
    from distillation.synthesis import latent_shape
    unet = type(loaded.unet).from_config(loaded.unet.config).to(
        loaded.device, memory_format=torch.channels_last if bf16 else torch.contiguous_format)
    posteriors = ldm.Posteriors(torch.randn(images, *latent_shape(loaded)), torch.ones(images, 1, 1, 1), 1.0)
    text = loaded.embed(["a prompt"]).float()
    ldm.train_unet(unet, torch.nn.ModuleDict({"unet": unet}), lambda classes: text[classes], loaded.scheduler, posteriors,
                   torch.zeros(images, dtype=torch.long), 0, ldm.Recipe(
                       steps, images, 1e-3, 0, Path(tempfile.mkdtemp(dir=scratch)) / "unet.pt", math.inf, bf16=bf16))


def memory(scratch: Path, device, repetitions: int, classes: tuple[int, int] = (10, 100), per_class: int = 600,
           checkpoint: str = DIGITS_LDM) -> Iterator[tuple[str, dict]]:
    """Peak memory of the stages that read the real images, on few and on many classes of small files; small networks."""
    small = "--arch convnet_d1_w8"
    commands = {"gen_prototype": f"distillation.gen_prototype --ipc 10 --diffusion_checkpoints_path {checkpoint} "
                                 "--save_prototype_path",
                "gen_syn_image": "distillation.gen_syn_image --method random --ipc 10 --save_init_image_path",
                "train_teacher": f"matching.train_teacher {small} --input-size 32 --epochs 1 --output-dir",
                "train_continual": f"continual.train_continual {small} --size 32 --method er --steps 1 --tasks 5 --output-dir"}
    roots = [write_photos(write_photos(scratch / f"classes-{count}", count, per_class, 32), count, 1, 32, "test")
             for count in classes]
    for name, command in commands.items():
        few, many = (peak_memory_bytes([sys.executable, "-m", *command.split(), str(root / name), "--dataset", "folder",
                                        "--data_dir", str(root)]) for root in roots)
        yield f"memory_{name}", {"here": many / 1e6, "other": few / 1e6, "ratio": many / few}


def peak_memory_bytes(command: list[str]) -> int:
    """The largest resident set of a command run from the repository's root; raises RuntimeError when it fails."""
    done = subprocess.run([sys.executable, "-c", SMALL_PARENT, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: expected exit code 0, found {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout) * (1 if sys.platform == "darwin" else 1024)


def scale(scratch: Path, device, repetitions: int, scales: tuple[tuple[int, int], ...] = SCALES, data: str = "data",
          checkpoint: str = DIGITS_LDM) -> Iterator[tuple[str, dict]]:
    """gen_prototype on the first images of Fashion-MNIST, against its autoencoder's forward passes on decoded images."""
    import torch

    from distillation.checkpoints import load_pipeline
    from distillation.datasets import decode_all, load_split
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, device)
    images, split = decode_all(load_split("fashion_mnist", data, "train"), 32)
    spent: list[dict] = []

    def here(folder: Path, ipc: int) -> float:
        _, seconds = stage(scratch, "distillation.gen_prototype", "--save_prototype_path", "--dataset", "fashion_mnist",
                           "--data_dir", folder, "--ipc", ipc, "--diffusion_checkpoints_path", checkpoint, "--batch_size", 256)
        spent.append(seconds)
        return seconds["encode"] + seconds["cluster"]

    def other(count: int) -> None:
        for part in images[:count].split(256):
            pipeline(part, None, None)
    for count, ipc in scales:
        folder = write_idx(scratch / f"idx-{count}", images[:count, 0, 2:-2, 2:-2], torch.from_numpy(split.labels[:count]))
        seconds = interleaved({"here": partial(here, folder, ipc), "other": partial(other, count)}, repetitions,
                              f"{count} images, IPC {ipc}")
        yield f"prototypes_{count}_{ipc}", slower(seconds)
    for part, name in (("wait", "files"), ("cluster", "kmeans")):
        shares = (each[part] / (each["encode"] + each["cluster"]) for each in spent[-repetitions:])
        yield f"share_{name}", {"here": 100 * statistics.median(shares)}


def write_idx(folder: Path, images, labels) -> Path:
    """Write images uint8 [N, H, W] and labels [N] as Fashion-MNIST's training files; returns the folder."""
    folder.mkdir(exist_ok=True)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
        (folder / f"train-{name}-ubyte").write_bytes(header + values.byte().numpy().tobytes())
    return folder


def clustering(scratch: Path, device, repetitions: int, ipcs: tuple[int, ...] = (10, 50)) -> Iterator[tuple[str, dict]]:
    """Mini-batch k-means on each class of digits: sums of squared distances to the nearest centroid, one round per seed."""
    from distillation.checkpoints import load_pipeline
    from distillation.datasets import load_split
    from distillation.encoding import Encoding, encode_classes
    from distillation.prototypes import find_prototypes
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
    pipeline, split = load_pipeline(StableDiffusionGenLatentsPipeline, DIGITS_LDM, device), load_split("digits", "", "train")
    found = encode_classes(pipeline, split, list(range(10)), pipeline.size_pixels, Encoding(0, "mean"))
    latents = [each.latents for each in found]

    def inertia(ipc: int, expand: int | None) -> list[float]:
        return [sum(float(find_prototypes(each, ipc, expand, seed).inertia) for each in latents) for seed in range(repetitions)]
    for ipc in ipcs:
        usual = inertia(ipc, None)
        for expand in (1, 2, 5, 10):
            own = inertia(ipc, expand)
            yield f"inertia_{ipc}_{expand}", {"here": statistics.median(own), "other": statistics.median(usual),
                                              "ratio": median_ratio(own, usual)}


# matching

def views(scratch: Path, device, repetitions: int, images: int = 256, batch_size: int = 64) -> Iterator[tuple[str, dict]]:
    """Views of decoded images on one core, in batches against torchvision's functions on Pillow images, from equal draws."""
    import numpy as np
    import torch
    from torchvision.transforms.functional import to_pil_image

    from matching.augmentation import draw_epoch
    from matching.image_set import image_set
    from scripts.networks import STD
    scale = 255 * torch.tensor(STD)[:, None, None]

    def every(way: Callable, parts) -> None:
        for part in parts:
            way(rows=part)
    for size in (224, 32):
        decoded = image_set("photographs", [{"name": "patch", "prompt": "patch"}], photograph_patches(images, size),
                            torch.zeros(images))
        pictures = [to_pil_image(image) for image in decoded.images]
        for mix in ("cutmix", "none"):
            drawn = draw_epoch(images, decoded.source, size, np.random.default_rng(0), mix=mix)
            parts = drawn.order.long().split(batch_size)
            ways = {"here": partial(decoded.views, drawn, size=size), "other": partial(stock_views, pictures, drawn, size)}
            apart = check_close("views", *(scale * way(rows=parts[0]) for way in ways.values()), limit=1.5)
            with ExitStack() as stack:
                stack.callback(torch.set_num_threads, torch.get_num_threads())
                torch.set_num_threads(1)
                seconds = interleaved({name: partial(every, way, parts) for name, way in ways.items()}, repetitions,
                                      f"views, {size} pixels, {mix}", time.process_time)
            yield f"views_{size}_{mix}", compared(seconds, images, images, apart=f"{apart:.1f}/255")


def photograph_patches(count: int, size: int):
    """uint8 [count, 3, size, size] cut from scikit-learn's two sample photographs (427 x 640 pixels), in turn."""
    import numpy as np
    import torch
    from sklearn.datasets import load_sample_images
    photographs, rng, patches = load_sample_images().images, np.random.default_rng(0), []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (rng.integers(0, side - size + 1) for side in photograph.shape[:2])
        patches.append(photograph[top:top + size, left:left + size].transpose(2, 0, 1))
    return torch.from_numpy(np.stack(patches))


def stock_views(pictures: list, drawn, size: int, rows):
    """Normalised views [B, 3, S, S] made one after another by torchvision's functions, as in the worker of a data loader."""
    import torch
    from torchvision.transforms import functional as TF

    from scripts.networks import MEAN, STD

    def crop(row: int):
        view = TF.resized_crop(pictures[row], *drawn.crop[row].tolist(), [size, size], TF.InterpolationMode.BILINEAR)
        return TF.hflip(view) if drawn.flip[row] else view
    made = []
    for row in rows.tolist():
        view, (top, left, bottom, right) = crop(row), drawn.box[row].tolist()
        if bottom > top and right > left:
            view.paste(crop(int(drawn.partner[row])).crop((left, top, right, bottom)), (left, top))
        made.append(TF.normalize(TF.to_tensor(view), MEAN, STD))
    return torch.stack(made)


def training(scratch: Path, device, repetitions: int, always: bool = False, arch: str = "resnet18", size: int = 224,
             images: int = 4096, batch_size: int = 256) -> Iterator[tuple[str, dict]]:
    """Relabelling and one epoch of a student in bfloat16: images decoded on the device against JPEG files and Pillow."""
    if device.type == "cpu" and not always:
        return
    photos = write_photos(write_photos(scratch / "training", 8, images // 8, size), 8, 2, size, "test")
    data = ("--dataset", "folder", "--data_dir", photos, "--input-size", size, "--batch-size", batch_size)
    teacher, _ = stage(scratch, "matching.train_teacher", "--output-dir", *data, "--arch", arch, "--epochs", 1)

    def way(data_path: str) -> float:
        own = (*data, "--data-path", data_path, "--workers", 8)
        labels, first = stage(scratch, "matching.generate_soft_label", "--fkd-path", *own, "--teacher", teacher, "--epochs", 1,
                              "--mix-type", "cutmix")
        _, second = stage(scratch, "validate.train_FKD", "--output-dir", *own, "--fkd-path", labels, "--model", arch,
                          "--epochs", 1, "--bf16")
        return first["relabel"] + second["train"]
    seconds = interleaved({"here": partial(way, "device"), "other": partial(way, "pil")}, repetitions, "training")
    yield "training", compared(seconds, images, images)


def networks(scratch: Path, device, repetitions: int, arch: str = "resnet18", size: int = 32, images: int = 500,
             batch_size: int = 50, epochs: int = 2) -> Iterator[tuple[str, dict]]:
    """Soft labels and a student by their commands, against the same network on as many prepared images."""
    import torch
    import torch.nn.functional as F

    from scripts.networks import seeded
    from scripts.training import new_optimizer
    photos = write_photos(write_photos(scratch / "small", 10, images // 10, size), 10, 2, size, "test")
    data = ("--dataset", "folder", "--data_dir", photos, "--input-size", size, "--batch-size", batch_size)
    teacher, _ = stage(scratch, "matching.train_teacher", "--output-dir", *data, "--arch", arch, "--epochs", 1)
    views, answers = torch.randn(batch_size, 3, size, size, device=device), torch.arange(batch_size, device=device) % 10
    network, made, count = seeded(arch, 10, "imagenet", 0, size).to(device), [], epochs * images // batch_size
    optimizer = new_optimizer("adamw", network.parameters(), 1e-3)

    def labels() -> float:
        folder, seconds = stage(scratch, "matching.generate_soft_label", "--fkd-path", *data, "--teacher", teacher, "--epochs",
                                epochs, "--mix-type", "cutmix")
        made.append(folder)
        return seconds["relabel"]

    def student() -> float:
        return stage(scratch, "validate.train_FKD", "--output-dir", *data, "--fkd-path", made[-1], "--model", arch, "--epochs",
                     epochs)[1]["train"]

    @torch.inference_mode()
    def forward() -> None:
        network.eval()
        for _ in range(count):
            network(views)

    def train() -> None:
        network.train()
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(views), answers).backward()
            optimizer.step()
    for name, ways in (("labels", {"here": labels, "other": forward}), ("student", {"here": student, "other": train})):
        yield name, compared(interleaved(ways, repetitions, name), count * batch_size, count * batch_size)


# continual

def steps(scratch: Path, device, repetitions: int, batch_size: int, size: int, tasks: int = 5,
          count: int = 4) -> Iterator[tuple[str, dict]]:
    """Runs of each method on tasks of 100 images and `count` steps; all numbers come from their result files."""
    noise = write_photos(write_photos(scratch / "stream", 10, 50, size), 10, 1, size, "test")
    methods, runs = ("finetune", "er", "agem", "derpp"), {}

    def way(method: str) -> float:
        _, seconds = stage(scratch, "continual.train_continual", "--output-dir", "--method", method, "--dataset", "folder",
                                "--data_dir", noise, "--size", size, "--batch-size", batch_size, "--replay-batch-size",
                                batch_size, "--buffer-size", max(2 * batch_size, tasks), "--tasks", tasks, "--steps", count)
        runs.setdefault(method, []).append(seconds)
        return seconds["train"]
    seconds = interleaved({method: partial(way, method) for method in methods}, repetitions, "steps")
    network = [sum(run[phase] for phase in ("forward", "backward", "update")) / run["train"] for run in runs["er"][1:]]
    yield "overhead", {"here": 100 * (1 - statistics.median(network)), "seconds": seconds["er"]}
    times = {method: median_ratio(spent, seconds["finetune"]) for method, spent in seconds.items()}
    yield "agem", {"here": (tasks * times["agem"] - 1) / (tasks - 1), "seconds": seconds["agem"]}  # task 1 is fine-tuning
    yield "derpp", {"here": times["derpp"], "seconds": seconds["derpp"]}
    others = statistics.median(run["augment"] + run["buffer"] for run in runs["er"][1:])
    yield "pixels", {"here": 1e3 * others / (tasks * count)}


# methods

def methods(scratch: Path, device, repetitions: int, ipcs: tuple[int, ...] = (1, 10),
            part: int = 50) -> Iterator[tuple[str, dict]]:
    """Images of digits in the settings of the digits study; SRe2L and MTT take 1 / `part` of their steps, one expert of 5."""
    from torch.utils.flop_counter import FlopCounterMode
    augmentation = ("--min-scale-crops", 0.6, "--flip", 0)
    teacher, _ = stage(scratch, "matching.train_teacher", "--output-dir", "--dataset", "digits", "--input-size", 32, "--epochs",
                       1, *augmentation)

    def counted(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e9

    def d4m(ipc: int) -> float:
        prototypes, first = stage(scratch, "distillation.gen_prototype", "--save_prototype_path", "--ipc", ipc, "--kmeans",
                                  "full")
        _, second = stage(scratch, "distillation.gen_syn_image", "--save_init_image_path", *DIGITS, "--strength", 0.3, "--ipc",
                          ipc, "--prototype_path", prototypes)
        return sum(first.values()) - first["wait"] + sum(second.values())      # "encode" has the waiting in it

    def sre2l(ipc: int) -> float:
        return part * stage(scratch, "distillation.sre2l", "--save_init_image_path", "--teacher", teacher, "--ipc", ipc,
                            "--steps", 1000 // part, *augmentation)[1]["recover"]

    def match(ipc: int, experts: Path) -> float:
        return part * stage(scratch, "distillation.mtt", "--save_init_image_path", "--arch", "convnet_d3_w32", "--ipc", ipc,
                            "--experts", 1, "--expert_epochs", 15, "--iterations", 500 // part, "--student_steps", 10,
                            "--student_batch", 50, "--experts_path", experts)[1]["match"]

    def mtt(ipc: int) -> float:
        experts = Path(tempfile.mkdtemp(dir=scratch))
        return match(ipc, experts) + 5 * read_json(experts / "result.json")["seconds"]["train"]
    for ipc in ipcs:
        ways = {name: partial(work, ipc) for name, work in (("d4m", d4m), ("sre2l", sre2l), ("mtt", mtt))}
        experts = scratch / f"experts-{ipc}"
        both, second = (counted(partial(match, ipc, experts)) for _ in range(2))    # they are there the second time
        operations = {"d4m": counted(ways["d4m"]), "sre2l": part * counted(ways["sre2l"]),
                      "mtt": 5 * (both - second) + part * second}
        seconds = interleaved(ways, repetitions, f"methods, IPC {ipc}")
        for name, spent in seconds.items():
            row = slower({"here": [one / ipc / 10 for one in spent], "other": [one / ipc / 10 for one in seconds["d4m"]]})
            yield f"{name}_{ipc}", row
            yield f"{name}_flops_{ipc}", {"here": operations[name] / ipc / 10, "other": operations["d4m"] / ipc / 10,
                                          "ratio": operations[name] / operations["d4m"]}


# start

def starts(scratch: Path, device, repetitions: int, wanted: tuple = tuple(ROWS["start"])) -> Iterator[tuple[str, dict]]:
    """What passes before a command does its work, in processes of their own as a user starts them."""
    def command(*words, **settings) -> None:
        subprocess.run([str(word) for word in words], cwd=ROOT, env={**os.environ, **settings}, check=True, capture_output=True)
    prototypes = (sys.executable, "-m", "distillation.gen_prototype", "--ipc", 2, "--save_prototype_path", scratch / "start")
    quickstart = partial(command, "sh", "scripts/quickstart.sh", QUICK="1", RUN=str(scratch / "quickstart"))
    command(*prototypes)
    variants = {"other": partial(command, sys.executable, "-c", "import torch"), "finished": partial(command, *prototypes),
                "random": lambda: command(sys.executable, "-m", "distillation.gen_syn_image", "--method", "random", "--ipc", 10,
                                          "--save_init_image_path", tempfile.mkdtemp(dir=scratch))}
    if "quickstart" in wanted:
        quickstart()
        variants["quickstart"] = quickstart
    seconds = interleaved({name: way for name, way in variants.items() if name in ("other", *wanted)}, repetitions, "start")
    for name in list(seconds)[1:]:
        yield name, slower({"here": seconds[name], "other": seconds["other"]})


SECTIONS = {"distillation": {"synthesis": synthesis, "encoding": encoding,
                             "stable_diffusion": stable_diffusion, "encoding_large": encoding_large},
            "precision": {"precision": precision},
            "scale": {"scale": scale},
            "memory": {"memory": memory},
            "clustering": {"inertia": clustering},
            "matching": {"views": views, "networks": networks, "training": training},
            "continual": {"steps": steps},
            "methods": {"methods": methods},
            "start": {"starts": starts}}


if __name__ == "__main__":
    run(parse_args, main)
