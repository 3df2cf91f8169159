"""Speed and memory of a stage against the plain way to the same result, both measured in one run on this machine.

    python -m misc.benchmark distillation
    python -m misc.benchmark matching
    python -m misc.benchmark continual

Variants take turns, so that a busy machine slows all of them; the tables show ratios, the result file has every timing too.
`python -m misc.report tables` makes the table of misc/benchmark.md from it.
"""

from pathlib import Path

from scripts.cli import Parser, check_range, run


def parse_args():
    parser = Parser(__doc__)
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    distillation = add_benchmark(benchmarks, "distillation", ("synthesis", "stable_diffusion", "encoding", "memory"))
    distillation.add_argument("--compile", dest="compiled", action="store_true",
                              help="stable_diffusion: also with the UNet compiled")
    add_benchmark(benchmarks, "matching", ("augmentation", "small_batch", "labels", "training"))
    continual = add_benchmark(benchmarks, "continual", ("overhead", "steps", "pixels", "start"))
    continual.add_argument("--batch-size", default=32, type=int, help="stream images a step, and as many memory images")
    continual.add_argument("--size", default=32, type=int, help="pixels")
    args = parser.parse_args()
    check_range("--repetitions", args.repetitions, 1)
    return args


def add_benchmark(benchmarks, name: str, sections: tuple[str, ...]):
    """The sub-command of the benchmark that misc/benchmark_<name>.py measures."""
    listed = ", ".join(sections)
    parser = benchmarks.add_parser(name, help=listed)
    parser.add_argument("--only", nargs="+", default=sections, choices=sections, metavar="NAME", help=f"of {listed}")
    parser.add_argument("--repetitions", default=5, type=int, help="rounds that count, after one that does not (memory: one)")
    parser.add_argument("--output", default=f"misc/results/benchmark_{name}.json", help="result file")
    return parser


def main(args):
    import importlib

    from accelerate import Accelerator

    from misc.measuring import conditions
    from misc.report.tables import plain
    from scripts.artefact import code_version, package_versions, write_json
    from scripts.parallel import require_one_process

    accelerator = Accelerator()
    require_one_process(accelerator, "benchmark")
    benchmark = importlib.import_module(f"misc.benchmark_{args.benchmark}")
    options = {name: value for name, value in vars(args).items() if name not in ("benchmark", "output")}
    began = conditions()
    sections = benchmark.measure(accelerator.device, **options)
    result = {"kind": "benchmark", "benchmark": args.benchmark, "options": options, "sections": sections, **began,
              "load_at_end": conditions()["load"], "code": code_version(), "packages": package_versions()}
    write_json(Path(args.output), result)
    print(plain(benchmark.report(result)))
    print(f"written to {args.output}")


if __name__ == "__main__":
    run(parse_args, main)
