"""What `python -m misc.benchmark distillation` measures, and its tables."""

import tempfile
from pathlib import Path

from misc.report.tables import NONE, NOT_RUN, Section

COMMAND = "python -m misc.benchmark distillation"
DTYPES = ("float16", "bfloat16")


def measure(device, only: tuple[str, ...], repetitions: int, compiled: bool) -> dict:
    """The sections named in `only`, but what needs an accelerator where there is none.

    With an accelerator encoding and memory are measured with the large checkpoint as well, as `..._stable_diffusion`.
    """
    from misc.benchmark_encoding import encoding, memory
    from misc.benchmark_synthesis import stable_diffusion, synthesis, write_stable_diffusion
    found = {}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        scratch = Path(folder)
        if "synthesis" in only:
            found["synthesis"] = synthesis(scratch / "digits", device, repetitions)
        if "encoding" in only:
            found["encoding"] = encoding(scratch / "digits", device, repetitions)
        if "memory" in only:
            found["memory"] = memory(scratch / "digits")
        if device.type != "cpu" and set(only) - {"synthesis"}:
            large = str(write_stable_diffusion(scratch / "checkpoint"))
            if "memory" in only:  # first, while this process holds little of the device's memory
                found["memory_stable_diffusion"] = memory(scratch / "large", checkpoint=large)
            if "encoding" in only:
                found["encoding_stable_diffusion"] = encoding(scratch / "large", device, repetitions, large, file_pixels=500)
            if "stable_diffusion" in only:
                kinds = [(dtype, False) for dtype in DTYPES] + [(DTYPES[0], True)] * compiled
                found["stable_diffusion"] = stable_diffusion(scratch / "large", device, repetitions, large, kinds)
    return found


def report(result: dict) -> list[Section]:
    """The tables of a result."""
    sections = result["sections"]
    return [Section("Against the plain way", f"{measured_on(result)} Memory: one run each. {differences(sections)}".strip(),
                    ("What", "Here", "Compared with", "Ratio", "Aim"), tuple(ratio_rows(sections))),
            large_section(sections.get("stable_diffusion"))]


def measured_on(result: dict) -> str:
    """On what, how often, and how busy the machine was."""
    threads = f", {result['threads']} threads of torch" if "threads" not in result["hardware"] else ""
    return (f"One run on {result['hardware']}{threads}, {result['cores']} cores, load {result['load']:.1f} before and "
            f"{result['load_at_end']:.1f} after it; medians of {result['options']['repetitions']} rounds in which variants "
            "take turns.")


def differences(sections: dict) -> str:
    """How far the results that were compared lie apart."""
    parts = []
    if "synthesis" in sections:
        parts.append(f"Pixels of the images made both ways differ by at most "
                     f"{sections['synthesis']['largest_difference_of_255']}/255.")
    if "encoding" in sections:
        parts.append(f"Latents encoded both ways differ by at most {sections['encoding']['largest_difference']:.0e} of their "
                     "standard deviation.")
    return " ".join(parts)


def ratio_rows(sections: dict):
    """One row per comparison, also of what was not run."""
    yield speed_row("Digits made, images/s", sections.get("synthesis"), "one by one, diffusers' pipeline",
                    "at least 3 on 2 cores")
    for ending, model in (("", "digits-ldm"), ("_stable_diffusion", "Stable Diffusion's autoencoder")):
        encoded = sections.get(f"encoding{ending}")
        if ending and encoded is None and f"memory{ending}" not in sections:
            continue
        yield speed_row(f"Files encoded, {model}, images/s", encoded, "decoding and encoding in turn", NONE)
        waited = NOT_RUN if encoded is None else f"{100 * encoded['waiting_share']:.1f}"
        yield [f"Time waiting for files, {model} (%)", waited, NONE, NONE, "below 10 on an accelerator"]
        yield memory_row(f"Peak memory of gen_prototype, {model} (MB)", sections.get(f"memory{ending}"))


def speed_row(name: str, section: dict | None, other: str, aim: str) -> list[str]:
    """Images per second here and the other way."""
    if section is None:
        return [name, NOT_RUN, other, NOT_RUN, aim]
    speed = section["images_per_second"]
    return [name, f"{speed['ours']:.1f}", f"{speed['stock']:.1f}, {other}", f"{section['times_faster']:.2f}", aim]


def memory_row(name: str, section: dict | None) -> list[str]:
    """Peak memory on many images and on few."""
    if section is None:
        return [name, NOT_RUN, "a tenth of the images", NOT_RUN, "below 1.10"]
    (few, least), (many, most) = section["peak_bytes"].items()
    return [f"{name}, {int(many):,} images", f"{most / 1e6:.0f}", f"{least / 1e6:.0f}, {int(few):,} images",
            f"{1 + section['growth']:.3f}", "below 1.10"]


def large_section(measured: dict | None) -> Section:
    """The paper's setting, by precision and batch size."""
    title = "Stable Diffusion v1.5's architecture"
    if measured is None:
        return Section(title, f"Stable Diffusion v1.5's architecture at 512 pixels: not run, needs an accelerator "
                              f"(`{COMMAND} --only stable_diffusion`).")
    flops, side = measured["flops"], f"{measured['settings']['matrix_side']:,}"
    says = (f"Random weights, {measured['runs'][0]['size_pixels']} pixels, {flops['unet_evaluations']} UNet evaluations with "
            f"guidance: {flops['image'] / 1e12:.1f} TFLOP an image, {flops['unet_forward'] / 1e12:.2f} in one forward of one "
            "latent; channels last. Memory is the most that tensors took at once; the last column is against the product of "
            f"two {side} x {side} matrices in the same precision, measured beside it.")
    header = ("Precision", "Batch", "Seconds an image", "One by one, diffusers' pipeline", "Ratio", "Memory (GB)", "TFLOP/s",
              "Of the matrix product's (%)")
    return Section(title, says, header,
                   tuple(large_row(run, size, each) for run in measured["runs"] for size, each in run["batches"].items()))


def large_row(run: dict, size: str, batch: dict) -> list[str]:
    """One precision and batch size."""
    memory = NONE if batch["peak_device_bytes"] is None else f"{batch['peak_device_bytes'] / 1e9:.1f}"
    return [run["dtype"] + (", compiled" if run["compiled"] else ""), size, f"{batch['seconds_per_image']:.3f}",
            f"{run['stock_seconds_per_image']:.3f}", f"{batch['times_faster']:.2f}", memory,
            f"{batch['flops_per_second'] / 1e12:.1f}",
            f"{100 * batch['flops_per_second'] / run['matrix_product_flops_per_second']:.1f}"]
