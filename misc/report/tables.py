"""Tables of results as sections of words and rows, and how they look as Markdown and as plain text."""

import re
import textwrap
from dataclasses import dataclass, replace
from functools import partial

from misc.report import statistics as stats
from misc.report.results import METHODS, Results, Rows, Run, continual_rows
from misc.report.statistics import CLAIMED_KEPT, CLAIMED_SAVING, equal_and_not, measure
from validate.protocols import NOT_TAKEN

NOT_RUN, NONE, CHECKPOINT = "not run", "–", "checkpoint"
LEAST_SAVED = f"{100 * CLAIMED_SAVING:.0f} %"
IPCS = (1, 2, 5, 10)
DIGITS_STRENGTH = 0.3   # the default of digits
STUDENT = {"accuracy": "metrics.test_accuracy", "seconds": "seconds.train", "steps": "metrics.steps"}
ARM = re.compile(r"seed(?P<seed>\d+)/students/(?P<arm>real|[a-z0-9.-]+?)(-ipc(?P<ipc>\d+))?-(?P<labels>hard|soft)$")
ARM_NAMES = {"weights": "the same at 0.3, loss weighted by cluster size", "medoid": "the same at 0.3, from medoids",
             "lof": "the same at 0.3, outliers removed before k-means", "filter": "the same at 0.7, best of 4 by the teacher",
             "mode": "mode guidance, scale 0.1 for 10 of 20 steps",
             "sre2l": "SRe2L images (from noise, by a teacher)", "mtt": "MTT images, small settings",
             "prototype": "decoded prototypes (strength 0)", "noise": "images from pure noise", "random": "random real images",
             "herding": "real images by herding", "kcenter": "real images by k-center",
             "real": "real training split, whatever the IPC"}
IMAGES = {"distilled": "D4M images", "medoid": "D4M images from medoids", "prototype": "decoded prototypes",
          "noise": "images from noise", "mode": "mode guidance", "autoencoder": "random real images, encoded and decoded",
          "sre2l": "SRe2L images", "mtt": "MTT images", "random": "random real images", "herding": "real images by herding",
          "kcenter": "real images by k-center", "real": "all real training images"}
RUN_ARMS = {"real": "real, whole training split", "random": "real, drawn at random", "prototype": "decoded prototypes",
            "distilled": "D4M images"}
RUN_SETTINGS = {"network": "config.arch", "batch size": "config.batch_size", "epochs": "config.epochs",
                "steps": "metrics.steps"}
EXPECTED = ("joint", "finetune", "er", "agem", "task_arithmetic")    # a quickstart has them; others are shown where found
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
SLOW_SEEDS = f"`n slow`: n seeds took more than {stats.SLOW} times their row's median, so something else ran at the time."
PAIRED_COLUMNS = {name: (COLUMNS[name][0].replace("%", "points"), COLUMNS[name][1]) for name in stats.PAIRED}
STREAM = re.compile(r"seed\d+/streams/(?P<arm>\w+)-ipc(?P<ipc>\d+)/(?P<method>\w+)-distilled(?P<soft>-soft)?-seed\d+$")
OPTIMISED = re.compile(r"seed\d+/distilled/[a-z0-9_]+_(?P<arm>sre2l|mtt)_ipc(?P<ipc>\d+)$")
SET_RUNS = {"prototypes": re.compile(r"/prototypes/[a-z0-9_]+-ipc(?P<ipc>\d+)-kmexpand1$"),
            "distilled": re.compile(r"/distilled/[a-z0-9_]+_ipc(?P<ipc>\d+)_\d+_s[\d.]+_g[\d.]+_kmexpand1$")}
SET_SECONDS = {"prototypes": {"wait": "Reading images", "encode": "Encoding them", "cluster": "k-means"},
               "distilled": {"synthesise": "Making images"}}
LOSSES = {"sre2l": {"cross_entropy": "Cross-entropy of the teacher", "batch_norm": "Distance to its BatchNorm statistics"},
          "mtt": {"loss": "Matching loss"}}
START = re.compile(r"starts/[a-z0-9]+-(?P<start>[a-z0-9]+)-refit(?P<refit>\d+)/")
STARTS = {"random": "random", "task1": "the first task's expert", "distilled": "pre-trained on the distilled set"}
PROTOCOLS = ("d4m", "rded")
PROTOCOL_RUN = re.compile(r"seed\d+/students/protocols/(?P<arm>\w+)-(?P<model>\w+)-(?P<protocol>\w+)-(?P<labels>hard|soft)$")
STORAGE_RUN = re.compile(r"seed\d+/(students/storage/|soft-labels/storage-)(?P<kept>[\w.-]+)$")
KIND_RUN = re.compile(r"seed\d+/students/(?P<kind>\w+-(hard|soft))-(?P<arm>[\w.]+)-ipc(?P<ipc>\d+)$")
KINDS = {"convnet_d3_w128-hard": "hard labels, ConvNet-W128", "resnet18-soft": "soft labels"}    # of the main results
FASHION_STREAM = re.compile(r"/resnet18-memory500/(real|ipc50)/")
FASHION_TEACHER = "teacher-convnet_d3_w64_bn"
DESIGN_RUN = re.compile(r"/(?P<design>[\dx]+|real)/students/(?P<model>\w+)-hard-(random|autoencoder)-ipc(?P<ipc>\d+)$")
AIMS = [(images, least, kind, ipc) for images, least, ipcs in (("distilled", 0, ("10", "50")), ("autoencoder", -2, ("10",)))
        for ipc in ipcs for kind in KINDS]      # of the CIFAR-10 study, in points above random real images


