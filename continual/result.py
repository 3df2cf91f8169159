"""What a run measured, for JSON and for the screen."""

import numpy as np

from continual.cost import flops, peak_memory_bytes
from continual.metrics import forward_transfer, per_class_accuracy, summarise
from scripts.artefact import code_version, hardware, package_versions


def report(run, config: dict, ready, tested, baseline: list[float], facts: dict) -> dict:
    """The result of a run, ready for JSON.

    `baseline` is the Task-IL accuracy of each task under untrained weights; joint training, which sees no task before another,
    has no forward transfer.
    """
    learner, trainer = ready.learner, ready.learner.trainer
    missing = [None] * (len(ready.tests) - len(tested.class_il))
    class_il, task_il = (summarise(missing + rows) for rows in (tested.class_il, tested.task_il))
    forward = None if missing else forward_transfer(np.array(tested.task_il), baseline)
    buffer, teacher, device = learner.buffer, trainer.teacher, trainer.timers.device
    kept = {"images": 0, "bytes": 0} if buffer is None else {"images": len(buffer), "bytes": buffer.bytes}
    counted = flops(trainer.passes, run.arch, len(ready.train.classes), run.stem, run.size, teacher)
    return {"kind": "continual", "method": run.method, "stream": run.stream, "buffer_source": run.buffer_source,
            "labels": run.labels, "schedule": run.schedule, "seed": run.seed, "config": config,
            "tasks": [task.classes for task in ready.tests],
            "class_il": class_il, "task_il": {**task_il, "forward_transfer": forward, "baseline": baseline},
            "confusion": tested.confusion.tolist(), "per_class": per_class_accuracy(tested.confusion),
            "seconds": trainer.timers.seconds(), "steps": trainer.steps_done, "images_seen": trainer.images_seen,
            "images_per_second": round(trainer.images_seen / trainer.timers.spans["train"], 1), "flops": counted,
            "peak_memory_bytes": peak_memory_bytes(device), "stream_images": sum(len(task.train) for task in ready.tests),
            "bytes": {"stream": ready.train.images.nbytes + ready.train.labels.nbytes, "buffer": kept["bytes"],
                      "teacher": teacher.bytes if teacher else 0},
            "buffer": kept, **facts, "code": code_version(), "packages": package_versions(), "hardware": hardware()}


def table_row(result: dict) -> str:
    """One line for the screen."""
    percent = [100 * result[kind]["acc"] for kind in ("class_il", "task_il")]
    lost = result["class_il"]["forgetting"]
    note = start_note(result["start"]) if "start" in result else ""
    return (f"{result['method']:16} {result['stream']:10} seed {result['seed']:<3} ACC {percent[0]:5.1f} %  "
            f"Task-IL {percent[1]:5.1f} %  forgetting {'    -' if lost is None else f'{100 * lost:5.1f}'}  "
            f"{result['seconds']['train']:7.1f} s  {result['steps']} steps  {result['images_per_second']:.0f} images/s{note}")


def start_note(start: dict) -> str:
    """What the common start is, what it can do alone and what it cost."""
    alone = f", alone {100 * start['class_il_acc']:.1f} %" if "class_il_acc" in start else ""
    return f"  start: {start['note']}{alone} ({start['seconds']:.1f} s apart)"
