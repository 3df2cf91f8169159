"""What a whole run would take, before it is begun: time, disk and memory of each stage.

    python -m misc.plan --dataset imagenet --ipc 50 --gpus 8
    python -m misc.plan --dataset digits --against runs/quickstart/result.json

Settings are those of the data set's shell scripts (of digits: of scripts/quickstart.sh), read from what the scripts would
start; their variables (QUICK=1) and the flags below change them. Seconds of one unit of each kind of work are measured here by
doing a few, or read from a file; for GPUs that are not here they are computed from counted operations at --tflops. With
--against, a measured run stands beside the plan, and a stage that differs by more than --tolerance ends it with exit code 1.
"""

from pathlib import Path

from scripts.cli import InputError, Parser, check_range, run

NAMES = {"imagenet": "imgnt", "tiny_imagenet": "tinyimgnt", "cifar10": "cifar10", "cifar100": "cifar100"}
SETTINGS = {"ipc": (int, "images per class"), "strength": (float, "of the images"),
            "num_inference_steps": (int, "of the images"), "epochs": (int, "of soft labels and students"),
            "input_size": (int, "pixels of a view"), "arch": (str, "the teacher"),
            "keep_topk": (int, "logits stored of a view"), "keep_epochs": (float, "share of epochs stored")}
HIGHEST = {"strength": 1, "keep_epochs": 1}
EPOCHS_OF = ("matching.generate_soft_label", "validate.train_FKD")  # the teacher's are its own
FEW_SECONDS = 5  # stages below are not judged


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--dataset", default="digits", choices=("digits", *NAMES))
    # settings, as in the stages' own commands (default: what the scripts say)
    for name, (kind, text) in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", type=kind, help=text)
    parser.add_argument("--model", nargs="+", help="one or more students")
    # the machine
    parser.add_argument("--gpus", type=int, default=None, help="processes with a GPU each; 0: the CPU (default: what is here, "
                        "but for ImageNet and the like at least one)")
    parser.add_argument("--tflops", type=float, default=20.0,
                        help="of GPUs that are not here: the TFLOP/s that one of them sustains; an assumption (default: 20)")
    parser.add_argument("--rates", default=None, help="file of measured rates, instead of measuring")
    parser.add_argument("--save-rates", default=None, help="file to write measured rates to")
    parser.add_argument("--clock", default="wall", choices=("wall", "processor"),
                        help="processor: time of the process alone, for a machine busy with other work")
    # what comes of it
    parser.add_argument("--output", default=None, help="result file")
    parser.add_argument("--against", default=None, help="result.json of a quickstart to compare with")
    parser.add_argument("--tolerance", type=float, default=1.5, help="with --against: largest ratio either way")
    args = parser.parse_args()
    for name, (kind, _) in SETTINGS.items():
        if kind is not str and getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), 1 if kind is int else 1e-6, HIGHEST.get(name, 1e9))
    for name, low, high in (("tflops", 1e-3, 1e6), ("gpus", 0, 1e6), ("tolerance", 1, 1e6)):
        if getattr(args, name) is not None:
            check_range(f"--{name}", getattr(args, name), low, high)
    if args.against and args.dataset != "digits":
        raise InputError(f"--against: expected --dataset digits, whose quickstart is compared, found {args.dataset}")
    return args


def main(args):
    import os
    import sys

    commands = with_settings(planned(args.dataset), args)
    if commands[0].threads:  # libraries read it when they are imported; rates are to be of the script's number of threads
        os.environ["OMP_NUM_THREADS"] = commands[0].threads

    import torch

    from misc.plan_table import HEADER, assumptions, rows
    from misc.planned_stages import data_of, stages_of, work_of
    from misc.report.tables import plain_table
    from scripts.artefact import code_version, package_versions, write_json
    data = data_of(args.dataset)
    ipc = next(one.args.ipc for one in commands if one.module == "distillation.gen_prototype")
    check_range("--ipc", ipc, 1, data.largest)
    found = torch.cuda.device_count()
    gpus = args.gpus if args.gpus is not None else found or int(args.dataset != "digits")
    works = [(one, work_of(one, data, ipc)) for one in commands]
    units = list(dict.fromkeys(part.what for _, work in works for part in work.parts))
    known = read_rates(args.rates, units, gpus) if args.rates else find_rates(units, args, gpus, here=not gpus or found > 0)
    stages = stages_of(works, known["rates"], gpus)
    result = {"kind": "plan", "dataset": args.dataset, "ipc": ipc, "gpus": gpus, "stages": stages,
              "seconds": sum(one["seconds"] for one in stages), **known, "code": code_version(), "packages": package_versions()}
    print(plain_table(HEADER, rows(result)) + "\n\n" + "\n".join(assumptions(result)))
    if args.output:
        write_json(Path(args.output), result)
    if args.against and not compare(stages, Path(args.against), args.tolerance):
        sys.exit(1)