@dataclass(frozen=True)
class Section:
    """A part of a report: words, then a table or a figure (a file beside the report, with its alternative text).

    `held` names what is equal in what a figure compares, `command` what made the data.
    """

    title: str
    says: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    alt: str = ""
    held: str = ""
    command: str = ""


def slow(seconds: dict) -> str:
    """The mark of seconds that were taken while something else ran."""
    return f" ({seconds['slow']} slow)" if seconds.get("slow") else ""


def cell(numbers: dict | None, name: str, scale: float = 1, digits: int = 1) -> str:
    """One number of a table: plain, {"mean", "std"}, or of seconds {"median", "slow"}."""
    if numbers is None:
        return NOT_RUN
    value = numbers[name] if isinstance(numbers[name], dict) else {"mean": numbers[name], "std": None}
    if value["mean"] is None:
        return NONE
    if "median" in value:
        return f"{scale * value['median']:.{digits}f}{slow(value)}"
    spread = "" if value["std"] is None or digits == 0 else f" ± {scale * value['std']:.{digits}f}"
    return f"{scale * value['mean']:.{digits}f}{spread}"


def interval_cell(found: dict | None, scale: float = 1, digits: int = 1, sign: str = "+") -> str:
    """A number with its interval: "+3.9 (1.2 to 6.6)"; a difference with its sign."""
    if found is None or found["mean"] is None:
        return NONE
    low, mean, high = (None if found[name] is None else round(scale * found[name], digits) + 0.0  # no minus zero
                       for name in ("low", "mean", "high"))
    bounds = NONE if low is None else f"{low:.{digits}f} to {high:.{digits}f}"
    return f"{mean:{sign}.{digits}f} ({bounds}){slow(found)}"


def counts(numbers) -> str:
    """The numbers of seeds behind some cells, in the order of these."""
    return " / ".join(dict.fromkeys(str(one["n"]) for one in numbers if one))


def markdown_table(header, rows) -> str:
    """A Markdown table of texts; columns of numbers are right-aligned."""
    marks = [":---" if left else "---:" for left in left_columns(header, rows)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in (header, marks, *rows))


def with_table(says: str, header, rows) -> str:
    """A text and the table below it; a table without rows has not been run."""
    if header and not rows:
        return f"{NOT_RUN.capitalize()}."
    return "\n\n".join(filter(None, [says, rows and markdown_table(header, rows)]))


def plain_table(header, rows) -> str:
    """The same as aligned plain text; a header breaks between words where its column is narrower."""
    widths = [max(map(len, (*name.split(), *column))) for name, column in zip(header, zip(*rows, strict=True), strict=True)]
    heads = [textwrap.wrap(name, width) for name, width in zip(header, widths, strict=True)]
    tall = max(map(len, heads))
    above = zip(*([""] * (tall - len(head)) + head for head in heads), strict=True)
    left = left_columns(header, rows)
    return "\n".join("  ".join(text.ljust(width) if flush else text.rjust(width)
                               for text, width, flush in zip(row, widths, left, strict=True)).rstrip()
                     for row in (*above, ["-" * width for width in widths], *rows))


def left_columns(header, rows) -> list[bool]:
    """Which columns hold words: those in which some cell is neither a number nor a mark of absence."""
    def is_number(text):
        return text in (NOT_RUN, NONE) or text.split(" ")[0].lstrip("-").replace(".", "", 1).isdigit()
    return [not all(is_number(row[place]) for row in rows) for place in range(len(header))]


def plain(sections: list[Section]) -> str:
    """The words and tables of sections for the screen."""
    def wrapped(text: str) -> list[str]:
        return "\n\n".join(textwrap.fill(paragraph, 110) for paragraph in text.split("\n\n")).splitlines()
    return "\n\n".join("\n".join([f"== {section.title}", *wrapped(section.says),
                                  *([plain_table(section.header, section.rows)] if section.rows else [])])
                       for section in sections)


def claim_section(rows: Rows) -> Section:
    """The claim by method and distilled stream: what is saved and kept, and the intervals against the fair rivals."""
    if not (claims := stats.claims(rows)):
        return Section("The claim", f"The {LEAST_SAVED} claim is {NOT_RUN}: it needs ER, A-GEM or Task "
                       "Arithmetic on a distilled stream and on real images, with common seeds.")
    header = ("Method", "Source", "Time saved (%)", "FLOPs saved (%)", "Steps saved (%)", "ACC kept (ratio)", "ACC of real (%)",
              "ACC of the start alone (%)", "ACC − random (points)", "ACC − same steps (points)", "n", "Claim")
    return Section("The claim", f"The claim: {LEAST_SAVED} of the training time saved at comparable accuracy. It "
                   f"`{stats.HOLDS}` where three things are true of whole 95 % intervals (in brackets; Student's t over seeds):"
                   f" time and FLOPs saved lie above {LEAST_SAVED}, ACC kept lies above {CLAIMED_KEPT}, and ACC is above that "
                   "of random real images and of all real images at the same steps. "
                   f"`{stats.NUMBERS_ONLY}`: the first two are true; fewer steps alone then explain the saving. "
                   f"`{stats.FAILS}`: an interval of saved or kept lies wholly below. `{stats.NOT_SHOWN}`: neither. "
                   "A dash: on real images too the method knows only its last task, so there is no accuracy to keep. "
                   "Intervals of saved and kept come from the logarithms of the seeds' ratios; time saved compares medians. "
                   f"{SLOW_SEEDS}",
                   header, tuple(map(claim_row, claims)))


