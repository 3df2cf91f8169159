"""What rows of runs say about one another: paired differences, time saved, when distillation pays back, and the 59 % claim."""

import math
import statistics
from pathlib import Path

from misc.report.rows import METHODS, SAME_SECONDS, SAME_STEPS, Arm, Rows, mean_std, read_json, value
from scripts.cli import InputError

MEASURES = {"acc": "class_il.acc", "task_il_acc": "task_il.acc", "average_incremental": "class_il.average_incremental",
            "forgetting": "class_il.forgetting", "bwt": "class_il.bwt", "forward_transfer": "task_il.forward_transfer",
            "steps": "steps", "images_seen": "images_seen", "stream_images": "stream_images", "train_seconds": "seconds.train",
            "flops": "flops", "stream_bytes": "bytes.stream", "buffer_bytes": "buffer.bytes", "teacher_bytes": "bytes.teacher",
            "peak_memory_bytes": "peak_memory_bytes"}
PAIRED = ("acc", "task_il_acc", "average_incremental", "forgetting", "train_seconds")
CLAIMED_SAVING, CLAIMED_KEPT = 0.59, 0.95
CLAIMED = ("er", "agem", "task_arithmetic")
FORGETS_ALL = 0.05      # ACC this little above 1 / tasks is what a network has that knows its last task alone


def measured(row: dict[int, dict], name: str) -> dict[int, float]:
    """A measure by seed, None where a run does not have it."""
    return {seed: value(one, MEASURES[name]) for seed, one in row.items()}


def summary(row: dict[int, dict], real: dict[int, dict] | None) -> dict:
    """Every measure of a row as mean and standard deviation over seeds, and what it saves and keeps against `real`."""
    numbers = {name: mean_std(list(measured(row, name).values())) for name in MEASURES}
    return {"n": len(row), **numbers, "time_saved": saved(row, real), "flops_saved": saved(row, real, "flops"),
            "acc_kept": kept(row, real)}


def summaries(rows: Rows) -> dict[str, dict[Arm, dict]]:
    """`summary` of every row, by method and arm."""
    return {method: {arm: summary(row, arms.get(real_of(arm, arms))) for arm, row in arms.items()}
            for method, arms in rows.items()}


def means(own: dict[int, dict], other: dict[int, dict] | None, name: str) -> tuple[float, float] | None:
    """A measure's means over the seeds both rows have; None without such seeds or where a run does not have it."""
    common = sorted(own.keys() & (other or {}).keys())
    values = [[measured(row, name)[seed] for seed in common] for row in (own, other or {})]
    if not common or None in values[0] + values[1]:
        return None
    return tuple(map(statistics.fmean, values))


def saved(own: dict[int, dict], real: dict[int, dict] | None, name: str = "train_seconds") -> float | None:
    """The share of training time (or of another measure) saved: 1 - own / real, over the seeds both have."""
    pair = means(own, real, name)
    return 1 - pair[0] / pair[1] if pair and pair[1] else None


def kept(own: dict[int, dict], real: dict[int, dict] | None) -> float | None:
    """The share of ACC kept: own / real, over the seeds both have."""
    pair = means(own, real, "acc")
    return pair[0] / pair[1] if pair and pair[1] else None


def interval(values: list[float], level: float = 0.95) -> dict:
    """Mean and confidence interval of the mean by Student's t: mean +- t(n - 1) s / sqrt(n); no interval for n < 2."""
    from scipy.stats import t
    mean, low, high = (statistics.fmean(values) if values else None), None, None
    if len(values) > 1:
        half = float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        low, high = mean - half, mean + half
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def difference(own: dict[int, dict], other: dict[int, dict], name: str) -> dict:
    """own - other, run by run over the seeds both have."""
    ours, theirs = measured(own, name), measured(other, name)
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    return interval([first - second for first, second in pairs if None not in (first, second)])


def counterparts(arm: Arm, arms) -> list[Arm]:
    """What an arm with distilled images is compared with, of the `arms` there are: random, real at the same steps, real.

    Soft labels are compared with soft ones where there are any, and otherwise with hard ones.
    """
    if "distilled" not in (arm.stream, arm.memory):
        return []
    found = []
    for source, schedule in (("random", arm.schedule), ("real", SAME_STEPS), ("real", arm.schedule)):
        options = [arm.of(source, schedule=schedule, labels=labels) for labels in dict.fromkeys((arm.labels, "hard"))]
        found += [option for option in options if option in arms][:1]
    return list(dict.fromkeys(other for other in found if other != arm))


def real_of(arm: Arm, arms) -> Arm | None:
    """The arm on real images that this one saves time against: on its own epochs, or in the same seconds."""
    plain = Arm("real", "real", "hard", SAME_SECONDS if arm.schedule == SAME_SECONDS else "")
    return plain if plain in arms and plain != arm else None


def differences(rows: Rows) -> list[dict]:
    """Every paired difference: distilled against random, real at the same steps, and real."""
    return [{"method": method, "arm": arm.name, "against": other.name,
             **{name: difference(arms[arm], arms[other], name) for name in PAIRED}}
            for method, arms in rows.items() for arm in arms for other in counterparts(arm, arms)]


