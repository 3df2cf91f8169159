"""Published training protocols of the student as presets; a flag overrides any value that has one.

Accuracy depends on the protocol more than on the images, so the values of a preset are printed and stored with the result.
"""

from scripts.cli import MIX

# the defaults of the original train_FKD.py, and its views
ORIGINAL = {"mode": "fkd_load", "epochs": 300, "batch_size": 1024, "gradient_accumulation_steps": 1, "lr_schedule": "linear",
            "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "learning_rate": 1.024, "momentum": 0.875, "weight_decay": 3e-5,
            "temperature": 3.0, "keep_topk": 1000, "input_size": 224, "min_scale_crops": 0.08, "max_scale_crops": 1.0,
            "flip": 0.5, "fkd_seed": 42, **MIX}

# D4M (arXiv 2407.15138), released code: stored labels, large batches, the learning rate falls to zero
# RDED (arXiv 2312.03526), released code: labels on the fly, small batches, the learning rate falls to half. `bn_updates`: there
# a second forward in train mode moves BatchNorm's running statistics a second time by the same batch
PROTOCOLS = {
    "d4m": {"mode": "fkd_load", "epochs": 300, "batch_size": 1024, "gradient_accumulation_steps": 2, "lr_schedule": "cosine",
            "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "temperature": 20.0, "mix_type": "cutmix", "mix_per": "batch"},
    "rded": {"mode": "on-the-fly", "epochs": 300, "lr_schedule": "half-cosine", "adamw_weight_decay": 0.01, "temperature": 20.0,
             "mix_type": "cutmix", "mix_per": "batch", "bn_updates": 2},
}
NOT_TAKEN = {
    "d4m": "a smaller last batch (here the sizes of batches differ by at most one image)",
    "rded": "shuffled patches (ImageNet and its subsets), the best of several tests (the last epoch counts), a smaller last "
            "batch (here the sizes of batches differ by at most one image), batches of 25 at rate 0.002 for ConvNets on "
            "CIFAR-100"}
RDED_RATES = {"mobilenet_v2": 2.5e-3, "efficientnet_b0": 2e-3, "vgg11": 5e-4, "alexnet": 1e-4, "vit_b_16": 1e-4,
              "swin_v2_t": 1e-4}  # of AdamW; 1e-3 for other students


def preset(protocol: str | None, dataset: str, classes: int, images: int, model: str, size: int) -> dict:
    """The values of `protocol` for `images` images of `classes` classes and views of `size` pixels; none for None."""
    return rded(dataset, classes, images, model, size) if protocol == "rded" else PROTOCOLS.get(protocol, {})


def rded(dataset: str, classes: int, images: int, model: str, size: int) -> dict:
    """RDED's values. `test_size`: pixels of the test image's shorter side, of which the centre is cut out."""
    batch = 10 if images <= classes else 50 if images <= 10 * classes else 100
    batch = 100 if dataset == "tiny_imagenet" else 2 * batch if classes >= 100 else batch
    return {**PROTOCOLS["rded"], "batch_size": min(batch, images), "adamw_lr": RDED_RATES.get(model, 1e-3),
            "min_scale_crops": 0.5 if size > 64 else 1.0, "max_scale_crops": 1.0, "test_size": max(size, size // 7 * 8)}


def resolve(given: dict, values: dict) -> dict:
    """Fill what is None in `given` from a preset's `values`, else from the original; a preset's other values come last."""
    filled = {name: values.get(name, ORIGINAL.get(name)) if value is None else value for name, value in given.items()}
    return {**filled, **{name: value for name, value in values.items() if name not in given}}


def line(protocol: str, values: dict, given: dict) -> str:
    """What a preset sets, what it leaves as given by flags or stored labels, and what is not implemented."""
    taken, other = [], []
    for name, value in values.items():
        if given["sgd"] and name.startswith("adamw"):
            other.append(f"SGD (protocol: {name} {value})")
        elif given.get(name) in (None, value):
            taken.append(f"{name} {value}")
        else:
            other.append(f"{name} {given[name]} (protocol: {value})")
    return (f"protocol {protocol} sets {', '.join(taken)}; given otherwise: {', '.join(other) or 'nothing'}; "
            f"not in this code: {NOT_TAKEN[protocol]}")