def claim_row(one: dict) -> tuple[str, ...]:
    """The claim of one method and stream."""
    rivals = [next((rival for rival in one["rivals"].values() if rival["source"] == source), {})
              for source in ("random", "real")]
    return (METHODS[one["method"]], one["arm"],
            *(interval_cell(one[name], 100, sign="") for name in ("time_saved", "flops_saved")), cell(one, "steps_saved", 100),
            interval_cell(one["acc_kept"], digits=3, sign=""), *(cell(one, name, 100) for name in ("real_acc", "start_acc")),
            *(interval_cell(rival.get("acc"), 100) for rival in rivals), str(one["acc_kept"]["n"] or one["time_saved"]["n"]),
            one["verdict"] or NONE)


def runs_section(rows: Rows, wanted=tuple(COLUMNS), expected=()) -> Section:
    """The fairness table, a row per method and source; `wanted` are names of COLUMNS, `expected` methods that are due."""
    numbers = stats.summaries(rows)
    shown = [(METHODS.get(method, method), arm.name, one) for method, arms in numbers.items() for arm, one in arms.items()]
    columns = {name: COLUMNS[name] for name in wanted
               if any((one[name]["mean"] if isinstance(one[name], dict) else one[name]) is not None for *_, one in shown)}
    absent = [COLUMNS[name][0] for name in wanted if name not in columns]
    found = {(method, source): one for method, source, one in shown}
    due = [(METHODS[method], source) for method in expected for source in ("real", "random", "distilled")]
    order = [*METHODS.values(), *(method for method, _ in found)]
    keys = sorted(dict.fromkeys([*found, *due]), key=lambda key: order.index(key[0]))
    text = ("Mean ± standard deviation over seeds (n), tested on real images after the last task. `real` takes its own epochs; "
            "`real, same steps` takes as many steps as the small sets. Labels are hard and the memory is the stream's unless "
            "named. Time saved and ACC kept are against `real`, over common seeds. " + SLOW_SEEDS + " "
            + common_start(rows) + stats.equal_in_rows(rows)
            + (f" Not in these results: {', '.join(absent)}." if absent else ""))
    return Section("Runs", text, ("Method", "Source", *(head for head, _, _ in columns.values()), "n"),
                   tuple((*key, *(cell(found.get(key), name, scale, digits) for name, (_, scale, digits) in columns.items()),
                          str(found[key]["n"]) if key in found else NOT_RUN) for key in keys))


def common_start(rows: Rows) -> str:
    """The start of Task Arithmetic's experts, its own accuracy and its seconds; empty where runs do not name it."""
    runs = [run for arms in rows.values() for row in arms.values() for run in row.values() if "start_note" in run.metrics]
    if not runs:
        return ""
    notes, seconds = sorted({run.metrics["start_note"] for run in runs}), max(run.metrics["start_seconds"] for run in runs)
    alone = sorted({f"{100 * run.metrics['start_acc']:.1f}" for run in runs if "start_acc" in run.metrics}, key=float)
    reached = f", {' to '.join(dict.fromkeys((alone[0], alone[-1])))} % ACC alone" if alone else ""
    shown = notes[0] if len(notes) == 1 else f"{len(notes)} starts"
    return f"Task Arithmetic's common start: {shown}{reached}; its {seconds:.1f} s are not counted. "


def paired_section(rows: Rows) -> Section:
    paired = stats.differences(rows)
    compared = {(one["method"], name) for one in paired for name in (one["arm"], one["against"])}
    shown = {method: {arm: row for arm, row in arms.items() if (method, arm.name) in compared} for method, arms in rows.items()}
    return Section("Paired differences", "Distilled minus the other, by seed over common seeds (n): mean (of seconds the "
                   "difference of medians) and 95 % interval by Student's t. Random real images of the same count are the fair "
                   "comparison. "
                   + (stats.equal_in_rows({method: arms for method, arms in shown.items() if arms}) or "Nothing to compare."),
                   ("Method", "Source", "Minus", *(head for head, _ in PAIRED_COLUMNS.values()), "n"),
                   tuple((METHODS.get(one["method"], one["method"]), one["arm"], one["against"],
                          *(interval_cell(one[name], scale) for name, (_, scale) in PAIRED_COLUMNS.items()),
                          str(one["acc"]["n"])) for one in paired))


def payback_section(rows: Rows, costs: dict[str, float]) -> Section:
    """The number of trainings after which distillation is paid back."""
    title = "Cost of distillation"
    if not costs:
        return Section(title, "Not given (--cost-seconds or --cost-from).")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in costs.items())
    table = []
    for one in stats.paybacks(rows, costs):
        trainings, low = one["trainings"], one["saved_seconds"]["low"]
        doubt = ", in doubt" if low is not None and low <= 0 else ""
        table.append((METHODS.get(one["method"], one["method"]), one["arm"], one["against"], f"{one['cost_seconds']:.1f}",
                      interval_cell(one["saved_seconds"]), trainings if trainings == "infinite" else f"{trainings:.1f}{doubt}"))
    return Section(title, f"One distilled set took: {stages}. A teacher and soft labels count for soft labels alone. "
                   "N* = C / (T_real - T_distilled) trainings pay it back: infinite where no time is saved, in doubt where the "
                   "95 % interval of the seconds saved contains 0."
                   + ("" if CHECKPOINT in costs else " The training of the checkpoint is not counted."),
                   ("Method", "Source", "Against", "Cost C (s)", "Saved a training (s)", "N*"), tuple(table))


