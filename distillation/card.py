"""The card of a distilled set, its `README.md`: the folder can be pushed to a hub as it is.

`datasets.load_dataset(folder)` reads files, columns and class names from the front matter. An export with soft labels
(misc/export.py) has the folders `images/` and `soft_labels/` below the card.
"""

import json
from pathlib import PurePosixPath

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
REAL_IMAGES = "Where a file has another size, its centre was cut out and resized. A baseline for D4M; nothing is synthetic."
METHODS = {    # name of the images, and how they were made
    "d4m": ("D4M images", "Each image starts from a prototype, a k-means centroid of its class's latents; the prototype is "
            "noised to `strength` of the noise schedule and denoised under the class's prompt (D4M)."),
    "prototype": ("Decoded prototypes", "Each image is a prototype, a k-means centroid of its class's latents, decoded without "
                  "any diffusion. A baseline for D4M."),
    "noise": ("Images from pure noise", "Each image is denoised from pure noise under its class's prompt, without a prototype. "
              "A baseline for D4M."),
    "sre2l": ("SRe2L images", "Each image was optimised from noise until a trained teacher recognised its class and the "
              "statistics of the teacher's BatchNorm layers matched (SRe2L, arXiv 2306.13092)."),
    "mtt": ("MTT images", "The images began as random real ones and were optimised so that a network trained on them moves as "
            "networks trained on all real images do (trajectory matching, arXiv 2203.11932)."),
    "random": ("Random real images", f"Each image is a real one, drawn at random from the training split. {REAL_IMAGES}"),
    "herding": ("Herded real images", "Each image is a real one of the training split: those whose latents together come "
                f"nearest to the mean of their class. {REAL_IMAGES}"),
    "kcenter": ("Real images by k-center", "Each image is a real one of the training split: those that leave no image of "
                f"their class far away in the latent space. {REAL_IMAGES}"),
}
OTHERS = ("sre2l", "mtt")     # methods of others
UNKNOWN = ("Distilled images", "")
MODE_GUIDED = ("Mode-guided images", "Each image is drawn from noise under its class's prompt and pulled towards a prototype, "
               "a k-means centroid of its class's latents, during the first steps (mode guidance, arXiv 2505.18963).")
CENTROID = "a k-means centroid of its class's latents"
OTHER_PROTOTYPES = {"medoid": "the real image's latents nearest to a k-means centroid of its class",
                    "member": "the latents of a random real image of a k-means cluster of its class",
                    "random": "the latents of a random real image of its class"}
SOURCES = {"digits": "UCI's handwritten digits", "fashion_mnist": "Fashion-MNIST", "cifar10": "CIFAR-10",
           "cifar100": "CIFAR-100", "tiny_imagenet": "Tiny ImageNet", "imagenet": "ImageNet-1K", "folder": "an image folder"}
COLUMNS = {
    "image": "the picture", "label": "the class, in the order of the folders",
    "prototype": "the cluster it was made from (in baselines without clusters, its place in the draw)",
    "repeat": "which of the images of that prototype", "seed": "seed of its noise, or of the draw",
    "weight": "its share of its class, from the cluster's size; sums to 1 per class",
}
CITATION = """@inproceedings{su2024d4m,
  title     = {D^4M: Dataset Distillation via Disentangled Diffusion Model},
  author    = {Su, Duo and Hou, Junjie and Gao, Weizhi and Tian, Yingjie and Tang, Bowen},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages     = {5809--5818},
  year      = {2024},
  eprint    = {2407.15138}
}"""


def card(classes: list[dict], config: dict, rows: list[dict], labels: dict | None = None) -> str:
    """The text of `README.md`, without dates, timings and paths.

    `labels`: the manifest of soft labels in `soft_labels/`; the images are in `images/` then.
    """
    below = "images/" if labels else ""
    made, how = made_how(config)
    source = SOURCES.get(config.get("dataset"), "a data set")
    title, whose = f"{made} of {source}", "A comparator of D4M" if config.get("method") in OTHERS else "The method is D4M's"
    size = f" of {config['image_size']} x {config['image_size']} pixels" if "image_size" in config else ""
    return "\n".join([
        *front_matter(f"{title}: {len(rows)} images, {len(classes)} classes", classes, rows, below), "",
        f"# {title}",
        f"{len(rows)} images{size} in {len(classes)} classes, to train on instead of all training images. {how}".rstrip(),
        "", *columns_table(rows), "",
        "## Reading it", "```python", "from torchvision.datasets import ImageFolder", "",
        f'images = ImageFolder("path/to/this/folder{"/images" if labels else ""}")', "picture, label = images[0]", "```", "",
        "```python",
        "from datasets import load_dataset", "",
        'images = load_dataset("path/to/this/folder", split="train")    # or its name on a hub',
        'picture, label = images[0]["image"], images[0]["label"]', "```", "",
        "Both give the same labels: class folders are zero-padded, so their sorted order is the order of the classes.", "",
        *configuration_table("How it was made", config),
        *(soft_label_section(labels) if labels else []),
        "## Licence", f"That of the source data set ({source}), from which these images are derived.", "",
        "## Citation", f"{whose} (CVPR 2024, [arXiv 2407.15138](https://arxiv.org/abs/2407.15138)):", "```bibtex",
        CITATION, "```", ""])


