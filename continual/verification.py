"""What a continual run and the common start of Task Arithmetic have to hold, beside the kinds of earlier stages."""

from pathlib import Path

from distillation.verification import Check, file_content, inner, json_problems, share
from matching import verification
from scripts.artefact import Expected, read_json, tensor_problems
from scripts.cli import InputError
from scripts.networks import WEIGHTS, weight_problems

BUFFER, RESULT = "buffer.safetensors", "result.json"


def run_folder(folder: Path, manifest: dict) -> list[str]:
    """Accuracies in [0, 1] for tasks that share out the classes, and a memory of labelled images within its size."""
    try:
        result = read_json(folder / RESULT)
    except InputError as error:
        return [inner(error, folder)]
    problems = [f"{RESULT}: {problem}" for problem in result_problems(result, len(manifest["classes"]))]
    if BUFFER in manifest["files"]:
        room = manifest["config"].get("buffer_size")
        problems += file_content(folder, BUFFER, lambda found: buffer_problems(found, len(manifest["classes"]), room))
    return problems


def result_problems(result, classes: int) -> list[str]:
    """What is wrong with the result of a run over so many classes."""
    if not isinstance(result, dict) or result.get("kind") != "continual":
        return ["expected a result of kind continual, found another"]
    tasks = result.get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, list) for task in tasks) \
            or sorted(str(label) for task in tasks for label in task) != sorted(map(str, range(classes))):
        return [f"expected tasks that share out {classes} classes, found others"]
    return [problem for name in ("class_il", "task_il") for problem in accuracy_problems(name, result.get(name), len(tasks))]


def accuracy_problems(name: str, found, tasks: int) -> list[str]:
    """Where an accuracy is none: `found` has the matrix (rows may be None, of what was not tested) and its summary."""
    matrix = found.get("matrix") if isinstance(found, dict) else None
    rows = [row for row in matrix if row is not None] if isinstance(matrix, list) else None
    if not rows or len(matrix) != tasks or not all(isinstance(row, list) and len(row) == tasks for row in rows):
        return [f"{name}: expected a matrix of {tasks} x {tasks} accuracies, found another"]
    values = [value for row in rows for value in row] + [found.get("acc")]
    return [f"{name}: expected accuracies in [0, 1], found {value!r}" for value in values if not share(value)][:1]


def buffer_problems(found: dict, classes: int, room) -> list[str]:
    """What is wrong with the memory of a run: its images, labels, and that there are no more than there is `room` for."""
    labels = found.get("labels")
    count = len(labels) if labels is not None and labels.ndim == 1 else None
    problems = tensor_problems(found, {"images": Expected("integer", (count, 3, None, None), 0, 255),
                                       "labels": Expected("integer", (count,), 0, classes - 1)})
    if not problems and isinstance(room, int) and count > room:
        problems.append(f"labels: expected at most {room} images, found {count}")
    return problems


def start_folder(folder: Path, manifest: dict) -> list[str]:
    """Finite weights and a result."""
    return file_content(folder, WEIGHTS, weight_problems) + json_problems(folder, RESULT)


CHECKS: dict[str, Check] = {**verification.CHECKS, "continual": run_folder, "start": start_folder}
