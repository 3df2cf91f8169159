"""Load Stable Diffusion checkpoints, from a folder or a hub, into the two patched pipelines."""

import hashlib
import re
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from scripts.artefact import digest, one_line
from scripts.cli import InputError

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def load_pipeline(pipeline_class, checkpoint: str, device, dtype: str | None = None, revision: str | None = None):
    """Load `checkpoint`, a folder or a hub name, into `pipeline_class` on `device`. Code in a checkpoint is never run.

    `dtype` None: float16 on an accelerator, float32 on the CPU. `revision`: branch, tag or commit on the hub. Raises InputError
    for what is not in Stable Diffusion's format.
    """
    expected = f"{checkpoint}: expected a Stable Diffusion checkpoint (a folder with model_index.json, or a hub name)"
    folder, commit = Path(checkpoint), None
    if folder.exists():
        if revision is not None:
            raise InputError(f"--revision: expected with the name of a hub checkpoint, found the folder {checkpoint}")
        missing = [part for part in ("model_index.json", *pipeline_class.parts) if not (folder / part).exists()]
        if missing:
            raise InputError(f"{expected}, found no {missing[0]} in it")
    elif not _may_be_on_hub(checkpoint):
        raise InputError(f"{expected}, found nothing there")
    else:
        _fetch_description(checkpoint, revision, expected)
        commit = hub_commit(checkpoint, revision)
    precision = getattr(torch, dtype or ("float32" if torch.device(device).type == "cpu" else "float16"))
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # one bar for each weight file
    try:
        return pipeline_class.from_pretrained(checkpoint, dtype=precision, revision=commit).to(device)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, found {one_line(error)}") from None


def _may_be_on_hub(checkpoint: str) -> bool:
    """Whether this is `owner/name`; with a local folder `owner` it is a path."""
    return bool(HUB_NAME.fullmatch(checkpoint)) and not Path(checkpoint).parent.is_dir()


def _fetch_description(checkpoint: str, revision: str | None, expected: str) -> None:
    """Fetch `model_index.json` of a hub checkpoint into the cache; raises InputError when neither cache nor hub has it.

    The first request takes at most HF_HUB_ETAG_TIMEOUT seconds (10); that of a file would be tried six times.
    """
    from huggingface_hub import constants, hf_hub_download, model_info, try_to_load_from_cache
    from huggingface_hub.utils import logging as hub_logging
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # some hubs send advice about accounts
    try:
        if not isinstance(try_to_load_from_cache(checkpoint, "model_index.json", revision=revision), str):
            model_info(checkpoint, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            hf_hub_download(checkpoint, "model_index.json", revision=revision)
    except Exception as error:  # hub, network, name or offline mode: there is none
        raise InputError(f"{expected}, found none on the hub or in its cache: {one_line(error)}") from None
    finally:
        hub_logging.set_verbosity(verbosity)


def hub_commit(checkpoint: str, revision: str | None = None) -> str:
    """The commit of a hub checkpoint in the cache."""
    from huggingface_hub import try_to_load_from_cache
    return Path(try_to_load_from_cache(checkpoint, "model_index.json", revision=revision)).parent.name


def checkpoint_identity(checkpoint: str, parts: tuple[str, ...], revision: str | None = None) -> str:
    """Name and commit of a loaded hub checkpoint; for a folder, its name and a hash of all files in `parts`."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return f"{checkpoint}@{hub_commit(checkpoint, revision)}"
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    together = hashlib.sha256("".join(digest(path) for path in files).encode())
    return f"{folder.resolve().name} {together.hexdigest()[:16]}"
