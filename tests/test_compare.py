"""The comparison of continual runs: statistics against SciPy and by hand, and the real commands on tiny runs."""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from distillation.distilled_set import finish_distilled, row, write_image
from misc.report.continual import fashion_payback, paired_section, runs_section
from misc.report.curves import cost_cell, crossing, curves_of, least_cost, least_costs, usual
from misc.report.results import Arm, Results, Run, continual_rows, read_results, read_run
from misc.report.section import cell, interval_cell
from misc.report.statistics import (
    at_chance,
    claims,
    counterparts,
    difference,
    equal_in_rows,
    interval,
    kept,
    mean_costs,
    paybacks,
    saved,
    summaries,
)
from scripts.artefact import write_result
from scripts.cli import ROOT, InputError
from scripts.files import write_json

REAL, RANDOM, DISTILLED = (Arm(name, name, "hard") for name in ("real", "random", "distilled"))
SAME = Arm("real", "real", "hard", "same steps")


def content(method="er", stream="real", seed=0, acc=0.9, seconds=30.0, steps=30, **more) -> dict:
    """A result of two tasks as train_continual writes it, with the fields of its first version."""
    return {"kind": "continual", "method": method, "stream": stream, "buffer_source": stream, "seed": seed, "steps": steps,
            "config": {"arch": "resnet18", "seed": seed, "tasks": 2, "steps": steps // 2,
                       "digests": {"test": "t", "train": stream}},
            "class_il": {"matrix": [[1.0, 0.0], [2 * acc - 1, 1.0]], "acc": acc, "bwt": 2 * acc - 2,
                         "average_incremental": 0.5 + acc / 2, "forgetting": 2 - 2 * acc},
            "task_il": {"matrix": [[1.0, 0.0], [1.0, 1.0]], "acc": 1.0}, "seconds": {"train": seconds},
            "images_seen": 4 * steps, "stream_images": 100, "buffer": {"images": 8, "bytes": 800}, **more}


def result(*given, **more):
    return read_run("run", content(*given, **more))


def rows_of(runs: dict[str, dict]):
    return continual_rows([read_run(name, one) for name, one in runs.items()])


def comparison(accs: dict[str, list[float]], method: str = "er") -> dict:
    """Runs with accuracies by seed: real takes 30 steps and 30 s, `real-same`, random and distilled 10 steps and 10 s."""
    return {f"{name}-{seed}": content(method, name.removesuffix("-same"), seed, acc,
                                      *((30.0, 30) if name == "real" else (10.0, 10)))
            for name, values in accs.items() for seed, acc in enumerate(values)}


# accuracy against cost

def test_the_least_cost_lies_between_two_lengths():
    assert crossing([(4.0, 0.8), (1.0, 0.4)], 0.6) == pytest.approx(2)     # half way in accuracy and in the logarithm
    assert crossing([(1.0, 0.4), (4.0, 0.8)], 0.4) == 1 and crossing([(1.0, 0.4), (4.0, 0.8)], 0.81) is None
    assert crossing([(1.0, 0.5), (2.0, 0.3), (4.0, 0.8), (8.0, 0.9)], 0.55) == pytest.approx(2 * 2 ** 0.5)


