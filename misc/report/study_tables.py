"""Tables of a study that goes from the prior to continual learning (misc/studies/cifar10.sh), from its collected results."""

import re

from misc.report.continual_tables import rows_in, text
from misc.report.fairness import CLAIMED_KEPT, CLAIMED_SAVING, percent, verdicts
from misc.report.report import STUDENT, measure, origins
from misc.report.rows import METHODS, whole_results
from misc.report.sections import NOT_RUN, cell, markdown_table

ENOUGH = 0.7     # accuracy of ResNet-18 with soft labels at IPC 50 that the study is to reach
STUDENT_RUN = re.compile(r"students/resnet18-(?P<arm>distilled|random)-ipc(?P<ipc>10|50)-soft-seed\d+$")
RIVAL, AIMED = "random", ("er", "task_arithmetic")


def parts(result: dict) -> str:
    """Minutes of a study's parts, on one line."""
    hardware = "; ".join(origins({one["run"]: one for one in whole_results(result)})["hardware"])
    listed = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in result["seconds"].items())
    total = sum(result["seconds"].values()) / 60
    return f"Minutes of `{result['command']}` ({hardware} a process): {listed}; {total:.1f} in all."


def students(result: dict) -> str:
    """The students of a study, a row per name."""
    from misc.report.collected import students_by_name
    return text(*students_by_name(result))


def targets(result: dict) -> str:
    """What the study aimed at, what it reached, and whether that is it."""
    return markdown_table(("Aim", "Reached", "Met"), [*student_targets(result), *continual_targets(result)])


def student_targets(result: dict) -> list[tuple[str, str, str]]:
    """ResNet-18 with soft labels: above random real images by more than two standard deviations, and at least ENOUGH."""
    groups: dict[tuple, dict] = {}
    for one in result["runs"]:
        if found := STUDENT_RUN.search(one["run"]):
            groups.setdefault((found["arm"], found["ipc"]), {})[one["run"]] = one
    numbers = measure(groups, STUDENT)
    rows = []
    for ipc in ("10", "50"):
        own, other = numbers.get(("distilled", ipc)), numbers.get((RIVAL, ipc))
        aim = f"ResNet-18, soft labels, IPC {ipc}: above random real images by more than two standard deviations"
        if own and other:
            (high, spread), (low, width) = ((one["accuracy"]["mean"], one["accuracy"]["std"]) for one in (own, other))
            apart = None not in (spread, width) and high - low > 2 * max(spread, width)
            rows.append((aim, f"{cell(own, 'accuracy', 100)} % and {cell(other, 'accuracy', 100)} %", answer(apart)))
        else:
            rows.append((aim, NOT_RUN, answer(False)))
    own = numbers.get(("distilled", "50"))
    reached = f"{cell(own, 'accuracy', 100)} %" if own else NOT_RUN
    rows.append((f"ResNet-18, soft labels, IPC 50: at least {percent(ENOUGH, 0)}", reached,
                 answer(own and own["accuracy"]["mean"] >= ENOUGH)))
    return rows


def continual_targets(result: dict) -> list[tuple[str, str, str]]:
    """ER and Task Arithmetic: the claim's numbers and better than random real images of the same count."""
    rows = []
    for one in verdicts(rows_in(result)):
        if one["method"] not in AIMED:
            continue
        told = next((rival["distilled_is"] for name, rival in one["rivals"].items() if name.startswith(RIVAL)), "unknown")
        aim = (f"{METHODS[one['method']]}, {one['arm']}: at least {percent(CLAIMED_SAVING, 0)} of time and FLOPs saved, at "
               f"least {CLAIMED_KEPT} of ACC kept, better than random real images")
        reached = (f"{percent(one['time_saved'])} of time and {percent(one['flops_saved'])} of FLOPs saved, "
                   f"{one['acc_kept']:.3f} kept; against random: {told}")
        rows.append((aim, reached, answer(one["holds"] and told == "better")))
    return rows


def answer(met) -> str:
    """Whether an aim is met."""
    return "yes" if met else "no"
