"""Kill every stage at random times and fill its disk: what the same command makes of it afterwards.

    python -m misc.fault_campaign --kills 200 --output misc/results/faults.json

Each stage runs undisturbed once; then its processes are sent SIGKILL, all at once, at a time drawn over that run, and the same
command runs again. Its files must be those of the undisturbed run, byte for byte; what is measured (seconds) is left out of the
comparison. Runs are forked from this process, which has loaded the libraries, so a kill falls into work and not into imports;
two processes get the environment that a launcher gives them. The result is written after each kill; the same command goes on.
"""

import os
from pathlib import Path

from scripts.cli import Parser, check_range, run


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--kills", default=200, type=int, help="kills in all, in turn over stages and numbers of processes")
    parser.add_argument("--cases", default=("disk", "input"), nargs="*", choices=("disk", "input"),
                        help="disk: full and read-only folders (mounts a tmpfs, so it needs root); input: damaged artefacts")
    parser.add_argument("--seed", default=0, type=int, help="seed of the times")
    parser.add_argument("--work", default="runs/faults", help="folder of the runs")
    parser.add_argument("--output", default="misc/results/faults.json", help="result file")
    args = parser.parse_args()
    check_range("--kills", args.kills, 0)
    return args


def main(args):
    import importlib

    from tqdm import tqdm

    from misc import faults
    from misc.studies.batch import LOADED
    from scripts.artefact import code_version, hardware, package_versions, read_json, write_json

    os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    for name in (*LOADED, "continual.experiment", "matching.training"):
        importlib.import_module(name)
    output, work = Path(args.output), Path(args.work).absolute()
    result = read_json(output) if output.exists() else {"kind": "faults", "seed": args.seed, "kills": [], "cases": []}
    faults.write_images(work / "images")
    stages = faults.stages(work)
    arms = [(stage, processes) for stage in stages for processes in stage.processes]
    seconds = [faults.undisturbed(stage, processes, work)
               for stage, processes in tqdm(arms, desc="undisturbed", unit="run", disable=None)]

    def save():
        result.update(code=code_version(), packages=package_versions(), hardware=hardware())
        write_json(output, result)
    with tqdm(total=args.kills, initial=len(result["kills"]), desc="kills", unit="kill", disable=None) as bar:
        for place in range(len(result["kills"]), args.kills):
            result["kills"].append(faults.kill(*arms[place % len(arms)], seconds[place % len(arms)], args.seed, place, work))
            save()
            bar.set_postfix(same=sum(one["same"] for one in result["kills"]))
            bar.update()
    cases = [case for kind in args.cases for case in faults.CASES[kind](stages, work)]
    done = {(one["fault"], one["stage"]) for one in result["cases"]}
    for fault, stage, attempt in tqdm(cases, desc="cases", unit="case", disable=None):
        if (fault, stage) not in done:
            result["cases"].append({"fault": fault, "stage": stage, **attempt()})
            save()
    print(faults.report(result))


if __name__ == "__main__":
    run(parse_args, main)