def payback(cost_seconds: float, real_seconds: float, own_seconds: float) -> float:
    """N* = C / (T_real - T_own): after how many trainings the cost is paid back; infinite when nothing is saved."""
    return cost_seconds / (real_seconds - own_seconds) if real_seconds > own_seconds else math.inf


def paybacks(rows: Rows, costs: dict[str, float]) -> list[dict]:
    """N* of each arm whose stream is distilled, against real images on their epochs and at the same steps.

    `costs` are seconds of distillation by stage; without any there is nothing to pay back. JSON has no infinity: `trainings`
    is then the word "infinite".
    """
    found = []
    for method, arms in rows.items() if costs else ():
        for arm in (one for one in arms if one.stream == "distilled" and not one.schedule):
            for other in (one for one in counterparts(arm, arms) if one.stream == "real"):
                pair = means(arms[arm], arms[other], "train_seconds")
                if pair:
                    cost = cost_of(arm, costs)
                    trainings = payback(cost, pair[1], pair[0])
                    found.append({"method": method, "arm": arm.name, "against": other.name, "cost_seconds": cost,
                                  "saved_seconds": difference(arms[other], arms[arm], "train_seconds"),
                                  "trainings": "infinite" if math.isinf(trainings) else trainings})
    return found


def read_costs(folders: list[Path]) -> dict[str, float]:
    """Seconds by kind (prototypes, distilled, teacher, ...) of the stages whose result.json lie below `folders`.

    Raises InputError unless there is a distilled set, and one result of each kind: two sets cost twice.
    """
    found: dict[str, list[Path]] = {}
    for path in (file for folder in folders for file in sorted(folder.rglob("result.json"))):
        found.setdefault(read_json(path).get("kind", "unknown"), []).append(path)
    where = ", ".join(map(str, folders))
    if "distilled" not in found:
        raise InputError(f"--cost-from {where}: expected the result.json of a distilled set, found {sorted(found) or 'none'}")
    for kind, paths in found.items():
        if len(paths) > 1:
            raise InputError(f"--cost-from {where}: expected one result of kind {kind}, found {', '.join(map(str, paths))}")
    return {kind: sum(read_json(path)["seconds"].values()) for kind, (path,) in found.items()}


def cost_of(arm: Arm, costs: dict[str, float]) -> float:
    """Seconds of distillation behind an arm: a teacher and its labels count for soft labels alone."""
    return sum(seconds for kind, seconds in costs.items() if arm.labels == "soft" or kind not in ("teacher", "soft_labels"))


def verdicts(rows: Rows) -> list[dict]:
    """What the runs say about the claim, per method of it and arm with a distilled stream on its own epochs."""
    return [verdict(method, arm, rows[method]) for method in CLAIMED for arm in rows.get(method, {})
            if arm.stream == "distilled" and not arm.schedule and real_of(arm, rows[method])
            and rows[method][arm].keys() & rows[method][real_of(arm, rows[method])].keys()]


def verdict(method: str, arm: Arm, arms: dict[Arm, dict[int, dict]]) -> dict:
    """The claim against its rivals for one method, as numbers and as sentences.

    Seconds depend on what else the machine did, so the saving must be there in FLOPs too, where these were counted.
    """
    real = real_of(arm, arms)
    own, of_steps = gain(arms[arm], arms[real]), saved(arms[arm], arms[real], "steps")
    saving = min(share for share in (own["time_saved"], own["flops_saved"]) if share is not None)
    holds = saving >= CLAIMED_SAVING and own["acc_kept"] >= CLAIMED_KEPT
    said = [f"{METHODS[method]} on {arm.name} images saves {percent(own['time_saved'])} of the training time and keeps "
            f"{own['acc_kept']:.3f} of the accuracy of real images: the claim's numbers {'hold' if holds else 'do not hold'}. "
            f"It takes {percent(of_steps)} fewer steps, which saves as much by itself where a step takes the same time."]
    if own["flops_saved"] is not None:
        said += [f"In FLOPs, which do not depend on what else the machine does, it saves {percent(own['flops_saved'])}."]
    rivals = {other.name: {**gain(arms[other], arms[real]), **compared(arms[arm], arms[other])}
              for other in counterparts(arm, arms) if other != real}
    said += [rival_sentence(name, rival) for name, rival in rivals.items()]
    said += caveats(arms[real], arms[arm])
    said += other_starts(arms)
    return {"method": method, "arm": arm.name, **own, "holds": holds, "steps_saved": of_steps, "rivals": rivals,
            "forgets_all": forgets_all(arms[real]), "says": " ".join(said)}


def gain(own: dict[int, dict], real: dict[int, dict]) -> dict:
    """Time and FLOPs saved, and accuracy kept."""
    return {"time_saved": saved(own, real), "flops_saved": saved(own, real, "flops"), "acc_kept": kept(own, real)}


