"""Tables of continual learning: the claim, all runs, paired differences, the cost of a distilled set and its payback."""

import re
from dataclasses import replace

from misc.report import statistics as stats
from misc.report.results import (
    METHODS,
    SMALL,
    STREAM_ARM,
    Results,
    Rows,
    Run,
    continual_rows,
    group_by,
    grouped,
    join,
    other_images,
    runs_by_arm,
)
from misc.report.section import NONE, NOT_RUN, Section, cell, interval_cell
from misc.report.statistics import CLAIMED_KEPT, CLAIMED_SAVING, equal_and_not, measure

CHECKPOINT = "checkpoint"
LEAST_SAVED = f"{100 * CLAIMED_SAVING:.0f} %"
COLUMNS = {"acc": ("ACC, Class-IL (%)", 100, 1), "task_il_acc": ("ACC, Task-IL (%)", 100, 1),
           "average_incremental": ("Average incremental (%)", 100, 1), "forgetting": ("Forgetting (points)", 100, 1),
           "bwt": ("Backward transfer (points)", 100, 1), "forward_transfer": ("Forward transfer, Task-IL (points)", 100, 1),
           "steps": ("Steps", 1, 0), "images_seen": ("Images seen", 1, 0), "stream_images": ("Images of the stream", 1, 0),
           "train_seconds": ("Training, median (s)", 1, 1), "flops": ("TFLOP", 1e-12, 2),
           "stream_bytes": ("Stream (MB)", 1e-6, 2), "buffer_bytes": ("Buffer (MB)", 1e-6, 2),
           "teacher_bytes": ("Teacher (MB)", 1e-6, 1), "peak_memory_bytes": ("Peak memory (MB)", 1e-6, 0),
           "time_saved": ("Time saved (%)", 100, 1), "flops_saved": ("FLOPs saved (%)", 100, 1),
           "acc_kept": ("ACC kept (ratio)", 1, 3)}
SHORT_COLUMNS = ("acc", "task_il_acc", "forgetting", "steps", "train_seconds", "time_saved", "flops_saved", "acc_kept")
SLOW = (f"A seed is slow where it took more than {stats.SLOW} times its row's median: something else ran at the time, or the "
        "processor was slower. Seconds are compared over seeds with the same processor in both rows that are slow in neither.")
PAIRED_COLUMNS = {name: (COLUMNS[name][0].replace("%", "points"), COLUMNS[name][1]) for name in stats.PAIRED}
SET_RUNS = {"prototypes": re.compile(r"/prototypes/[a-z0-9_]+-ipc(?P<ipc>\d+)-kmexpand1$"),
            "distilled": re.compile(r"/distilled/[a-z0-9_]+_ipc(?P<ipc>\d+)_\d+_s[\d.]+_g[\d.]+_kmexpand1$")}
SET_SECONDS = {"prototypes": {"wait": "Reading images", "encode": "Encoding them", "cluster": "k-means"},
               "distilled": {"synthesise": "Making images"}}
START = re.compile(r"starts/[a-z0-9]+-(?P<start>[a-z0-9]+)-refit(?P<refit>\d+)/")
STARTS = {"random": "random", "task1": "the first task's expert", "distilled": "pre-trained on the distilled set"}
FASHION_STREAM = re.compile(r"/resnet18-memory500/(real|ipc50(-member)?)/")
FASHION_TEACHER = "teacher-convnet_d3_w64_bn"    # of two, the one that labels


