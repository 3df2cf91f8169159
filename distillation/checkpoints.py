"""Stable Diffusion checkpoints: loaded from a folder or a hub into the two patched pipelines, and written to a folder."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from scripts.cli import InputError
from scripts.files import DIVERGED, check_finite, digest, disk_errors, one_line, read_json

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
CONVERT = ('from diffusers import StableDiffusionPipeline as SD; '
           'SD.from_single_file({source}, safety_checker=None).save_pretrained({target})')


def load_pipeline(pipeline_class, checkpoint: str, device, dtype: str | None = None, revision: str | None = None):
    """Load `checkpoint`, a folder or a hub name, into `pipeline_class` on `device`. Code in a checkpoint is never run.

    `dtype` None: float16 on an accelerator, float32 on the CPU. The autoencoder computes in float32 where its config.json has
    `force_upcast`, as in diffusers' SDXL pipelines. `revision`: branch, tag or commit on the hub. Raises InputError for what is
    not in Stable Diffusion's format.
    """
    expected = f"{checkpoint}: expected a Stable Diffusion checkpoint (a folder with model_index.json, or a hub name)"
    folder, commit = local_folder(checkpoint), None
    if folder.is_file() and folder.suffix in (".safetensors", ".ckpt"):
        code = CONVERT.format(source=json.dumps(str(folder)), target=json.dumps(str(folder.with_suffix(""))))
        raise InputError(f"{expected}, found a single file; convert it, which needs a hub: python -c {shlex.quote(code)}")
    if folder.exists():
        if revision is not None:
            raise InputError(f"--revision: expected with the name of a hub checkpoint, found the folder {checkpoint}")
        missing = [part for part in ("model_index.json", *pipeline_class.parts) if not (folder / part).exists()]
        if missing:
            raise InputError(f"{expected}, found no {missing[0]} in it")
        if (unet := folder / "unet" / "config.json").is_file():     # also where the autoencoder alone is loaded
            check_unet(read_json(unet), expected)
        checkpoint = str(folder)
    elif not HUB_NAME.fullmatch(checkpoint) or Path(checkpoint).parent.is_dir():  # `owner/name`, unless `owner` is a folder
        raise InputError(f"{expected}, found nothing there")
    else:
        _fetch_description(checkpoint, revision, expected)
        commit = hub_commit(checkpoint, revision)
    precision = getattr(torch, stored_dtype(dtype, device) or "float32")
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()  # one bar for each weight file
    try:
        pipeline = pipeline_class.from_pretrained(checkpoint, revision=commit,
                                                  dtype=torch.float32 if dtype == "bfloat16" else precision)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        raise InputError(f"{expected}, found {one_line(error)}") from None
    if "unet" in pipeline_class.parts:
        check_unet(pipeline.unet.config, expected, pipeline.text_encoder.config.hidden_size)
    pipeline.set_progress_bar_config(disable=True)  # callers have bars of their own
    pipeline.autoencoder = autoencoder_digest(pipeline.vae)  # before bfloat16 rounds it otherwise than float16
    config = pipeline.vae.config
    upcast = config.get("force_upcast") and "force_upcast" not in config.get("_use_default_values", ())  # v1.5 does not name it
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, torch.float32 if upcast and part is pipeline.vae else precision)  # diffusers' own warns
    return pipeline.to(device)


def check_unet(config, expected: str, text_width: int | None = None) -> None:
    """Raise InputError for a UNet with other inputs than noisy latents and a prompt of one text encoder."""
    channels, width = (config.get("in_channels"), config.get("out_channels")), config.get("cross_attention_dim")
    if config.get("addition_embed_type"):
        raise InputError(f"{expected}, found a UNet with added conditions ({config['addition_embed_type']}), such as SDXL's")
    if channels[0] != channels[1]:
        raise InputError(f"{expected}, found a UNet with {channels[0]} channels in and {channels[1]} out, as for "
                         "inpainting")
    if text_width not in (None, width):
        raise InputError(f"{expected}, found a UNet for prompts of width {width} with a text encoder of width {text_width}")


def stored_dtype(dtype: str | None, device) -> str | None:
    """The precision in a stored configuration: that of `load_pipeline` on `device`, None for float32 by default."""
    return dtype or (None if torch.device(device).type == "cpu" else "float16")


def write_checkpoint(folder: Path, **parts) -> None:
    """Write networks, tokenizer and scheduler in Stable Diffusion's folder layout, as safetensors.

    Raises InputError for weights that are not finite.
    """
    from diffusers import StableDiffusionPipeline  # its import takes seconds
    check_finite({name: part.state_dict() for name, part in parts.items() if isinstance(part, torch.nn.Module)}, folder,
                 f"{DIVERGED}, or they exceed float16's 65504")
    transformers_logging.disable_progress_bar()  # a bar per weight file says nothing about the work
    with disk_errors(folder):
        StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None,
                                requires_safety_checker=False).save_pretrained(folder)


def local_folder(checkpoint: str) -> Path:
    """The path of a checkpoint; of a folder of a hub's cache (models--owner--name) the snapshot of its main branch."""
    folder = Path(checkpoint)
    if not (folder / "snapshots").is_dir():
        return folder
    main = folder / "refs" / "main"
    found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    for snapshot in found if main.is_file() else ():
        if main.read_bytes().strip() == snapshot.name.encode():
            return snapshot
    raise InputError(f"{checkpoint}: expected in snapshots the commit of refs/main, found {len(found)} others; name the folder "
                     f"to use, such as {found[0] if found else folder / 'snapshots' / 'COMMIT'}")


def autoencoder_digest(vae) -> str:
    """SHA-256 of the autoencoder's scaling factor and tensors rounded to float16: one for all its files and precisions."""
    together = hashlib.sha256(repr(vae.config.scaling_factor).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        together.update(f"{name}{tuple(tensor.shape)}".encode())
        together.update(tensor.half().cpu().contiguous().numpy())
    return together.hexdigest()


def check_autoencoder(pipeline, made_with: dict, prototypes: str, checkpoint: str) -> None:
    """Raise InputError for prototypes that another autoencoder encoded.

    Prototypes of earlier versions do not store their autoencoder and are accepted.
    """
    found = made_with.get("autoencoder", pipeline.autoencoder)
    if found != pipeline.autoencoder:
        raise InputError(f"{prototypes}: expected latents of the autoencoder in {checkpoint} ({pipeline.autoencoder[:12]}), "
                         f"found those of {found!s:.12}; use the checkpoint of gen_prototype")


def converted(scheduler, scheduler_class):
    """A `scheduler_class` with every setting of a checkpoint's `scheduler`, also those that are defaults of its own class.

    diffusers would give the other class's defaults for these: clipped latents, other steps, another end of the schedule.
    Latents are clipped only where the checkpoint's own scheduler clips them.
    """
    own = {"clip_sample": False, **scheduler.config}
    own.pop("_use_default_values", None)
    return scheduler_class.from_config(own)


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
    folder = local_folder(checkpoint)
    if not folder.is_dir():
        return f"{checkpoint}@{hub_commit(checkpoint, revision)}"
    files = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    together = hashlib.sha256("".join(digest(path) for path in files).encode())
    return f"{folder.resolve().name} {together.hexdigest()[:16]}"
