"""What a report's numbers say, in sentences made by simple comparisons."""

import math

from misc.report.rows import METHODS
from misc.report.sections import Section, cell


def findings(students: dict, continual: dict, making: float | None) -> Section:
    """What follows from the numbers by plain comparison."""
    said = [*student_findings(students), *continual_findings(continual), *payback(continual, making)]
    if said and any(one["n"] == 1 for one in (*students.values(), *continual.values())):
        said.append("Where n is 1 nothing is known of the spread, and small differences may be chance.")
    return Section("What this says", " ".join(said) or "Nothing that could be compared was run.")


def student_findings(students: dict):
    """D4M images against random real ones, by kind of label."""
    for labels in ("hard", "soft"):
        own, other = (students.get((arm, labels)) for arm in ("distilled", "random"))
        if own and other:
            yield (f"With {labels} labels, {cell(own, 'images', digits=0)} D4M images give {cell(own, 'accuracy', 100)} %, "
                   f"{difference(own, other, 'accuracy')} {cell(other, 'images', digits=0)} random real images.")


def continual_findings(continual: dict):
    """Per method, D4M images against all real ones and against random real ones."""
    said = []
    for method, name in METHODS.items():
        own, other = (continual.get((method, source)) for source in ("distilled", "random"))
        if own and own["acc_kept"] is not None:
            beside = f" ({difference(own, other, 'acc')} random real images)" if other else ""
            said.append(f"{name.split(' (')[0]} {cell(own, 'time_saved', 100)} % and {cell(own, 'acc_kept', digits=3)}{beside}")
    if said:
        yield f"Continual learning on D4M images, training time saved and ACC kept against all real images: {'; '.join(said)}."


def payback(continual: dict, making: float | None):
    """After how many trainings the seconds saved have paid for making the images: cost / (T_real - T_distilled)."""
    saved = [continual[method, "real"]["train_seconds"]["mean"] - one["train_seconds"]["mean"]
             for (method, source), one in continual.items() if source == "distilled" and (method, "real") in continual]
    if making and saved and min(saved) > 0:
        runs = " to ".join(dict.fromkeys(str(math.ceil(making / seconds)) for seconds in (max(saved), min(saved))))
        paid = "training pays" if runs == "1" else "trainings pay"
        yield f"Making the images took {making:.0f} s, which {runs} {paid} back; the checkpoint's own training is apart."


def difference(own: dict, other: dict, name: str) -> str:
    """How far one mean lies from another, in points, and whether that is within the spread of the runs."""
    points, spreads = 100 * (own[name]["mean"] - other[name]["mean"]), (own[name]["std"], other[name]["std"])
    within = None not in spreads and abs(points) <= 100 * math.hypot(*spreads)
    return (f"{abs(points):.1f} points {'below' if points < 0 else 'above'}"
            f"{', within one standard deviation, against' if within else ''}")
