"""How a plan is shown."""

from misc.report.tables import NONE, markdown_table

HEADER = ("Stage", "Units", "Units/s of one process", "Time", "On disk", "Host memory", "Device memory")
V100_SECONDS = 2.7  # per image at 512 pixels, as D4M (CVPR 2024) reports


def rows(result: dict) -> list[tuple[str, ...]]:
    """The table's rows, a total below."""
    shown = [(one["stage"], "; ".join(f"{part['count']:,} {part['what']}" for part in one["units"]),
              "; ".join(f"{part['per_second']:,.{0 if part['per_second'] > 99 else 2}f}" for part in one["units"]),
              duration(one["seconds"]), size(one["disk_bytes"]), size(one["host_bytes"]), size(one["device_bytes"]))
             for one in result["stages"]]
    written = sum(one["disk_bytes"] for one in result["stages"])
    return [*shown, ("total", NONE, NONE, duration(result["seconds"]), size(written), NONE, NONE)]


def duration(spent: float) -> str:
    """Seconds, or hours from a tenth of one on."""
    return f"{spent / 3600:.2f} h" if spent >= 360 else f"{spent:.1f} s"


def size(count: int | None) -> str:
    """Bytes as MB or GB."""
    if count is None:
        return NONE
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def assumptions(result: dict) -> list[str]:
    """What the table rests on."""
    gpus, where = result["gpus"], result["hardware"] + (", in processor time" if result["clock"] == "processor" else "")
    if result["tflops"]:
        said = ["Times are computed from counted operations, not measured, for GPUs that sustain "
                f"{result['tflops']:g} TFLOP/s each (an assumption, --tflops) and never wait for files; starts of processes, "
                f"reading files and clustering were measured on {where}."]
    else:
        said = [f"Times of units were measured on {where}, with libraries that had been read from disk before."]
    if gpus > 1:
        said.append(f"{gpus} processes share classes, batches and epochs, none of which is cut; training divides without loss, "
                    "which is the most it can do.")
    if result["dataset"] != "digits":
        said.append("Two photographs that scikit-learn ships stand for the images' files.")
    said.append("Memory is one process's: weights, tensors that live at once (of training in float32), decoded images, on the "
                "host also libraries; counted where a device does not tell, without what allocators and kernels keep.")
    made = sum(part["count"] for one in result["stages"] for part in one["units"] if part["what"] == "images decoded")
    if result["dataset"] == "imagenet":
        hours, share = made * V100_SECONDS / 3600, max(gpus, 1)
        said.append(f"For comparison, theirs: D4M (CVPR 2024) reports {V100_SECONDS} s an image on a V100, so {made:,} images "
                    f"take {hours:.1f} h on one and {hours / share:.1f} h on {share}.")
    return said


def plan_table(result: dict) -> str:
    """The table and what it rests on, in Markdown."""
    return f"{markdown_table(HEADER, rows(result))}\n\n{' '.join(assumptions(result))}"