def test_costs_are_fractions_of_the_longest_real_run_of_the_seed():
    def curve(stream, seed, points):
        return [Run(f"{stream}-{steps}-{seed}", "continual", {"arch": "resnet18", "method": "er", "buffer_size": 8,
                    "stream": stream, "seed": seed, "labels": "hard"},
                    {"acc": acc, "steps": steps, "flops": 10 * steps, "stream_images": 20, "stream_bytes": 4e6,
                     "confusion": [[1, 0], [0, 1]]}, {"train": float(steps)}) for steps, acc in points]
    runs = [*curve("real", 0, [(10, 0.5), (40, 0.8)]), *curve("real", 1, [(10, 0.4), (40, 1.0)]),
            *curve("random", 0, [(10, 0.3), (20, 0.5)]), *curve("random", 1, [(10, 0.95), (20, 0.97)]),
            *curve("distilled", 0, [(10, 0.76)]), *curve("distilled", 1, [(20, 0.99)])]
    (curves,) = curves_of(Results(runs)).values()
    assert list(curves) == [("real", 0, "hard"), ("random", 10, "hard"), ("distilled", 10, "hard")]
    assert least_cost(curves, ("distilled", 10, "hard"), 0.95, "metrics.flops") == [0.25, 0.5]
    assert least_cost(curves, ("random", 10, "hard"), 0.95, "seconds.train") == [None, 0.25]
    elsewhere = [replace(run, made={"hardware": "other"}) if run.config["seed"] == 1 and run.config["stream"] != "real" else run
                 for run in runs]
    (mixed,) = curves_of(Results(elsewhere)).values()   # reached, but with seconds that are not compared
    first, second = least_cost(mixed, ("distilled", 10, "hard"), 0.95, "seconds.train")
    assert first == 0.25 and math.isnan(second) and cost_cell([first, second]) == "25.0 (–), n 1"
    assert least_cost(mixed, ("distilled", 10, "hard"), 0.95, "metrics.flops") == [0.25, 0.5] and cost_cell([second]) == "–"
    assert least_cost(mixed, ("random", 10, "hard"), 0.95, "seconds.train")[0] is None
    (section,) = least_costs(Results(runs))
    row = {name: dict(zip(section.header, cells, strict=True)) for name, cells in ((one[3], one) for one in section.rows)}
    assert row["random, IPC 10"]["0.95: time (%)"] == "1 of 2 seeds"
    assert row["real"]["1.00: FLOPs (%)"] == "100.0 (100.0 to 100.0)"
    assert row["distilled, IPC 10"]["0.95: FLOPs (%)"].startswith("35.4 (")     # sqrt(0.25 x 0.5)
    assert row["distilled, IPC 10"]["1.00: time (%)"] == "never" and row["real"]["Best ACC (%)"] == "90.0"
    assert list(usual({1: {0: runs[0]}, 2: dict.fromkeys((0, 1), runs[0]), 4: dict.fromkeys((0, 1, 2), runs[0])})) == [2, 4]
    other = replace(runs[0], config={**runs[0].config, "seed": 7, "recipe.lr": 0.5})
    with pytest.raises(InputError, match="expected one setting in the row er, real, found other recipe.lr"):
        curves_of(Results([*runs, other]))


def test_one_arm_alone_has_nothing_to_compare():
    section = paired_section(rows_of({"alone": content(stream="distilled")}))
    assert section.says.endswith("fair comparison. Nothing to compare.") and section.rows == []


# statistics

def test_intervals_are_student_t():
    by_hand = interval([1.0, 2.0, 3.0])    # mean 2, s 1; 4.302653 is t's 97.5 % point with two degrees of freedom
    assert (by_hand["mean"], by_hand["n"]) == (2, 3)
    assert by_hand["high"] - 2 == pytest.approx(4.302653 / math.sqrt(3)) == pytest.approx(2 - by_hand["low"])
    own, other = np.random.default_rng(0).normal(0.7, 0.1, (2, 7))
    rows = [{seed: result(seed=seed, acc=acc) for seed, acc in enumerate(values)} for values in (own, other)]
    expected = stats.ttest_rel(own, other).confidence_interval(0.95)
    found = difference(*rows, "acc")
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high)) and found["n"] == 7


def test_differences_pair_common_seeds_and_one_run_has_no_interval():
    own, other = ({seed: result(seed=seed, acc=acc) for seed, acc in values.items()} for values in
                  ({0: 0.9, 1: 0.8, 5: 0.1}, {1: 0.6, 0: 0.5, 7: 0.9}))
    assert difference(own, other, "acc")["mean"] == pytest.approx((0.4 + 0.2) / 2)
    single = difference(own, {1: other[1]}, "acc")
    assert single["n"] == 1 and single["low"] is None and interval_cell(single, 100) == "+20.0 (–)"
    assert difference(own, {9: other[7]}, "acc") == {"mean": None, "low": None, "high": None, "n": 0}
    assert difference(own, other, "forward_transfer")["mean"] is None   # not in these results
    assert interval_cell({"mean": 0.039, "low": -0.0001, "high": 0.06}, 100) == "+3.9 (0.0 to 6.0)"