def claim_section(rows: Rows) -> Section:
    """The claim by method and distilled stream: what is saved and kept, and the intervals against the fair rivals."""
    if not (claims := stats.claims(rows)):
        return Section("The claim", f"The {LEAST_SAVED} claim is {NOT_RUN}: it needs ER, A-GEM or Task "
                       "Arithmetic on a distilled stream and on real images, with common seeds.")
    table = []
    for one in claims:
        acc = {rival["source"]: rival["acc"] for rival in one["rivals"].values()}
        seeds = max(one[name]["n"] for name in ("acc_kept", "flops_saved", "time_saved"))
        table.append((
            METHODS[one["method"]], one["arm"],
            *(interval_cell(one[name], 100, sign="", seeds=seeds) for name in ("time_saved", "flops_saved")),
            cell(one, "steps_saved", 100), interval_cell(one["acc_kept"], digits=3, sign="", seeds=seeds),
            *(cell(one, name, 100) for name in ("real_acc", "start_acc")),
            *(interval_cell(acc.get(source), 100, seeds=seeds) for source in ("random", "real")), str(seeds),
            one["verdict"] or NONE))
    header = ("Method", "Source", "Time saved (%)", "FLOPs saved (%)", "Steps saved (%)", "ACC kept (ratio)", "ACC of real (%)",
              "ACC of the start alone (%)", "ACC − random (points)", "ACC − same steps (points)", "n", "Claim")
    return Section("The claim", f"The claim: {LEAST_SAVED} of the training time saved at comparable accuracy. In brackets are "
                   "95 % intervals by Student's t over seeds, of saved and kept from the logarithms of the seeds' ratios. "
                   f"`{stats.HOLDS}`: the whole intervals of time and FLOPs saved lie above "
                   f"{LEAST_SAVED}, that of ACC kept above {CLAIMED_KEPT}, and those of the two differences above 0 (random "
                   "real images; all real images at the same steps; both with the same labels). "
                   f"`{stats.NUMBERS_ONLY}`: time, FLOPs and ACC meet the claim, but the images are not shown to be better "
                   f"than both. `{stats.FAILS}`: an interval of saved or kept lies wholly below. `{stats.NOT_SHOWN}`: none of "
                   "these. A dash as a claim: the method is at chance on real images too, so there is no accuracy to keep. "
                   f"`, n 2` in a cell: fewer seeds than in the column n. {SLOW}", header, table)


def runs_section(rows: Rows, wanted=tuple(COLUMNS), expected=()) -> Section:
    """The fairness table, a row per method and source; `wanted` are names of COLUMNS, `expected` methods that are due."""
    numbers = stats.summaries(rows)
    found = {(METHODS.get(method, method), arm.name): one for method, arms in numbers.items() for arm, one in arms.items()}
    columns = {name: COLUMNS[name] for name in wanted if any(cell(one, name) != NONE for one in found.values())}
    absent = [COLUMNS[name][0] for name in wanted if name not in columns]
    due = [(METHODS[method], source) for method in expected for source in ("real", "random", "distilled")]
    order = [*METHODS.values(), *(method for method, _ in found)]
    keys = sorted(dict.fromkeys([*found, *due]), key=lambda key: order.index(key[0]))
    text = ("Mean ± standard deviation over seeds (n), tested on real images after the last task. `real` trains for its full "
            "number of steps, `real, same steps` takes as many as the small sets. Labels are hard and the memory is "
            "the stream's unless named. Time saved and ACC kept are against `real`, over common seeds. " + SLOW + " "
            + ("Peak memory on a CPU is that of the process so far, which may have done other runs before. "
               if "peak_memory_bytes" in columns else "")
            + common_start(rows) + stats.equal_in_rows(rows)
            + (f" Not in these results: {', '.join(absent)}." if absent else ""))
    return Section("Runs", text, ("Method", "Source", *(head for head, _, _ in columns.values()), "n"),
                   [(*key, *(cell(found.get(key), name, scale, digits) for name, (_, scale, digits) in columns.items()),
                     str(found[key]["n"]) if key in found else NOT_RUN) for key in keys])


def common_start(rows: Rows) -> str:
    """The start of Task Arithmetic's experts, its own accuracy and its seconds; empty where runs do not name it."""
    runs = [run for runs in runs_by_arm(rows).values() for run in runs if "start_note" in run.metrics]
    if not runs:
        return ""
    notes, seconds = sorted({run.metrics["start_note"] for run in runs}), max(run.metrics["start_seconds"] for run in runs)
    alone = sorted({f"{100 * run.metrics['start_acc']:.1f}" for run in runs if "start_acc" in run.metrics}, key=float)
    reached = f", {' to '.join(dict.fromkeys((alone[0], alone[-1])))} % ACC alone" if alone else ""
    shown = notes[0] if len(notes) == 1 else f"{len(notes)} starts"
    cost = f"; its {seconds:.1f} s are not counted" if seconds else ""
    return f"Task Arithmetic's common start: {shown}{reached}{cost}. "


