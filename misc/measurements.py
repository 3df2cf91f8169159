"""The measurements of misc.benchmark, one generator each: rows of a table by their keys, `here` beside `other`.

A row has a number for `here` and, where there is something to compare with, for `other`, and the `ratio`. A measurement raises
RuntimeError where both ways do not make the same. Functions without `Rows` are what several measurements need.
"""

import importlib
import io
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionImg2ImgPipeline
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d
from torchvision.transforms import functional as TF

from continual.metrics import counted
from distillation import ldm
from distillation.checkpoints import load_pipeline, write_checkpoint
from distillation.datasets import decode_all, load_split
from distillation.encoding import Encoding, encode_classes
from distillation.images import open_image
from distillation.prototypes import read_prototypes
from matching.augmentation import draw_epoch
from matching.image_set import image_set
from scripts.artefact import read_manifest
from scripts.cli import DIGITS_LDM, ROOT, Progress
from scripts.files import read_json
from scripts.networks import MEAN, STD, seeded
from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline
from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
from scripts.randomness import generator_for
from scripts.training import new_optimizer

Rows = Iterator[tuple[str, dict]]
PAPER = "--strength 0.7 --num_inference_steps 50 --guidance_scale 8 --image_size 224"
DIGITS = "--strength 0.7 --num_inference_steps 20 --guidance_scale 2 --negative_prompt ''"
SMALL_PARENT = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)"""  # a process's peak counts the memory of its parent at the start, so a small process starts the command


# timing and rows

def interleaved(variants: dict[str, Callable[[], float | None]], repetitions: int, title: str,
                clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Seconds of each variant, run in turn, after a warm-up round. A variant that returns a number has measured itself."""
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


def slower(here: list[float], other: list[float], **facts) -> dict:
    """A row: the median seconds of both, and the median over rounds of here / other."""
    return {"here": statistics.median(here), "other": statistics.median(other), "ratio": median_ratio(here, other),
            "seconds": {"here": [round(spent, 4) for spent in here], "other": [round(spent, 4) for spent in other]}, **facts}


def faster(here: list[float], other: list[float], units: float, other_units: float | None = None, **facts) -> dict:
    """A row: the units per second of both, from the seconds of `units` (`other_units`, where these differ), and the ratio."""
    row, other_units = slower(here, other, **facts), other_units or units
    return {**row, "here": units / row["here"], "other": other_units / row["other"],
            "ratio": units / other_units * median_ratio(other, here)}


def median_ratio(first: list[float], second: list[float]) -> float:
    """The median over rounds of first / second."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def check_close(name: str, here, other, limit: float) -> float:
    """The largest difference of two tensors or arrays; raises RuntimeError above `limit`."""
    found = float(abs(here - other).max())
    if not found <= limit:
        raise RuntimeError(f"{name}: expected the same results, at most {limit} apart, found {found:.4g}")
    return found


# stages, and what they read

def stage(scratch: Path, command: str) -> tuple[Path, dict]:
    """Run a command in this process; returns the artefact in the new folder of its last flag, and the seconds of its result."""
    root = Path(tempfile.mkdtemp(dir=scratch))
    words = [*shlex.split(command), str(root)]
    entry = importlib.import_module(words[0])
    before, sys.argv = sys.argv, words
    try:
        with redirect_stdout(io.StringIO()):
            entry.main(entry.parse_args())
    finally:
        sys.argv = before
    folder = next(root.rglob("manifest.json")).parent
    return folder, read_json(folder / "result.json")["seconds"]


def write_photos(root: Path, classes: int, per_class: int, side: int, tests: int = 0) -> Path:
    """Write JPEG files, coarse noise under fine, below root/train/<class>, and `tests` a class below root/test."""
    for part, count in (("train", per_class), ("test", tests)):
        for label in range(classes if count else 0):
            folder = root / part / f"class{label:03d}"
            folder.mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([label, index])
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
                fine = rng.integers(-8, 9, (side, side, 1))
                Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(folder / f"{index:05d}.jpg")
    return root


def write_stable_diffusion(scratch: Path) -> str:
    """A checkpoint of Stable Diffusion v1.5's architecture with random weights in half precision (2 GB)."""
    folder = scratch / "stable-diffusion"
    if not folder.exists():
        torch.manual_seed(0)
        vae, unet, text_encoder = (part.half() for part in ldm.stable_diffusion_v15())
        write_checkpoint(folder, vae=vae, unet=unet, text_encoder=text_encoder, scheduler=ldm.new_scheduler("epsilon"),
                         tokenizer=ldm.byte_level_tokenizer(folder / "tokenizer"))
    return str(folder)


