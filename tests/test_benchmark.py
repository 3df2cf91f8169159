"""The benchmark: its command, the checks that both ways make the same, and its numbers against counts by hand."""

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from conftest import SIZE
from torch import nn

from misc.benchmark_distillation import report as report_distillation
from misc.benchmark_encoding import check_same_latents, memory
from misc.benchmark_matching import augmentation, check_same_views, labels, report, training
from misc.benchmark_synthesis import (
    DIGITS,
    Setting,
    check_same_images,
    flops_per_image,
    load_ours,
    load_stock,
    make_ours,
    make_stock,
    plan_images,
    stable_diffusion,
    synthesis,
)
from misc.measuring import conditions, flops_of, interleaved, peak_memory_bytes, times_faster
from scripts.networks import seeded

QUICK = {**DIGITS, "num_inference_steps": 4, "image_size": SIZE}


@pytest.fixture(scope="module")
def made(tmp_path_factory, checkpoint):
    """Four images of a tiny checkpoint made in one batch: the stock pipeline, the plan and the folder."""
    folder = tmp_path_factory.mktemp("made")
    pipeline = load_ours(str(checkpoint), "cpu", "float32")
    plan = plan_images(pipeline, 4, QUICK)
    make_ours(pipeline, plan, folder)
    return load_stock(str(checkpoint), "cpu", "float32"), plan, folder


def result_of(sections: dict) -> dict:
    return {**conditions(), "load_at_end": 0.0, "options": {"repetitions": 1}, "sections": sections}


def test_the_command_writes_every_number_and_the_table_shows_them(here, tmp_path):
    results = tmp_path / "misc" / "results"
    output = results / "benchmark_distillation.json"
    answer = here("misc.benchmark", "distillation", "--only", "encoding", "stable_diffusion", "--repetitions", 1,
                  "--output", output)
    assert answer.code == 0, answer.err
    result = json.loads(output.read_text())
    assert (result["kind"], result["benchmark"]) == ("benchmark", "distillation")
    assert result["threads"] == torch.get_num_threads() and all(result[name] for name in ("hardware", "packages", "code"))
    assert list(result["sections"]) == ["encoding"]
    found = result["sections"]["encoding"]
    assert found["settings"]["files"] == 512 and [len(spent) for spent in found["seconds"].values()] == [1, 1]
    ours, stock = found["seconds"]["ours"][0], found["seconds"]["stock"][0]
    assert found["times_faster"] == pytest.approx(stock / ours, rel=1e-2)
    assert list(found["images_per_second"].values()) == pytest.approx([512 / ours, 512 / stock], rel=1e-2)
    (waited,) = found["waiting"]
    assert found["waiting_share"] == pytest.approx(waited["wait"] / waited["encode"], rel=0.05, abs=1e-3)
    assert 0 < waited["wait"] < waited["encode"] < ours

    (tmp_path / "README.md").write_text("No table.\n")
    (tmp_path / "misc" / "benchmark.md").write_text("<!-- table: benchmark-distillation -->\n")
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (tmp_path / "misc" / "benchmark.md").read_text()
    speed = found["images_per_second"]     # the seconds above are rounded
    speeds = f"| {speed['ours']:.1f} | {speed['stock']:.1f}, decoding and encoding in turn |"
    assert f"{speeds} {found['times_faster']:.2f} | – |" in page
    assert "| Digits made, images/s | not run |" in page and "MB) | not run |" in page
    assert "not run, needs an accelerator (`python -m misc.benchmark distillation --only stable_diffusion`)" in page
    assert "needs an accelerator" in answer.out and f"{speed['ours']:.1f}" in answer.out


def test_the_continual_benchmark_writes_every_number_and_the_table_shows_them(here, tmp_path):
    output = tmp_path / "misc" / "results" / "benchmark_continual.json"
    answer = here("misc.benchmark", "continual", "--repetitions", 1, "--batch-size", 2, "--size", 16, "--output", output)
    assert answer.code == 0, answer.err
    result = json.loads(output.read_text())
    found = result["sections"]
    assert list(found) == ["overhead", "steps", "pixels", "start"] and result["benchmark"] == "continual"
    loop, network = (found["overhead"]["seconds"][name][0] for name in ("loop", "network"))
    assert found["overhead"]["share"] == pytest.approx(1 - network / loop, abs=0.02)
    seconds, times = found["steps"]["seconds"], found["steps"]["times_finetune"]
    assert {"finetune", "er", "agem"} <= set(times) and times["finetune"] == 1
    assert times["agem"] == pytest.approx(seconds["agem"][0] / seconds["finetune"][0], rel=0.02)
    assert found["pixels"]["milliseconds"] == pytest.approx(1000 * found["pixels"]["seconds"][0] / 50, rel=0.02)
    assert found["start"]["stream_images"] == 100 and found["start"]["worker_processes"] == 0
    assert 0 < found["start"]["milliseconds"] < 1000
    (tmp_path / "README.md").write_text("No table.\n")
    (tmp_path / "misc" / "benchmark.md").write_text("<!-- table: benchmark-continual -->\n")
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (tmp_path / "misc" / "benchmark.md").read_text()
    assert f"| A-GEM step, times a fine-tune step | {times['agem']:.2f} | at most 2.1 |" in page
    assert "2 stream and 2 memory images of 16 pixels" in page and f"{times['agem']:.2f}" in answer.out


