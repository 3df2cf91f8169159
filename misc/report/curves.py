"""Accuracy against cost: continual runs of several lengths, and the least cost at which a source reaches real's accuracy."""

import math
import statistics
from itertools import pairwise
from pathlib import Path

from misc.report.figures import COLOURS, legend_below, log_ticks, panels, save, tidy
from misc.report.results import METHODS, SOURCES, Results, Run, join, other_images
from misc.report.section import Section, interval_cell
from misc.report.statistics import exponential, interval

LEVELS = (0.90, 0.95, 1.00)     # of real's accuracy after its longest run
COSTS = {"FLOPs": "metrics.flops", "time": "seconds.train"}
Curve = dict[int, dict[int, Run]]                   # by steps and seed
Curves = dict[tuple, dict[tuple, Curve]]            # by (network, method, buffer images), then (stream, IPC, labels)


def curves_of(results: Results) -> Curves:
    """Continual runs sorted into curves; IPC 0 is all real images. Streams of other images than the usual ones are left out.

    Raises InputError where a point would mix settings.
    """
    found: Curves = {}
    for run in results.of_kind("continual"):
        if other_images(run):
            continue
        stream, classes = run.config["stream"], len(run.need("metrics.confusion"))
        ipc = 0 if stream == "real" else run.metrics["stream_images"] // classes
        curves = found.setdefault((run.config["arch"], run.config["method"], run.config["buffer_size"]), {})
        curve = curves.setdefault((stream, ipc, run.config["labels"]), {})
        join(curve.setdefault(run.metrics["steps"], {}), run,
             f"{run.config['method']}, {source_name((stream, ipc, run.config['labels']))}")
    return {key: {source: dict(sorted(curve.items())) for source, curve in
                  sorted(curves.items(), key=lambda one: (one[0][1], one[0][2], SOURCES.index(one[0][0])))}
            for key, curves in sorted(found.items(), key=lambda one: (one[0][0], [*METHODS].index(one[0][1]), one[0][2]))}


def source_name(source: tuple) -> str:
    """The source of a curve in words."""
    stream, ipc, labels = source
    return ", ".join((stream if ipc == 0 else f"{stream}, IPC {ipc}", *([] if labels == "hard" else [f"{labels} labels"])))


def crossing(points: list[tuple[float, float]], target: float) -> float | None:
    """The least cost at which the line through `points` (cost, accuracy) reaches `target`; None where it never does.

    Straight lines between neighbours, over the logarithm of the cost. The cheapest point bounds the answer from above.
    """
    points = sorted(points)
    if points[0][1] >= target:
        return points[0][0]
    for (cost, accuracy), (dearer, better) in pairwise(points):
        if better >= target:
            return math.exp(math.log(cost) + math.log(dearer / cost) * (target - accuracy) / (better - accuracy))
    return None


def least_cost(curves: dict[tuple, Curve], source: tuple, level: float, cost: str) -> list[float | None]:
    """By seed the least cost of a source, as a fraction of real's, at which it reaches `level` of real's accuracy.

    Real is the longest run on all real images with the same seed. None where it never does. NaN where it does, but with seconds
    of two processors, which are not compared.
    """
    found = []
    _, longest = max(curves.get(("real", 0, "hard"), {}).items(), default=(0, {}))
    for seed, real in longest.items():
        runs = [row[seed] for row in curves[source].values() if seed in row]
        if runs:
            reached = crossing([(run.need(cost), run.need("metrics.acc")) for run in runs], level * real.need("metrics.acc"))
            one_processor = {run.get("hardware") for run in (*runs, real)} == {real.get("hardware")}
            comparable = one_processor or not cost.startswith("seconds.")
            found.append(reached and (reached / real.need(cost) if comparable else math.nan))
    return found


def cost_cell(fractions: list[float | None]) -> str:
    """Percent of real's cost: geometric mean and 95 % interval over seeds, or in how many seeds the level is reached."""
    reached = [one for one in fractions if one is not None]
    if len(reached) < len(fractions):
        return f"{len(reached)} of {len(fractions)} seeds" if reached else "never"
    compared = [math.log(one) for one in reached if not math.isnan(one)]
    few = f", n {len(compared)}" if 0 < len(compared) < len(reached) else ""
    return interval_cell(exponential(interval(compared)), 100, sign="") + few


