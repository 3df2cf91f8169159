"""The benchmark: its command and table, that both ways make the same, and its numbers against counts by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import IPC, pixels
from test_datasets import write_idx

from misc import measurements
from misc.benchmark import ROWS, conditions, number, report
from misc.measurements import check_close, peak_memory_bytes, stage

CPU = torch.device("cpu")


def table(name: str, rows: dict) -> dict[str, tuple]:
    """The rows of the table, by their first cell."""
    result = {**conditions(), "load_at_end": 0.0, "options": {"repetitions": 1}, "benchmark": name, "rows": rows}
    return {row[0]: row[1:] for row in report(result)[0].rows}


def test_the_command_writes_a_result_and_the_table_shows_it(here, tmp_path):
    output = tmp_path / "misc" / "results" / "benchmark_distillation.json"
    answer = here("misc.benchmark", "distillation", "--only", "stable_diffusion", "--repetitions", 1, "--output", output)
    assert answer.code == 0, answer.err
    result = json.loads(output.read_text())
    assert (result["kind"], result["benchmark"], result["rows"]) == ("benchmark", "distillation", {})  # needs an accelerator
    assert all(result[name] for name in ("hardware", "cores", "threads", "packages", "code"))
    (tmp_path / "README.md").write_text("No table.\n")
    (tmp_path / "misc" / "benchmark.md").write_text("<!-- table: benchmark-distillation -->\n")
    assert here("misc.report.__main__", "tables", "--root", tmp_path).code == 0
    page = (tmp_path / "misc" / "benchmark.md").read_text()
    assert page.count("not run") >= len(ROWS["distillation"]) and "one by one, diffusers' pipeline" in page


def test_a_part_keeps_the_other_rows_of_the_file(here, tmp_path):
    output, part = tmp_path / "result.json", ("--only", "stable_diffusion", "--repetitions", 1)
    encoding = {"here": 936.0, "other": 870.0, "ratio": 1.08}
    result = {**conditions(), "load_at_end": 0.0, "options": {"repetitions": 1}, "benchmark": "distillation",
              "rows": {"encoding": encoding}}
    output.write_text(json.dumps(result))
    answer = here("misc.benchmark", "distillation", *part, "--output", output)
    assert answer.code == 0 and json.loads(output.read_text())["rows"] == {"encoding": encoding}
    assert "Of an earlier run on this machine: Files encoded, digits-ldm, images/s." in " ".join(answer.out.split())
    for name, value in (("threads", 99), ("options", {"repetitions": 5}), ("benchmark", "scale")):
        output.write_text(json.dumps(result | {name: value}))     # rows of another machine, or of fewer rounds
        answer = here("misc.benchmark", "distillation", *part, "--output", output)
        assert answer.code == 2 and f"expected {name}" in answer.err and json.loads(output.read_text())[name] == value


@pytest.mark.parametrize("wrong", [("--only", "encoding", "speed"), ("--repetitions", "0")])
def test_a_wrong_flag_is_refused(here, tmp_path, wrong):
    answer = here("misc.benchmark", "distillation", "--output", tmp_path / "result.json", *wrong)
    assert answer.code == 2 and wrong[0] in answer.err and not (tmp_path / "result.json").exists()


def test_synthesis_makes_the_images_of_diffusers_pipeline(checkpoint, image_data, tmp_path):
    prototypes, _ = stage(tmp_path, f"distillation.gen_prototype --dataset folder --data_dir '{image_data}' --ipc {IPC} "
                                    f"--diffusion_checkpoints_path '{checkpoint}' --save_prototype_path")
    how = "--dataset folder -s 0.7 -g 2 --num_inference_steps 4"
    for size in (36, 5):
        row = measurements.compare_synthesis(tmp_path, CPU, 1, str(checkpoint), "float32", (prototypes, how), size, 2)
        here, other = (row["seconds"][name][0] for name in ("here", "other"))
        assert row["ratio"] == pytest.approx((other / 2) / (here / 36), rel=0.02) and row["apart"] in ("0/255", "1/255")
    assert table("distillation", {"synthesis": row})["Digits made, images/s"][2] == number(row["ratio"])
    from diffusers import StableDiffusionImg2ImgPipeline
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint, safety_checker=None, requires_safety_checker=False)
    made = next(tmp_path.rglob("metadata.jsonl")).parent
    for name, value in (("strength", 0.95), ("seed", 1), ("guidance_scale", 20)):
        manifest = json.loads((made / "manifest.json").read_text())
        manifest["config"][name] = value
        (made / "manifest.json").write_text(json.dumps(manifest))
        measurements.make_stock(pipeline, prototypes, made, tmp_path / name, 1)
        (path,) = (tmp_path / name).rglob("*.png")
        with pytest.raises(RuntimeError, match="at most 1 apart"):
            check_close("synthesis", pixels(made / path.relative_to(tmp_path / name)), pixels(path), 1)


def test_encoding_makes_the_latents_of_the_plain_way(checkpoint, tmp_path):
    rows = dict(measurements.encoding(tmp_path, CPU, 1, str(checkpoint), files=16, side=40))
    assert list(rows) == ["encoding", "waiting"] and 0 < rows["waiting"]["here"] < 100
    here, other = (rows["encoding"]["seconds"][name][0] for name in ("here", "other"))
    assert rows["encoding"]["ratio"] == pytest.approx(other / here, rel=0.05)
    latents = torch.randn(4, 4, 8, 8)
    for shift in (0.1, torch.nan):
        with pytest.raises(RuntimeError, match="the same results"):
            check_close("encoding", latents, latents + shift, 0.01)


def test_prototypes_of_many_images_beside_the_encoder_alone(checkpoint, tmp_path):
    write_idx(tmp_path / "data", count=40)
    rows = dict(measurements.scale(tmp_path, CPU, 1, ((20, 1), (40, 2)), str(tmp_path / "data"), str(checkpoint)))
    assert list(rows) == ["prototypes_20_1", "prototypes_40_2", "share_files", "share_kmeans"]
    assert rows["prototypes_40_2"]["ratio"] == pytest.approx(rows["prototypes_40_2"]["here"] / rows["prototypes_40_2"]["other"])
    assert [json.loads(path.read_text())["counts"]["images"] for path in sorted(tmp_path.rglob("manifest.json"))].count(40) == 2


def test_memory_is_that_of_the_real_command(here, monkeypatch, checkpoint, tmp_path):
    """Commands of the first round run in this process; a test below measures others."""
    commands = []

    def peak(command):
        commands.append(command)
        if len(commands) % 6 in (1, 2):     # three rounds of each stage, on 60 and on 120 images
            assert here(*command[2:]).code == 0
        images = len(list((Path(command[-1]) / "train").rglob("*.jpg")))
        return 1e6 * images * (2 if len(commands) % 6 in (5, 0) else 1)     # something else ran in the last round
    monkeypatch.setattr(measurements, "peak_memory_bytes", peak)
    found = dict(measurements.memory(tmp_path, CPU, 3, (5, 10), 12, str(checkpoint)))
    assert list(found) == list(ROWS["memory"]) and found["memory_gen_prototype"] == {"here": 120, "other": 60, "ratio": 2}
    assert len({" ".join(command) for command in commands}) == len(commands) == 4 * 3 * 2   # each in a folder of its own
    manifests = [json.loads(path.read_text()) for path in tmp_path.rglob("manifest.json")]
    assert sorted(each["counts"]["images"] for each in manifests if each["kind"] == "prototypes") == [60, 120]


def test_views_are_those_of_torchvision(tmp_path):
    rows = dict(measurements.views(tmp_path, CPU, 1, images=12, batch_size=5))
    assert list(rows) == [key for key in ROWS["matching"] if key.startswith("views")]
    for row in rows.values():
        assert row["ratio"] == pytest.approx(row["here"] / row["other"], rel=0.01) and float(row["apart"][:-4]) <= 1.5


def test_relabelling_and_a_student_are_measured_by_their_commands(tmp_path):
    rows = dict(measurements.training(tmp_path, CPU, 1, arch="shufflenet_v2_x0_5", size=32, images=16, batch_size=8))
    cells = table("matching", rows)["* Relabelling and an epoch of ResNet-18, 224 pixels, images/s"]
    assert cells[2] == number(rows["training"]["ratio"]) and cells[1].endswith("files and Pillow, 8 workers")


def test_soft_labels_and_students_beside_their_network(tmp_path):
    rows = dict(measurements.networks(tmp_path, CPU, 1, "shufflenet_v2_x0_5", images=20, batch_size=10, epochs=1))
    assert list(rows) == ["labels", "student"] and all(row["here"] > 0 < row["other"] for row in rows.values())
    assert "Student, the same, images/s" in table("matching", rows)


def test_a_finished_stage_is_faster_than_importing_torch(tmp_path):
    rows = dict(measurements.starts(tmp_path, CPU, 1, wanted=("finished",)))
    assert list(rows) == ["finished"] and rows["finished"]["ratio"] < 1


def test_continual_steps_come_from_result_files(tmp_path):
    rows = dict(measurements.steps(tmp_path, CPU, 1, batch_size=2, size=16, tasks=2, count=1))
    assert list(rows) == list(ROWS["continual"]) and all(row["here"] > 0 for row in rows.values())
    fine_tune = rows["derpp"]["seconds"][0] / rows["derpp"]["here"]
    assert rows["agem"]["here"] == pytest.approx(2 * rows["agem"]["seconds"][0] / fine_tune - 1)
    assert "A-GEM step, times a fine-tune step" in table("continual", rows)


def test_variants_take_turns_and_the_first_round_does_not_count():
    order = []
    seconds = measurements.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "turns")
    assert "".join(order) == "ababab" and {name: len(spent) for name, spent in seconds.items()} == {"a": 2, "b": 2}
    assert measurements.median_ratio([3.0, 8.0, 2.0], [1.0, 2.0, 1.0]) == 3.0
    assert measurements.interleaved({"own": lambda: 7.0}, 1, "own seconds") == {"own": [7.0]}


def test_a_commands_memory_is_its_own():
    ballast = bytearray(400_000_000)     # of this process, not of the command
    small, large = (peak_memory_bytes([sys.executable, "-c", f"data = bytes([1]) * {size}"]) for size in (1, 200_000_000))
    assert small < 100e6 and large - small == pytest.approx(200e6, rel=0.1) and len(ballast)
    with pytest.raises(subprocess.CalledProcessError):
        peak_memory_bytes([sys.executable, "-c", "raise SystemExit(2)"])
