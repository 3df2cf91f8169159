"""Stage 2: one prototype -> one synthetic image; or the baselines, in the same format.

    python -m distillation.gen_syn_image --dataset digits --prototype_path prototypes/digits-ipc10-kmexpand1 \\
        --save_init_image_path distilled --strength 0.7

Writes <save_init_image_path>/<dataset>_ipc<prototypes>_<ipc>_s<strength>_g<guidance>_kmexpand<M>/ (other methods:
<dataset>_<method>_ipc<N>/), with endings for prototypes that are no centroids, for --scheduler and --filter_teacher. The same
command resumes; `accelerate launch -m distillation.gen_syn_image ...` divides the batches among processes.
"""

import sys
import time
from pathlib import Path

if not __package__:  # python distillation/gen_syn_image.py
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scripts.cli import InputError, Parser, Progress, dataset_flags, run, stop_if_asked, validation_of

REAL = ("random", "herding", "kcenter")  # real images (real_subset.py)
METHODS = ("d4m", "prototype", "noise", *REAL)


def parse_args():
    parser = Parser(__doc__)
    # what
    parser.add_dataset_flags()
    parser.add_argument("--method", default="d4m", choices=METHODS,
                        help="d4m; prototype: decoded centroids; noise: no prototype; random, herding, kcenter: real images")
    parser.add_argument("--prototype_path", default=None, help="folder of gen_prototype, or the original's JSON file")
    parser.add_argument("--ipc", default=None, type=int, least=1, help="images per class (default: one per prototype)")
    parser.add_argument("--km_expand", default=1, type=int, help="that of the prototypes, for the folder's name only")
    parser.add_argument("--seed", default=0, type=int, help="seed of the noise, or of the choice of real images")
    parser.add_argument("--size", default=None, type=int, least=1,
                        help="resolution to encode at (herding, kcenter), or to make (noise)")
    parser.add_argument("--num_workers", default=4, type=int, least=0, help="threads reading and writing images")
    # diffusion
    parser.add_checkpoint_flags()
    parser.add_argument("--batch_size", default=50, type=int, least=1, help="images denoised at once, across classes")
    add_synthesis_flags(parser)
    parser.add_argument("--save_init_image_path", default="distilled", help="folder that gets one folder per run")
    args = parser.parse_args()
    check_synthesis_flags(args)
    if args.method in ("d4m", "prototype") and not args.prototype_path:
        raise InputError(f"--method {args.method} needs --prototype_path, a folder of gen_prototype")
    if args.method in ("noise", *REAL) and args.ipc is None:
        raise InputError(f"--method {args.method} needs --ipc, the number of images per class")
    return args


def add_synthesis_flags(parser) -> None:
    """Add the flags of images, shared by gen_syn_image and distill."""
    parser.add_argument("--strength", "-s", default=0.7, type=float, least=0, most=1,
                        help="fraction of the noise schedule, 0 to 1")
    parser.add_argument("--guidance_scale", "-g", default=8, type=float, least=1, help="classifier-free guidance (1: none)")
    parser.add_argument("--num_inference_steps", default=50, type=int, least=1, help="steps of the whole schedule")
    parser.add_argument("--scheduler", default=None, help="diffusers' name, as DDIMScheduler (default: the checkpoint's)")
    parser.add_argument("--negative_prompt", default="cartoon, anime, painting", help="the original's; '' for other domains")
    parser.add_argument("--repeats", default=None, type=int, least=1,
                        help="images per prototype (default: 1, or what --ipc asks for)")
    parser.add_argument("--guidance", default="cfg", choices=("cfg", "mode"),
                        help="mode: start from noise and guide to the prototypes (MGD3), with classifier-free guidance")
    parser.add_argument("--mode_scale", default=None, type=float, least=0, help="strength of mode guidance (default: 0.1)")
    parser.add_argument("--stop_t", default=None, type=int, least=1, help="steps of mode guidance (default: half of all)")
    parser.add_argument("--filter_teacher", default=None,
                        help="folder of train_teacher; the teacher chooses among candidates (CaO2)")
    parser.add_argument("--candidates", default=None, type=int, least=2,
                        help="with --filter_teacher: images made for each one kept (default: 2)")
    parser.add_argument("--filter_keep", default=None, choices=("confident", "hard"),
                        help="which recognised candidate to keep (default: confident up to 10 images per class, hard above)")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet: faster, after a minute of compiling")
    parser.add_argument("--image_size", default=None, type=int, least=1,
                        help="pixels of the files (default: those made, at most 224)")
    parser.add_argument("--image_format", default="png", choices=("png", "webp"), help="both are lossless")


