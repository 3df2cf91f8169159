"""Export a distilled set: a folder for a hub, with its soft labels, or for DD-Ranking.

    python -m misc.export runs/digits/distilled/digits_ipc10_10_s0.3_g2.0_kmexpand1 --to hub \\
        --soft-labels runs/digits/soft-labels/distilled --output runs/digits/export
    python -m misc.export DIR --to ddranking --benchmark CIFAR10 --output OUT

--to hub writes README.md (the card), images/ and soft_labels/. Readers: `datasets.load_dataset(OUT)`, torchvision's ImageFolder
(OUT/images), matching.soft_labels.SoftLabels (OUT/soft_labels). `hf upload OWNER/NAME OUT --repo-type dataset` publishes it.

--to ddranking writes images/<class>/* for DD-Ranking 0.2.0, with hard labels or soft ones of its own teacher (soft_label_mode
"M"). With --teacher it also writes images.pt, float32 [N, 3, H, W] normalised as DD-Ranking does, and soft_labels.pt, float32
[N, classes], the teacher's logits (soft_label_mode "S"). OUT/README.md shows the calls. The set needs as many images in each
class, and the benchmark's classes in sorted order. Stored views and the images' weights are not exported.

Files are hard links where possible, else copies. The same command resumes.
"""

import os
import shutil
from collections import Counter
from pathlib import Path

from scripts.artefact import begin, finish, identity, read_manifest
from scripts.cli import InputError, Parser, run
from scripts.files import atomic_path, digest, write_state, write_text

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))    # mean and deviation by which DD-Ranking 0.2.0 normalises
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BENCHMARKS = {"CIFAR10": (10, *CIFAR), "CIFAR100": (100, *CIFAR), "TinyImageNet": (200, *IMAGENET),
              "ImageNet1K": (1000, *IMAGENET)}
OWN_NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "tiny_imagenet": "TinyImageNet", "imagenet": "ImageNet1K"}


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("distilled", metavar="DIR", help="distilled set: a finished folder of gen_syn_image")
    parser.add_argument("--to", required=True, choices=("hub", "ddranking"), help="reader of the folder")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder to write: new, or of this command")
    parser.add_argument("--soft-labels", metavar="DIR", help="hub: the set's labels, a folder of generate_soft_label")
    parser.add_argument("--benchmark", choices=tuple(BENCHMARKS),
                        help="ddranking: its data set (default: that of the set, unless it is an image folder)")
    parser.add_argument("--teacher", metavar="DIR", help="ddranking: folder of train_teacher; gives each image one soft label")
    args = parser.parse_args()
    for flag, value, reader in (("--soft-labels", args.soft_labels, "hub"), ("--benchmark", args.benchmark, "ddranking"),
                                ("--teacher", args.teacher, "ddranking")):
        if value and args.to != reader:
            raise InputError(f"{flag} needs --to {reader} (got --to {args.to})")
    if args.to == "hub" and not args.soft_labels:
        raise InputError("--to hub needs --soft-labels; a set without them can be published as it is: "
                         f"hf upload OWNER/NAME {args.distilled} --repo-type dataset")
    return args


def main(args):
    folder, output = Path(args.distilled), Path(args.output)
    manifest = read_manifest(folder, "distilled")
    if args.to == "hub":
        export_hub(folder, manifest, Path(args.soft_labels), output)
    else:
        export_ddranking(folder, manifest, args.benchmark, args.teacher, output)


def export_hub(folder: Path, manifest: dict, labels_folder: Path, output: Path) -> None:
    """Card, images and soft labels in one folder. Raises InputError where the labels belong to other images."""
    from distillation.card import card
    from matching.image_set import distilled_images
    from matching.soft_labels import SoftLabels
    labels = SoftLabels(labels_folder, distilled_images(folder, data_path="pil")).manifest
    config = {"to": "hub", "distilled": identity(folder), "soft_labels": identity(labels_folder)}
    if complete(output, config):
        return
    files = ["README.md", *(f"images/{name}" for name in place_files(folder, whole(manifest), output / "images")),
             *(f"soft_labels/{name}" for name in place_files(labels_folder, whole(labels), output / "soft_labels"))]
    write_text(output / "README.md", card(manifest["classes"], manifest["config"], manifest["rows"], labels))
    finish(output, "export", manifest["classes"], config, files)
    print(f"{output}: {len(manifest['rows'])} images, soft labels of {len(labels['files'])} epochs; to publish it: "
          f"hf upload OWNER/NAME {output} --repo-type dataset")


