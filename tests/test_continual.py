"""The continual stage: metrics and maths against cases worked by hand, and the real command line for a few steps."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import manifest_in, rows_of
from PIL import Image
from tiny_continual import FAST, RECIPE, Small, chi_square, in_process, some_images, tiny, write_data, write_teacher
from torch import nn

from continual import streams, train_continual
from continual.buffer import Reservoir, TaskMemory, draw_rows, reservoir_slots, split_evenly
from continual.methods import project_
from continual.metrics import Timers, masked_accuracy, summarise
from continual.streams import batches, class_order, hold_out, make_tasks, merge_tasks
from continual.task_arithmetic import MERGES, TaskArithmetic, merge_ties, reestimate_batchnorm
from continual.training import Trainer, bn_momentum
from distillation.datasets import load_split
from distillation.distilled_set import finish_distilled, row, write_image
from distillation.images import fit_image
from scripts.cli import ROOT, InputError
from scripts.files import read_tensors
from scripts.randomness import generator_for

# metrics


@pytest.mark.parametrize("matrix, expected", [
    ([[0.9, 0.1, 0.0], [0.6, 0.8, 0.2], [0.7, 0.5, 1.0]],
     {"acc": (0.7 + 0.5 + 1.0) / 3, "average_incremental": (0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3,
      "bwt": ((0.7 - 0.9) + (0.5 - 0.8)) / 2, "forgetting": ((0.9 - 0.7) + (0.8 - 0.5)) / 2}),
    # forgetting counts from the best accuracy so far, not from the first
    ([[0.5, 0.0, 0.0], [0.9, 0.6, 0.0], [0.4, 0.7, 0.9]],
     {"bwt": ((0.4 - 0.5) + (0.7 - 0.6)) / 2, "forgetting": ((0.9 - 0.4) + (0.6 - 0.7)) / 2}),
    ([[0.5]], {"acc": 0.5, "average_incremental": 0.5, "bwt": None, "forgetting": None}),
    ([None, [0.4, 0.8]], {"acc": 0.6, "average_incremental": None, "bwt": None, "forgetting": None})])
def test_metrics_against_cases_worked_by_hand(matrix, expected):
    found = summarise(matrix)
    assert found["matrix"] == matrix and {name: found[name] for name in expected} == pytest.approx(expected)


def test_masked_accuracy_answers_allowed_classes_only():
    logits = torch.tensor([[9.0, 1, 2, 0], [9.0, 5, 1, 0], [9.0, 0, 0, 1]])
    assert masked_accuracy(logits, torch.tensor([2, 1, 2]), {1, 2}) == pytest.approx(2 / 3)
    assert masked_accuracy(logits, torch.tensor([2, 1, 2]), {0, 1, 2, 3}) == 0


# streams

def test_class_order_depends_on_the_seed_alone_and_is_cut_evenly():
    assert class_order(10, "seeded", 3) == class_order(10, "seeded", 3) != class_order(10, "seeded", 4)
    assert class_order(4, "natural", 3) == [0, 1, 2, 3]
    assert streams.split_classes([2, 0, 1, 3, 4], 2) == [(2, 0, 1), (3, 4)]
    with pytest.raises(InputError, match="between 1 and 5"):
        streams.split_classes([2, 0, 1, 3, 4], 6)


def test_batches_show_every_image_once_before_any_twice():
    images = some_images(5, 2)
    index_of = {tuple(row): index for index, row in enumerate(images.images.flatten(1).tolist())}
    found = list(batches(images, range(5), 4, 0, 0))
    rows = [index_of[tuple(row)] for batch in found for row in batch.images.flatten(1).tolist()]
    assert sorted(rows[:10]) == sorted(rows[10:20]) == list(range(10))
    assert [batch.new for batch in found] == [4, 4, 2, 0, 0]
    later = list(batches(images, range(3, 5), 4, 0, 0))
    assert torch.equal(later[0].images, found[3].images) and later[0].rng.random() == found[3].rng.random()


def test_dropout_is_a_function_of_seed_task_and_step():
    images = some_images(5, 2)

    def drawn(first, seed, task):
        return [torch.rand(3).tolist() for _ in batches(images, range(first, 3), 4, seed, task)]
    one, two = drawn(1, 0, 0)
    assert drawn(2, 0, 0) == [two] != [one]
    assert two not in (*drawn(2, 1, 0), *drawn(2, 0, 1))


def test_memory_is_held_out_only_where_the_task_can_spare_it():
    images = some_images(12)
    tasks = make_tasks(images, images, some_images(3, seed=1), [(0, 1), (2, 3)])
    (task, _), held = hold_out(tasks, 4, 0)
    assert held and len(task.train) == 20 and sorted(task.memory.labels.tolist()) == [0, 0, 1, 1]
    kept = {tuple(row) for row in task.memory.images.flatten(1).tolist()}
    assert not kept & {tuple(row) for row in task.train.images.flatten(1).tolist()}
    (task, _), held = hold_out(tasks, 6, 0)
    assert not held and len(task.train) == 24 and len(task.memory) == 6
    uneven, held = hold_out(make_tasks(images, images, some_images(3, seed=1), [(0, 1), (2,), (3,)]), 3, 0)
    assert not held and [len(task.train) for task in uneven] == [24, 12, 12]      # the small ones decide for all
    rare = images.rows(torch.cat([(images.labels != 1).nonzero().flatten(), (images.labels == 1).nonzero().flatten()[:3]]))
    (task, _), held = hold_out(make_tasks(rare, rare, some_images(3, seed=1), [(0, 1), (2, 3)]), 3, 0)
    assert not held and task.train.labels.bincount().tolist() == [12, 3]
    (task, _), held = hold_out(make_tasks(images, some_images(3), images, [(0, 1), (2, 3)]), 4, 0)
    assert not held and len(task.train) == 24
    assert len(merge_tasks(tasks).train) == 48 and merge_tasks(tasks).classes == (0, 1, 2, 3)


def test_balanced_rows_take_turns_and_random_images_match_the_counts():
    labels = torch.tensor([0] * 20 + [1] * 3)
    rows = streams.balanced_rows(labels, 8, generator_for(0, "test"))
    assert labels[rows].bincount().tolist() == [5, 3] and len(set(rows.tolist())) == 8
    real, like = some_images(12), some_images(3)
    first, again, other = (streams.random_images(real, like, seed) for seed in (0, 0, 1))
    assert first.labels.bincount().tolist() == [3, 3, 3, 3] and first.digest == again.digest != other.digest
    with pytest.raises(InputError, match="expected 12 images of class 0, found 3"):
        streams.random_images(like, real, 0)


# buffer

def test_reservoir_in_batches_equals_algorithm_r_one_by_one():
    rng, mirror = np.random.default_rng(0), np.random.default_rng(0)
    stored, expected, seen = np.full(7, -1), np.full(7, -1), 0
    for count in (3, 5, 4, 9, 1, 30):
        items, slots = reservoir_slots(seen, count, 7, rng)
        stored[slots] = seen + items
        draws = mirror.integers(0, seen + np.arange(count) + 1)
        for number in range(seen, seen + count):
            slot = number if number < 7 else draws[number - seen]
            if slot < 7:
                expected[slot] = number
        seen += count
    assert (stored == expected).all() and len(set(stored.tolist())) == 7


def test_reservoir_keeps_every_item_with_the_same_probability():
    counts, trials, capacity, total = np.zeros(40), 1500, 10, 40
    for trial in range(trials):
        stored, rng = np.zeros(capacity, dtype=int), np.random.default_rng(trial)
        for first in range(0, total, 8):
            items, slots = reservoir_slots(first, 8, capacity, rng)
            stored[slots] = first + items
        counts[stored] += 1
    assert chi_square(counts, trials * capacity / total, capacity / total) < 72.1  # 99.9 % point, 39 degrees of freedom


def test_buffer_counts_its_bytes_and_draws_repeat_only_when_they_must():
    images, buffer = some_images(5), Reservoir(8, (3, 32, 32), "cpu")
    assert [len(part) for part in buffer.draw(4, np.random.default_rng(0))] == [0, 0] and buffer.bytes == 0
    for batch in batches(images, range(5), 4, 0, 0):
        buffer.offer(batch.images, batch.labels, batch.rng)
    assert len(buffer) == 8 and buffer.images.dtype == torch.uint8 and buffer.bytes == 8 * (3 * 32 * 32 + 8)
    assert buffer.seen == 20
    rows = draw_rows(5, 12, np.random.default_rng(0))
    assert np.bincount(rows).max() - np.bincount(rows).min() <= 1 and len(set(rows[:5])) == 5


def test_task_memory_always_fills_the_whole_budget():
    memory, images = TaskMemory(10, (3, 32, 32), "cpu"), some_images(12)
    for label, parts in enumerate(([10], [5, 5], [4, 3, 3], [3, 3, 2, 2])):
        memory.add_task(images.rows(images.labels == label), np.random.default_rng(label))
        assert memory.contents()[1].bincount().tolist() == parts == split_evenly(10, label + 1)
    held = {tuple(row) for row in memory.contents()[0].flatten(1).tolist()}
    assert len(held) == 10 and held <= {tuple(row) for row in images.images.flatten(1).tolist()}


# A-GEM

def test_projection_never_leaves_a_negative_product_and_is_the_nearest_such_gradient():
    for trial in range(50):
        generator = generator_for(trial, "gradients")
        gradients, references = ([torch.randn(shape, generator=generator) for shape in ((3, 4), (7,))] for _ in range(2))
        before = torch.cat([part.flatten() for part in gradients])
        reference = torch.cat([part.flatten() for part in references])
        project_(gradients, references)
        after = torch.cat([part.flatten() for part in gradients])
        product = before @ reference
        expected = before if product >= 0 else before - product / (reference @ reference) * reference
        assert after @ reference > -1e-5 and torch.allclose(after, expected, atol=1e-6)
    project_(gradient := [torch.ones(3)], [torch.zeros(3)])
    assert torch.equal(gradient[0], torch.ones(3))


def test_frozen_statistics_normalise_by_the_batch_and_stay():
    layer = nn.BatchNorm2d(3)
    with bn_momentum(layer, 0.0):
        out = layer(torch.randn(8, 3, 4, 4) * 5 + 2)
    assert out.mean().abs() < 1e-5 and torch.equal(layer.running_mean, torch.zeros(3)) and layer.momentum == 0.1


# Task Arithmetic

def test_merges_against_cases_worked_by_hand():
    vectors = torch.tensor([[1.0, -4, 0, 2], [3.0, 1, 0, -5]])
    assert MERGES["sum"](vectors).tolist() == [4, -3, 0, -3]
    assert MERGES["mean"](vectors).tolist() == [2, -1.5, 0, -1.5]
    assert MERGES["magmax"](vectors).tolist() == [3, -4, 0, -5]
    # trimmed to half: [0 -4 0 2] and [3 0 0 -5]; signs + - 0 -; means of those agreeing
    assert merge_ties(vectors, keep=0.5).tolist() == [3, -4, 0, -5]


@pytest.mark.parametrize("merge", ["sum", "mean", "magmax"])
def test_one_task_at_scale_one_is_the_expert(merge):
    images = some_images(12, 2)
    task = make_tasks(images, images, images, [(0, 1)])[0]
    network = Small(classes=2)
    learner = TaskArithmetic(Trainer(network, RECIPE, 0, Timers("cpu")), Reservoir(8, (3, 32, 32), "cpu"), merge, [1.0], 0)
    learner.begin(task, 2)
    for batch in batches(task.train, range(2), 8, 0, 0):
        learner.step(batch)
    expert = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    statistics = network[1].running_mean.clone()
    learner.end(task)
    for name, parameter in network.named_parameters():
        assert torch.allclose(parameter, expert[name], atol=1e-6), name
    assert len(learner.vectors[0]) == sum(p.numel() for p in network.parameters()) - 2 * 16 - 2
    assert not torch.equal(network[1].running_mean, statistics)  # estimated anew, not merged
    assert all((value > 0).all() for name, value in network.state_dict().items() if name.endswith("running_var"))
    assert learner.curves[0][0]["scale"] == 1.0


def test_batchnorm_statistics_become_those_of_the_images():
    network, views = nn.Sequential(nn.BatchNorm2d(3)), torch.randn(40, 3, 5, 5, generator=generator_for(0, "views")) * 3 + 1
    logits = reestimate_batchnorm(network, views)
    assert torch.allclose(network[0].running_mean, views.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(network[0].running_var, views.transpose(0, 1).flatten(1).var(1), rtol=1e-4)
    assert logits.shape == views.shape and network[0].momentum == 0.1 and not network.training


# the command line

def refusal(monkeypatch, capsys, *words) -> str:
    """The one line with which the command refuses."""
    with pytest.raises(SystemExit) as stopped:
        in_process(monkeypatch, *words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_every_method_and_source_runs_and_a_second_run_skips_them(data, tmp_path, monkeypatch, capsys):
    words = tiny(data, tmp_path, "--method", *train_continual.METHODS, "--stream", "real", "random", "distilled",
                 "--arch", FAST, "--tasks", 2)
    in_process(monkeypatch, *words)
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*-*-seed0/result.json")}
    assert results.pop("start-distilled-seed0")["kind"] == "start" and len(results) == 18
    for result in results.values():
        matrix = result["class_il"]["matrix"]
        assert np.shape(matrix[1]) == (2,) and result["steps"] == 4 and 0 <= result["task_il"]["acc"] <= 1
        assert result["stream_images"] == (48 if result["stream"] == "real" else 8)
        assert result["seconds"]["train"] >= result["seconds"]["forward"] + result["seconds"]["backward"]
        assert matrix[0] is None if result["method"] == "joint" else matrix[0][1] == 0
    assert results["er-distilled-seed0"]["buffer"] == {"images": 8, "bytes": 8 * 3080}  # each image offered once
    assert results["agem-real-seed0"]["buffer"]["images"] == 8 and results["finetune-real-seed0"]["buffer"]["images"] == 0
    assert "all 4 classes" in results["task_arithmetic-real-seed0"]["start"]["note"]
    assert "held out" in results["task_arithmetic-real-seed0"]["memory"]
    assert "trained on too" in results["task_arithmetic-distilled-seed0"]["memory"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    in_process(monkeypatch, *words)
    assert capsys.readouterr().out.count("complete, nothing to do") == 18
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "begun with tasks=2, now asked for 4" in refusal(monkeypatch, capsys, *words, "--tasks", 4)


@pytest.mark.parametrize(("flags", "words"), [
    (["--size", 0], "--size: expected a value in [1"), (["--epochs", "inf"], "--epochs: expected a value"),
    (["--weight-decay", -1], "--weight-decay: expected a value in [0"), (["--momentum", 0.5], "--momentum needs"),
    (["--optimizer", "sgd", "--momentum", -1], "--momentum: expected a value"),
    (["--scale", 0.5, "nan"], "--scale: expected a value"), (["--method", "task_arithmetic"], "--start distilled"),
    (["--method", "task_arithmetic", "--start", "task1", "--arch", "squeezenet1_1"], "a linear head for task_arithmetic")])
def test_flags_that_cannot_be_are_refused_in_one_line(data, tmp_path, monkeypatch, capsys, flags, words):
    assert words in refusal(monkeypatch, capsys, "--dataset", "folder", "--data-dir", data / "real", "--output-dir", tmp_path,
                            "--tasks", 2, *flags)
    assert not list(tmp_path.rglob("manifest.json"))


def test_images_that_are_not_square_are_cut_as_those_of_the_sets(tmp_path, monkeypatch):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8))
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        write_image(tmp_path, name, image)
    monkeypatch.setattr(sys, "argv", ["train_continual", "--dataset", "folder", "--data-dir", str(tmp_path), "--size", "16"])
    sources, _ = train_continual.load_sources(train_continual.parse_args(), "cpu")
    expected = torch.from_numpy(np.asarray(fit_image(image, 16, "centre"))).permute(2, 0, 1)
    assert torch.equal(sources.of("real", 0).images[0], expected) and torch.equal(sources.test.images[0], expected)


def test_at_another_size_distilled_images_are_seen_as_real_ones(tmp_path, monkeypatch):
    """Images of digits have one size, so none is cut."""
    split, rows = load_split("digits", "", "train"), [row(label, str(label), 0, 0, 0, 1.0) for label in range(10)]
    for entry in rows:
        write_image(tmp_path / "set", entry["file_name"], split.read(int(split.rows_of(entry["label"])[0])))
    finish_distilled(tmp_path / "set", split.classes, {}, rows)
    words = ["--dataset", "digits", "--size", "24", "--distilled", str(tmp_path / "set")]
    monkeypatch.setattr(sys, "argv", ["train_continual", *words])
    sources, _ = train_continual.load_sources(train_continual.parse_args(), "cpu")
    real = sources.of("real", 0)
    first = torch.stack([real.images[(real.labels == label).nonzero()[0, 0]] for label in range(10)])
    assert (first.int() - sources.of("distilled", 0).images.int()).abs().max() <= 1     # two ways to interpolate


def test_random_images_are_read_where_they_are_used_and_are_as_many(data, tmp_path, monkeypatch, capsys):
    words = tiny(data, tmp_path / "out", "--method", "finetune", "--tasks", 2, "--arch", FAST)
    in_process(monkeypatch, *words, "--random", "nowhere", "--stream", "real")
    more = write_data(tmp_path / "more") / "set"
    rows = rows_of(more)
    finish_distilled(more, manifest_in(more)["classes"], {}, rows[:-1])
    for flags in (["--stream", "random"], ["--buffer-source", "random"]):
        assert "--random: expected as many images of each class as set has, which are 8, found 7" in refusal(
            monkeypatch, capsys, *words, "--random", more, *flags)


def test_only_a_start_that_is_used_is_looked_at_and_before_other_methods_train(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("distilled").mkdir()      # the default folder of gen_syn_image, and a name of --start
    words = ("--dataset", "folder", "--data-dir", data / "real", "--size", 32, "--tasks", 2, "--steps", 1, "--batch-size", 4,
             "--arch", FAST, "--output-dir", tmp_path / "out")
    in_process(monkeypatch, *words, "--method", "finetune", "--validation", 8)
    weights = write_teacher(tmp_path / "teacher") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    said = refusal(monkeypatch, capsys, *words, "--method", "joint", "task_arithmetic", "--start", tmp_path / "teacher")
    assert "model.safetensors: expected" in said and "bytes" in said and not (tmp_path / "out" / "joint-real-seed0").exists()


def test_a_start_that_was_trained_again_is_another_start(data, tmp_path, monkeypatch, capsys):
    write_teacher(tmp_path / "teacher")
    words = tiny(data, tmp_path / "out", "--method", "task_arithmetic", "--tasks", 2, "--start", tmp_path / "teacher",
                 "--arch", "convnet_d2_w8")
    in_process(monkeypatch, *words)
    manifest = json.loads((tmp_path / "teacher" / "manifest.json").read_text())
    manifest["files"] = {name: "0" * 64 for name in manifest["files"]}
    (tmp_path / "teacher" / "manifest.json").write_text(json.dumps(manifest))
    assert "begun with digests.start=" in refusal(monkeypatch, capsys, *words)


def test_a_start_that_has_seen_other_classes_is_refused(data, tmp_path, monkeypatch, capsys):
    manifest = write_teacher(tmp_path / "teacher") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"c3"', '"c4"'))
    words = tiny(data, tmp_path / "out", "--method", "task_arithmetic", "--tasks", 2, "--start", tmp_path / "teacher",
                 "--arch", FAST)
    assert "expected the 4 classes of the stream in its order, found 4: c0, c1, c2, c4" in refusal(monkeypatch, capsys, *words)


def test_a_run_that_was_refused_before_its_first_step_can_be_corrected(data, tmp_path, monkeypatch, capsys):
    words = tiny(data, tmp_path / "out", "--method", "finetune", "--arch", FAST)
    assert "--tasks: expected between 1 and 4 tasks" in refusal(monkeypatch, capsys, *words, "--tasks", 5)
    in_process(monkeypatch, *words, "--tasks", 2)
    assert (tmp_path / "out" / "finetune-real-seed0" / "manifest.json").exists()


def test_a_run_begun_at_commit_9ae800c_and_killed_in_its_second_task_is_finished(data, tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "tests/data/before_the_move/continual", tmp_path / "out")
    folder = tmp_path / "out" / "er-real-seed0"
    in_process(monkeypatch, *tiny(data, tmp_path / "out", "--tasks", 2, "--steps", 3, "--buffer-size", 4, "--optimizer", "sgd",
                                  "--arch", FAST))
    assert "state.pt: continuing at step 4" in capsys.readouterr().out and not (folder / "state.pt").exists()
    assert json.loads((folder / "result.json").read_text())["steps"] == 6
    assert read_tensors(folder / "buffer.safetensors")["labels"].tolist() == [3, 0, 0, 0]  # as in a run without a break


@pytest.mark.parametrize("words, part", [
    (("--stream", "distilled"), "--distilled: expected a distilled set"),
    (("--tasks", 11), "--tasks: expected between 1 and 10"),
    (("--stream", "real", "random", "--steps", 1, 2, 3), "one per --stream"),
    (("--buffer-size", 2), "--buffer-size"),
    (("--method", "task_arithmetic", "--start", "nowhere"), "--start nowhere"),
    (("--steps", 3, "--epochs", 2), "--schedule steps: expected no --epochs, found 2.0"),
    (("--schedule", "steps"), "--schedule steps: expected --steps, found none"),
    (("--schedule", "epochs", "--steps", 3), "--schedule epochs: expected no --steps, found 3"),
    (("--labels", "soft"), "expected both or neither"),
    (("--teacher", "x"), "expected both or neither"),
    (("--labels", "soft", "--teacher", "nowhere"), "nowhere: expected a finished folder of kind teacher"),
    (("--epochs", 0), "--epochs: expected a value in")])
def test_bad_input_is_one_line_and_writes_nothing(words, part, tmp_path, monkeypatch, capsys):
    assert part in refusal(monkeypatch, capsys, *words, "--output-dir", tmp_path / "out")
    assert not list(tmp_path.rglob("result.json"))


def test_a_teacher_of_another_size_is_refused(data, tmp_path, monkeypatch, capsys):
    teacher = write_teacher(tmp_path / "teacher", size=64)
    assert "expected a teacher of 32 pixels, found one of 64" in refusal(
        monkeypatch, capsys, *tiny(data, tmp_path / "out", "--labels", "soft", "--teacher", teacher))


def test_validation_images_are_the_test_and_not_in_the_stream(data, tmp_path, monkeypatch, capsys):
    words = ("--dataset", "folder", "--data-dir", data / "real", "--size", 32, "--validation", 8, "--tasks", 2, "--steps", 1,
             "--batch-size", 4, "--replay-batch-size", 4, "--buffer-size", 8, "--arch", FAST, "--output-dir", tmp_path / "out")
    in_process(monkeypatch, *words)
    found = json.loads((tmp_path / "out" / "er-real-seed0" / "result.json").read_text())
    assert found["config"]["validation"] == 8 and found["stream_images"] == 40 and np.sum(found["confusion"]) == 8
    assert "--validation 8: expected" in refusal(monkeypatch, capsys, *words, "--distilled", data / "set")