def test_ratios_and_their_intervals_by_hand():
    own, real = ({seed: result(seed=seed, acc=acc, seconds=100 * acc) for seed, acc in enumerate(values)}
                 for values in ((0.2, 0.4, 0.8), (0.8, 0.8, 0.8)))
    found = kept(own, real)     # log2 of the ratios: -2, -1, 0, so mean -1, s 1; 4.302653 as above
    assert (found["mean"], found["n"]) == (pytest.approx(0.5), 3)
    half = 4.302653 / math.sqrt(3)
    assert (found["low"], found["high"]) == (pytest.approx(2 ** (-1 - half)), pytest.approx(2 ** (-1 + half)))
    spent = saved(own, real)
    assert [spent[key] for key in ("low", "mean", "high")] == pytest.approx([1 - found["high"], 0.5, 1 - found["low"]])
    assert saved(own, {})["mean"] is None and kept(own, {7: result()})["mean"] is None
    single = kept(own, {0: real[0]})
    assert single["mean"] == pytest.approx(0.25) and single["low"] is None


def test_a_seed_that_shared_the_machine_is_marked_and_not_compared():
    own = {seed: result(seed=seed, seconds=seconds) for seed, seconds in enumerate((100.0, 10.0, 11.0, 12.0, 9.0))}
    real = {seed: result(seed=seed, seconds=30.0) for seed in range(5)}
    found = difference(own, real, "train_seconds")
    assert found["n"] == 4 and found["mean"] == 10.5 - 30 and found["low"] < found["mean"] < found["high"] < 0
    assert saved(own, real)["mean"] == pytest.approx(1 - (10 * 11 * 12 * 9) ** 0.25 / 30)
    one = summaries({"er": {REAL: real, DISTILLED: own}})["er"][DISTILLED]
    assert cell(one, "train_seconds") == "11.0 (1 slow)" and one["time_saved"] == saved(own, real)["mean"]
    assert interval_cell(found, seeds=5).endswith(", n 4") and interval_cell(found, seeds=4).endswith(")")


@pytest.mark.parametrize("seconds, trainings", [(10.0, [15 / 20, 115 / 20]), (30.0, ["infinite"] * 2),
                                                (31.0, ["infinite"] * 2)])
def test_payback_by_hand(seconds, trainings):
    runs = {labels: content(stream="distilled", steps=10, seconds=seconds, labels=labels) for labels in ("hard", "soft")}
    found = paybacks(rows_of({"real": content(seconds=30.0), **runs}), {"prototypes": 5, "distilled": 10, "teacher": 100})
    assert [one["cost_seconds"] for one in found] == [15, 115]      # a teacher counts for soft labels alone
    assert [one["trainings"] for one in found] == trainings


def test_costs_are_of_sets_as_large_as_the_stream():
    runs = [Run("continual/er", "continual", {"stream": "distilled"}, {"stream_images": 100, "confusion": [[]] * 10}, {})]
    runs += [Run(f"prototypes/ipc{ipc}", "prototypes", {"ipc": ipc}, {}, {"wait": 1, "encode": ipc}) for ipc in (10, 50)]
    runs += [Run(f"distilled/ipc{ipc}", "distilled", {"method": "d4m", "ipc": ipc}, {}, {"make": ipc}) for ipc in (10, 50)]
    runs += [Run("soft-labels/ipc10", "soft_labels", {"images": "ipc10"}, {}, {"relabel": 7})]     # a stream needs none
    assert mean_costs(runs) == {"prototypes": 10, "distilled": 10}


def test_a_row_has_one_number_of_images():
    runs = {f"er-distilled-{seed}": content(stream="distilled", seed=seed) | {"stream_images": images}
            for seed, images in ((0, 100), (1, 500))}
    with pytest.raises(InputError, match="stream_images"):
        rows_of(runs)


