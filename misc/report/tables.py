"""The tables of README.md and misc/*.md by name: the result files of each, and what makes its sections."""

import re
from collections.abc import Callable
from functools import partial

from misc import benchmark, judge, plan
from misc.report import continual
from misc.report import statistics as stats
from misc.report.curves import least_costs
from misc.report.results import METHODS, Results, Run, continual_rows, group_by, grouped
from misc.report.section import NONE, NOT_RUN, Section, cell, counts, interval_cell, with_seeds
from misc.report.statistics import equal_and_not, measure, numbers_of
from validate.protocols import NOT_TAKEN

IPCS = (1, 2, 5, 10)
DIGITS_STRENGTH = 0.3   # the default of digits
STUDENT = {"accuracy": "metrics.test_accuracy", "seconds": "seconds.train", "steps": "metrics.steps"}
ARM = re.compile(r"seed(?P<seed>\d+)/students/(?P<arm>real|[a-z0-9.-]+?)(-ipc(?P<ipc>\d+))?-(?P<labels>hard|soft)$")
ARM_NAMES = {"weights": "D4M images, strength 0.3, loss weighted by cluster size",
             "medoid": "D4M images, strength 0.3, from medoids",
             "lof": "D4M images, strength 0.3, outliers removed before k-means",
             "filter": "D4M images, strength 0.7, best of 4 by the teacher",
             "mode": "mode guidance, scale 0.1 for 10 of 20 steps",
             "sre2l": "SRe2L images (from noise, by a teacher)", "mtt": "MTT images, small settings",
             "prototype": "decoded prototypes (strength 0)", "noise": "images from pure noise", "random": "random real images",
             "herding": "real images by herding", "kcenter": "real images by k-center",
             "real": "real training split, whatever the IPC"}
IMAGES = {"distilled": "D4M images", "medoid": "D4M images from medoids",
          "member": "D4M images from random members", "prototype": "decoded prototypes",
          "noise": "images from noise", "mode": "mode guidance", "autoencoder": "random real images, encoded and decoded",
          "sre2l": "SRe2L images", "mtt": "MTT images", "random": "random real images", "herding": "real images by herding",
          "kcenter": "real images by k-center", "real": "all real training images"}
RUN_ARMS = {"real": "real, whole training split", "random": "real, drawn at random", "prototype": "decoded prototypes",
            "distilled": "D4M images"}
RUN_SETTINGS = {"network": "config.arch", "batch size": "config.batch_size", "epochs": "config.epochs",
                "steps": "metrics.steps"}
EXPECTED = ("joint", "finetune", "er", "agem", "task_arithmetic")    # a quickstart has them; others are shown where found
STREAM = re.compile(r"seed\d+/streams/(?P<arm>\w+)-ipc(?P<ipc>\d+)/(?P<method>\w+)-distilled(?P<soft>-soft)?-seed\d+$")
OPTIMISED = re.compile(r"seed\d+/distilled/[a-z0-9_]+_(?P<arm>sre2l|mtt)_ipc(?P<ipc>\d+)$")
LOSSES = {"sre2l": {"cross_entropy": "Cross-entropy of the teacher", "batch_norm": "Distance to its BatchNorm statistics"},
          "mtt": {"loss": "Matching loss"}}
PARTS = {"ldm": "diffusion model", "teacher": "teacher", "prototypes": "prototypes", "distilled": "images",
         "soft_labels": "soft labels", "student": "students"}
PROTOCOLS = ("d4m", "rded")
PROTOCOL_RUN = re.compile(r"seed\d+/students/protocols/(?P<arm>\w+)-(?P<model>\w+)-(?P<protocol>\w+)-(?P<labels>hard|soft)$")
STORAGE_RUN = re.compile(r"seed\d+/(students/storage/|soft-labels/storage-)(?P<kept>[\w.-]+)$")
KIND_RUN = re.compile(r"seed\d+/students/(?P<kind>\w+-(hard|soft))-(?P<arm>[\w.]+)-ipc(?P<ipc>\d+)$")
KINDS = {"convnet_d3_w128-hard": "hard labels, ConvNet-W128", "resnet18-soft": "soft labels"}    # of the main results
DESIGN_RUN = re.compile(r"/(?P<design>[\dx]+|real)/students/(?P<model>\w+)-hard-(random|autoencoder)-ipc(?P<ipc>\d+)$")
AIMS = [(images, least, kind, ipc) for images, least, ipcs in (("distilled", 0, ("10", "50")), ("autoencoder", -2, ("10",)))
        for ipc in ipcs for kind in KINDS]      # of the CIFAR-10 study, in points above random real images