def made_how(config: dict) -> tuple[str, str]:
    """The name of a set's images, and how they were made."""
    name, how = MODE_GUIDED if config.get("guidance") == "mode" else METHODS.get(config.get("method"), UNKNOWN)
    source = config.get("source")
    prototype = source.get("prototype") if isinstance(source, dict) else None
    if (config.get("method"), prototype) == ("prototype", "random"):
        name = "Encoded and decoded images"
    return name, how.replace(CENTROID, OTHER_PROTOTYPES.get(prototype, CENTROID))


def front_matter(pretty_name: str, classes: list[dict], rows: list[dict], below: str) -> list[str]:
    """The hub's YAML; the images are in the folder `below` ("images/" or "")."""
    endings = sorted({PurePosixPath(entry["file_name"]).suffix for entry in rows})
    return ["---", f"pretty_name: {quoted(pretty_name)}", "license: other", "license_name: source-data-set",
            "task_categories:", "- image-classification",
            "size_categories:", f"- {size_category(len(rows))}",
            "tags:", "- dataset-distillation", "- d4m", "- arxiv:2407.15138",
            "configs:", "- config_name: default", "  data_files:", "  - split: train", "    path:",
            *[f"    - {quoted(below + name)}" for name in ("metadata.jsonl", *(f"*/*{ending}" for ending in endings))],
            "  features:", *[line for name in column_names(rows) for line in feature(name, classes, rows)], "---"]


def size_category(count: int) -> str:
    """The hub's name for a data set of `count` images."""
    return next((name for limit, name in SIZES if count < limit), "n>1M")


def column_names(rows: list[dict]) -> list[str]:
    """The columns in `datasets`: the file name becomes the image."""
    return ["image", *[name for name in rows[0] if name != "file_name"]]


def feature(name: str, classes: list[dict], rows: list[dict]) -> list[str]:
    """One column's type."""
    if name == "label":
        names = unique_names(classes)
        return ["  - name: label", "    dtype:", "      class_label:", "        names:",
                *[f'          "{label}": {quoted(text)}' for label, text in enumerate(names)]]
    kinds = {type(entry.get(name)) for entry in rows}
    kind = "image" if name == "image" else "string" if str in kinds else "float64" if float in kinds else "int64"
    return [f"  - name: {quoted(name)}", f"    dtype: {kind}"]


def unique_names(classes: list[dict]) -> list[str]:
    """The class names; with an index in front if two are equal, which `datasets` refuses."""
    names = [entry["name"] for entry in classes]
    return names if len(set(names)) == len(names) else [f"{label} {name}" for label, name in enumerate(names)]


def quoted(text: str) -> str:
    """Any text as a YAML string: JSON's quoting, with unprintable characters escaped for YAML."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))


def columns_table(rows: list[dict]) -> list[str]:
    """The meaning of each column."""
    known = [name for name in column_names(rows) if name in COLUMNS]
    return ["| column | what |", "|---|---|", *[f"| `{name}` | {COLUMNS[name]} |" for name in known]]


def soft_label_section(labels: dict) -> list[str]:
    """Content of the soft labels, and how to read them."""
    return ["## Soft labels",
            "`soft_labels/` holds a teacher's logits for views of these images: one safetensors file for each of "
            f"{len(labels['files'])} epochs, with what was drawn for every view. Rows are images in the order of "
            "`images/metadata.jsonl`: `order` of training, `crop` (top, left, height, width), `flip`, the `partner` mixed in, "
            "its `box`, the `ratio` that is left, and `logits` (with `leading`, of these classes only; `rest` is the logit of "
            "all others).", "",
            "```python", "from matching.image_set import distilled_images", "from matching.soft_labels import SoftLabels", "",
            'images = distilled_images("path/to/this/folder/images")',
            'labels = SoftLabels("path/to/this/folder/soft_labels", images)',
            'drawn, answers = labels.epoch(0, "cpu")', "```", "",
            *configuration_table("How they were made", labels["config"], "###")]


def configuration_table(title: str, config: dict, level: str = "##") -> list[str]:
    """The configuration of the images or of the soft labels."""
    flat = {key: value for name, value in config.items() for key, value in
            ({f"{name}.{part}": inner for part, inner in value.items()} if isinstance(value, dict) else {name: value}).items()}
    cells = [(name, json.dumps(value, ensure_ascii=False).replace("|", "\\|")) for name, value in flat.items()]
    return [f"{level} {title}", "| setting | value |", "|---|---|", *[f"| `{name}` | `{value}` |" for name, value in cells],
            ""] if cells else []