@pytest.mark.parametrize("wrong", [("--only", "encoding", "speed"), ("--repetitions", "0")])
def test_a_wrong_flag_is_refused(here, tmp_path, wrong):
    answer = here("misc.benchmark", "distillation", "--output", tmp_path / "result.json", *wrong)
    assert answer.code == 2 and wrong[0] in answer.err and not (tmp_path / "result.json").exists()


def test_the_matching_command_writes_every_number_and_the_table_shows_them(here, tmp_path):
    output = tmp_path / "misc" / "results" / "benchmark_matching.json"
    answer = here("misc.benchmark", "matching", "--only", "small_batch", "training", "--repetitions", 1, "--output", output)
    assert answer.code == 0, answer.err
    found = json.loads(output.read_text())["sections"]
    assert list(found) == ["small_batch"]    # the other needs an accelerator
    ours, stock = (found["small_batch"]["seconds"][name][0] for name in ("ours", "stock"))
    assert found["small_batch"]["times_faster"] == pytest.approx(stock / ours, rel=1e-2)
    (tmp_path / "README.md").write_text("No table.\n")
    (tmp_path / "misc" / "benchmark.md").write_text("<!-- table: benchmark-matching -->\n")
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (tmp_path / "misc" / "benchmark.md").read_text()
    spent = 64e3 / found["small_batch"]["images_per_second"]["ours"]
    assert f"64 views of 32 pixels, one core (ms) | {spent:.2f} |" in page and f"{spent:.2f}" in answer.out
    assert page.count("| not run |") >= 8 and "On an accelerator: relabelling and an epoch of ResNet-18" in page


@pytest.mark.parametrize(("size", "mix"), [(32, "none"), (64, "cutmix")])
def test_views_are_made_both_ways_and_must_be_the_same(size, mix):
    found = augmentation(1, size, mix, images=12, batch_size=5)
    (ours,), (stock,) = found["seconds"]["ours"], found["seconds"]["stock"]
    assert found["images_per_second"]["ours"] == pytest.approx(12 / ours, rel=0.1)
    assert found["times_faster"] == pytest.approx(stock / ours, rel=0.1) and found["largest_difference_of_255"] <= 1.5
    views = torch.zeros(1, 3, 4, 4)
    assert check_same_views(views, views) == 0
    with pytest.raises(RuntimeError, match="torchvision's views"):
        check_same_views(views, views + 0.1)


def test_label_bytes_are_those_of_the_parts(tmp_path):
    found = labels(tmp_path, 1, images=150, classes=300, keep=(10,))
    drawn = 4 + 4 * 2 + 1 + 4 + 4 + 4 * 2    # order, crop, flip, partner, ratio, box
    expected = {"300": drawn + 300 * 2, "10": drawn + 10 * (2 + 2) + 2}
    assert found["bytes_per_image"] == pytest.approx(expected, abs=10)    # the header
    rows = report(result_of({}))[0].rows
    assert len(rows) == 10 and all("not run" in row for row in rows)
    assert found["seconds_to_open"]["300"] > 0 and set(found["seconds_to_read"]) == {"300", "10"}


def test_relabelling_and_a_student_are_measured_by_the_same_code(tmp_path):
    found = training(tmp_path, torch.device("cpu"), 1, size=32, images=16, batch_size=8, workers=2, matrix_side=32)
    network = seeded("resnet18", 8, "imagenet", 0).eval()
    forward = flops_of(lambda: network(torch.zeros(1, 3, 32, 32)))
    assert 3.5 < found["flops_per_image"] / forward < 4    # forward twice, backward twice, but no gradient of the pixels
    assert found["idle_share"] == {"ours": None, "stock": None} and set(found["share_of_peak"]) == {"ours", "stock"}
    table = {row[0]: row for row in report(result_of({"training": found}))[0].rows}
    row = next(row for name, row in table.items() if name.startswith("On an accelerator"))
    assert row[3] == f"{found['times_faster']:.2f}" and row[2].endswith("files and Pillow, 8 workers")


def test_both_ways_make_the_same_images(made, tmp_path):
    stock, plan, folder = made
    make_stock(stock, plan, tmp_path)
    assert check_same_images(folder, tmp_path, plan) <= 1


@pytest.mark.parametrize("other", [{"strength": 0.9}, {"seed": 1}, {"guidance_scale": 20}, {"num_inference_steps": 8}])
def test_other_images_are_found_out(made, tmp_path, other):
    stock, plan, folder = made
    make_stock(stock, replace(plan, config={**plan.config, **other}), tmp_path)
    with pytest.raises(RuntimeError, match="at most 1/255 apart"):
        check_same_images(folder, tmp_path, plan)