def usual(curve: Curve) -> Curve:
    """The lengths that at least half of the seeds have: a point that few seeds have would move only theirs."""
    seeds = {seed for row in curve.values() for seed in row}
    return {steps: row for steps, row in curve.items() if 2 * len(row) >= len(seeds)}


def least_costs(results: Results) -> list[Section]:
    """A row for each method, memory and source."""
    rows = []
    for (network, method, memory), found in curves_of(results).items():
        curves = {source: usual(curve) for source, curve in found.items()}
        for source, curve in curves.items():
            best = max(statistics.fmean(run.metrics["acc"] for run in row.values()) for row in curve.values())
            last = [run for row in curve.values() for run in row.values()][-1]
            size = (last.metrics["stream_bytes"] + last.metrics.get("buffer_bytes", 0)) / 1e6
            rows.append((network, METHODS[method], str(memory), source_name(source), f"{100 * best:.1f}",
                         *(cost_cell(least_cost(curves, source, level, cost)) for level in LEVELS for cost in COSTS.values()),
                         f"{size:.2f}", str(max(map(len, curve.values())))))
    levels = ", ".join(f"{level:.2f}" for level in LEVELS)
    return [Section("Least cost", "The least training cost, in percent of that of the longest run on all real images, at which "
                    f"a source reaches {levels} of that run's accuracy (ACC, Class-IL) with the same seed: geometric mean "
                    "over seeds and 95 % interval by Student's t on the logarithms. Between two lengths it is interpolated. "
                    "Where the shortest run reaches it, this run's cost counts: an upper bound. Lengths that fewer than half "
                    "of a row's seeds have are left out. "
                    "`never`: no length reaches it in any seed. Seconds are compared where a seed has one processor at all "
                    "lengths and in real's longest run; `, n 2`: the seeds compared. Images: those of the stream and of the "
                    "memory.",
                    ("Network", "Method", "Memory", "Source", "Best ACC (%)",
                     *(f"{level:.2f}: {cost} (%)" for level in LEVELS for cost in COSTS), "Images (MB)", "Seeds (n)"), rows)]


def draw_curves(path: Path, results: Results) -> None:
    """A panel for each network, method and memory: accuracy against FLOPs, a line for each source over common seeds.

    Bands, and bars of single points, are one standard deviation over seeds. Hollow marks: lengths that few seeds have.
    """
    import numpy as np
    found, handles = curves_of(results), {}
    figure, axes = panels(len(found), min(len(found), 3), (3.6, 3.1), (0.4, 1.2))
    ipcs = sorted({ipc for curves in found.values() for _, ipc, _ in curves})
    for axis, ((network, method, memory), curves) in zip(axes.flat, found.items(), strict=False):
        for source, curve in curves.items():
            stream, ipc, labels = source
            style = {"color": COLOURS[stream], "ms": 4, "marker": "so^Dv"[ipcs.index(ipc) % 5]}
            lengths = usual(curve)
            seeds = set.intersection(*(set(row) for row in lengths.values()))
            for row in [row for steps, row in curve.items() if steps not in lengths]:   # of few seeds: not joined to the others
                axis.plot(np.mean([run.metrics["flops"] for run in row.values()]) / 1e12,
                          100 * np.mean([run.metrics["acc"] for run in row.values()]), mfc="white", **style)
            costs = [np.mean([row[seed].metrics["flops"] for seed in seeds]) / 1e12 for row in lengths.values()]
            scores = [[100 * row[seed].metrics["acc"] for seed in seeds] for row in lengths.values()]
            means = np.array([np.mean(one) for one in scores])
            spread = np.array([np.std(one, ddof=1) if len(one) > 1 else 0 for one in scores])
            handles[source_name(source)], = axis.plot(costs, means, ls="-" if labels == "hard" else "--", lw=1.5, **style)
            if len(costs) > 1:
                axis.fill_between(costs, means - spread, means + spread, color=COLOURS[stream], alpha=0.13, lw=0)
            else:   # a band of no width would not be seen
                axis.errorbar(costs, means, spread, color=COLOURS[stream], capsize=3, lw=1)
        axis.set(xscale="log", xlabel="training cost (TFLOP)")
        axis.set_title(f"{METHODS[method]}, {network}" + (f", memory {memory}" if memory else ""), fontsize=10)
        log_ticks(axis.xaxis, (1, 2, 5))
        tidy(axis)
    for line in axes:
        line[0].set_ylabel("ACC, Class-IL (%)")
    legend_below(figure, handles, fontsize=9)
    save(figure, path)