def test_payback_of_fashion_mnist_counts_its_own_sets_and_then_the_checkpoint():
    streams = {"real/er-real": content(steps=48), "real/er-half": content(steps=24, seconds=999),
               "ipc50/er-distilled": content(stream="distilled", seconds=10.0, steps=12),
               "ipc50/er-longer": content(stream="distilled", seconds=15.0, steps=16),
               "real/er-third": content(seconds=20.0, steps=16)}
    runs = [read_run(f"continual/resnet18-memory500/{name}", one) for name, one in streams.items()]
    runs += [read_run(f"seed0/prototypes/fashion_mnist-ipc{ipc}-kmexpand1{way}",
                      {"kind": "prototypes", "seconds": {"wait": 10, "encode": 80, "cluster": seconds}})
             for ipc, way, seconds in ((50, "", 10), (50, "-medoid", 999), (1, "", 999))]
    runs += [read_run(f"seed0/distilled/fashion_mnist_ipc{ipc}_{ipc}_s0.7_g2.0_kmexpand1",
                      {"kind": "distilled", "config": {"method": "d4m"}, "seconds": {"synthesise": seconds}})
             for ipc, seconds in ((50, 20), (10, 999))]
    sections = fashion_payback(Results(runs), {"seconds": {"autoencoder": 30, "unet": 50}})
    assert [section.rows[0][3:] for section in sections] == [("110.0", "+20.0 (–)", "5.5, in doubt"),
                                                             ("190.0", "+20.0 (–)", "9.5, in doubt")]
    assert [row[1:4] + row[5:] for row in sections[0].rows[1:]] == [("distilled, 16 steps", "real", "110.0", "7.3, in doubt")]
    assert ["checkpoint is not counted" in section.says for section in sections] == [True, False]


# rows

def test_real_runs_with_the_steps_of_the_small_sets_are_an_arm_of_their_own():
    runs = comparison({"real": [0.9], "real-same": [0.8], "random": [0.7], "distilled": [0.8]})
    runs["soft"] = content(stream="distilled", steps=10, labels="soft")
    runs["memory"] = {**content(stream="real"), "buffer_source": "distilled"}
    runs["tuned"] = content("finetune", steps=10)    # no small sets to compare it with
    rows = rows_of(runs)
    assert [arm.name for arm in rows["er"]] == ["real", "real, same steps", "real, memory distilled", "random", "distilled",
                                                "distilled, soft labels"]
    assert [arm.name for arm in rows["finetune"]] == ["real"] and list(rows) == ["finetune", "er"]
    assert rows["er"][SAME][0].name == "real-same-0"
    longer = {stream: content(stream=stream, steps=28) for stream in ("real", "distilled")}
    assert [arm.name for arm in rows_of(runs | longer)["er"] if arm.schedule] == ["real, 28 steps", "real, same steps",
                                                                                  "distilled, 28 steps"]


def test_images_from_members_are_an_arm_of_their_own():
    runs = {name: content(stream=name.rpartition("-")[2], steps=10) for name in ("a/er-real", "a-memory5/ipc1/er-random",
                                                                                "a-memory5/ipc1/er-distilled")}
    runs["a-memory5/ipc1-member/er-distilled"] = content(stream="distilled", steps=10)
    rows = rows_of(runs)
    assert [arm.name for arm in rows["er"]] == ["real, same steps", "random", "distilled", "distilled from members"]
    members = [*rows["er"]][-1]
    assert [arm.name for arm in counterparts(members, rows["er"])] == ["random", "real, same steps"]


def test_each_arm_has_its_counterparts():
    soft, memory = Arm("distilled", "distilled", "soft"), Arm("real", "distilled", "hard")
    arms = {REAL, SAME, RANDOM, DISTILLED, soft, memory, Arm("real", "random", "hard")}
    assert counterparts(DISTILLED, arms) == [RANDOM, SAME, REAL]
    assert counterparts(soft, arms) == [REAL]       # the labels of the others are hard, and a teacher's alone help
    assert counterparts(soft, arms | {Arm("random", "random", "soft")})[0] == Arm("random", "random", "soft")
    assert [arm.name for arm in counterparts(memory, arms)] == ["real, memory random", "real, same steps", "real"]
    assert counterparts(RANDOM, arms) == []
    longer, others = (Arm(name, name, "soft", "28 steps") for name in ("distilled", "random"))
    assert counterparts(longer, arms | {longer, others}) == [others, REAL]      # `real, same steps` has other steps
    real = Arm("real", "real", "soft", "28 steps")
    assert counterparts(longer, arms | {longer, Arm("real", "real", "hard", "28 steps"), real}) == [real, REAL]


