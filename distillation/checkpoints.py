"""Stable Diffusion checkpoints, from a folder or a hub, loaded into the two patched pipelines."""

import re
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from distillation.entry import InputError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(pipeline_class, checkpoint: str, device, dtype: str | None = None):
    """Load `checkpoint` into `pipeline_class` on `device`.

    `dtype` None means float16 on an accelerator and float32 on the CPU. Raises InputError when the folder, or the hub's
    repository of that name, is not in Stable Diffusion's format.
    """
    expected = f"{checkpoint}: expected a Stable Diffusion checkpoint (a folder with model_index.json, or a hub name)"
    if Path(checkpoint).exists() and not (Path(checkpoint) / "model_index.json").is_file():
        raise InputError(f"{expected}, found none")
    if not Path(checkpoint).exists() and not HUB_NAME.fullmatch(checkpoint):
        raise InputError(f"{expected}, found nothing there")
    precision = getattr(torch, dtype or ("float32" if torch.device(device).type == "cpu" else "float16"))
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # a bar per weight file says nothing about the work
    try:
        return pipeline_class.from_pretrained(checkpoint, dtype=precision).to(device)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{expected}, found {' '.join(str(error).split())[:200]}") from None