def starts(results: Results) -> list[Section]:
    """Task Arithmetic by start, refitted head and stream."""
    def best(run: Run) -> dict:     # after the last merge: the highest accuracy, and among equals the lowest loss
        return max(run.metrics["scale_curves"][-1], key=lambda point: (point["accuracy"], -point["loss"]))
    groups, streams = {}, {}
    for run in results.of_kind("continual"):
        found = START.match(run.name)
        groups.setdefault((run.config["stream"], int(found["refit"]), found["start"]), []).append(run)
        streams.setdefault((run.config["stream"],), []).append(run)
    shown = sorted(groups.items(), key=lambda pair: (*pair[0][:2], list(STARTS).index(pair[0][2])))
    rows = [(stream, STARTS[start], f"{refit} steps" if refit else "no",
             *(cell({"a": stats.mean_std([run.get(f"metrics.{name}") for run in runs])}, "a", 100)
               for name in ("acc", "task_il_acc", "forgetting", "start_acc")),
             " / ".join(f"{scale:g}" for scale in sorted({best(run)["scale"] for run in runs})), str(len(runs)))
            for (stream, refit, start), runs in shown]
    header = ("Stream", "Common start", "Head refitted", "ACC, Class-IL (%)", "ACC, Task-IL (%)", "Forgetting (points)",
              "ACC of the start alone (%)", "Scale chosen", "n")
    return [Section("Common starts", f"Mean ± standard deviation over seeds (n). {equal_and_not(streams, 0, stats.SETTINGS)} "
                    "Not equal besides: the start, and whether the head is refitted.", header, tuple(rows))]


def streams(results: Results) -> list[Section]:
    """Continual learning on the sets of a study: a row per method and way to make images, a column per IPC and labels."""
    groups = grouped(results, STREAM, "continual", "method", "arm", "ipc", "soft")
    numbers, rows = measure(groups, {"acc": "metrics.acc"}), []
    for method, arm in dict.fromkeys(key[:2] for key in groups):
        cells = [numbers.get((method, arm, ipc, soft)) for soft in (None, "-soft") for ipc in ("1", "10")]
        name = ARM_NAMES.get(arm) or f"D4M images, strength {DIGITS_STRENGTH}"
        rows.append((METHODS[method], name, *(cell(one, "acc", 100) for one in cells), counts(cells)))
    equal = setting(sum(groups.values(), []), "arch", "tasks", "recipe.batch_size", "buffer_size")
    return [Section("Streams", "ACC (Class-IL) on the real test digits in percent, mean ± standard deviation over seeds. "
                    f"Equal: {equal}.",
                    ("Method", "Images", *(f"IPC {ipc}, {labels}" for labels in ("hard", "soft") for ipc in (1, 10)),
                     "Seeds (n)"), tuple(rows))]


def losses(results: Results) -> list[Section]:
    """What SRe2L and MTT minimised, before and after, and the seconds it took."""
    rows = []
    for (arm, ipc), runs in grouped(results, OPTIMISED, "distilled", "arm", "ipc").items():
        for name, title in LOSSES[arm].items():
            one, = measure({(): runs}, {"seconds": f"seconds.{'recover' if arm == 'sre2l' else 'match'}", **{
                part: f"metrics.{part}_{name}" for part in ("first", "last")}}).values()
            rows.append((ARM_NAMES[arm], ipc, title, *(cell(one, part, digits=3) for part in ("first", "last")),
                         cell(one, "seconds", digits=0), str(one["n"])))
    return [Section("Losses", "Mean ± standard deviation over seeds. SRe2L: of the noise and of the images as written, without "
                    "crops. MTT: over the first and the last 5 % of the iterations; below 1 the student ends nearer to the "
                    "expert than it started; the seconds are without the experts.",
                    ("Images", "IPC", "Loss", "Before", "After", "The set took (s)", "Seeds (n)"), tuple(rows))]


def distilling(results: Results) -> list[Section]:
    """Seconds of each part of making a D4M set, a row per IPC."""
    found: dict[str, dict] = {}
    for kind, names in SET_SECONDS.items():
        groups = grouped(replace(results, runs=[run for run in results.runs if run.seconds]), SET_RUNS[kind], kind, "ipc")
        for (ipc,), one in measure(groups, {name: f"seconds.{name}" for name in names}).items():
            found[ipc] = found.get(ipc, {}) | one
    titles = SET_SECONDS["prototypes"] | SET_SECONDS["distilled"]
    rows = []
    for ipc, one in sorted(found.items(), key=lambda pair: int(pair[0])):
        if not titles.keys() <= one.keys():     # its images are not made yet, or its prototypes not collected
            continue
        total = sum(one[name]["mean"] for name in titles)
        rows.append((ipc, *(f"{cell(one, name)} ({100 * one[name]['mean'] / total:.0f} %)" for name in titles), f"{total:.0f}",
                     str(one["n"])))
    return [Section("Cost of a set", "Seconds, mean ± standard deviation over seeds, and the share of the whole. Not counted: "
                    "the training of the diffusion model, and soft labels.",
                    ("IPC", *(f"{title} (s)" for title in titles.values()), "Together (s)", "Seeds (n)"), tuple(rows))]


def fashion_rows(results: Results) -> Rows:
    """Continual runs of Fashion-MNIST with a memory of 500 images: on real images and on streams of 50 a class."""
    return continual_rows([run for run in results.runs if FASHION_STREAM.search(run.name)])