@pytest.mark.parametrize("change, message", [
    ({"arch": "resnet50"}, "one setting in the row er, real, found other arch"),
    ({"digests": {"test": "others", "train": "real"}}, "same images, found other test images")])
def test_a_row_never_mixes_settings(change, message):
    first, second = content(), content(seed=1)
    second["config"] = {**second["config"], **change}
    with pytest.raises(InputError, match=message):
        rows_of({"a": first, "b": second})


def test_a_result_found_twice_counts_once_and_two_results_of_a_seed_are_refused():
    assert list(rows_of({"a": content(), "b": content()})["er"][REAL]) == [0]
    with pytest.raises(InputError, match="a and b: expected one result of er, real, seed 0, found two"):
        rows_of({"a": content(), "b": content(acc=0.7)})


def test_a_folder_and_its_collected_file_have_the_same_runs(here, tmp_path):
    one = content(acc=2 / 3)
    one["config"] |= {"digests": {"test": "ab" * 32, "train": "cd" * 32}, "recipe": {"lr": 0.1 / 3}}
    for name, run in (("a", one), ("b", {**one, "seed": 1})):
        write_json(tmp_path / "runs" / name / "result.json", run)
    assert here("misc.report.__main__", "collect", tmp_path / "runs", tmp_path / "all.jsonl").code == 0
    both = continual_rows([*read_results(tmp_path / "runs").runs, *read_results(tmp_path / "all.jsonl").runs])
    assert list(both["er"][REAL]) == [0, 1]


# the claim

@pytest.mark.parametrize("accs, acc_kept, verdict", [
    ({"real": [0.90, 0.91], "real-same": [0.71, 0.72], "random": [0.60, 0.61], "distilled": [0.90, 0.91]}, 1, "holds"),
    ({"real": [0.90, 0.91], "random": [0.60, 0.61], "distilled": [0.90, 0.91]}, 1, "numbers only"),     # one rival is missing
    ({"real": [0.90, 0.91], "real-same": [0.90, 0.91], "random": [0.60, 0.61], "distilled": [0.9, 0.91]}, 1, "numbers only"),
    ({"real": [0.90, 0.91], "random": [0.60, 0.61], "distilled": [0.70, 0.7078]}, 0.778, "no"),
    ({"real": [0.90, 0.90], "random": [0.60, 0.61], "distilled": [0.84, 0.90]}, 0.966, "not shown"),    # 0.623 to 1.498
    ({"real": [0.9], "random": [0.6], "distilled": [0.9]}, 1, "not shown"),
    ({"real": [0.51, 0.5], "random": [0.5, 0.5], "distilled": [0.51, 0.5]}, None, None)])     # at chance
def test_the_claim_holds_only_where_whole_intervals_do(accs, acc_kept, verdict):
    runs = comparison(accs)
    for one in runs.values():
        one["flops"] = one["steps"]
    (found,) = claims(rows_of(runs))
    assert found["verdict"] == verdict and found["time_saved"]["mean"] == pytest.approx(2 / 3)
    assert found["acc_kept"]["mean"] == (acc_kept and pytest.approx(acc_kept, abs=5e-4))
    assert claims(rows_of(comparison({"real": [0.9]}))) == []