def test_synthesis_counts_images_on_both_sides(checkpoint, tmp_path):
    found = synthesis(tmp_path, "cpu", 1, str(checkpoint), images=6, stock_images=2)
    (ours,), (stock,) = found["seconds"]["ours"], found["seconds"]["stock"]
    assert found["times_faster"] == pytest.approx((stock / 2) / (ours / 6), rel=1e-2) and found["settings"]["batch_size"] == 6
    assert len(list((tmp_path / "ours").rglob("*.png"))) == 6 and len(list((tmp_path / "stock").rglob("*.png"))) == 2
    (row, *_) = report_distillation(result_of({"synthesis": found}))[0].rows
    assert row[0] == "Digits made, images/s" and row[3] == f"{found['times_faster']:.2f}"


@pytest.mark.parametrize("shift", [0.1, math.nan])
def test_other_latents_are_found_out(shift):
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert check_same_latents(latents, latents.clone()) == 0
    other = latents.clone()
    other[0, 0, 0, 0] += shift
    with pytest.raises(RuntimeError, match="the same latents"):
        check_same_latents(latents, other)


def test_the_large_model_is_measured_by_the_same_code(checkpoint, tmp_path):
    setting = Setting({**QUICK, "image_size": 16}, batch_sizes=(3, 2), stock_images=1, matrix_side=32)
    kinds = [("float32", False), ("bfloat16", False)]
    found = stable_diffusion(tmp_path, torch.device("cpu"), 1, str(checkpoint), kinds, setting)
    assert [run["dtype"] for run in found["runs"]] == ["float32", "bfloat16"]
    assert found["runs"][0]["largest_difference_of_255"] <= 1
    table = report_distillation(result_of({"stable_diffusion": found}))[1]
    assert [row[:2] for row in table.rows] == [["float32", "2"], ["float32", "3"], ["bfloat16", "2"], ["bfloat16", "3"]]
    batch, row = found["runs"][0]["batches"]["3"], table.rows[1]
    each = batch["seconds"][0] / 3
    assert batch["seconds_per_image"] == pytest.approx(each, rel=1e-2) and row[2] == f"{batch['seconds_per_image']:.3f}"
    assert batch["flops_per_second"] == pytest.approx(found["flops"]["image"] / each, rel=1e-2)
    assert found["flops"]["unet_evaluations"] == 2 and "2 UNet evaluations" in table.says   # 0.7 of 4 steps, rounded down
    assert (batch["peak_device_bytes"] is None) == (not torch.cuda.is_available())


def test_operations_are_counted_as_by_hand():
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    assert flops_of(lambda: convolution(torch.zeros(2, 3, 10, 10))) == 2 * 2 * 8 * 100 * 3 * 9
    query = torch.zeros(1, 2, 16, 4)    # two heads; the scores, and their product with the values
    assert flops_of(lambda: nn.functional.scaled_dot_product_attention(query, query, query)) == 2 * 2 * (2 * 16 * 16 * 4)


def test_an_images_operations_are_those_of_its_parts(checkpoint):
    pipeline = load_ours(str(checkpoint), "cpu", "float32")
    latent, text = torch.zeros(2, 4, SIZE // 4, SIZE // 4), torch.zeros(2, 77, pipeline.unet.config.cross_attention_dim)
    with torch.no_grad():
        both_halves = flops_of(lambda: pipeline.unet(latent, 1, text))
        decoding = flops_of(lambda: pipeline.vae.decode(latent[:1]))
    assert flops_per_image(str(checkpoint), QUICK)["image"] == 2 * both_halves + decoding


def test_variants_take_turns_and_the_first_round_does_not_count():
    order = []
    seconds = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "turns")
    assert "".join(order) == "ababab" and {name: len(spent) for name, spent in seconds.items()} == {"a": 2, "b": 2}
    assert times_faster([1.0, 2.0, 1.0], [3.0, 8.0, 2.0]) == 3.0


def test_a_commands_memory_is_its_own():
    ballast = bytearray(400_000_000)     # of this process: none of the command's
    small, large = (peak_memory_bytes([sys.executable, "-c", f"data = bytes([1]) * {size}"]) for size in (1, 200_000_000))
    assert small < 100e6 and large - small == pytest.approx(200e6, rel=0.1) and len(ballast)
    with pytest.raises(RuntimeError, match="No module named"):
        peak_memory_bytes([sys.executable, "-m", "module_at_all"])


def test_memory_is_that_of_the_real_command(checkpoint, tmp_path):
    found = memory(tmp_path, (1, 2), 10, str(checkpoint))
    assert list(found["peak_bytes"]) == ["10", "20"] and min(found["peak_bytes"].values()) > 100e6
    assert found["growth"] == pytest.approx(found["peak_bytes"]["20"] / found["peak_bytes"]["10"] - 1)
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("manifest.json"))]
    assert [each["counts"]["images"] for each in manifests] == [10, 20]
    row = next(row for row in report_distillation(result_of({"memory": found}))[0].rows if row[0].startswith("Peak memory"))
    assert row[0].endswith("(MB), 20 images") and row[1] == f"{found['peak_bytes']['20'] / 1e6:.0f}"