def export_ddranking(folder: Path, manifest: dict, benchmark: str | None, teacher: str | None, output: Path) -> None:
    """An image folder, and with a teacher tensors with one soft label per image."""
    from distillation.images import open_image
    benchmark = benchmark or OWN_NAMES.get(manifest["config"].get("dataset"))
    ipc = check_fits(folder, manifest, benchmark)
    config = {"to": "ddranking", "distilled": identity(folder), "benchmark": benchmark,
              "teacher": identity(Path(teacher)) if teacher else None}
    pictures = {entry["file_name"]: manifest["files"][entry["file_name"]] for entry in manifest["rows"]}
    tensors, classes = label(folder, teacher, *BENCHMARKS[benchmark][1:]) if teacher else {}, manifest["classes"]
    if complete(output, config):
        return
    files = ["README.md", *(f"images/{name}" for name in place_files(folder, pictures, output / "images")),
             *(f"{name}.pt" for name in tensors)]
    for name, tensor in tensors.items():
        write_state(output / f"{name}.pt", tensor.clone())
    size = open_image(folder / next(iter(pictures))).height
    write_text(output / "README.md", ddranking_page(folder.resolve().name, benchmark, ipc, size, bool(tensors)))
    finish(output, "export", classes, config, files)
    print(f"{output}: {len(pictures)} images of {len(classes)} classes for DD-Ranking's {benchmark}"
          + (", with one soft label each" if tensors else ""))


def complete(output: Path, config: dict) -> bool:
    """Begin the output folder; True when it is complete. Raises InputError when it has other files."""
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").exists():
        raise InputError(f"{output}: expected a new folder or one of this command, found other files")
    if not begin(output, "export", config):
        return False
    print(f"{output}: complete, nothing to do")
    return True


def whole(manifest: dict) -> dict[str, str | None]:
    """The files of an artefact with their digests; config and manifest have none."""
    return {**manifest["files"], "config.json": None, "manifest.json": None}


def place_files(folder: Path, files: dict[str, str | None], output: Path) -> list[str]:
    """Link or copy files of `folder` to `output`; returns their names. Raises InputError for a changed file."""
    for name, expected in files.items():
        source, target = folder / name, output / name
        if expected and digest(source) != expected:
            raise InputError(f"{source}: expected the file that the manifest lists ({expected[:12]}), found another")
        if target.exists():
            continue
        with atomic_path(target) as partial:
            try:
                os.link(source, partial)
            except OSError:     # another file system, or one without links
                shutil.copyfile(source, partial)
    return list(files)


def check_fits(folder: Path, manifest: dict, benchmark: str | None) -> int:
    """Images per class. Raises InputError for classes or counts that DD-Ranking would read wrongly."""
    if benchmark is None:
        raise InputError(f"--benchmark: expected one of {', '.join(BENCHMARKS)} for a set of the data set "
                         f"{manifest['config'].get('dataset')}")
    names, classes = [entry["name"] for entry in manifest["classes"]], BENCHMARKS[benchmark][0]
    if len(names) != classes:
        raise InputError(f"{folder}: expected the {classes} classes of {benchmark}, found {len(names)}")
    if names != sorted(names):
        first = next(name for name, other in zip(names, sorted(names), strict=True) if name != other)
        raise InputError(f"{folder}: expected {benchmark}'s sorted order of classes, found {first} at {names.index(first)}")
    counts = Counter(entry["label"] for entry in manifest["rows"])
    if len(set(counts.values())) > 1:
        least, most = min(counts.values()), max(counts.values())
        raise InputError(f"{folder}: expected as many images in every class, found {least} to {most}")
    return counts[0]


def label(folder: Path, teacher: str, mean, std) -> dict:
    """Images [N, 3, H, W] as DD-Ranking normalises them, and a teacher's logits [N, classes] for them, sorted by class."""
    from torchvision.transforms import functional as TF

    from matching.image_set import distilled_images
    from matching.teachers import trained_teacher
    from scripts.networks import predict
    images = distilled_images(folder)
    network = trained_teacher(teacher, images, images.source[0])
    pixels = images.images[images.labels.argsort(stable=True)].contiguous()
    return {"images": TF.normalize(pixels / 255, mean, std), "soft_labels": predict(network, pixels).float()}


def ddranking_page(name: str, benchmark: str, ipc: int, size: int, tensors: bool) -> str:
    """A page with the lines that call DD-Ranking on the folder."""
    _, mean, std = BENCHMARKS[benchmark]
    lines = [f"# {name} for DD-Ranking", f"Images of {benchmark}, {ipc} per class, {size} pixels. With DD-Ranking 0.2.0:", "",
             "```python", "from ddranking.metrics import LabelRobustScoreSoft",
             "from torchvision.transforms import Compose, Normalize, ToTensor", "",
             f"transform = Compose([ToTensor(), Normalize({mean}, {std})])",
             f'metric = LabelRobustScoreSoft(dataset="{benchmark}", ipc={ipc}, im_size=({size}, {size}),',
             '                              custom_train_trans=transform, soft_label_mode="M", random_data_format="image",',
             '                              model_name="ResNet-18-BN", teacher_model_names=["ResNet-18-BN"],     # yours',
             '                              real_data_path="data", teacher_dir="teacher_models")',
             'metric.compute_metrics(image_path="images")', "```", ""]
    if tensors:
        lines += ['With one soft label per image (`soft_label_mode="S"`), logits of a teacher for the unchanged image, for',
                  "`AugmentationRobustScore`; `LabelRobustScoreSoft` of 0.2.0 cannot label its random images in this mode:", "",
                  "```python", "import torch", "", 'images = torch.load("images.pt", weights_only=True)         # normalised',
                  'soft_labels = torch.load("soft_labels.pt", weights_only=True)',
                  "metric.compute_metrics(image_tensor=images, soft_labels=soft_labels)", "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run(parse_args, main)
