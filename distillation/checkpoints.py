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

    `dtype` None: float16 on an accelerator, float32 on the CPU. The autoencoder computes in float32 where its config.json has
    `force_upcast`, as in diffusers' SDXL pipelines. `revision`: branch, tag or commit on the hub. Raises InputError for what is
    not in Stable Diffusion's format.
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
        pipeline = pipeline_class.from_pretrained(checkpoint, dtype=precision, revision=commit).to(device)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, found {one_line(error)}") from None
    config = pipeline.vae.config
    if config.get("force_upcast") and "force_upcast" not in config.get("_use_default_values", ()):  # v1.5 does not name it
        pipeline.vae.float()
    return pipeline


def _may_be_on_hub(checkpoint: str) -> bool:
    """Whether this is `owner/name`; with a local folder `owner` it is a path."""
    return bool(HUB_NAME.fullmatch(checkpoint)) and not Path(checkpoint).parent.is_dir()


def _fetch_description(checkpoint: str, revision: str | None, expected: str) -> None:
    """Fetch `model_index.json` of a hub checkpoint into the cache; raises InputError when neither cache nor hub has it.

    One request of at most HF_HUB_ETAG_TIMEOUT seconds (10); diffusers itself would retry for half a minute.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import logging as hub_logging
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # some hubs send advice about accounts
    try:
        if not isinstance(try_to_load_from_cache(checkpoint, "model_index.json", revision=revision), str):
            get_hf_file_metadata(hf_hub_url(checkpoint, "model_index.json", revision=revision))
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