def test_a_rival_has_the_same_steps_and_labels():
    runs = comparison({"real": [0.90, 0.91], "real-same": [0.71, 0.72], "random": [0.60, 0.61], "distilled": [0.90, 0.91]})
    runs = {f"{labels}-{name}": {**one, "labels": labels, "flops": one["steps"]} for labels in ("hard", "soft")
            for name, one in runs.items()}
    assert [claim["verdict"] for claim in claims(rows_of(runs))] == ["holds", "holds"]
    del runs["soft-real-same-0"], runs["soft-real-same-1"], runs["hard-real-same-0"], runs["hard-real-same-1"]
    assert [list(claim["rivals"]) for claim in claims(rows_of(runs))] == [["random"], ["random, soft labels"]]
    del runs["soft-random-0"], runs["soft-random-1"]
    assert [list(claim["rivals"]) for claim in claims(rows_of(runs))] == [["random"], []]


def test_images_that_are_only_faster_are_not_better():
    runs = comparison({"real": [0.9, 0.9], "random": [0.9, 0.9], "distilled": [0.9, 0.9]})
    for one in runs.values():
        one["seconds"]["train"] /= 2 if one["stream"] == "distilled" else 1
    assert claims(rows_of(runs))[0]["rivals"]["random"]["better"] == "not shown"


@pytest.mark.parametrize("flops, verdict", [(4.0, "numbers only"), (4.2, "no"), (None, "not shown")])
def test_the_saving_must_be_there_in_flops_too(flops, verdict):
    runs = comparison({"real": [0.9, 0.9], "distilled": [0.9, 0.9]})
    for one in runs.values():
        one["flops"] = 10.0 if one["stream"] == "real" else flops
    (found,) = claims(rows_of(runs))
    assert found["verdict"] == verdict and found["flops_saved"]["mean"] == (flops and pytest.approx(1 - flops / 10))


def test_what_task_arithmetic_does_with_its_memory_is_listed():
    rows = rows_of({stream: content("task_arithmetic", stream, steps=steps, memory=f"scale chosen on images, which were {use}")
                    for stream, steps, use in (("real", 30, "held out of training"), ("distilled", 10, "trained on too"))})
    assert ("Not equal: the images that choose Task Arithmetic's scale and head (held out of training for real; trained on too "
            "for distilled)") in equal_in_rows(rows)


def test_peak_memory_is_said_to_be_that_of_the_process():
    said = [runs_section(rows_of({"a": content(**more)})).says for more in ({"peak_memory_bytes": 1e9}, {})]
    assert ["Peak memory on a CPU is that of the process so far" in one for one in said] == [True, False]


def test_every_setting_that_differs_between_the_sources_of_a_method_is_named():
    runs = comparison({"real": [0.9], "random": [0.9], "distilled": [0.9]})
    runs["soft"] = content(stream="distilled", steps=10, labels="soft")
    for name, one in runs.items():
        one["config"]["recipe"] = {"flip": 0.0 if name.startswith("real") else 0.5, "lr": 0.1}
        one["config"] |= {"buffer": "class-balanced"} if name.startswith("distilled") else {}
        one["config"] |= {"temperature": 4.0} if name == "soft" else {}
    found = equal_in_rows(rows_of(runs))
    assert "Not equal: flip (0.0 for real; 0.5 for random, distilled, distilled, soft labels)." in found
    assert "Not equal: buffer (not stated for real, random, distilled, soft labels; class-balanced for distilled)." in found
    assert "learning rate 0.1" in found and "temperature" not in found
    assert "flip" not in equal_in_rows(rows_of({"a": content(), "b": content("finetune")}))


def test_what_makes_accuracy_kept_mean_little_is_shown():
    runs = comparison({"real": [0.9, 0.9], "distilled": [0.9, 0.9]}, "task_arithmetic")
    for name, one in runs.items():
        one["start"] = {"class_il_acc": 0.88}
        one["config"]["digests"]["start"] = "a" if name.startswith("real") else "b"
    rows = rows_of(runs)
    assert claims(rows)[0]["start_acc"] == pytest.approx(0.88)
    assert "Not equal: the common start (real against distilled)" in equal_in_rows(rows)
    assert at_chance({0: result(acc=0.54)}) and not at_chance({0: result(acc=0.56)})


# the commands

