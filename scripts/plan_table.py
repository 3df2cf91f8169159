"""A plan's stages from work and rates, and how they are shown."""

import os
from itertools import groupby

from continual.sections import NONE, markdown_table
from scripts.counting import counted
from scripts.planned_stages import Work
from scripts.stage_commands import Command

HEADER = ("Stage", "Units", "Units/s of one process", "Time", "On disk", "Host memory", "Device memory")
V100_SECONDS = 2.7  # per image at 512 pixels, as D4M (CVPR 2024) reports


def stages_of(works: list[tuple[Command, Work]], rates: dict, gpus: int) -> list[dict]:
    """Stage by stage: seconds of the longest process, bytes on disk, bytes of host and device memory of one process."""
    return [stage(name, list(own), rates, gpus) for name, own in groupby(works, lambda pair: pair[0].stage)]


def stage(name: str, works: list[tuple[Command, Work]], rates: dict, gpus: int) -> dict:
    """One stage; commands that run aside of others share the cores with them."""
    spent = {aside: sum(seconds(work, rates, gpus) for command, work in works if command.aside == aside)
             for aside in (False, True)}
    memory = [memory_of(work, rates, gpus) for _, work in works]
    parts: dict[str, dict] = {}
    for _, work in works:
        for part in work.parts:
            if part.what.kind != "start" and part.of == "seconds":
                entry = parts.setdefault(str(part.what), {"kind": part.what.kind, "count": 0,
                                                          "seconds": rates[str(part.what)]["seconds"]})
                entry["count"] += part.count
    return {"stage": name, "seconds": max(*spent.values(), sum(spent.values()) / (os.cpu_count() or 1)),
            "parts": list(parts.values()), "disk_bytes": sum(work.disk_bytes for _, work in works),
            "host_bytes": max(host for host, _ in memory),
            "device_bytes": max(device for _, device in memory) if gpus else None}


def seconds(work: Work, rates: dict, gpus: int) -> float:
    """Seconds of a command, that of the process which has most to do."""
    return sum(part.longest(max(gpus, 1)) * rates[str(part.what)][part.of] / (part.threads if gpus else 1)
               for part in work.parts)


def memory_of(work: Work, rates: dict, gpus: int) -> tuple[int, int]:
    """Bytes of host and device memory of one process of a command; on a CPU the host holds what a device would."""
    base = max(rates[str(part.what)].get("host_bytes", 0) for part in work.parts)
    tensors = max((rates[str(part.what)]["device_bytes"] or estimate(part.what, gpus) for part in work.parts), default=0)
    return base + work.host_bytes + (0 if gpus else tensors), tensors + work.device_images_bytes


def estimate(one, gpus: int) -> int:
    """What was not measured: weights and living tensors, counted."""
    found = counted(one, half=bool(gpus))
    return found.device_bytes if found else 0


def rows(result: dict) -> list[tuple[str, ...]]:
    """The table's rows, a total below."""
    shown = [(one["stage"], "; ".join(f"{part['count']:,} {part['kind']}" for part in one["parts"]),
              "; ".join(f"{1 / max(part['seconds'], 1e-9):.3g}" for part in one["parts"]), duration(one["seconds"]),
              size(one["disk_bytes"]), size(one["host_bytes"]), NONE if one["device_bytes"] is None else
              size(one["device_bytes"])) for one in result["stages"]]
    return [*shown, ("total", NONE, NONE, duration(result["seconds"]), size(sum(one["disk_bytes"] for one in result["stages"])),
                     NONE, NONE)]


def duration(spent: float) -> str:
    """Seconds, or hours where there is one."""
    return f"{spent / 3600:.2f} h" if spent >= 360 else f"{spent:.1f} s"


def size(count: float) -> str:
    """Bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def assumptions(result: dict, works: list[tuple[Command, Work]]) -> list[str]:
    """What the table rests on."""
    gpus, processes = result["gpus"], max(result["gpus"], 1)
    said = [f"Rates: {result['source']}; measured parts on {result['measured_on']}, {result['clock']} clock, load "
            f"{result['conditions']['load']:.1f}."]
    if result["tflops"]:
        said.append(f"Assumed: one GPU sustains {result['tflops']:g} TFLOP/s (--tflops) and waits for no files; reading and "
                    "clustering were measured on this machine's processor.")
    if gpus > 1:
        said.append(f"Divided over {gpus} processes: classes, batches and epochs are not cut; training without loss by "
                    "communication (efficiency 1), an upper bound.")
    images = next((one for one in result["stages"] if one["stage"] == "images"), None)
    if result["dataset"] == "imagenet":
        count = sum(part["count"] for part in images["parts"] if part["kind"] == "decode")
        said.append(f"Theirs, for comparison: {V100_SECONDS} s an image on a V100 (D4M, CVPR 2024) makes {count:,} images in "
                    f"{count * V100_SECONDS / 3600 / processes:.1f} h on {processes}.")
    if result["dataset"] != "digits":
        said.append("PNG bytes, reading: scikit-learn's two photographs stand for the images.")
    said.append("Memory: weights, living tensors and decoded images, of one process; "
                + ("counted where not measured, without what allocators and kernels keep for themselves."))
    return said


def plan_table(result: dict) -> str:
    """The table and what it rests on, in Markdown."""
    return markdown_table(HEADER, rows(result)) + "\n\n" + " ".join(result["assumptions"])