def stream_crops(current: Results, earlier: Results) -> list[Section]:
    """ACC of Fashion-MNIST's replay by the smallest crop of the streams' images, on test and on held-out images."""
    runs: dict[tuple, dict[tuple, list[Run]]] = {}      # by stream, labels and steps, then by images tested on and crop
    for run in [*current.of_kind("continual"), *earlier.of_kind("continual")]:
        if run.config["method"] == "er" and FASHION_STREAM.search(run.name):
            row = runs.setdefault((run.config["stream"], run.config.get("labels", "hard"), run.metrics["steps"]), {})
            tested = "held-out" if run.get("config.validation") else "test"
            row.setdefault((tested, run.config["recipe.min_scale"]), []).append(run)
    found = {key: measure(row, {"acc": "metrics.acc"}) for key, row in runs.items()}
    columns = sorted({column for row in found.values() for column in row}, reverse=True)
    order = ("real", "random", "distilled")
    rows = []
    for (stream, labels, steps), row in sorted(found.items(), key=lambda one: (order.index(one[0][0]), *one[0][1:])):
        cells = [row.get(column) for column in columns]
        rows.append((f"{stream}, {labels} labels", str(steps), *(cell(one, "acc", 100) for one in cells), counts(cells)))
    return [Section("Crops of the streams", "ACC (Class-IL) of ER with a memory of 500 images, in percent.",
                    ("Stream", "Steps", *(f"{'whole images' if crop == 1 else f'crops from {crop}'}, {tested} images"
                                          for tested, crop in columns), "Seeds (n)"), tuple(rows))]


def fashion_payback(results: Results, checkpoint: dict) -> list[Section]:
    """N* of Fashion-MNIST's streams, without and with the seconds in the manifest of the `checkpoint`."""
    rows, sets = fashion_rows(results), {kind: grouped(results, pattern, kind, "ipc") for kind, pattern in SET_RUNS.items()}
    costs = stats.mean_costs([*(run for one in sets.values() for run in one.get(("50",), [])),
                              *(run for run in results.of_kind("teacher") if run.name == FASHION_TEACHER)])
    with_checkpoint = costs and costs | {CHECKPOINT: sum(checkpoint["seconds"].values())}
    return [payback_section(rows, costs), payback_section(rows, with_checkpoint)]


def autoencoders(results: Results) -> list[Section]:
    """PSNR of each design, and accuracy of students of the same random real images, as they are and encoded and decoded."""
    found = measure(grouped(results, DESIGN_RUN, "student", "design", "model", "ipc"), STUDENT)
    columns = sorted({key[1:] for key in found}, key=lambda key: (key[0], int(key[1])))
    psnr = {run.name: f"{run.need('metrics.psnr'):.2f}" for run in results.of_kind("ldm")}
    rows = [(design, psnr.get(design, NONE), *(cell(found.get((design, *key)), "accuracy", 100) for key in columns),
             counts(one for key, one in found.items() if key[0] == design))
            for design in sorted({key[0] for key in found}, key=lambda name: (name == "real", name))]
    return [Section("Autoencoders", "Latents of each autoencoder (channels x sides), its PSNR on training images, and accuracy "
                    "on held-out images (%) of students with hard labels: of random real images encoded and decoded by it, or "
                    "as they are (`real`).",
                    ("Latents", "PSNR (dB)", *(f"{model}, IPC {ipc}" for model, ipc in columns), "Seeds (n)"), tuple(rows))]


def grouped(results: Results, pattern: re.Pattern, kind: str, *names: str) -> dict[tuple, list[Run]]:
    """Runs of one kind whose names fit a pattern, by its groups `names`."""
    groups: dict[tuple, list[Run]] = {}
    for run in results.of_kind(kind):
        if found := pattern.search(run.name):
            groups.setdefault(tuple(found[name] for name in names), []).append(run)
    return groups


def student_numbers(results: Results) -> dict[tuple, dict]:
    """Numbers over seeds of a study's students by (arm, ipc or None, labels)."""
    groups = grouped(results, ARM, "student", "arm", "ipc", "labels")
    return {(arm, ipc and int(ipc), labels): one for (arm, ipc, labels), one in measure(groups, STUDENT).items()}


def steps_taken(numbers: dict[tuple, dict], place: int, names: dict, between: str) -> str:
    """Steps by the part `place` of a group's key, which `names` introduces."""
    steps = {part: sorted({round(one["steps"]["mean"]) for key, one in numbers.items() if key[place] == part})
             for part in names}
    return ", ".join(f"{names[part]}{between.join(map(str, found))}" for part, found in steps.items() if found)


def strengths(numbers: dict) -> list[str]:
    return sorted({arm for arm, *_ in numbers if arm.startswith("d4m")})


def student_table(title: str, arms: tuple[str, ...], labels: tuple[str, ...], results: Results) -> list[Section]:
    """A row per arm, a column per kind of label and IPC; "d4m" stands for all strengths."""
    numbers, rows = student_numbers(results), []
    for arm in (one for name in arms for one in (strengths(numbers) if name == "d4m" else [name])):
        cells = [numbers.get((arm, None if arm == "real" else ipc, kind)) for kind in labels for ipc in IPCS]
        name = ARM_NAMES.get(arm) or f"D4M images, strength {arm.removeprefix('d4m-s')}"
        rows.append((name, *(cell(one, "accuracy", 100) for one in cells), counts(cells)))
    taken = steps_taken(numbers, 1, {**{ipc: f"IPC {ipc}: " for ipc in IPCS}, None: "real split: "}, " to ")
    return [Section(title, "Accuracy of ResNet-18 on the real test digits in percent, mean ± standard deviation over seeds. "
                    f"Equal: the teacher, and the steps of a column ({taken}).",
                    ("Trained on", *(f"IPC {ipc}, {kind}" for kind in labels for ipc in IPCS), "Seeds (n)"), tuple(rows))]