def paired_section(rows: Rows) -> Section:
    paired = stats.differences(rows)
    compared = {(one["method"], name) for one in paired for name in (one["arm"], one["against"])}
    shown = {method: {arm: row for arm, row in arms.items() if (method, arm.name) in compared} for method, arms in rows.items()}
    return Section("Paired differences", "Distilled minus the other, by seed over common seeds (n): mean and 95 % interval by "
                   "Student's t. Random real images of the same count are the fair comparison. "
                   + (stats.equal_in_rows({method: arms for method, arms in shown.items() if arms}) or "Nothing to compare."),
                   ("Method", "Source", "Minus", *(head for head, _ in PAIRED_COLUMNS.values()), "n"),
                   [(METHODS.get(one["method"], one["method"]), one["arm"], one["against"],
                     *(interval_cell(one[name], scale, seeds=one["acc"]["n"]) for name, (_, scale) in PAIRED_COLUMNS.items()),
                     str(one["acc"]["n"]))
                    for one in paired])


def payback_section(rows: Rows, costs: dict[str, float]) -> Section:
    """The number of trainings after which distillation is paid back."""
    title = "Cost of distillation"
    if not costs:
        return Section(title, "Not given (--cost-seconds or --cost-from).")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in costs.items())
    table = []
    for one in stats.paybacks(rows, costs):
        trainings, low = one["trainings"], one["saved_seconds"]["low"]
        doubt = ", in doubt" if low is None or low <= 0 else ""
        table.append((METHODS.get(one["method"], one["method"]), one["arm"], one["against"], f"{one['cost_seconds']:.1f}",
                      interval_cell(one["saved_seconds"]), trainings if trainings == "infinite" else f"{trainings:.1f}{doubt}"))
    return Section(title, f"One distilled set took: {stages}. A teacher counts for soft labels alone. "
                   "N* = C / (T_real - T_distilled) trainings pay it back: infinite where no time is saved, in doubt where the "
                   "95 % interval of the seconds saved contains 0, or there is none."
                   + ("" if CHECKPOINT in costs else " The training of the checkpoint is not counted."),
                   ("Method", "Source", "Against", "Cost C (s)", "Saved a training (s)", "N*"), table)


def starts(results: Results) -> list[Section]:
    """Task Arithmetic by start, refitted head and stream."""
    def best(run: Run) -> dict:     # after the last merge: the highest accuracy, and among equals the lowest loss
        return max(run.metrics["scale_curves"][-1], key=lambda point: (point["accuracy"], -point["loss"]))
    runs = results.of_kind("continual")
    groups = group_by(runs, lambda run: (run.config["stream"], *START.match(run.name).group("refit", "start")))
    shown = sorted(groups.items(), key=lambda pair: (pair[0][0], int(pair[0][1]), list(STARTS).index(pair[0][2])))
    rows = [(stream, STARTS[start], f"{refit} steps" if refit != "0" else "no",
             *(cell({"a": stats.mean_std([run.get(f"metrics.{name}") for run in own])}, "a", 100)
               for name in ("acc", "task_il_acc", "forgetting", "start_acc")),
             " / ".join(f"{scale:g}" for scale in sorted({best(run)["scale"] for run in own})), str(len(own)))
            for (stream, refit, start), own in shown]
    equal = equal_and_not(group_by(runs, lambda run: run.config["stream"]), stats.SETTINGS)
    header = ("Stream", "Common start", "Head refitted", "ACC, Class-IL (%)", "ACC, Task-IL (%)", "Forgetting (points)",
              "ACC of the start alone (%)", "Scale chosen", "n")
    return [Section("Common starts", f"Mean ± standard deviation over seeds (n). {equal} "
                    "Not equal besides: the start, and whether the head is refitted.", header, rows)]


