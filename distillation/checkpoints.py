"""Stable Diffusion checkpoints, from a folder or a hub, loaded into the two patched pipelines."""

import hashlib
import re
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from distillation.entry import InputError
from distillation.manifest import digest

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(pipeline_class, checkpoint: str, device, dtype: str | None = None):
    """Load `checkpoint` into `pipeline_class` on `device`.

    `pipeline_class.parts` are the folders it needs; `dtype` None means float16 on an accelerator and float32 on the CPU. Raises
    InputError when the folder, or the hub's repository of that name, is not in Stable Diffusion's format.
    """
    expected = f"{checkpoint}: expected a Stable Diffusion checkpoint (a folder with model_index.json, or a hub name)"
    folder = Path(checkpoint)
    if folder.exists():
        missing = [part for part in ("model_index.json", *pipeline_class.parts) if not (folder / part).exists()]
        if missing:
            raise InputError(f"{expected}, found no {missing[0]} in it")
    elif not _may_be_on_hub(checkpoint):
        raise InputError(f"{expected}, found nothing there")
    precision = getattr(torch, dtype or ("float32" if torch.device(device).type == "cpu" else "float16"))
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # a bar per weight file says nothing about the work
    try:
        return pipeline_class.from_pretrained(checkpoint, dtype=precision).to(device)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, found {' '.join(str(error).split())[:200]}") from None


def _may_be_on_hub(checkpoint: str) -> bool:
    """`owner/name`, unless a local folder `owner` says that a path was meant."""
    return bool(HUB_NAME.fullmatch(checkpoint)) and not Path(checkpoint).parent.is_dir()


def checkpoint_identity(checkpoint: str, parts: tuple[str, ...]) -> str:
    """The name of a hub checkpoint; of a local folder its name and a hash of all files in its `parts` (vae, unet, ...)."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return checkpoint
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    seen = hashlib.sha256("".join(digest(path) for path in files).encode())
    return f"{folder.resolve().name} {seen.hexdigest()[:16]}"