@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """What continual.sh makes of four classes: ER, two seeds, every source, and real at the same steps."""
    folder = tmp_path_factory.mktemp("compare")
    rng = np.random.default_rng(0)

    def image():
        return Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    for label in range(4):
        for place in range(8):
            write_image(folder / "data", f"{'train' if place < 6 else 'test'}/c{label}/{place}.png", image())
    rows = [row(label, f"c{label}", place, 0, 0, 0.5) for label in range(4) for place in range(2)]
    for entry in rows:
        write_image(folder / "set", entry["file_name"], image())
    finish_distilled(folder / "set", [{"name": f"c{label}", "prompt": f"c{label}"} for label in range(4)], {}, rows)
    settings = {"DATASET": "folder", "DATA": folder / "data", "DISTILLED": folder / "set", "OUTPUT_DIR": folder / "runs",
                "METHODS": "er", "SEEDS": "0 1", "SCHEDULE": "steps", "TASK_STEPS": "4 2 2", "SAME_STEPS": 2,
                "TASKS": 2, "BUFFER_SIZE": 4, "BATCH_SIZE": 4, "REPLAY_BATCH_SIZE": 4}
    words = ["sh", "continual/continual.sh", "--size", "16"]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=300,
                          env={**os.environ, **{name: str(value) for name, value in settings.items()}})
    assert done.returncode == 0, done.stderr
    return folder


def results_of(folder: Path) -> list[dict]:
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]
    return [one for one in found if one["kind"] == "continual"]


def test_the_driver_runs_and_compares(runs):
    made, output = results_of(runs / "runs"), runs / "runs" / "comparison"
    assert len(made) == 2 * 4
    found = json.loads((output / "comparison.json").read_text())
    assert list(found["rows"]["er"]) == ["real", "real, same steps", "random", "distilled"]
    accs = {(one["stream"], one["steps"], one["seed"]): one["class_il"]["acc"] for one in made}
    own = [accs["distilled", 4, seed] for seed in (0, 1)]
    numbers = found["rows"]["er"]["distilled"]
    assert numbers["acc"] == pytest.approx({"mean": np.mean(own), "std": np.std(own, ddof=1)})
    assert numbers["seeds"] == [0, 1]
    assert numbers["acc_kept"] is None      # on real images too these steps teach the last task alone
    spent = {stream: [np.log(one["seconds"]["train"]) for one in made if (one["stream"], one["steps"]) == (stream, steps)]
             for stream, steps in (("real", 8), ("distilled", 4))}
    assert numbers["time_saved"] == pytest.approx(1 - np.exp(np.mean(spent["distilled"]) - np.mean(spent["real"])))
    assert [one["against"] for one in found["differences"]] == ["random", "real, same steps", "real"]
    for paired, key in zip(found["differences"], (("random", 4), ("real", 4), ("real", 8)), strict=True):
        other = [accs[(*key, seed)] for seed in (0, 1)]
        assert paired["acc"]["mean"] == pytest.approx(np.mean(own) - np.mean(other), abs=1e-9)
    page = (output / "report.html").read_text()
    assert page.count("Equal: network resnet18") == 2 + page.count("<img") and page.count("<img") >= 3
    assert "steps (8 for real; 4 for real, same steps, random" in page
    for name in ("accuracy_vs_time", "seen_tasks", "matrices"):
        with Image.open(output / f"{name}.png") as picture:
            assert min(picture.size) >= 400