# distillation

def synthesis(scratch: Path, device, repetitions: int) -> Rows:
    """All images of digits in one batch against some of them one by one, in float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        prototypes, _ = stage(scratch, "distillation.gen_prototype --ipc 6 --save_prototype_path")
        yield "synthesis", compare_synthesis(scratch, device, repetitions, DIGITS_LDM, "float32", (prototypes, DIGITS), 60, 12)


def stable_diffusion(scratch: Path, device, repetitions: int) -> Rows:
    """The paper's setting by batch size."""
    checkpoint, photos = write_stable_diffusion(scratch), write_photos(scratch / "large", 4, 40, 512)
    prototypes, _ = stage(scratch, f"distillation.gen_prototype --ipc 8 --dataset folder --data_dir '{photos}' "
                                   f"--diffusion_checkpoints_path '{checkpoint}' --save_prototype_path")
    for size in (32, 16, 8):    # the memory is that of the first, before the other pipeline was ever there
        row = compare_synthesis(scratch, device, repetitions, checkpoint, "float16", (prototypes, PAPER), size, 2)
        yield f"stable_diffusion_{size}", row
        if size == 32 and row["device_bytes"]:
            yield "stable_diffusion_memory", {"here": row["device_bytes"] / 1e9}


def compare_synthesis(scratch: Path, device, repetitions: int, checkpoint: str, dtype: str, images: tuple[Path, str],
                      batch_size: int, stock_images: int) -> dict:
    """A row: gen_syn_image against diffusers' pipeline one by one, on the same prototypes.

    `images` are the folder of the prototypes and the other flags.
    """
    (prototypes, flags), made, memory, stock = images, [], None, Path(tempfile.mkdtemp(dir=scratch))

    def here() -> float:
        folder, seconds = stage(scratch, f"distillation.gen_syn_image --prototype_path '{prototypes}' --dtype {dtype} {flags} "
                                         f"--diffusion_checkpoints_path '{checkpoint}' --batch_size {batch_size} "
                                         "--save_init_image_path")
        made.append(folder)
        return seconds["synthesise"]
    if torch.cuda.is_available():   # before the other pipeline takes its share
        torch.cuda.reset_peak_memory_stats()
        here()
        memory = torch.cuda.max_memory_allocated()
    networks = load_pipeline(StableDiffusionLatents2ImgPipeline, checkpoint, device, dtype).components
    pipeline = StableDiffusionImg2ImgPipeline(**networks, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    seconds = interleaved({"here": here, "other": lambda: make_stock(pipeline, prototypes, made[0], stock, stock_images)},
                          repetitions, f"synthesis, {dtype}")
    rows = read_manifest(made[0], "distilled")["rows"]
    apart = max(check_close("synthesis", pixels(made[0] / row["file_name"]), pixels(stock / row["file_name"]),
                            1 if dtype == "float32" else 255) for row in rows[:stock_images])
    return faster(**seconds, units=len(rows), other_units=stock_images, apart=f"{apart:.0f}/255", device_bytes=memory)


def pixels(path: Path) -> np.ndarray:
    """int [H, W, 3] of an image file."""
    return np.asarray(open_image(path)).astype(int)


def make_stock(pipeline, prototypes: Path, made: Path, output: Path, count: int) -> None:
    """Make and write the first images of a distilled set one by one with diffusers' own pipeline, as D4M's released code."""
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


def encoding(scratch: Path, device, repetitions: int, checkpoint: str = DIGITS_LDM, files: int = 512, side: int = 256,
             ending: str = "") -> Rows:
    """Files to latents: decoded ahead in four threads against decoding and encoding in turn, 64 at once."""
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
        for rows in torch.arange(files).split(64):
            images = np.stack([np.asarray(split.read(int(row)).resize((size, size), Image.BILINEAR)) for row in rows])
            signed = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
            parts.append(vae.encode(signed).latent_dist.mean.float().cpu() * vae.config.scaling_factor)
        latents["other"] = torch.cat(parts)
    seconds = interleaved({"here": here, "other": other}, repetitions, f"encoding, {Path(checkpoint).name}")
    spread = latents["other"].std()
    apart = check_close("encoding", latents["here"] / spread, latents["other"] / spread, 0.01)
    yield f"encoding{ending}", faster(**seconds, units=files, apart=f"{apart:.0e} standard deviations")
    yield f"waiting{ending}", {"here": 100 * statistics.median(spent["wait"] / spent["encode"] for spent in waits[1:])}


def encoding_large(scratch: Path, device, repetitions: int) -> Rows:
    """The same with Stable Diffusion's autoencoder at 512 pixels."""
    yield from encoding(scratch, device, repetitions, write_stable_diffusion(scratch), side=500, ending="_large")


def memory(scratch: Path, device, repetitions: int, classes: tuple[int, int] = (10, 100), per_class: int = 600,
           checkpoint: str = DIGITS_LDM) -> Rows:
    """Peak memory of the stages that read the real images, on few and on many classes of small files; small networks."""
    small = "--arch convnet_d1_w8"
    commands = {
        "gen_prototype": f"distillation.gen_prototype --ipc 10 --diffusion_checkpoints_path '{checkpoint}' "
                         "--save_prototype_path",
        "gen_syn_image": "distillation.gen_syn_image --method random --ipc 10 --save_init_image_path",
        "train_teacher": f"matching.train_teacher {small} --input-size 32 --epochs 1 --output-dir",
        "train_continual": f"continual.train_continual {small} --size 32 --method er --steps 1 --tasks 5 --output-dir"}
    roots = [write_photos(scratch / f"classes-{count}", count, per_class, 32, tests=1) for count in classes]
    for name, command in commands.items():
        peaks = [[peak_memory_bytes([sys.executable, "-m", *shlex.split(command), tempfile.mkdtemp(dir=scratch), "--dataset",
                                     "folder", "--data_dir", str(root)]) for root in roots] for _ in range(repetitions)]
        few, many = map(statistics.median, zip(*peaks, strict=True))
        yield f"memory_{name}", {"here": many / 1e6, "other": few / 1e6, "ratio": many / few}


def peak_memory_bytes(command: list[str]) -> int:
    """The largest resident set of a command run from the repository's root; raises CalledProcessError when it fails."""
    words = [sys.executable, "-c", SMALL_PARENT, *command]
    peak = int(subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    return peak * (1 if sys.platform == "darwin" else 1024)


def scale(scratch: Path, device, repetitions: int,
          scales: tuple[tuple[int, int], ...] = ((1000, 10), (10000, 10), (10000, 50), (60000, 10)), data: str = "data",
          checkpoint: str = DIGITS_LDM) -> Rows:
    """gen_prototype on parts of Fashion-MNIST, by number of images and IPC, against its encoder on decoded images."""
    pipeline = load_pipeline(StableDiffusionGenLatentsPipeline, checkpoint, device)
    images, _ = decode_all(load_split("fashion_mnist", data, "train"), 32)
    spent: list[dict] = []

    def here(count: int, ipc: int) -> float:
        _, seconds = stage(scratch, f"distillation.gen_prototype --dataset fashion_mnist --data_dir '{data}' --ipc {ipc} "
                                    f"--validation {len(images) - count} --diffusion_checkpoints_path '{checkpoint}' "
                                    "--batch_size 256 --save_prototype_path")
        spent.append(seconds)
        return seconds["encode"] + seconds["cluster"]

    def other(count: int) -> None:
        for part in images[:count].split(256):
            pipeline(part, None, None)
    for count, ipc in scales:
        seconds = interleaved({"here": partial(here, count, ipc), "other": partial(other, count)}, repetitions,
                              f"{count} images, IPC {ipc}")
        yield f"prototypes_{count}_{ipc}", slower(**seconds)
    for part, name in (("wait", "files"), ("cluster", "kmeans")):
        shares = (each[part] / (each["encode"] + each["cluster"]) for each in spent[-repetitions:])
        yield f"share_{name}", {"here": 100 * statistics.median(shares)}


# matching

def views(scratch: Path, device, repetitions: int, images: int = 256, batch_size: int = 64) -> Rows:
    """Views of decoded images on one core, in batches against torchvision's functions on Pillow images, from equal draws."""
    std = 255 * torch.tensor(STD)[:, None, None]

    def every(way: Callable, parts) -> None:
        for part in parts:
            way(rows=part)
    for size in (224, 32):
        decoded = image_set("photographs", [{"name": "patch", "prompt": "patch"}], photograph_patches(images, size),
                            torch.zeros(images))
        pictures = [TF.to_pil_image(image) for image in decoded.images]
        for mix in ("cutmix", "none"):
            drawn = draw_epoch(images, decoded.source, size, np.random.default_rng(0), mix=mix)
            parts = drawn.order.long().split(batch_size)
            ways = {"here": partial(decoded.views, drawn, size=size), "other": partial(stock_views, pictures, drawn, size)}
            apart = check_close("views", *(std * way(rows=parts[0]) for way in ways.values()), limit=1.5)
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            seconds = interleaved({name: partial(every, way, parts) for name, way in ways.items()}, repetitions,
                                  f"views, {size} pixels, {mix}", time.process_time)
            torch.set_num_threads(threads)
            yield f"views_{size}_{mix}", faster(**seconds, units=images, apart=f"{apart:.1f}/255")


def photograph_patches(count: int, size: int) -> torch.Tensor:
    """uint8 [count, 3, size, size] cut from scikit-learn's two sample photographs; `count` is even."""
    halves = [extract_patches_2d(photograph, (size, size), max_patches=count // 2, random_state=0)
              for photograph in load_sample_images().images]
    return torch.from_numpy(np.concatenate(halves)).permute(0, 3, 1, 2).contiguous()


def stock_views(pictures: list, drawn, size: int, rows):
    """Normalised views [B, 3, S, S] made one after another by torchvision's functions, as in the worker of a data loader."""
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


def training(scratch: Path, device, repetitions: int, arch: str = "resnet18", size: int = 224, images: int = 4096,
             batch_size: int = 256) -> Rows:
    """Relabelling and one epoch of a student in bfloat16: images decoded on the device against JPEG files and Pillow."""
    photos = write_photos(scratch / "training", 8, images // 8, size, tests=2)
    data = f"--dataset folder --data_dir '{photos}' --input-size {size} --batch-size {batch_size} --epochs 1"
    teacher, _ = stage(scratch, f"matching.train_teacher {data} --arch {arch} --output-dir")

    def way(data_path: str) -> float:
        return sum(label_and_train(scratch, teacher, f"{data} --data-path {data_path} --workers 8", f"--model {arch} --bf16"))
    seconds = interleaved({"here": partial(way, "device"), "other": partial(way, "pil")}, repetitions, "training")
    yield "training", faster(**seconds, units=images)


def label_and_train(scratch: Path, teacher: Path, flags: str, student: str) -> tuple[float, float]:
    """Seconds of relabelling, and of a student on these labels, by their commands; `flags` are those of both."""
    labels, first = stage(scratch, f"matching.generate_soft_label {flags} --teacher '{teacher}' --mix-type cutmix --fkd-path")
    _, second = stage(scratch, f"validate.train_FKD {flags} {student} --fkd-path '{labels}' --output-dir")
    return first["relabel"], second["train"]


def networks(scratch: Path, device, repetitions: int, arch: str = "resnet18", size: int = 32, images: int = 500,
             batch_size: int = 50, epochs: int = 2) -> Rows:
    """Soft labels and a student by their commands, against the same network on as many prepared images."""
    photos = write_photos(scratch / "small", 10, images // 10, size, tests=2)
    data = f"--dataset folder --data_dir '{photos}' --input-size {size} --batch-size {batch_size}"
    teacher, _ = stage(scratch, f"matching.train_teacher {data} --arch {arch} --epochs 1 --output-dir")
    prepared, answers = torch.randn(batch_size, 3, size, size, device=device), torch.arange(batch_size, device=device) % 10
    network, spent = seeded(arch, 10, "imagenet", 0, size).to(device), []
    optimizer = new_optimizer("adamw", network.parameters(), 1e-3)

    @torch.inference_mode()
    def forward() -> None:
        network.eval()
        for _ in range(epochs * images // batch_size):
            network(prepared)

    def train() -> None:
        network.train()
        for _ in range(epochs * images // batch_size):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(network(prepared), answers).backward()
            optimizer.step()

    def commands() -> None:
        spent.append(label_and_train(scratch, teacher, f"{data} --epochs {epochs}", f"--model {arch}"))
    seconds = interleaved({"commands": commands, "forward": forward, "train": train}, repetitions, "networks")
    relabelled, trained = zip(*spent[1:], strict=True)      # without the warm-up
    yield "labels", faster(relabelled, seconds["forward"], epochs * images)
    yield "student", faster(trained, seconds["train"], epochs * images)


# continual learning, whole pipelines

def steps(scratch: Path, device, repetitions: int, batch_size: int = 32, size: int = 32, tasks: int = 5,
          count: int = 4) -> Rows:
    """Runs of each method on tasks of 100 images and `count` steps; all numbers come from their result files."""
    noise = write_photos(scratch / "stream", 10, 50, size, tests=1)
    runs = {method: [] for method in ("finetune", "er", "agem", "derpp")}

    def way(method: str) -> float:
        _, seconds = stage(scratch, f"continual.train_continual --method {method} --dataset folder --data_dir '{noise}' "
                                    f"--size {size} --batch-size {batch_size} --replay-batch-size {batch_size} "
                                    f"--buffer-size {max(2 * batch_size, tasks)} --tasks {tasks} --steps {count} --output-dir")
        runs[method].append(seconds)
        return seconds["train"]
    seconds = interleaved({method: partial(way, method) for method in runs}, repetitions, "steps")
    network = [sum(run[phase] for phase in ("forward", "backward", "update")) / run["train"] for run in runs["er"][1:]]
    yield "overhead", {"here": 100 * (1 - statistics.median(network)), "seconds": seconds["er"]}
    times = {method: median_ratio(spent, seconds["finetune"]) for method, spent in seconds.items()}
    yield "agem", {"here": (tasks * times["agem"] - 1) / (tasks - 1), "seconds": seconds["agem"]}  # task 1 is fine-tuning
    yield "derpp", {"here": times["derpp"], "seconds": seconds["derpp"]}
    others = statistics.median(run["augment"] + run["buffer"] for run in runs["er"][1:])
    yield "pixels", {"here": 1e3 * others / (tasks * count)}


def methods(scratch: Path, device, repetitions: int, part: int = 50) -> Rows:
    """Images of digits in the settings of the digits study; SRe2L and MTT take 1 / `part` of their steps, one expert of 5."""
    augmentation = "--min-scale-crops 0.6 --flip 0"
    teacher, _ = stage(scratch, f"matching.train_teacher --dataset digits --input-size 32 {augmentation} --epochs 1 "
                                "--output-dir")

    def d4m(ipc: int) -> float:
        prototypes, first = stage(scratch, f"distillation.gen_prototype --ipc {ipc} --kmeans full --save_prototype_path")
        _, second = stage(scratch, f"distillation.gen_syn_image {DIGITS} --strength 0.3 --ipc {ipc} "
                                   f"--prototype_path '{prototypes}' --save_init_image_path")
        return sum(first.values()) - first["wait"] + sum(second.values())      # "encode" has the waiting in it

    def sre2l(ipc: int) -> float:
        _, seconds = stage(scratch, f"distillation.sre2l --teacher '{teacher}' --ipc {ipc} --steps {1000 // part} "
                                    f"{augmentation} --save_init_image_path")
        return part * seconds["recover"]

    def match(ipc: int, experts: Path) -> float:
        _, seconds = stage(scratch, f"distillation.mtt --arch convnet_d3_w32 --ipc {ipc} --experts 1 --expert_epochs 15 "
                                    f"--iterations {500 // part} --student_steps 10 --student_batch 50 "
                                    f"--experts_path '{experts}' --save_init_image_path")
        return part * seconds["match"]

    def mtt(ipc: int) -> float:
        experts = Path(tempfile.mkdtemp(dir=scratch))
        return match(ipc, experts) + 5 * read_json(experts / "result.json")["seconds"]["train"]
    for ipc in (1, 10):
        ways = {name: partial(work, ipc) for name, work in (("d4m", d4m), ("sre2l", sre2l), ("mtt", mtt))}
        experts = scratch / f"experts-{ipc}"
        both, second = (counted(partial(match, ipc, experts)) for _ in range(2))    # they are there the second time
        operations = {"d4m": counted(ways["d4m"]), "sre2l": part * counted(ways["sre2l"]),
                      "mtt": 5 * (both - second) + part * second}
        giga_an_image = {name: found / 1e9 / ipc / 10 for name, found in operations.items()}
        seconds = interleaved(ways, repetitions, f"methods, IPC {ipc}")
        an_image = {name: [one / ipc / 10 for one in spent] for name, spent in seconds.items()}
        for name, spent in an_image.items():
            yield f"{name}_{ipc}", slower(spent, an_image["d4m"])
            yield f"{name}_flops_{ipc}", {"here": giga_an_image[name], "other": giga_an_image["d4m"],
                                          "ratio": operations[name] / operations["d4m"]}


def starts(scratch: Path, device, repetitions: int, wanted: tuple = ("finished", "random", "quickstart")) -> Rows:
    """What passes before a command does its work, in processes of their own; the warm-up round finishes what runs again."""
    def command(*words) -> None:
        subprocess.run([str(word) for word in words], cwd=ROOT, check=True, capture_output=True)
    python = partial(command, sys.executable)
    ways = {"finished": partial(python, "-m", "distillation.gen_prototype", "--ipc", 2, "--save_prototype_path",
                                scratch / "start"),
            "random": lambda: python("-m", "distillation.gen_syn_image", "--method", "random", "--ipc", 10,
                                     "--save_init_image_path", tempfile.mkdtemp(dir=scratch)),
            "quickstart": partial(command, "env", "QUICK=1", f"RUN={scratch / 'quickstart'}", "sh", "scripts/quickstart.sh")}
    seconds = interleaved({"other": partial(python, "-c", "import torch"), **{name: ways[name] for name in wanted}},
                          repetitions, "start")
    for name in wanted:
        yield name, slower(seconds[name], seconds["other"])