def planned(dataset: str) -> list:
    """The commands of a data set's scripts, stage by stage."""
    from misc.stage_commands import commands_of
    from scripts.cli import ROOT
    if dataset == "digits":
        return commands_of("scripts/quickstart.sh")
    ending = f"_{NAMES[dataset]}"
    training = "" if dataset == "imagenet" else ending
    scripts = {"prototypes": f"distillation/gen_prototype{ending}.sh", "images": f"distillation/gen_syn_image{ending}.sh",
               "teacher": f"matching/train_teacher{ending}.sh", "soft labels": f"matching/matching{training}.sh",
               "student": f"validate/train_FKD{training}.sh"}
    return [one for stage, script in scripts.items() if (ROOT / script).exists() for one in commands_of(script, stage)]


def with_settings(commands: list, args) -> list:
    """The commands with the settings that were given, each for the commands that have it; a student for each --model."""
    from argparse import Namespace
    from dataclasses import replace
    changed = []
    for one in commands:
        given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None and hasattr(one.args, name)}
        if one.module not in EPOCHS_OF:
            given.pop("epochs", None)
        own = replace(one, args=Namespace(**{**vars(one.args), **given}))
        students = args.model if args.model and one.module == "validate.train_FKD" else []
        changed += [replace(own, stage=f"{one.stage}, {model}", args=Namespace(**{**vars(own.args), "model": model}))
                    for model in students] or [own]
    return changed


def find_rates(units: list, args, gpus: int, here: bool) -> dict:
    """Rates of `units` by name and where they come from: measured, or computed for an accelerator that is not here."""
    import tempfile

    import torch
    from tqdm import tqdm

    from misc.measuring import conditions
    from misc.unit_rates import Bench, computed
    from scripts.artefact import write_json
    rates, device = {}, torch.device("cuda" if here and gpus else "cpu")
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        bench = Bench(device, args.clock, Path(scratch), args.dataset)
        for one in tqdm(units, desc="rates", unit="unit", disable=None):
            rates[str(one)] = (not here and computed(one, args.tflops)) or bench.measure(one)
    known = {"clock": args.clock, "device": device.type if here else "computed", "tflops": None if here else args.tflops,
             **conditions(), "rates": rates}
    if args.save_rates:
        write_json(Path(args.save_rates), {"kind": "rates", **known})
    return known


def read_rates(path: str, units: list, gpus: int) -> dict:
    """The same from a file of --save-rates. Raises InputError where that is none, for another device, or lacks a unit."""
    from scripts.artefact import read_json
    found = read_json(Path(path))
    if not isinstance(found, dict) or found.pop("kind", None) != "rates":
        raise InputError(f"{path}: expected a file of misc.plan --save-rates, found another")
    if (found["device"] == "cpu") != (gpus == 0):
        raise InputError(f"{path}: expected rates of a {'GPU' if gpus else 'CPU'} for --gpus {gpus}, found {found['device']}")
    for one in units:
        if str(one) not in found["rates"]:
            raise InputError(f"{path}: expected a rate of {one}, found none; --save-rates measures it")
    return found


def compare(stages: list[dict], path: Path, tolerance: float) -> bool:
    """Print planned and measured seconds of each stage; whether all that last more than FEW_SECONDS lie within `tolerance`."""
    from misc.report.tables import plain_table
    from scripts.artefact import read_json
    measured = read_json(path).get("seconds", {})
    shown, good = [], True
    for one in stages:
        if one["stage"] not in measured:
            raise InputError(f"{path}: expected seconds of the stage {one['stage']}, found those of {', '.join(measured)}")
        spent, planned = measured[one["stage"]], one["seconds"]
        ratio = planned / max(spent, 1e-9)
        judged = max(spent, planned) > FEW_SECONDS
        good &= not judged or 1 / tolerance <= ratio <= tolerance
        shown.append([one["stage"], f"{planned:.1f}", f"{spent:.0f}", f"{ratio:.2f}" if judged else "–"])
    print("\n" + plain_table(("Stage", "Planned (s)", "Measured (s)", "Ratio"), shown))
    return good


if __name__ == "__main__":
    run(parse_args, main)