def streams(results: Results) -> list[Section]:
    """Continual learning on the sets of a study: a row per method and way to make images, a column per IPC and labels."""
    groups = grouped(results, STREAM, "continual", "method", "arm", "ipc", "soft")
    numbers, rows = measure(groups, {"acc": "metrics.acc"}), []
    for method, arm in dict.fromkeys(key[:2] for key in groups):
        keys = [(method, arm, ipc, soft) for soft in (None, "-soft") for ipc in ("1", "10")]
        name = ARM_NAMES.get(arm) or f"D4M images, strength {DIGITS_STRENGTH}"
        rows.append((METHODS[method], name, *with_seeds(numbers, keys, "acc")))
    equal = setting(sum(groups.values(), []), "arch", "tasks", "recipe.batch_size", "buffer_size")
    return [Section("Streams", "ACC (Class-IL) on the real test digits in percent, mean ± standard deviation over seeds. "
                    f"Equal: {equal}.",
                    ("Method", "Images", *(f"IPC {ipc}, {labels}" for labels in ("hard", "soft") for ipc in (1, 10)),
                     "Seeds (n)"), rows)]


def losses(results: Results) -> list[Section]:
    """What SRe2L and MTT minimised, before and after, and the seconds it took."""
    rows = []
    for (arm, ipc), runs in grouped(results, OPTIMISED, "distilled", "arm", "ipc").items():
        for name, title in LOSSES[arm].items():
            one = numbers_of(runs, {"seconds": f"seconds.{'recover' if arm == 'sre2l' else 'match'}",
                                    "first": f"metrics.first_{name}", "last": f"metrics.last_{name}"})
            rows.append((ARM_NAMES[arm], ipc, title, *(cell(one, part, digits=3) for part in ("first", "last")),
                         cell(one, "seconds", digits=0), str(one["n"])))
    return [Section("Losses", "Mean ± standard deviation over seeds. SRe2L: of the noise and of the images as written, without "
                    "crops. MTT: over the first and the last 5 % of the iterations; below 1 the student ends nearer to the "
                    "expert than it started; the seconds are without the experts.",
                    ("Images", "IPC", "Loss", "Before", "After", "The set took (s)", "Seeds (n)"), rows)]


def autoencoders(results: Results) -> list[Section]:
    """PSNR of each design, and accuracy of students of the same random real images, as they are and encoded and decoded."""
    found = students(results, DESIGN_RUN, "design", "model", "ipc")
    columns = sorted({key[1:] for key in found}, key=lambda key: (key[0], int(key[1])))
    psnr = {run.name: f"{run.need('metrics.psnr'):.2f}" for run in results.of_kind("ldm")}
    rows = [(design, psnr.get(design, NONE), *with_seeds(found, [(design, *key) for key in columns]))
            for design in sorted({key[0] for key in found}, key=lambda name: (name == "real", name))]
    return [Section("Autoencoders", "Latents of each autoencoder (channels x sides), its PSNR on training images, and accuracy "
                    "on held-out images (%) of students with hard labels: of random real images encoded and decoded by it, or "
                    "as they are (`real`).",
                    ("Latents", "PSNR (dB)", *(f"{model}, IPC {ipc}" for model, ipc in columns), "Seeds (n)"), rows)]


def students(results: Results, pattern: re.Pattern, *names: str) -> dict:
    """Numbers over seeds of the students whose names fit a pattern, by its groups `names`."""
    return measure(grouped(results, pattern, "student", *names), STUDENT)