def distilling(results: Results) -> list[Section]:
    """Seconds of each part of making a D4M set, a row per IPC."""
    timed = Results([replace(run, seconds=apart(run.seconds)) for run in results.runs if run.seconds])
    prototypes, images = (measure(grouped(timed, SET_RUNS[kind], kind, "ipc"), {name: f"seconds.{name}" for name in names})
                          for kind, names in SET_SECONDS.items())
    titles = SET_SECONDS["prototypes"] | SET_SECONDS["distilled"]
    rows = []
    for ipc in sorted(prototypes.keys() & images.keys(), key=int):
        one = prototypes[ipc] | images[ipc]
        total = sum(one[name]["mean"] for name in titles)
        rows.append((ipc, *(f"{cell(one, name)} ({100 * one[name]['mean'] / total:.0f} %)" for name in titles), f"{total:.0f}",
                     str(one["n"])))
    return [Section("Cost of a set", "Seconds, mean ± standard deviation over seeds, and the share of the whole. Not counted: "
                    "the training of the diffusion model, and soft labels.",
                    ("IPC", *(f"{title} (s)" for title in titles.values()), "Together (s)", "Seeds (n)"), rows)]


def apart(seconds: dict) -> dict:
    """Seconds in which encoding does not contain the waiting for decoded images."""
    return seconds | ({"encode": seconds["encode"] - seconds["wait"]} if "wait" in seconds else {})


def fashion_rows(runs: list[Run]) -> Rows:
    """Continual runs of Fashion-MNIST with a memory of 500 images: on all real images for the longest run, and on them and on
    streams of 50 images a class for a quarter and for a third of its steps. `curves` have the other lengths.
    """
    runs = [run for run in runs if FASHION_STREAM.search(run.name)]
    longest = max((run.config["steps"] for run in runs if run.config["stream"] == "real"), default=0)
    return continual_rows([run for run in runs if run.config["steps"] in (longest // 4, longest // 3)
                           or run.config["stream"] == "real" and run.config["steps"] == longest])


def stream_images(results: Results, chosen: Results) -> list[Section]:
    """ACC of replay by what the images of the stream are, over common seeds, where others than the usual ones were run."""
    def setting_of(run: Run) -> tuple:
        tested = "held-out images" if run.get("config.validation") else "test images"
        return (tested, run.config["arch"], METHODS[run.config["method"]], run.config["buffer_size"], run.config["labels"],
                f"{run.config['recipe.min_scale']:g}", int(STREAM_ARM.search(run.name)["ipc"]), run.metrics["steps"])
    runs = [run for one in (chosen, results) for run in one.of_kind("continual") if STREAM_ARM.search(run.name)]
    rows = []
    for setting, own in group_by(runs, setting_of).items():
        arms: dict[str, dict[int, Run]] = {}
        for run in own:
            arm = other_images(run) or run.config["stream"]
            join(arms.setdefault(arm, {}), run, f"{setting[2]}, {arm}")
        seeds = set.intersection(*map(set, arms.values()))
        if seeds and arms.keys() - set(SMALL):
            numbers = measure({name: [arm[seed] for seed in seeds] for name, arm in arms.items()}, {"acc": "metrics.acc"})
            rows += [(*map(str, setting), name, cell(numbers[name], "acc", 100), str(len(seeds)))
                     for name in sorted(numbers, key=lambda name: -numbers[name]["acc"]["mean"])]
    return [Section("Images of the streams", "ACC (Class-IL) in percent, mean ± standard deviation over common seeds.",
                    ("Tested on", "Network", "Method", "Memory", "Labels", "Crops from", "IPC", "Steps", "Images of the stream",
                     "ACC (%)", "Seeds (n)"), rows)]


def fashion_payback(results: Results, checkpoint: dict) -> list[Section]:
    """N* of Fashion-MNIST's streams, without and with the seconds in the manifest of the `checkpoint`."""
    rows, sets = fashion_rows(results.runs), [grouped(results, pattern, kind, "ipc") for kind, pattern in SET_RUNS.items()]
    costs = stats.mean_costs([*(run for one in sets for run in one.get("50", [])),
                              *(run for run in results.of_kind("teacher") if run.name == FASHION_TEACHER)])
    with_checkpoint = costs and costs | {CHECKPOINT: sum(checkpoint["seconds"].values())}
    return [payback_section(rows, costs), payback_section(rows, with_checkpoint)]