def compared(own: dict[int, dict], rival: dict[int, dict]) -> dict:
    """own - rival in ACC and seconds, and what the intervals say of own: better, worse, not told apart or unknown (n < 2).

    Better is more ACC, or fewer seconds at no less ACC, with the whole interval on that side; worse is less ACC.
    """
    acc, seconds = (difference(own, rival, name) for name in ("acc", "train_seconds"))
    if acc["low"] is None:
        told = "unknown"
    elif acc["high"] < 0:
        told = "worse"
    else:
        told = "better" if acc["low"] > 0 or seconds["high"] < 0 else "not told apart"
    return {"acc": acc, "train_seconds": seconds, "distilled_is": told}


def rival_sentence(name: str, rival: dict) -> str:
    """How a rival does against real images, and against the distilled ones."""
    said = {"better": "distilled images are better", "worse": "distilled images are worse",
            "not told apart": "they are not told apart", "unknown": "too few runs to tell"}[rival["distilled_is"]]
    return (f"{name.capitalize()}: {percent(rival['time_saved'])} saved and {ratio(rival['acc_kept'])} kept; distilled less "
            f"{name} is {shown_interval(rival['acc'], 100)} points of ACC and {shown_interval(rival['train_seconds'])} s, "
            f"n = {rival['acc']['n']}: {said}.")


def forgets_all(row: dict[int, dict]) -> bool:
    """Whether a row's ACC is that of a network which knows its last task alone."""
    least = statistics.fmean(1 / len(one["class_il"]["matrix"]) for one in row.values())
    return statistics.fmean(measured(row, "acc").values()) < least + FORGETS_ALL


def caveats(real: dict[int, dict], own: dict[int, dict]):
    """What makes accuracy kept say little."""
    if forgets_all(real):
        yield (f"On real images too it ends at {percent(statistics.fmean(measured(real, 'acc').values()))} ACC, where a "
               "network stands that knows its last task alone: there is no accuracy to keep.")
    starts = [one["start"]["class_il_acc"] for row in (real, own) for one in row.values() if value(one, "start.class_il_acc")]
    if starts:
        yield (f"Its common start alone reaches {percent(statistics.fmean(starts))} ACC (mean over runs) before any task, so "
               "little of the accuracy is the stream's; the start's seconds are not counted.")


def other_starts(arms: dict[Arm, dict[int, dict]]) -> list[str]:
    """A sentence where arms of a method began at different starts with the same seed; none otherwise."""
    starts: dict[int, dict[str, list[str]]] = {}
    for arm, row in arms.items():
        for seed, one in row.items():
            starts.setdefault(seed, {}).setdefault(value(one, "config.digests.start", ""), []).append(arm.name)
    differ = next((found for found in starts.values() if len(found) > 1), None)
    sides = " against ".join(", ".join(names) for names in (differ or {}).values())
    return [f"Not equal: the common start ({sides})."] if differ else []


def conclusion(found: list[dict]) -> str:
    """The sentence about the claim that all verdicts together support."""
    if not found:
        return ("Nothing can be said about the 59 % claim: it needs ER, A-GEM or Task Arithmetic on a distilled stream and on "
                "real images, with seeds in common.")
    parts = [f"{METHODS[one['method']]} ({one['arm']}): {cause(one)}" for one in found]
    return (f"On the claim that distilled data saves {percent(CLAIMED_SAVING, 0)} of the training time at comparable accuracy "
            f"(here: at least {CLAIMED_KEPT} of it). {'; '.join(parts)}.")


def cause(one: dict) -> str:
    """Whether the claim holds, and if so to what it is due."""
    flops = "" if one["flops_saved"] is None else f", {percent(one['flops_saved'])} of the FLOPs"
    numbers = f"{percent(one['time_saved'])} saved{flops}, {one['acc_kept']:.3f} kept"
    if one["forgets_all"]:
        return f"empty ({numbers}, but on real images too it forgets all but its last task)"
    if not one["holds"]:
        return f"does not hold ({numbers})"
    told = {name: rival["distilled_is"] for name, rival in one["rivals"].items()}
    if not told or "unknown" in told.values():
        return (f"holds in numbers ({numbers}), which is no evidence without enough runs of random images and of real ones at "
                "the same steps")
    rest = [name for name, said in told.items() if said != "better"]
    if rest:
        return (f"holds in numbers ({numbers}), but distilled images are not shown to be better than {' or than '.join(rest)}, "
                "so the saving is that of fewer steps")
    return f"holds ({numbers}), and distilled images are better than {' and than '.join(told)}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share as percent."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def ratio(share: float | None) -> str:
    """A share as a number."""
    return "–" if share is None else f"{share:.3f}"


def shown_interval(found: dict, scale: float = 1, digits: int = 1) -> str:
    """A mean difference with its interval: "3.9 (1.2 to 6.6)"."""
    if found["mean"] is None:
        return "–"
    bounds = "–" if found["low"] is None else f"{scale * found['low']:z.{digits}f} to {scale * found['high']:z.{digits}f}"
    return f"{scale * found['mean']:+z.{digits}f} ({bounds})"