def student_numbers(results: Results) -> dict[tuple, dict]:
    """Numbers over seeds of a study's students by (arm, ipc or None, labels)."""
    numbers = students(results, ARM, "arm", "ipc", "labels")
    return {(arm, ipc and int(ipc), labels): one for (arm, ipc, labels), one in numbers.items()}


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
        keys = [(arm, None if arm == "real" else ipc, kind) for kind in labels for ipc in IPCS]
        name = ARM_NAMES.get(arm) or f"D4M images, strength {arm.removeprefix('d4m-s')}"
        rows.append((name, *with_seeds(numbers, keys)))
    taken = steps_taken(numbers, 1, {**{ipc: f"IPC {ipc}: " for ipc in IPCS}, None: "real split: "}, " to ")
    return [Section(title, "Accuracy of ResNet-18 on the real test digits in percent, mean ± standard deviation over seeds. "
                    f"Equal: the steps of a column ({taken}).",
                    ("Trained on", *(f"IPC {ipc}, {kind}" for kind in labels for ipc in IPCS), "Seeds (n)"), rows)]


def tested_on(results: Results) -> str:
    """The images that students were tested on: test images, or training images that --validation held out."""
    held_out = sorted({run.config.get("validation", 0) for run in results.of_kind("student")}) or [0]
    return " or ".join(f"{one:,} training images that were held out" if one else "the real test images" for one in held_out)


def run_students(results: Results) -> list[Section]:
    """The students of one run, `students/<name>-<labels>[-seed<k>]`: a row for each name, which begins with the images."""
    def name_of(run: Run) -> str:
        return re.sub(r"-(hard|soft)(-seed\d+)?$", "", run.name.split("/")[-1])
    runs, rows = results.of_kind("student"), []
    by_name, by_labels = group_by(runs, name_of), group_by(runs, lambda run: (name_of(run), run.need("config.labels")))
    numbers = measure(by_labels, {**STUDENT, "images": "metrics.train_images"})
    stored = {run.name.split("/")[-1]: run for run in results.of_kind("soft_labels")}
    for images in dict.fromkeys([*RUN_ARMS, *(name.split("-")[0] for name in by_name)]):
        due = [] if images not in RUN_ARMS or images == "prototype" else [images]     # prototypes are an extra
        for name in [name for name in by_name if name.split("-")[0] == images] or due:
            hard, soft = numbers.get((name, "hard")), numbers.get((name, "soft"))
            labels = [run for of, run in stored.items() if f"{name}-".startswith(f"{of}-")]
            title = RUN_ARMS.get(images) or IMAGES.get(images, images)
            rows.append((title if name == images else f"{title} ({name})", cell(hard or soft, "images", digits=0),
                         cell(hard, "accuracy", 100), cell(soft, "accuracy", 100), cell(hard, "seconds"), cell(soft, "seconds"),
                         f"{labels[0].need('metrics.bytes') / 1e6:.2f}" if labels else NOT_RUN,
                         counts((hard, soft)) or NOT_RUN))
    teacher = next((run for run in results.runs if run.name == "teacher"), None)
    reached = f"{100 * teacher.need('metrics.test_accuracy'):.1f} %" if teacher else NOT_RUN
    return [Section("Students", f"Accuracy on {tested_on(results)}; teacher: {reached}. {equal_and_not(by_name, RUN_SETTINGS)}",
                    ("Trained on", "Images", "Hard labels, accuracy (%)", "Soft labels, accuracy (%)", "Training, hard (s)",
                     "Training, soft (s)", "Soft labels (MB)", "Seeds (n)"), rows)]


def made_with(results: Results, what: str) -> str:
    """The hardware, code or packages that results name, each once."""
    found = {run.made[what] if isinstance(run.made[what], str) else " ".join(f"{name} {version}" for name, version in
             run.made[what].items()) for run in results.runs if what in run.made}
    return "; ".join(sorted(found))


def run_continual(results: Results) -> list[Section]:
    """The claim and the fairness table of one run, with what was not run."""
    rows = continual_rows(results.runs)
    costs = stats.mean_costs(results.runs)
    return [continual.claim_section(rows), continual.runs_section(rows, continual.SHORT_COLUMNS, EXPECTED),
            *([continual.payback_section(rows, costs)] if rows and costs else [])]


