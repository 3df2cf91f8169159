"""What a whole run would take, before it is begun: time, disk and memory of each stage.

    python -m scripts.plan --dataset imagenet --ipc 50 --gpus 8
    python -m scripts.plan --dataset digits --against runs/quickstart/result.json

Settings are those of the data set's shell scripts (of digits: of scripts/quickstart.sh), read from what the scripts would
start; their variables (QUICK=1) and the flags below change them. Seconds of one unit of each kind of work are measured here by
doing a few, or read from a file; for GPUs that are not here they are computed from counted operations at --tflops. With
--against, a measured run stands beside the plan, and a stage that differs by more than --tolerance ends it with exit code 1.
"""

import argparse
from pathlib import Path

from distillation.entry import InputError, check_range, run

NAMES = {"imagenet": "imgnt", "tiny_imagenet": "tinyimgnt", "cifar10": "cifar10", "cifar100": "cifar100"}
OVERRIDES = {"ipc": int, "strength": float, "num_inference_steps": int, "epochs": int, "input_size": int, "arch": str,
             "keep_topk": int, "keep_epochs": float}
EPOCHS_OF = ("matching.generate_soft_label", "validate.train_FKD")  # the teacher's are its own
FEW_SECONDS = 5  # stages below are not judged


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits", choices=("digits", *NAMES))
    # settings, as in the stages' own commands (default: what the scripts say)
    parser.add_argument("--ipc", type=int, help="images per class")
    parser.add_argument("--strength", type=float, help="of the images")
    parser.add_argument("--num_inference_steps", type=int, help="of the images")
    parser.add_argument("--epochs", type=int, help="of soft labels and students")
    parser.add_argument("--input-size", type=int, help="pixels of a view")
    parser.add_argument("--arch", help="the teacher")
    parser.add_argument("--model", nargs="+", help="one or more students")
    parser.add_argument("--keep-topk", type=int, help="logits stored of a view")
    parser.add_argument("--keep-epochs", type=float, help="share of epochs stored")
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
    for name in ("ipc", "epochs", "input_size", "num_inference_steps", "keep_topk"):
        if getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}" if name != "num_inference_steps" else "--num_inference_steps",
                        getattr(args, name), 1)
    for flag, value, low, high in (("--strength", args.strength, 0, 1), ("--keep-epochs", args.keep_epochs, 1e-6, 1),
                                   ("--tflops", args.tflops, 1e-3, 1e6), ("--gpus", args.gpus, 0, 1e6),
                                   ("--tolerance", args.tolerance, 1, 1e6)):
        if value is not None:
            check_range(flag, value, low, high)
    if args.against and args.dataset != "digits":
        raise InputError(f"--against: expected --dataset digits, whose quickstart is compared, found {args.dataset}")
    return args


def main(args):
    import sys

    import torch

    from continual.sections import plain_table
    from distillation.manifest import code_version, package_versions, write_json
    from scripts.measuring import conditions
    from scripts.plan_table import HEADER, assumptions, rows, stages_of
    from scripts.planned_stages import data_of, work_of
    commands, data = with_settings(planned(args.dataset), args), data_of(args.dataset)
    ipc = next(one.args.ipc for one in commands if one.module == "distillation.gen_prototype")
    gpus = torch.cuda.device_count() or int(args.dataset != "digits") if args.gpus is None else args.gpus
    here = gpus <= torch.cuda.device_count()
    works = [(one, work_of(one, data, ipc)) for one in commands]
    found = rates(works, args, here)
    stages = stages_of(works, found["rates"], gpus)
    result = {"kind": "plan", "dataset": args.dataset, "ipc": ipc, "gpus": gpus, "source": found["source"],
              "tflops": None if here or args.rates else args.tflops, "clock": args.clock, "conditions": conditions(),
              "measured_on": found["hardware"], "stages": stages, "seconds": sum(one["seconds"] for one in stages),
              "rates": found["rates"], "code": code_version(), "packages": package_versions()}
    result["assumptions"] = assumptions(result, works)
    print(plain_table(HEADER, rows(result)) + "\n\n" + "\n".join(result["assumptions"]))
    if args.output:
        write_json(Path(args.output), result)
    if args.against and not compare(result, Path(args.against), args.tolerance):
        sys.exit(1)


def planned(dataset: str) -> list:
    """The commands of a data set's scripts, stage by stage."""
    from distillation.entry import ROOT
    from scripts.stage_commands import commands_of
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
        given = {name: getattr(args, name) for name in OVERRIDES if getattr(args, name) is not None and hasattr(one.args, name)}
        if one.module not in EPOCHS_OF:
            given.pop("epochs", None)
        own = replace(one, args=Namespace(**{**vars(one.args), **given}))
        students = args.model if args.model and one.module == "validate.train_FKD" else []
        changed += [replace(own, stage=f"{one.stage}, {model}", args=Namespace(**{**vars(own.args), "model": model}))
                    for model in students] or [own]
    return changed


def rates(works: list, args, here: bool) -> dict:
    """Rates of all units by name, and what they are: read, measured here, or computed where they are an accelerator's."""
    import tempfile

    import torch
    from tqdm import tqdm

    from distillation.manifest import hardware, read_json, write_json
    from scripts.unit_rates import Bench, computed
    units = list(dict.fromkeys(part.what for _, work in works for part in work.parts))
    if args.rates:
        found = read_json(Path(args.rates))
        if not isinstance(found, dict) or found.get("kind") != "rates":
            raise InputError(f"{args.rates}: expected rates of scripts.plan --save-rates, found another file")
        for one in units:
            if str(one) not in found["rates"]:
                raise InputError(f"{args.rates}: expected a rate of {one}, found none; measure with --save-rates")
        return {**found, "source": "read from a file"}
    measured = {}
    device = torch.device("cuda" if torch.cuda.is_available() and here and args.gpus != 0 else "cpu")
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        bench = Bench(device, args.clock, Path(scratch), args.dataset)
        for one in tqdm(units, desc="rates", unit="unit", disable=None):
            measured[str(one)] = (not here and computed(one, args.tflops)) or bench.measure(one)
    found = {"kind": "rates", "hardware": hardware(), "clock": args.clock, "rates": measured,
             "source": "measured here" if here else f"computed at {args.tflops:g} TFLOP/s, not measured"}
    if args.save_rates:
        write_json(Path(args.save_rates), found)
    return found


def compare(result: dict, path: Path, tolerance: float) -> bool:
    """Print planned and measured seconds of each stage; whether all that last more than FEW_SECONDS lie within `tolerance`."""
    from continual.sections import plain_table
    from distillation.manifest import read_json
    measured = read_json(path).get("seconds", {})
    shown, good = [], True
    for one in result["stages"]:
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