def check_synthesis_flags(args) -> None:
    """Raise InputError for flags that do not fit together, and set the defaults of those that need another."""
    if args.guidance == "mode" and args.method != "d4m":
        raise InputError(f"--guidance mode needs --method d4m (got {args.method})")
    for flag, used, needed in (("filter_keep", args.filter_teacher, "--filter_teacher"),
                               ("candidates", args.filter_teacher, "--filter_teacher"),
                               ("stop_t", args.guidance == "mode", "--guidance mode"),
                               ("mode_scale", args.guidance == "mode", "--guidance mode")):
        if getattr(args, flag) is not None and not used:
            raise InputError(f"--{flag} needs {needed}")
    args.candidates = 2 if args.candidates is None else args.candidates
    args.mode_scale = 0.1 if args.mode_scale is None else args.mode_scale
    for flag in ("filter_teacher", "repeats", "scheduler"):
        if args.method in REAL and getattr(args, flag) is not None:
            raise InputError(f"--{flag} needs --method d4m, prototype or noise (got {args.method})")


def main(args):
    from scripts.parallel import all_done, begin_together, my_unfinished, new_accelerator
    accelerator = new_accelerator()
    if args.method in REAL:
        from distillation.real_subset import choose_real
        choose_real(args, accelerator)
        return
    from distillation.distilled_set import complete
    from distillation.synthesis import ImageMaker, plan_rows

    pipeline = load_images_pipeline(args, accelerator.device)
    classes, prototypes, source = starting_points(args, pipeline)
    repeats = repeats_of(args, source["ipc"])
    images_per_class = source["ipc"] * repeats
    teacher = load_filter(args, classes, images_per_class, accelerator.device)
    made_pixels = prototypes[0].centroids.shape[-1] * pipeline.vae_scale_factor
    folder = Path(args.save_init_image_path) / folder_name(args, images_per_class, source)
    config = configuration(args, args.image_size or min(made_pixels, 224), source, images_per_class, accelerator.device)
    check_different(config)
    if begin_together(folder, "distilled", config, accelerator):
        return

    started = time.perf_counter()
    weights = {label: found.weights for label, found in prototypes.items()}
    rows = plan_rows(classes, weights, repeats, args.seed, args.image_format)
    maker = ImageMaker(pipeline, classes, folder, config, teacher, args.num_workers)
    done = sum(bool(maker.made(row)) for row in rows)
    with Progress(total=len(rows), initial=done, desc=f"synthesise ({args.method})", unit="img") as bar:
        for batch in my_unfinished(maker.batches(rows), lambda batch: all(map(maker.made, batch)), accelerator):
            maker.make(batch, prototypes)
            bar.update(len(batch))
            stop_if_asked()
        maker.wait()
    if all_done(accelerator):
        complete(folder, classes, config, list(map(maker.made, rows)), {"synthesise": time.perf_counter() - started})


def load_images_pipeline(args, device):
    """Load the pipeline that makes images; channels-last on an accelerator, and on a CPU in bfloat16."""
    import torch

    from distillation.checkpoints import load_pipeline
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    pipeline = load_pipeline(StableDiffusionLatents2ImgPipeline, args.diffusion_checkpoints_path, device, args.dtype,
                             args.revision)
    if torch.device(device).type != "cpu" or args.dtype == "bfloat16":
        for part in (pipeline.unet, pipeline.vae):
            part.to(memory_format=torch.channels_last)
    if args.compile:
        pipeline.unet.compile()
    return pipeline