def test_a_collected_file_with_newer_fields_gives_more_columns_rows_and_a_figure(runs, here, tmp_path):
    for place, one in enumerate(results_of(runs / "runs")):
        one["task_il"]["forward_transfer"] = 0.25
        one |= {"confusion": [[3, 1, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0], [0, 0, 2, 2]], "labels": "hard", "schedule": "steps",
                "scale_curves": [[{"scale": 0.5, "accuracy": 0.5, "loss": 1.0}, {"scale": 1.0, "accuracy": 1.0, "loss": 0.1}]],
                "bytes": {"stream": 2_500_000, "buffer": 10, "teacher": 0}}
        write_json(tmp_path / "runs" / f"hard-{place}" / "result.json", one)
        if one["stream"] == "distilled":
            write_json(tmp_path / "runs" / f"soft-{place}" / "result.json",
                       {**one, "labels": "soft", "flops": 3_000_000_000_000})
    for kind, spent in (("prototypes", {"encode": 2.0, "cluster": 1.0}), ("distilled", {"synthesise": 7.0}),
                        ("teacher", {"train": 20.0})):
        write_result(tmp_path / "made" / kind, kind, {}, {}, spent)
    assert here("misc.report.__main__", "collect", tmp_path / "runs", tmp_path / "all.jsonl").code == 0
    answer = here("misc.report.__main__", "compare", tmp_path / "all.jsonl", "--output", tmp_path / "out", "--cost-from",
                  tmp_path / "made")
    assert answer.code == 0, answer.err
    found, before = (json.loads((path / "comparison.json").read_text()) for path in (tmp_path / "out",
                                                                                   runs / "runs" / "comparison"))
    (one,), (other,) = ([one for one in each["claims"] if one["arm"] == "distilled"] for each in (found, before))
    assert (one["time_saved"]["mean"], one["verdict"]) == (pytest.approx(other["time_saved"]["mean"]), other["verdict"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f">{name}</th>" in page for name in ("TFLOP", "Stream (MB)", "Forward transfer, Task-IL (points)"))
    numbers = found["rows"]["er"]["distilled, soft labels"]
    assert (numbers["flops"]["mean"], numbers["stream_bytes"]["mean"]) == (3e12, 2.5e6)
    assert before["payback"] == [] and len(found["payback"]) == 2
    for one in found["payback"]:
        cost, saving = 30 if "soft" in one["arm"] else 10, one["saved_seconds"]["mean"]
        assert one["cost_seconds"] == cost
        assert one["trainings"] == (pytest.approx(cost / saving) if saving > 0 else "infinite")
    assert (tmp_path / "out" / "confusion.png").exists() and (tmp_path / "out" / "scale_curves.png").exists()


def test_the_cost_is_that_of_sets_as_large_as_the_stream_from_their_own_prototypes(here, tmp_path):
    for stream, steps in (("real", 30), ("distilled", 10)):
        write_json(tmp_path / "runs" / stream / "result.json", content(stream=stream, steps=steps, confusion=[[1] * 10] * 10))
    for ipc in (1, 10):
        write_result(tmp_path / "made" / f"set-ipc{ipc}", "distilled", {"method": "d4m", "ipc": ipc}, {}, {"make": 7.0 * ipc})
        for way, config in (("", {}), ("-random", {"prototype": "random"})):
            write_result(tmp_path / "made" / f"prototypes-ipc{ipc}{way}", "prototypes", {"ipc": ipc, **config}, {},
                         {"encode": 1.0 if way else 50.0})
    answer = here("misc.report.__main__", "compare", tmp_path / "runs", "--output", tmp_path / "out", "--cost-from",
                  tmp_path / "made")
    assert answer.code == 0, answer.err
    costs = json.loads((tmp_path / "out" / "comparison.json").read_text())["cost_seconds"]
    assert costs == {"prototypes": 50, "distilled": 70}
    answer = here("misc.report.__main__", "compare", tmp_path / "runs", "--output", tmp_path / "out", "--cost-from",
                  tmp_path / "made" / "set-ipc10", tmp_path / "made" / "prototypes-ipc10")      # the folders of the stages
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["cost_seconds"] == costs


@pytest.mark.parametrize("words, message", [
    (("nowhere", "--output", "out"), "nowhere: expected a folder or file, found none"),
    (("empty", "--output", "out"), "expected result.json files of continual.train_continual, found none"),
    (("runs", "--output", "out", "--cost-from", "empty"), "--cost-from empty: expected the result.json of a distilled set"),
    (("runs", "--output", "out", "--cost-seconds", "-1"), "--cost-seconds")])
def test_bad_input_is_one_line(here, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    write_json(tmp_path / "runs" / "one" / "result.json", content())
    placed = [tmp_path / word if word in ("nowhere", "empty", "runs", "out") else word for word in words]
    answer = here("misc.report.__main__", "compare", *placed)
    assert answer.code == 2 and message in answer.err.replace(f"{tmp_path}/", "") and answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