def run_students(results: Results) -> Section:
    """The students of one run, `students/<arm>-<labels>[-seed<k>]`, by what they were trained on."""
    groups: dict[tuple, list[Run]] = {}
    for run in results.of_kind("student"):
        groups.setdefault((run.name.split("/")[-1].split("-")[0], run.need("config.labels")), []).append(run)
    numbers = measure(groups, {**STUDENT, "images": "metrics.train_images"})
    by_name, rows = {run.name: run for run in results.runs}, []
    for arm, name in RUN_ARMS.items():
        if arm == "prototype" and not any(key[0] == arm for key in numbers):
            continue    # an extra, not one of the comparison's three
        hard, soft = numbers.get((arm, "hard")), numbers.get((arm, "soft"))
        stored = by_name.get(f"soft-labels/{arm}")
        rows.append((name, cell(hard or soft, "images", digits=0), cell(hard, "accuracy", 100), cell(soft, "accuracy", 100),
                     cell(hard, "seconds"), cell(soft, "seconds"),
                     f"{stored.need('metrics.bytes') / 1e6:.2f}" if stored else NOT_RUN,
                     " / ".join(dict.fromkeys(str(one["n"]) for one in (hard, soft) if one)) or NOT_RUN))
    teacher = by_name.get("teacher")
    reached = f"{100 * teacher.need('metrics.test_accuracy'):.1f} %" if teacher else NOT_RUN
    return Section("Students", f"Accuracy on the real test images; teacher: {reached}. "
                   + equal_and_not(groups, 0, RUN_SETTINGS),
                   ("Trained on", "Images", "Hard labels, accuracy (%)", "Soft labels, accuracy (%)", "Training, hard (s)",
                    "Training, soft (s)", "Soft labels (MB)", "Seeds (n)"), tuple(rows))


def made_with(results: Results, what: str) -> str:
    """The hardware, code or packages that results name, each once."""
    found = {run.made[what] if isinstance(run.made[what], str) else " ".join(f"{name} {version}" for name, version in
             run.made[what].items()) for run in results.runs if what in run.made}
    return "; ".join(sorted(found))


def run_continual(results: Results) -> list[Section]:
    """The claim and the fairness table of one run, with what was not run."""
    rows = continual_rows(results.runs)
    costs = stats.mean_costs(results.runs)
    return [claim_section(rows), runs_section(rows, SHORT_COLUMNS, EXPECTED),
            *([payback_section(rows, costs)] if rows and costs else [])]


def quickstart(results: Results) -> list[Section]:
    minutes = sum(results.seconds.values()) / 60
    return [Section("Quickstart", f"One run on {made_with(results, 'hardware')}: {minutes:.1f} minutes."),
            run_students(results), *run_continual(results)]


def stages(results: Results) -> list[Section]:
    rows = [*results.seconds.items(), ("total", sum(results.seconds.values()))]
    return [Section("Stages", "Wall-clock seconds of each stage with the start of its processes; of a stage that ran again the "
                    "longest run.", ("Stage", "Seconds"),
                    tuple((name, f"{seconds:.0f}") for name, seconds in rows) if results.seconds else (("all", NOT_RUN),))]


def students_by_name(results: Results) -> list[Section]:
    groups: dict[tuple, list[Run]] = {}
    for run in results.of_kind("student"):
        name = re.sub(r"\bseed\d+/|-seed\d+$", "", run.name).replace("students/", "")
        groups.setdefault((name,), []).append(run)
    numbers = measure(groups, {**STUDENT, "images": "metrics.train_images"})
    held_out = max((run.config.get("validation", 0) for run in results.of_kind("student")), default=0)
    tested = f"{held_out:,} training images that were held out" if held_out else "the real test images"
    return [Section("Students", f"Accuracy on {tested}, mean ± standard deviation over seeds.",
                    ("Run", "Accuracy (%)", "Images", "Steps", "Training (s)", "Seeds (n)"),
                    tuple((name, cell(one, "accuracy", 100), cell(one, "images", digits=0), cell(one, "steps", digits=0),
                           cell(one, "seconds"), str(one["n"])) for (name,), one in numbers.items()))] if numbers else []


def students_by_images(results: Results) -> list[Section]:
    """A study's students: a row for each way to make the images, a column for each network, labels and IPC."""
    numbers = measure(grouped(results, KIND_RUN, "student", "arm", "kind", "ipc"), STUDENT)
    columns = sorted({key[1:] for key in numbers}, key=lambda key: (key[0], int(key[1])))
    rows = []
    for arm in sorted({key[0] for key in numbers}, key=[*IMAGES, *(key[0] for key in numbers)].index):
        cells = [numbers.get((arm, *column)) for column in columns]
        rows.append((IMAGES.get(arm) or f"D4M images, strength {arm.removeprefix('s')}",
                     *(cell(one, "accuracy", 100) for one in cells), counts(cells)))
    taken = steps_taken(numbers, 2, {ipc: f"IPC {ipc}: " for ipc in dict.fromkeys(ipc for _, ipc in columns)}, " or ")
    return [Section("Students", "Accuracy on the real test images in percent, mean ± standard deviation over seeds; each seed "
                    f"has images and a student of its own. Teacher: {teachers(results)}. Steps: {taken}.",
                    ("Trained on", *(f"{kind.replace('-', ', ')}, IPC {ipc}" for kind, ipc in columns), "Seeds (n)"),
                    tuple(rows))]


def setting(runs: list[Run], *names: str) -> str:
    """Settings of runs, equal or as a list."""
    found = {name: sorted({str(run.config[name]) for run in runs}) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in found.items())


def teachers(results: Results) -> str:
    """The teachers, their accuracy and epochs."""
    def reached(run: Run) -> str:
        return f"{100 * run.metrics['test_accuracy']:.1f} %" + (" of held-out images" if run.config.get("validation") else "")
    return " and ".join(f"{run.config['arch']} with {reached(run)} after {run.config['epochs']} epochs"
                        for run in results.of_kind("teacher"))