def stages(results: Results) -> list[Section]:
    rows = [*results.seconds.items(), ("total", sum(results.seconds.values()))]
    return [Section("Stages", "Wall-clock seconds of each stage with the start of its processes; of a stage that ran again the "
                    "longest run.", ("Stage", "Seconds"),
                    [(name, f"{seconds:.0f}") for name, seconds in rows] if results.seconds else [("all", NOT_RUN)])]


def students_by_name(results: Results) -> list[Section]:
    groups = group_by(results.of_kind("student"),
                      lambda run: re.sub(r"\bseed\d+/|-seed\d+$", "", run.name).replace("students/", ""))
    numbers = measure(groups, {**STUDENT, "images": "metrics.train_images"})
    return [Section("Students", f"Accuracy on {tested_on(results)}, mean ± standard deviation over seeds.",
                    ("Run", "Accuracy (%)", "Images", "Steps", "Training (s)", "Seeds (n)"),
                    [(name, cell(one, "accuracy", 100), cell(one, "images", digits=0), cell(one, "steps", digits=0),
                      cell(one, "seconds"), str(one["n"])) for name, one in numbers.items()])] if numbers else []


def students_by_images(results: Results) -> list[Section]:
    """A study's students: a row for each way to make the images, a column for each network, labels and IPC."""
    numbers = students(results, KIND_RUN, "arm", "kind", "ipc")
    columns = sorted({key[1:] for key in numbers}, key=lambda key: (key[0], int(key[1])))
    rows = [(IMAGES.get(arm) or f"D4M images, strength {arm.removeprefix('s')}",
             *with_seeds(numbers, [(arm, *column) for column in columns]))
            for arm in sorted({key[0] for key in numbers}, key=[*IMAGES, *(key[0] for key in numbers)].index)]
    taken = steps_taken(numbers, 2, {ipc: f"IPC {ipc}: " for ipc in dict.fromkeys(ipc for _, ipc in columns)}, " or ")
    return [Section("Students", f"Accuracy on {tested_on(results)} in percent, mean ± standard deviation over seeds; each seed "
                    f"has images and a student of its own. Teacher: {teachers(results)}. Steps: {taken}.",
                    ("Trained on", *(f"{kind.replace('-', ', ')}, IPC {ipc}" for kind, ipc in columns), "Seeds (n)"), rows)]


def setting(runs: list[Run], *names: str) -> str:
    """Settings of runs, equal or as a list."""
    found = {name: sorted({str(run.config[name]) for run in runs}) for name in names}
    return ", ".join(f"{name.replace('_', ' ')} {' or '.join(values)}" for name, values in found.items())


def teachers(results: Results) -> str:
    """The teachers that label, their accuracy and epochs."""
    def reached(run: Run) -> str:
        return f"{100 * run.metrics['test_accuracy']:.1f} %" + (" of held-out images" if run.config.get("validation") else "")
    found = results.of_kind("teacher")
    return " and ".join(f"{run.config['arch']} with {reached(run)} after {run.config['epochs']} epochs"
                        for run in [run for run in found if run.name == continual.FASHION_TEACHER] or found)


def protocols(results: Results) -> list[Section]:
    groups = grouped(results, PROTOCOL_RUN, "student", "arm", "model", "protocol", "labels")
    numbers, columns = measure(groups, STUDENT), [(protocol, labels) for labels in ("hard", "soft") for protocol in PROTOCOLS]
    rows = [(model, IMAGES[arm], *with_seeds(numbers, [(arm, model, *column) for column in columns]))
            for model in dict.fromkeys(key[1] for key in numbers) for arm in ("distilled", "random")]
    taken = steps_taken(numbers, 2, {protocol: f"{protocol} " for protocol in PROTOCOLS}, " or ")
    equal = setting(sum(groups.values(), []), "epochs", "stem", "input_size", "mix_type", "min_scale_crops", "flip")
    return [Section("Protocols", "Accuracy on the real test images in percent, mean ± standard deviation over seeds. Teacher: "
                    f"{teachers(results)}. Equal: {equal}. Not equal: steps ({taken}), batch size, learning-rate schedule, and "
                    "with soft labels stored views against new ones. Not in this code: "
                    f"{'; '.join(f'of {protocol}, {NOT_TAKEN[protocol]}' for protocol in PROTOCOLS)}.",
                    ("Student", "Trained on", *(f"{labels}, {protocol}" for protocol, labels in columns), "Seeds (n)"),
                    rows)]


