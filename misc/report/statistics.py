"""Numbers over runs: means, paired differences with their intervals, what distilled data saves, and what was equal."""

import math
import operator
import statistics

from misc.report.results import CONTINUAL, SAME_STEPS, Arm, Rows, Run, group_by, runs_by_arm

MEASURES = {**{name: f"metrics.{name}" for name in CONTINUAL}, "train_seconds": "seconds.train"}
SUMMARISED = tuple(name for name in MEASURES if name not in ("matrix", "confusion", "scale_curves", "start_note", "memory"))
PAIRED = ("acc", "task_il_acc", "average_incremental", "forgetting", "train_seconds")
REAL = Arm("real", "real", "hard")      # against which time is saved: all real images, on their own epochs
CLAIMED_SAVING, CLAIMED_KEPT = 0.59, 0.95
CLAIMED = ("er", "agem", "task_arithmetic")
AT_CHANCE = 0.05    # a network that knows only its last task has an ACC of 1 / tasks, at most this much more
SIDES = FAILS, NOT_SHOWN, HOLDS = "no", "not shown", "holds"    # several conditions together are the first of these
NUMBERS_ONLY = "numbers only"
SLOW = 2            # times its row's median: a seed that took longer shared the machine with other work
SETTINGS = {"network": "config.arch", "stem": "config.stem", "pixels": "config.size", "tasks": "config.tasks",
            "class order": "config.class_order", "optimiser": "config.recipe.optimizer", "learning rate": "config.recipe.lr",
            "batch size": "config.recipe.batch_size", "buffer images": "config.buffer_size", "hardware": "hardware",
            "steps": "metrics.steps", "images of the stream": "metrics.stream_images", "labels": "config.labels"}
NAMED = ("method", "stream", "buffer_source", "labels", "schedule", "seed", "steps", "digests.")     # by an arm, or above
MEMORY = {"the images that choose Task Arithmetic's scale and head": "metrics.memory"}


