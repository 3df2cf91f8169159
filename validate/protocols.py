"""Published training protocols of the student as presets; a flag overrides any value.

Accuracy depends on the protocol more than on the images, so the values of a preset are printed and stored with the result.
"""

# the defaults of the original train_FKD.py, and its views
ORIGINAL = {"mode": "fkd_load", "epochs": 300, "batch_size": 1024, "gradient_accumulation_steps": 1, "lr_schedule": "linear",
            "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "temperature": 3.0, "input_size": 224, "min_scale_crops": 0.08,
            "max_scale_crops": 1.0, "flip": 0.5, "mix_type": "none", "fkd_seed": 42}

# D4M (arXiv 2407.15138), released code: stored labels, large batches, the learning rate falls to zero
# RDED (arXiv 2312.03526), released code: labels on the fly, small batches, the learning rate falls to half
PROTOCOLS = {
    "d4m": {"mode": "fkd_load", "epochs": 300, "batch_size": 1024, "gradient_accumulation_steps": 2, "lr_schedule": "cosine",
            "adamw_lr": 1e-3, "adamw_weight_decay": 0.01, "temperature": 20.0, "mix_type": "cutmix"},
    "rded": {"mode": "on-the-fly", "epochs": 300, "lr_schedule": "half-cosine", "adamw_lr": 1e-3, "adamw_weight_decay": 0.01,
             "temperature": 20.0, "mix_type": "cutmix"},
}


def preset(protocol: str | None, classes: int, images: int) -> dict:
    """The values of `protocol` for `images` images of `classes` classes; none for None."""
    if protocol != "rded":
        return PROTOCOLS.get(protocol, {})
    small = 50 if images <= 10 * classes else 100
    return {**PROTOCOLS["rded"], "batch_size": small * (2 if classes >= 100 else 1)}


def resolve(given: dict, protocol: str | None, classes: int, images: int) -> tuple[dict, dict]:
    """Fill the values of `given` that are None, from the protocol, else from the original; also returns the protocol's."""
    chosen = {name: value for name, value in preset(protocol, classes, images).items() if given[name] is None}
    filled = {name: value if value is not None else chosen.get(name, ORIGINAL.get(name)) for name, value in given.items()}
    return filled, chosen