def storage_points(results: Results) -> dict[str, dict]:
    """By way to keep soft labels: bytes, logits and epochs stored, accuracy over seeds; the most bytes first."""
    accuracies = students(results, STORAGE_RUN, "kept")
    labels = measure(grouped(results, STORAGE_RUN, "soft_labels", "kept"), {
        name: f"metrics.{name}" for name in ("bytes", "stored_epochs", "epochs", "stored_logits", "classes", "views")})
    points = {kept: one | accuracies[kept] for kept, one in labels.items() if kept in accuracies}
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
                     "Seeds (n)"), rows)]


def parts(results: Results) -> list[Section]:
    """What a study took, by kind of run. An encoding that one command made for several IPCs is in the result of each."""
    rows = []
    for kind, name in PARTS.items():
        runs = [run for run in results.of_kind(kind) if run.seconds]
        encoded = [(run.name.rpartition("/")[0], run.seconds["encode"]) for run in runs if "encode" in run.seconds]
        again = sum(seconds for _, seconds in encoded) - sum(seconds for _, seconds in set(encoded))    # in several results
        took = sum(run.took for run in runs) - again
        rows.append((name, str(len(runs)), f"{took / 60:.1f}") if runs else (name, NOT_RUN, NOT_RUN))
    return [Section("Time", f"Minutes of one process ({made_with(results, 'hardware')}), summed over runs. An encoding that "
                    "prototypes of several IPCs share counts once.", ("Part", "Runs", "Minutes"), rows)]


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
                    "whole 95 % interval, in brackets, lies on that side.", ("Images", "Aim", "Reached", "Verdict"), rows)]


def headline(digits: Results, fashion: Results, cifar10: Results, streams: Results) -> list[Section]:
    """The main results in a few rows: distilled images beside random real ones and all real images."""
    def of_kinds(data: str, results: Results, *ipcs: int) -> list[tuple[str, ...]]:
        found = students(results, KIND_RUN, "kind", "arm", "ipc")
        rows = []
        for kind, how in KINDS.items():
            for ipc in ipcs:
                *cells, seeds = with_seeds(found, [(kind, arm, str(ipc)) for arm in ("distilled", "random")])
                what = f"{data}, {ipc} image{'s' if ipc > 1 else ''} per class, {how}"
                rows.append((what, "accuracy (%)", *cells, NONE, seeds))
        return rows
    own, arms = student_numbers(digits), ((f"d4m-s{DIGITS_STRENGTH}", 10), ("random", 10), ("real", None))
    rows = [*of_kinds("Fashion-MNIST", fashion, 1, 10),
            *((f"Digits, 10 images per class, {kind} labels", "accuracy (%)",
               *with_seeds(own, [(*arm, kind) for arm in arms])) for kind in ("hard", "soft")),
            *of_kinds("CIFAR-10", cifar10, 10)]
    for name, runs in (("Fashion-MNIST", continual.fashion_rows(fashion.runs)), ("Digits", continual_rows(streams.runs))):
        arms = {arm.name: one for arm, one in stats.summaries(runs).get("er", {}).items()}
        if "distilled" in arms:
            saved = cell(arms["distilled"], "flops_saved", 100)
            rows.append((f"{name}, Experience Replay, {saved} % of the FLOPs saved", "ACC (%)",
                         *with_seeds(arms, ("distilled", "random", "real"), "acc")))
    return [Section("Main results", "Mean ± standard deviation over seeds.",
                    ("On real test images, ResNet-18 unless named", "Measure", "D4M images", "Random real images",
                     "All real images", "Seeds (n)"), rows)]


def faults(result: dict) -> list[Section]:
    """Kills by stage and processes, and how many full and read-only disks were recognised."""
    kills, disks = result["kills"], result["disks"]
    identical, right = sum(one["identical"] for one in kills), sum(one["recognised"] and one["identical"] for one in disks)
    keys = ("stage", "processes", "kills", "identical", "with_files", "mid_file")
    return [Section("Kills", f"{identical} of {sum(one['kills'] for one in kills)} killed runs ended byte-identical to an "
                    f"undisturbed run. {right} of {len(disks)} runs on a full disk or in a read-only folder ended with exit "
                    "code 3 and one line that names the file, and the same command then ended byte-identical "
                    f"({result['hardware']}).",
                    ("Stage", "Processes", "Kills", "Byte-identical after the resume", "Killed with files written",
                     "Killed in mid-file", "Undisturbed (s)"),
                    [(*(str(one[key]) for key in keys), f"{one['seconds']:.1f}") for one in kills])]