def mean_std(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation (ddof 1; None for a single value); both None without values, or with a None."""
    if not values or None in values:
        return {"mean": None, "std": None}
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def measure(groups: dict, fields: dict[str, str]) -> dict:
    """The numbers of each group of runs."""
    return {key: numbers_of(runs, fields) for key, runs in groups.items()}


def numbers_of(runs: list[Run], fields: dict[str, str]) -> dict:
    """The number of runs `n`, and mean and standard deviation of each field; of seconds of those runs that have some."""
    return {"n": len(runs), **{short: mean_std([run.need(field) for run in runs if run.seconds
                                                or not field.startswith("seconds.")]) for short, field in fields.items()}}


def interval(values: list[float]) -> dict:
    """Mean and 95 % confidence interval of the mean by Student's t: mean +- t(n - 1) s / sqrt(n); no interval for n < 2."""
    from scipy.stats import t
    mean, std = mean_std(values).values()
    if std is None:
        return {"mean": mean, "low": None, "high": None, "n": len(values)}
    half = float(t.ppf(0.975, len(values) - 1)) * std / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def exponential(found: dict) -> dict:
    """The geometric mean and its interval, from those of logarithms (Bland and Altman, BMJ 312:1153, 1996)."""
    return {**found, **{key: math.exp(found[key]) for key in ("mean", "low", "high") if found[key] is not None}}


def measured(row: dict[int, Run], name: str) -> dict[int, float]:
    """A measure by seed, None where a run does not have it."""
    return {seed: run.get(MEASURES[name]) for seed, run in row.items()}


def paired(own: dict[int, Run], other: dict[int, Run], name: str, combine) -> dict:
    """`combine` of the values of each seed of both rows, and its interval.

    Seconds are compared where a seed has the same hardware in both rows and is slow in neither.
    """
    ours, theirs = measured(own, name), measured(other, name)
    seeds = sorted(ours.keys() & theirs.keys())
    if name == "train_seconds":
        slow = slow_seeds(own) | slow_seeds(other)
        seeds = [seed for seed in seeds if own[seed].get("hardware") == other[seed].get("hardware") and seed not in slow]
    pairs = [pair for seed in seeds if None not in (pair := (ours[seed], theirs[seed]))]
    return interval([combine(*pair) for pair in pairs])


def difference(own: dict[int, Run], other: dict[int, Run], name: str) -> dict:
    """own - other."""
    return paired(own, other, name, operator.sub)


def ratio(own: dict[int, Run], other: dict[int, Run], name: str) -> dict:
    """own / other: the geometric mean over seeds, and its interval. No numbers where a value is 0."""
    if 0 in [*measured(own, name).values(), *measured(other, name).values()]:
        return interval([])
    return exponential(paired(own, other, name, lambda first, second: math.log(first / second)))


def saved(own: dict[int, Run], real: dict[int, Run], name: str = "train_seconds") -> dict:
    """The fraction of training time, or of another measure, that is saved, and its interval."""
    spent, ends = ratio(own, real, name), (("mean", "mean"), ("low", "high"), ("high", "low"))
    return {**spent, **{key: 1 - spent[end] for key, end in ends if spent[end] is not None}}


def kept(own: dict[int, Run], real: dict[int, Run]) -> dict:
    """The fraction of ACC that is kept, and its interval; no numbers where the method is at chance on real images too."""
    return interval([]) if real and at_chance(real) else ratio(own, real, "acc")


def slow_seeds(row: dict[int, Run]) -> set[int]:
    """The seeds that took more than SLOW times the row's median, as when something else runs on the machine."""
    seconds = measured(row, "train_seconds")
    return {seed for seed, spent in seconds.items() if spent > SLOW * statistics.median(seconds.values())}


def at_chance(row: dict[int, Run]) -> bool:
    """Whether a row's ACC is that of a network that knows its last task alone."""
    least = statistics.fmean(1 / run.need("config.tasks") for run in row.values())
    return statistics.fmean(measured(row, "acc").values()) < least + AT_CHANCE


def summaries(rows: Rows) -> dict[str, dict[Arm, dict]]:
    """By method and arm every measure over seeds, and what is saved and kept against real images."""
    found = {method: {} for method in rows}
    for method, arms in rows.items():
        for arm, row in arms.items():
            real = arms.get(REAL, {}) if arm != REAL else {}
            found[method][arm] = {
                "n": len(row), **{name: mean_std(list(measured(row, name).values())) for name in SUMMARISED},
                "time_saved": saved(row, real)["mean"], "flops_saved": saved(row, real, "flops")["mean"],
                "acc_kept": kept(row, real)["mean"]}
            found[method][arm]["train_seconds"] |= {
                "median": statistics.median(measured(row, "train_seconds").values()), "slow": len(slow_seeds(row))}
    return found


def counterparts(arm: Arm, arms) -> list[Arm]:
    """What an arm with distilled images is compared with: random images, real ones at the same steps, real ones.

    Labels are of one kind, except against real images on their own epochs where these have hard ones only.
    """
    if "distilled" not in (arm.stream, arm.memory):
        return []
    found = []
    for source, schedule in (("random", arm.schedule), ("real", arm.schedule or SAME_STEPS), ("real", "")):
        sources = [source if one == "distilled" else one for one in (arm.stream, arm.memory)]
        kinds = (arm.labels,) if source == "random" or schedule else (arm.labels, "hard")
        found += [option for labels in kinds if (option := Arm(*sources, labels, schedule)) in arms][:1]
    return list(dict.fromkeys(other for other in found if other != arm))


def differences(rows: Rows) -> list[dict]:
    """Every paired difference of an arm with distilled images and a counterpart."""
    return [{"method": method, "arm": arm.name, "against": other.name,
             **{name: difference(arms[arm], arms[other], name) for name in PAIRED}}
            for method, arms in rows.items() for arm in arms for other in counterparts(arm, arms)]


def claims(rows: Rows) -> list[dict]:
    """The claim's numbers for each method of it and each distilled stream."""
    return [claim(method, arm, rows[method]) for method in CLAIMED for arm, row in rows.get(method, {}).items()
            if arm.stream == "distilled" and row.keys() & rows[method].get(REAL, {}).keys()]


def claim(method: str, arm: Arm, arms: dict[Arm, dict[int, Run]]) -> dict:
    """What an arm saves and keeps, and how its ACC differs from random images' and from real ones' at the same steps.

    A condition is met where its whole interval lies on that side. Seconds depend on what else the machine did, so FLOPs must be
    saved too. `verdict` is None at chance; HOLDS needs all numbers and distilled images that are better than both counterparts.
    """
    own, real = arms[arm], arms[REAL]
    numbers = {"time_saved": saved(own, real), "flops_saved": saved(own, real, "flops"), "acc_kept": kept(own, real)}
    rivals = {other: difference(own, arms[other], "acc") for other in counterparts(arm, arms)
              if other.labels == arm.labels and (other.stream == "random" or other.schedule)}   # of as many steps
    sides = [side(found, CLAIMED_KEPT if name == "acc_kept" else CLAIMED_SAVING) for name, found in numbers.items()]
    verdict, better = min(sides, key=SIDES.index), [side(found, 0) for found in rivals.values()]
    if verdict == HOLDS and better != [HOLDS, HOLDS]:
        verdict = NUMBERS_ONLY
    return {"method": method, "arm": arm.name, **numbers, "steps_saved": saved(own, real, "steps")["mean"],
            "real_acc": statistics.fmean(measured(real, "acc").values()),
            "start_acc": mean_std([run.get("metrics.start_acc") for row in (real, own) for run in row.values()])["mean"],
            "rivals": {other.name: {"source": other.stream, "acc": found, "better": side(found, 0)}
                       for other, found in rivals.items()}, "verdict": None if at_chance(real) else verdict}


def side(found: dict, least: float) -> str:
    """HOLDS or FAILS where a whole interval lies above or below `least`; NOT_SHOWN otherwise, and without an interval."""
    if found["low"] is None:
        return NOT_SHOWN
    return HOLDS if found["low"] > least else FAILS if found["high"] < least else NOT_SHOWN


def paybacks(rows: Rows, costs: dict[str, float]) -> list[dict]:
    """N* = C / (T_real - T_own), the trainings that pay the cost C back, of each arm with a distilled stream.

    T_real: all real images; at the same steps a training costs the same.
    `costs` are seconds of distillation by stage; a teacher counts for soft labels alone. JSON has no infinity: where nothing
    is saved, `trainings` is "infinite".
    """
    found = []
    for method, arms in rows.items() if costs else ():
        for arm in (one for one in arms if one.stream == "distilled" and not one.start):     # `costs` are of centroids
            for other in (one for one in counterparts(arm, arms) if one.stream == "real" and not one.schedule):
                cost = sum(seconds for stage, seconds in costs.items() if arm.labels == "soft" or stage != "teacher")
                saving = difference(arms[other], arms[arm], "train_seconds")
                if saving["n"]:
                    found.append({"method": method, "arm": arm.name, "against": other.name, "cost_seconds": cost,
                                  "saved_seconds": saving,
                                  "trainings": cost / saving["mean"] if saving["mean"] > 0 else "infinite"})
    return found


def mean_costs(runs: list[Run]) -> dict[str, float]:
    """Mean seconds by stage of making one D4M set, and of its teacher; empty without D4M sets.

    Beside continual runs on D4M images only sets of as many images count. Prototypes that are random images, for
    `--method prototype`, are none of a D4M set. Stored soft labels do not count: a stream needs none.
    """
    streams = {run.metrics["stream_images"] // len(run.metrics["confusion"]) for run in runs
               if run.kind == "continual" and run.config["stream"] == "distilled" and "confusion" in run.metrics}
    found = group_by([run for run in runs if run.seconds and run.kind in ("prototypes", "distilled", "teacher")
                      and run.get("config.method", "d4m") == "d4m" and run.get("config.prototype") != "random"],
                     lambda run: run.kind)
    if "distilled" not in found:
        return {}
    for kind in found.keys() & {"prototypes", "distilled"}:
        found[kind] = [run for run in found[kind] if run.get("config.ipc") in streams] or found[kind]
    return {kind: statistics.fmean(run.took for run in sets) for kind, sets in found.items()}


def equal_and_not(arms: dict[str, list[Run]], fields: dict[str, str]) -> str:
    """Which of the `fields` are equal in all runs, and which are not, with their values by arm."""
    equal, differ = [], []
    for label, key in fields.items():
        by_value: dict[str, list[str]] = {}
        for arm, runs in arms.items():
            values = {run.get(key, "not stated") for run in runs}
            by_value.setdefault(" or ".join(sorted(map(str, values))), []).append(arm)
        if set(by_value) <= {"not stated"}:
            continue
        if len(by_value) == 1:
            equal.append(f"{label} {next(iter(by_value))}")
        else:
            differ.append(f"{label} ({'; '.join(f'{value} for ' + ', '.join(of) for value, of in by_value.items())})")
    return " ".join(f"{what}: {', '.join(names)}." for what, names in (("Equal", equal), ("Not equal", differ)) if names)


def equal_in_rows(rows: Rows) -> str:
    """Equal and different SETTINGS of continual runs, by arm, and every other setting that differs within a method."""
    merged = runs_by_arm({"task_arithmetic": rows.get("task_arithmetic", {})})
    return " ".join(filter(None, [equal_and_not(runs_by_arm(rows), SETTINGS), equal_and_not(merged, MEMORY),
                                  other_settings(rows), *map(different_starts, rows.values())]))


def other_settings(rows: Rows) -> str:
    """A sentence for each setting beside SETTINGS that differs between arms of a method, of soft labels between soft arms."""
    keys = {key for runs in runs_by_arm(rows).values() for run in runs for key in run.config
            if not key.startswith(NAMED) and f"config.{key}" not in SETTINGS.values()}
    found = []
    for key in sorted(keys):
        differ: Rows = {}
        for method, arms in rows.items():
            own = {arm: row for arm, row in arms.items() if key not in ("temperature", "soft_loss") or arm.labels == "soft"}
            if len({str(run.config.get(key)) for row in own.values() for run in row.values()}) > 1:
                differ[method] = own
        found.append(equal_and_not(runs_by_arm(differ), {key.rpartition(".")[2].replace("_", " "): f"config.{key}"}))
    return " ".join(filter(None, found))


def different_starts(arms: dict[Arm, dict[int, Run]]) -> str:
    """A sentence where arms began at different starts with the same seed; empty otherwise."""
    starts: dict[int, dict[str, list[str]]] = {}
    for arm, row in arms.items():
        for seed, run in row.items():
            starts.setdefault(seed, {}).setdefault(run.get("config.digests.start", ""), []).append(arm.name)
    differ = next((found for found in starts.values() if len(found) > 1), None)
    sides = " against ".join(", ".join(names) for names in (differ or {}).values())
    return f"Not equal: the common start ({sides})." if differ else ""