def protocols(results: Results) -> list[Section]:
    groups = grouped(results, PROTOCOL_RUN, "student", "arm", "model", "protocol", "labels")
    numbers, rows = measure(groups, STUDENT), []
    for model in dict.fromkeys(key[1] for key in numbers):
        for arm in ("distilled", "random"):
            cells = [numbers.get((arm, model, protocol, labels)) for labels in ("hard", "soft") for protocol in PROTOCOLS]
            rows.append((model, IMAGES[arm], *(cell(one, "accuracy", 100) for one in cells), counts(cells)))
    taken = steps_taken(numbers, 2, {protocol: f"{protocol} " for protocol in PROTOCOLS}, " or ")
    equal = setting(sum(groups.values(), []), "epochs", "stem", "input_size", "mix_type", "min_scale_crops", "flip")
    return [Section("Protocols", "Accuracy on the real test images in percent, mean ± standard deviation over seeds. Teacher: "
                    f"{teachers(results)}. Equal: {equal}. Not equal: steps ({taken}), batch size, learning-rate schedule, and "
                    "with soft labels stored views against new ones. Not in this code: "
                    f"{'; '.join(f'of {protocol}, {NOT_TAKEN[protocol]}' for protocol in PROTOCOLS)}.",
                    ("Student", "Trained on", *(f"{labels}, {protocol}" for labels in ("hard", "soft")
                                                for protocol in PROTOCOLS), "Seeds (n)"), tuple(rows))]


def storage_points(results: Results) -> dict[str, dict]:
    """By way to keep soft labels: bytes, logits and epochs stored, accuracy over seeds; the most bytes first."""
    students = measure(grouped(results, STORAGE_RUN, "student", "kept"), STUDENT)
    labels = measure(grouped(results, STORAGE_RUN, "soft_labels", "kept"), {
        name: f"metrics.{name}" for name in ("bytes", "stored_epochs", "epochs", "stored_logits", "classes", "views")})
    points = {kept: {**one, **students[kept,]} for (kept,), one in labels.items() if (kept,) in students}
    return dict(sorted(points.items(), key=lambda item: -item[1]["bytes"]["mean"]))


def storage(results: Results) -> list[Section]:
    points = storage_points(results)
    most = max((one["bytes"]["mean"] for one in points.values()), default=0)
    rows = [(f"{one['stored_logits']['mean']:.0f} of {one['classes']['mean']:.0f}",
             f"{one['stored_epochs']['mean']:.0f} of {one['epochs']['mean']:.0f}", f"{one['bytes']['mean'] / 1e3:.1f}",
             f"{one['bytes']['mean'] / one['views']['mean']:.0f}", f"{most / one['bytes']['mean']:.1f}",
             cell(one, "accuracy", 100), str(one["n"])) for one in points.values()]
    runs = sum(grouped(results, STORAGE_RUN, "student", "kept").values(), [])
    return [Section("Label bytes", "ResNet-18 on D4M images. Equal: "
                    f"{setting(runs, 'epochs', 'batch_size', 'temperature', 'lr_schedule')}. Bytes are those of the files: "
                    "logits as float16, and the draws of every view.",
                    ("Logits stored", "Epochs stored", "Labels (kB)", "Bytes per view", "Times smaller", "Accuracy (%)",
                     "Seeds (n)"), tuple(rows))]


def parts(results: Results) -> list[Section]:
    listed = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in results.seconds.items())
    return [Section("Time", f"Minutes of `{results.command}` ({made_with(results, 'hardware')} a process): {listed}; "
                    f"{sum(results.seconds.values()) / 60:.1f} in all.")]


def targets(results: Results) -> list[Section]:
    """The study's aims, what it reached, and whether the interval says that this is enough."""
    values = {key: {run.need("config.seed"): run.need("metrics.test_accuracy") for run in runs}
              for key, runs in grouped(results, KIND_RUN, "student", "arm", "kind", "ipc").items()}
    rows = []
    for images, least, kind, ipc in AIMS:
        own, other = (values.get((arm, kind, ipc), {}) for arm in (images, "random"))
        found = stats.interval([100 * (own[seed] - other[seed]) for seed in own.keys() & other.keys()])
        rows.append((f"{IMAGES[images]}, IPC {ipc}, {KINDS[kind]}", f"above {least}",
                     interval_cell(found) if found["n"] else NOT_RUN, stats.side(found, least)))
    return [Section("Aims", "Accuracy minus that of random real images with the same seed, in points. An aim holds where the "
                    "whole 95 % interval, in brackets, lies on that side.", ("Images", "Aim", "Reached", "Verdict"),
                    tuple(rows))]