def payback(results: Results) -> list[Section]:
    return [continual.payback_section(continual_rows(results.runs), stats.mean_costs(results.runs))]


def of_rows(make: Callable, rows_of: Callable = continual_rows, **options) -> Callable[[Results], list[Section]]:
    """The maker of a table of continual runs."""
    return lambda results: [make(rows_of(results.runs), **options)]


claim = of_rows(continual.claim_section)
STUDENT_TABLES = {
    "digits": ("Students", (f"d4m-s{DIGITS_STRENGTH}", "weights", "prototype", "random", "herding", "real"), ("hard", "soft")),
    "arms-hard": ("Every arm, hard labels", ("d4m", *ARM_NAMES), ("hard",)),
    "arms-soft": ("Every arm, soft labels", ("d4m", *ARM_NAMES), ("soft",))}
TABLES = {"headline": ("digits.jsonl fashion_mnist.jsonl cifar10_small.jsonl continual_digits_resnet18.jsonl", headline),
          **{name: ("digits.jsonl", partial(student_table, *what)) for name, what in STUDENT_TABLES.items()},
          "protocols": ("matching_digits.jsonl", protocols),
          "storage": ("matching_digits.jsonl", storage),
          "faults": ("faults.json", faults),
          "streams": ("digits.jsonl", streams), "losses": ("digits.jsonl", losses),
          **{f"{name}-{network}": (f"continual_digits_{network}.jsonl", make) for network in ("resnet18", "resnet50")
             for name, make in (("claim", claim), ("fairness", of_rows(continual.runs_section)),
                                ("paired", of_rows(continual.paired_section)), ("payback", payback))},
          "starts": ("continual_digits_starts.jsonl", continual.starts),
          **{f"{name}-cifar10": ("cifar10_small.jsonl", make) for name, make in (
              ("parts", parts), ("targets", targets), ("students", students_by_images), ("claim", claim))},
          "autoencoders-cifar10": ("cifar10_autoencoders.jsonl", autoencoders),
          "claim-fashion": ("fashion_mnist.jsonl", of_rows(continual.claim_section, continual.fashion_rows)),
          "runs-fashion": ("fashion_mnist.jsonl", of_rows(continual.runs_section, continual.fashion_rows,
                                                          wanted=continual.SHORT_COLUMNS)),
          "students-photographs": ("photographs.jsonl", students_by_name),
          "runs-photographs": ("photographs.jsonl", of_rows(continual.runs_section, wanted=continual.SHORT_COLUMNS)),
          "payback-fashion": ("fashion_mnist.jsonl ../../distillation/checkpoints/fashion-ldm/manifest.json",
                              continual.fashion_payback),
          "losses-fashion": ("fashion_mnist.jsonl", losses),
          "distilling-fashion": ("fashion_mnist.jsonl", continual.distilling),
          "autoencoder-fashion": ("fashion_mnist_autoencoder.jsonl", students_by_name),
          "recipes-fashion": ("fashion_mnist_recipes.jsonl", students_by_name),
          "choice-fashion": ("fashion_mnist_choice.jsonl", students_by_name),
          "streams-fashion": ("fashion_mnist.jsonl fashion_mnist_choice.jsonl", continual.stream_images),
          "plan": ("plan_imagenet.json", plan.report), "least-cost": ("fashion_mnist.jsonl", least_costs),
          **{f"benchmark-{name}": (f"benchmark_{name}.json", benchmark.report) for name in benchmark.SECTIONS},
          **{f"judge{ending}": (f"judge_{name}.json", judge.report) for ending, name in (
              ("", "digits"), ("-cifar10", "cifar10"), ("-fashion", "fashion"), ("-fashion-convnet", "fashion_convnet"))}}
