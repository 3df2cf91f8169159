"""Feed damaged files to every reader: each must be read, or refused with the documented error.

    python -m misc.fuzz --count 10000 --output misc/results/fuzz.json

An input is a function of (seed, reader, number): `--reader NAME --first N --count 1` makes one again. Readers run in a process
of their own, so that a crash, a hang or a full memory ends that process and is counted. Exit code 1 when anything was found.
"""

import sys
import tempfile
from pathlib import Path

from scripts.cli import InputError, Parser, check_range, run

LONGEST_SECONDS, LARGEST_BYTES = 2.0, 2 ** 30  # processor time and growth of memory that an input may take
WAIT_SECONDS = 20.0                            # on the clock, after which a reader counts as hanging


def parse_args():
    parser = Parser(__doc__)
    parser.add_argument("--count", default=10_000, type=int, help="inputs, shared out over the readers")
    parser.add_argument("--seed", default=0, type=int, help="of the damage")
    parser.add_argument("--reader", default=None, help="one reader, by its name in the result (default: all)")
    parser.add_argument("--first", default=0, type=int, help="number of the first input of each reader")
    parser.add_argument("--output", default="runs/fuzz.json", help="result file")
    args = parser.parse_args()
    check_range("--count", args.count, 1)
    check_range("--first", args.first, 0)
    return args


def main(args):
    from tqdm import tqdm

    from misc.fuzz_readers import cases
    from scripts.artefact import code_version, hardware, package_versions, write_json
    with tempfile.TemporaryDirectory() as folder:
        known = cases(Path(folder))
        if args.reader not in (None, *known):
            raise InputError(f"--reader: expected one of {', '.join(known)}, found {args.reader}")
        names = [args.reader] if args.reader else list(known)
        readers, failures = {}, []
        with tqdm(total=args.count, desc="fuzz", unit="input", disable=None) as bar:
            for place, name in enumerate(names):
                count = (args.count + place) // len(names)
                outcomes = []
                for outcome in examine(name, known[name], args.seed, range(args.first, args.first + count)):
                    outcomes.append(outcome)
                    bar.update()
                readers[name] = summary(outcomes)
                failures += [{"reader": name, **each} for each in outcomes if each["outcome"] not in ("read", "refused")]
    write_json(Path(args.output), {
        "kind": "fuzz", "seed": args.seed, "count": sum(each["inputs"] for each in readers.values()), "readers": readers,
        "failures": failures, "limits": {"seconds": LONGEST_SECONDS, "bytes": LARGEST_BYTES}, "code": code_version(),
        "packages": package_versions(), "hardware": hardware()})
    print(f"{args.output}: {sum(each['inputs'] for each in readers.values())} inputs, {len(failures)} failures")
    for each in failures[:20]:
        print(f"{each['reader']}, number {each['number']}: {each['outcome']}: {each['detail']}")
    if failures:
        sys.exit(1)


def examine(name: str, case, seed: int, numbers: range):
    """Yield {number, outcome, detail, seconds, bytes} for each input, from processes that are replaced when they fail.

    Outcomes: read, refused (InputError), crashed (any other exception), died, hung (more than LONGEST_SECONDS), memory.
    """
    import multiprocessing
    context = multiprocessing.get_context("fork")
    whole = {path: path.read_bytes() for path in case.files}
    numbers = iter(numbers)
    number = next(numbers, None)
    while number is not None:
        here, there = context.Pipe()
        worker = context.Process(target=work, args=(there, name, case, whole, seed), daemon=True)
        worker.start()
        there.close()
        while number is not None:
            try:
                here.send(number)
                outcome = here.recv() if here.poll(WAIT_SECONDS) else {"outcome": "hung", "detail": "no answer"}
            except (EOFError, ConnectionError):
                worker.join()
                outcome = {"outcome": "died", "detail": f"exit code {worker.exitcode}"}
            yield {"number": number, "seconds": 0.0, "bytes": 0, **outcome}
            number = next(numbers, None)
            if outcome["outcome"] in ("hung", "died", "memory"):
                break
        worker.kill()
        worker.join()
        here.close()
        for path, content in whole.items():
            path.write_bytes(content)


def work(pipe, name: str, case, whole: dict[Path, bytes], seed: int) -> None:
    """Answer numbers from `pipe` with outcomes; a damaged file gets its `whole` content back after each input."""
    import os
    import resource
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say of damaged files
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        path, content = damaged(name, case, whole, seed, number)
        path.write_bytes(content)
        outcome = attempt(case.read, path)
        path.write_bytes(whole[path])
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began)
        if outcome["seconds"] > LONGEST_SECONDS:
            outcome |= {"outcome": "hung", "detail": f"{outcome['seconds']:.1f} s"}
        if grown > LARGEST_BYTES:
            outcome |= {"outcome": "memory", "detail": f"{grown} bytes"}
        pipe.send({**outcome, "bytes": grown})


def damaged(name: str, case, whole: dict[Path, bytes], seed: int, number: int) -> tuple[Path, bytes]:
    """The file that input `number` of a reader damages, and what it holds then."""
    import numpy as np

    from scripts.randomness import seed_for
    rng = np.random.default_rng(seed_for(seed, name, number))
    path = case.files[int(rng.integers(len(case.files)))]
    return path, case.damage(whole[path], rng)


def attempt(read, path: Path) -> dict:
    """What reading came to, and seconds of processor time."""
    import time
    import traceback
    started = time.process_time()
    try:
        read(path)
        outcome = {"outcome": "read", "detail": ""}
    except InputError:
        outcome = {"outcome": "refused", "detail": ""}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        outcome = {"outcome": "crashed", "detail": f"{said} ({Path(frame.filename).name}:{frame.lineno})"}
    return {**outcome, "seconds": time.process_time() - started}


def summary(outcomes: list[dict]) -> dict:
    """Counts by outcome, the longest processor time and the most memory of a reader."""
    counts = {kind: sum(each["outcome"] == kind for each in outcomes)
              for kind in ("read", "refused", "crashed", "died", "hung", "memory")}
    return {"inputs": len(outcomes), **counts, "longest_seconds": round(max(each["seconds"] for each in outcomes), 3),
            "grown_bytes": max(each["bytes"] for each in outcomes)}


if __name__ == "__main__":
    run(parse_args, main)