def headline(digits: Results, fashion: Results, cifar10: Results, streams: Results) -> list[Section]:
    """The main results in a few rows: distilled images beside random real ones and all real images."""
    own = student_numbers(digits)
    found = measure(grouped(fashion, KIND_RUN, "student", "kind", "arm", "ipc"), STUDENT)
    rows = [(f"Fashion-MNIST, {ipc} image{'s' if ipc > 1 else ''} per class, {how}", "accuracy (%)",
             *(cell(found.get((kind, arm, str(ipc))), "accuracy", 100) for arm in ("distilled", "random")), NONE)
            for kind, how in KINDS.items() for ipc in (1, 10)]
    for kind in ("hard", "soft"):
        cells = (own.get((arm, 10 if arm != "real" else None, kind)) for arm in (f"d4m-s{DIGITS_STRENGTH}", "random", "real"))
        rows.append((f"Digits, 10 images per class, {kind} labels", "accuracy (%)",
                     *(cell(one, "accuracy", 100) for one in cells)))
    found = measure(grouped(cifar10, KIND_RUN, "student", "kind", "arm", "ipc"), STUDENT)
    rows += [(f"CIFAR-10, 10 images per class, {how}", "accuracy (%)",
              *(cell(found.get((kind, arm, "10")), "accuracy", 100) for arm in ("distilled", "random")), NONE)
             for kind, how in KINDS.items()]
    for name, runs in (("Fashion-MNIST", fashion_rows(fashion)), ("Digits", continual_rows(streams.runs))):
        arms = {arm.name: one for arm, one in stats.summaries(runs).get("er", {}).items()}
        if "distilled" in arms:
            saved = cell(arms["distilled"], "flops_saved", 100)
            rows.append((f"{name}, Experience Replay, {saved} % of the FLOPs saved", "ACC (%)",
                         *(cell(arms.get(source), "acc", 100) for source in ("distilled", "random", "real"))))
    return [Section("Main results", "", ("On real test images, ResNet-18 unless named", "Measure", "D4M images",
                                         "Random real images", "All real images"), tuple(rows))]


def faults(result: dict) -> list[Section]:
    """Kills by stage and processes; exit code and message on a full and on a read-only disk."""
    kills, disks = result["kills"], result["disks"]
    identical, recognised = sum(one["identical"] for one in kills), sum(one["recognised"] for one in disks)
    keys = ("stage", "processes", "kills", "identical", "with_files", "mid_file")
    return [Section("Kills", f"{identical} of {sum(one['kills'] for one in kills)} killed runs ended byte-identical to an "
                    f"undisturbed run; {recognised} of {len(disks)} full and read-only disks were recognised "
                    f"({result['hardware']}).",
                    ("Stage", "Processes", "Kills", "Byte-identical after the resume", "Killed with files written",
                     "Killed in mid-file", "Undisturbed (s)"),
                    tuple((*(str(one[key]) for key in keys), f"{one['seconds']:.1f}") for one in kills)),
            Section("Disks", "", ("Fault", "Stage", "Exit code", "Message", "The same command afterwards"),
                    tuple((one["fault"], one["stage"], str(one["exit"]),
                           one["message"].removeprefix("error: ").partition(";")[0],
                           "byte-identical" if one["identical"] else "differs") for one in disks))]


STUDENT_TABLES = {
    "digits": ("Students", (f"d4m-s{DIGITS_STRENGTH}", "weights", "prototype", "random", "herding", "real"), ("hard", "soft")),
    "arms-hard": ("Every arm, hard labels", ("d4m", *ARM_NAMES), ("hard",)),
    "arms-soft": ("Every arm, soft labels", ("d4m", *ARM_NAMES), ("soft",))}
COMPARISON = {name: lambda results, make=make: [make(continual_rows(results.runs))]
              for name, make in (("claim", claim_section), ("fairness", runs_section), ("paired", paired_section))}
COST = {"payback": lambda results: [payback_section(continual_rows(results.runs), stats.mean_costs(results.runs))]}
TABLES = {"headline": ("digits.jsonl fashion_mnist.jsonl cifar10_small.jsonl continual_digits_resnet18.jsonl", headline),
          "quickstart": ("quickstart.jsonl", quickstart), "stages": ("quickstart.jsonl", stages),
          **{name: ("digits.jsonl", partial(student_table, *what)) for name, what in STUDENT_TABLES.items()},
          "protocols": ("matching_digits.jsonl", protocols), "protocols-cifar10": ("matching_cifar10.jsonl", protocols),
          "storage": ("matching_digits.jsonl", storage),
          "faults": ("faults.json", faults),
          "streams": ("digits.jsonl", streams), "losses": ("digits.jsonl", losses),
          **{f"{name}-{network}": (f"continual_digits_{network}.jsonl", make) for network in ("resnet18", "resnet50")
             for name, make in (COMPARISON | COST).items()}, "starts": ("continual_digits_starts.jsonl", starts),
          **{f"{name}-cifar10": ("cifar10_small.jsonl", make) for name, make in (
              ("parts", parts), ("targets", targets), ("students", students_by_images), ("claim", COMPARISON["claim"]))},
          "autoencoders-cifar10": ("cifar10_autoencoders.jsonl", autoencoders),
          **{f"{name}-fashion": ("fashion_mnist.jsonl", lambda results, make=make: [make(fashion_rows(results))])
             for name, make in (("claim", claim_section), ("runs", partial(runs_section, wanted=SHORT_COLUMNS)))},
          "crops-fashion": ("fashion_mnist.jsonl fashion_mnist_crops.jsonl", stream_crops),
          "payback-fashion": ("fashion_mnist.jsonl ../../distillation/checkpoints/fashion-ldm/manifest.json", fashion_payback),
          "losses-fashion": ("fashion_mnist.jsonl", losses), "distilling-fashion": ("fashion_mnist.jsonl", distilling),
          "autoencoder-fashion": ("fashion_mnist_autoencoder.jsonl", students_by_name),
          "recipes-fashion": ("fashion_mnist_recipes.jsonl", students_by_name),
          "choice-fashion": ("fashion_mnist_choice.jsonl", students_by_name)}


def fill(text: str, table_of) -> str:
    """Replace what stands between the marks of each table; an end mark is added where there is none."""
    def filled(found: re.Match) -> str:
        table = "\n\n".join(with_table(part.says, part.header, part.rows) for part in table_of(found[1]))
        return f"<!-- table: {found[1]} -->\n{table}\n<!-- end: {found[1]} -->"
    return re.sub(r"<!-- table: ([a-z0-9-]+) -->(?:.*?<!-- end: \1 -->)?", filled, text, flags=re.DOTALL)