def starting_points(args, pipeline):
    """Classes, Prototypes by label (zeros for `noise`), and the facts about their source that the configuration stores."""
    import torch

    from distillation.checkpoints import check_autoencoder
    from distillation.datasets import load_split
    from distillation.encoding import size_to_encode
    from distillation.prompts import with_prompts
    from distillation.prototypes import Prototypes, read_prototypes
    from distillation.synthesis import check_latent_shape, latent_shape
    from scripts.artefact import check_held_out, identity
    from scripts.pipeline_stable_diffusion_gen_latents import StableDiffusionGenLatentsPipeline

    if args.method == "noise":
        split = load_split(split="train", **dataset_flags(args))
        shape, size = latent_shape(pipeline), {}
        if args.size:
            encoder = StableDiffusionGenLatentsPipeline(pipeline.vae)
            size = {"size": size_to_encode(encoder, args.size)}
            shape = encoder.latent_shape(args.size)
        zeros = Prototypes(torch.zeros(args.ipc, *shape), torch.ones(args.ipc), torch.tensor(0.0))
        source = {"ipc": args.ipc, **size, "data": split.identity(), **validation_of(args.validation)}
        return split.classes, dict.fromkeys(range(len(split.classes)), zeros), source
    check_held_out(args.validation, args.prototype_path)
    classes, prototypes, made_with = read_prototypes(args.prototype_path)
    template, wrapped = args.prompt_template, made_with.get("prompt_template")
    if args.label_file_path:    # its lines are bare, so the template of stage 1 counts again unless there is another
        template, wrapped = template or wrapped, None
        args.prompt_template = template
    if wrapped and template not in (None, wrapped):
        raise InputError(f"--prompt_template: expected none, or that of the prototypes, {wrapped!r}, found {template!r}")
    classes = with_prompts(classes, args.dataset, args.label_file_path, None if wrapped else template)
    if made_with.get("dataset", args.dataset) != args.dataset:
        raise InputError(f"--dataset: expected that of the prototypes in {args.prototype_path}, {made_with['dataset']}, found "
                         f"{args.dataset}")
    if (expand := made_with.get("km_expand", args.km_expand or 1)) != (args.km_expand or 1):
        raise InputError(f"--km_expand: expected that of the prototypes in {args.prototype_path}, {expand}, found "
                         f"{args.km_expand or 1}")
    check_latent_shape(pipeline, prototypes[0].centroids.shape[1:], made_with.get("size"), args.prototype_path)
    check_autoencoder(pipeline, made_with, args.prototype_path, args.diffusion_checkpoints_path)
    source = {"ipc": len(prototypes[0].centroids), "prototypes": identity(args.prototype_path),
              "prototype": made_with.get("prototype"), "outliers": made_with.get("outliers"),
              **({"prompts": made_with["prompts"]} if "prompts" in made_with else {}),
              **validation_of(made_with.get("validation", 0))}
    return classes, dict(enumerate(prototypes)), source


def repeats_of(args, prototypes: int) -> int:
    """Images per prototype, from --repeats or --ipc; raises InputError if they do not fit together."""
    if args.repeats is not None and args.ipc not in (None, prototypes * args.repeats):
        raise InputError(f"--ipc: expected {prototypes * args.repeats} ({prototypes} prototypes per class x --repeats "
                         f"{args.repeats}), found {args.ipc}")
    if args.ipc and args.ipc % prototypes:
        raise InputError(f"--ipc: expected a multiple of the {prototypes} prototypes per class in {args.prototype_path}, "
                         f"found {args.ipc}")
    return args.repeats or (args.ipc or prototypes) // prototypes


def load_filter(args, classes: list[dict], images_per_class: int, device):
    """The teacher that chooses among candidates; None without --filter_teacher."""
    if args.filter_teacher is None:
        return None
    from distillation.synthesis import TeacherFilter
    from scripts.artefact import check_held_out
    check_held_out(args.validation, args.filter_teacher)
    return TeacherFilter(args.filter_teacher, classes, keep_of(args, images_per_class), device)


def keep_of(args, images_per_class: int) -> str:
    """Which recognised candidate to keep."""
    return args.filter_keep or ("confident" if images_per_class <= 10 else "hard")


def configuration(args, image_size: int, source: dict, images_per_class: int, device) -> dict:
    """Everything that decides the images; no paths."""
    from distillation.checkpoints import checkpoint_identity, stored_dtype
    from scripts.artefact import identity
    from scripts.files import digest
    from scripts.pipeline_stable_diffusion_latents2img import StableDiffusionLatents2ImgPipeline
    names = ("method", "dataset", "km_expand", "guidance_scale", "num_inference_steps", "scheduler",
             "negative_prompt", "prompt_template", "guidance", "batch_size", "seed", "image_format")
    guided = args.guidance == "mode"
    strength = 1.0 if guided else {"d4m": args.strength, "prototype": 0.0, "noise": 1.0}[args.method]
    filtered = args.filter_teacher is not None
    return {**{name: getattr(args, name) for name in names}, "ipc": images_per_class, "km_expand": args.km_expand or 1,
            "dtype": stored_dtype(args.dtype, device), "strength": strength, "image_size": image_size,
            "mode_scale": args.mode_scale if guided else None, "stop_t": stop_of(args) if guided else None,
            **({"mode_update": "after the step"} if guided else {}),  # folders without it have a weaker pull
            **({"scheduler_settings": "the checkpoint's"} if args.scheduler else {}),  # without it: the class's own defaults
            "filter_teacher": identity(args.filter_teacher) if filtered else None,
            "candidates": args.candidates if filtered else None,
            "filter_keep": keep_of(args, images_per_class) if filtered else None,
            "checkpoint": checkpoint_identity(args.diffusion_checkpoints_path, StableDiffusionLatents2ImgPipeline.parts,
                                              args.revision),
            "label_file": digest(args.label_file_path) if args.label_file_path else None, "source": source,
            **validation_of(source.get("validation", 0))}


def check_different(config: dict) -> None:
    """Raise InputError where a prototype would have several images, all the same, since no step of diffusion runs."""
    equal = config["ipc"] // config["source"]["ipc"] * (config["candidates"] or 1)
    if int(config["strength"] * config["num_inference_steps"]) < 1 and equal > 1:
        raise InputError(f"--strength {config['strength']} of {config['num_inference_steps']} steps: expected one image per "
                         f"prototype where no step of diffusion runs, found {equal}, which would be equal")


def stop_of(args) -> int:
    """Steps of mode guidance."""
    return args.stop_t or max(1, args.num_inference_steps // 2)


def folder_name(args, ipc: int, source: dict) -> str:
    """The folder of a run: the original's name for D4M images, with an ending for what the original cannot do."""
    from distillation.prototypes import ending
    added = ending(source.get("prototype"), source.get("outliers"), "_")
    added += (f"_{args.scheduler}" if args.scheduler else "") + (f"_filter{args.candidates}" if args.filter_teacher else "")
    if args.method != "d4m":
        return f"{args.dataset}_{args.method}_ipc{ipc}{added}"
    how = f"mode{args.mode_scale}-{stop_of(args)}" if args.guidance == "mode" else f"s{args.strength}"
    return f"{args.dataset}_ipc{source['ipc']}_{ipc}_{how}_g{float(args.guidance_scale)}_kmexpand{args.km_expand or 1}{added}"


if __name__ == "__main__":
    run(parse_args, main, "save_init_image_path")
