"""Continual methods beside each other: labels, memories, starts and costs, each against a reference of its own."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_continual import FAST, RECIPE, Small, chi_square, in_process, some_images, tiny, write_teacher
from torch import nn

from continual.buffer import ClassBalanced, Reservoir, TaskMemory
from continual.experiment import Merging, Run, Sources, prepare, untrained_accuracies
from continual.loop import Outcomes, ResumePoint, learn
from continual.methods import AGEM, DarkExperienceReplay, ExperienceReplay, FineTune
from continual.metrics import (
    Timers,
    confusion_matrix,
    flops,
    flops_of_pass,
    forward_transfer,
    masked_accuracy,
    per_class_accuracy,
)
from continual.start import pretrained_backbone
from continual.streams import batches, make_tasks, merge_tasks
from continual.task_arithmetic import TaskArithmetic, backbone_vector, set_backbone
from continual.training import Teacher, Trainer, augment, settings
from scripts.cli import InputError
from scripts.files import read_tensors
from scripts.networks import build, normalise, predict, seeded
from scripts.randomness import generator_for, seed_for

SHAPE, ROOM = (3, 32, 32), 8


def new_trainer(recipe=RECIPE, **more):
    return Trainer(Small(), recipe, 0, Timers("cpu"), **more)


def two_tasks(memory=None, test=None):
    images = some_images(12)
    return make_tasks(images, memory or images, test or some_images(3, seed=1), [(0, 2), (1, 3)])


def ran(learner, tasks, steps, tmp_path, tests=None) -> Outcomes:
    return learn(learner, tasks, tests or tasks, steps, "test", ResumePoint(tmp_path / "none.pt", float("inf"), "cpu"))


def numbered(count: int):
    """Images [count, 3, 1, 1] whose pixel is their index; labels 0 and 1 in turn, then 2."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1).contiguous()
    return images, torch.where(torch.arange(count) < 2 * count // 3, torch.arange(count) % 2, 2)


# metrics and costs

def test_confusion_and_per_class_accuracy_by_hand():
    logits = torch.tensor([[9.0, 1, 0], [9.0, 1, 0], [0, 5, 9.0], [1, 0, 9.0]])
    found = confusion_matrix(logits, torch.tensor([0, 1, 1, 1]), {0, 1})
    assert found.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]  # class 2 may not be answered
    assert per_class_accuracy(found) == [1, 1 / 3, None]


def test_forward_transfer_by_hand_and_its_baseline_is_a_network_of_its_own():
    matrix = np.array([[0.9, 0.6, 0.5], [0.6, 0.8, 0.2], [0.7, 0.5, 1.0]])
    assert forward_transfer(matrix, [0.1, 0.5, 0.4]) == pytest.approx(((0.6 - 0.5) + (0.2 - 0.4)) / 2)
    assert forward_transfer(matrix[:1, :1], [0.5]) is None
    images, test = some_images(6), some_images(40, seed=1)
    one = Run("finetune", "real", "real", 0, 2, "natural", FAST, "imagenet", 32, 1, ROOM, RECIPE, None)
    ready = prepare(one, Sources(images, test, None, None), "cpu")
    own = seeded(FAST, 4, "imagenet", seed_for(0, "baseline"), 32)
    expected = [masked_accuracy(predict(own, task.test.images), task.test.labels, task.classes) for task in ready.tests]
    assert untrained_accuracies(one, ready, "cpu") == expected
    assert all(not torch.equal(a, b) for a, b in zip(own[-1].parameters(), ready.network[-1].parameters(), strict=True))


@pytest.mark.parametrize("arch", ["resnet18", "regnet_x_400mf"])     # the second has convolutions in groups
def test_flops_are_those_of_a_count_by_hand(arch):
    network, by_layer = build(arch, 4).eval(), []

    def count(layer, inputs, output):
        weights = layer.weight[0].numel()
        by_layer.append(2 * weights * output.numel())
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(2, *SHAPE))
    forward = flops_of_pass(arch, 4, "imagenet", 32, "forward", 2)
    training = flops_of_pass(arch, 4, "imagenet", 32, "training", 2)
    assert forward == sum(by_layer)
    assert training == 3 * forward - by_layer[0]  # pixels need no gradient
    assert flops({("training", 2): 5, ("forward", 2): 1}, arch, 4, "imagenet", 32, None) == 5 * training + forward


# memory

@pytest.mark.parametrize("kind", [Reservoir, ClassBalanced, TaskMemory])
def test_a_buffer_continues_from_its_state(kind):
    images = some_images(12)

    def fill(memory, rows, seed):
        part, rng = images.rows(rows), np.random.default_rng(seed)
        if kind is TaskMemory:
            memory.add_task(part, rng)
        else:
            memory.offer(part.images, part.labels, rng)
    memory, again = (kind(ROOM, SHAPE, "cpu") for _ in range(2))
    fill(memory, torch.arange(0, 20), 0)
    torch.save(memory.state(), file := io.BytesIO())
    file.seek(0)
    again.load(torch.load(file, weights_only=True))
    for one in (memory, again):
        fill(one, torch.arange(20, 48), 1)
    assert all(a.equal(b) for a, b in zip(memory.contents(), again.contents(), strict=True)) and len(again) == ROOM
    if kind is Reservoir:
        assert again.seen == 48  # from 0 on it would store every later image


def test_class_balanced_memory_is_exact_after_every_batch():
    images, labels = numbered(48)
    memory, rng = ClassBalanced(10, (3, 1, 1), "cpu"), np.random.default_rng(0)
    for first in range(0, 48, 6):
        new = slice(first, first + 6)
        memory.offer(images[new], labels[new], rng, None)
        offered = labels[:first + 6].bincount()
        seen = int((offered > 0).sum())
        share = [10 // seen + (label < 10 % seen) for label in range(seen)]
        held, own = memory.contents()
        assert own.bincount().tolist() == [min(a, b) for a, b in zip(offered.tolist(), share, strict=True)]
        assert torch.equal(labels[held[:, 0, 0, 0].long()], own) and len(held.flatten(1).unique(dim=0)) == len(held)


def test_class_balanced_memory_keeps_every_image_of_a_class_with_the_same_probability():
    images, labels = numbered(48)
    counts, trials = np.zeros(48), 400
    for trial in range(trials):
        memory, rng = ClassBalanced(10, (3, 1, 1), "cpu"), np.random.default_rng(trial)
        for first in range(0, 48, 12):
            memory.offer(images[first:first + 12], labels[first:first + 12], rng)
        counts[memory.contents()[0][:, 0, 0, 0].numpy()] += 1
    for label, share in enumerate((4, 3, 3)):
        own = counts[labels.numpy() == label]
        assert chi_square(own, trials * share / 16, share / 16) < 37.7  # 99.9 % point, 15 degrees of freedom


@pytest.mark.parametrize("kind, replayed", [(ExperienceReplay, slice(8, 16)), (AGEM, slice(0, 8))])
def test_replay_is_augmented_and_normalised_as_the_stream(kind, replayed):
    tasks, seen = two_tasks(), []
    memory = Reservoir(ROOM, SHAPE, "cpu") if kind is ExperienceReplay else TaskMemory(ROOM, SHAPE, "cpu")
    learner = kind(new_trainer(), memory)
    learner.begin(tasks[0], 1)
    learner.step(first := next(batches(tasks[0].train, range(1), 8, 0, 0)))
    learner.end(tasks[0])
    learner.begin(tasks[1], 1)
    learner.trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch, mirror = next(batches(tasks[1].train, range(1), 8, 0, 1)), np.random.default_rng(seed_for(0, "step", 1, 0))
    drawn, _ = memory.draw(8, mirror)
    both = torch.cat([batch.images, drawn]) if kind is ExperienceReplay else drawn
    learner.step(batch)
    views = augment(both, mirror, RECIPE.min_scale, RECIPE.flip)
    assert torch.equal(seen[0], views) and first.new == 8
    assert not torch.equal(views[replayed], normalise(both[replayed].float() / 255))


# labels

class Flat(nn.Module):
    """A network one can compute by hand."""

    def __init__(self, seed):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 4, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(4, 3 * 32 * 32, generator=generator_for(seed, "weights")) / 50)

    def forward(self, views):
        return self.fc(views.flatten(1))


def test_soft_labels_are_the_teachers_answer_to_the_same_views_among_the_classes_seen():
    teacher, tasks, seen = Flat(1), two_tasks(), []
    trainer = Trainer(Flat(0), RECIPE, 0, Timers("cpu"), Teacher(teacher, "flat", "", 3.0, ""))
    for network in (teacher, trainer.network):
        network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    learner = ExperienceReplay(trainer, Reservoir(ROOM, SHAPE, "cpu"))
    learner.begin(tasks[0], 2)
    for batch in batches(tasks[0].train, range(2), 8, 0, 0):
        learner.step(batch)
    assert torch.equal(seen[2], seen[3]) and len(seen[2]) == 16  # stream and memory
    views = seen[2]
    student, answers = trainer.network(views), teacher(views)
    target = (answers[:, [0, 2]] / 3).softmax(1)    # the classes of task 0
    expected = 9 * (target * (target.log() - (student[:, [0, 2]] / 3).log_softmax(1))).sum(1).mean()
    assert trainer.label_loss(student, views, torch.zeros(16)).item() == pytest.approx(expected.item(), rel=1e-5)
    student, answers = student[:, [1, 3]], teacher(views)[:, [1, 3]]  # an expert of task 1
    target = (answers / 3).softmax(1)
    expected = 9 * (target * (target.log() - (student / 3).log_softmax(1))).sum(1).mean()
    assert trainer.loss(views, torch.zeros(16), (1, 3)).item() == pytest.approx(expected.item(), rel=1e-4)
    assert trainer.timers.phases["teacher"] > 0 and not any(p.grad is not None for p in teacher.parameters())


def test_derpp_adds_the_error_to_stored_logits_and_the_loss_of_a_second_draw():
    tasks, memory = two_tasks(), Reservoir(ROOM, SHAPE, "cpu", logits=4)
    learner = DarkExperienceReplay(Trainer(Flat(0), RECIPE, 0, Timers("cpu")), memory, alpha=0.3, beta=0.7)
    before, outputs = Flat(0), []
    learner.trainer.network.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    learner.begin(tasks[0], 2)
    batch, later = batches(tasks[0].train, range(2), 8, 0, 0)
    learner.step(batch)
    views = augment(batch.images, np.random.default_rng(seed_for(0, "step", 0, 0)), RECIPE.min_scale, RECIPE.flip)
    assert torch.allclose(memory.logits, before(views), atol=1e-5) and torch.equal(memory.labels, batch.labels)
    mirror = np.random.default_rng(seed_for(0, "step", 0, 1))
    first, second = (memory.pick(8, mirror) for _ in range(2))
    assert not torch.equal(first, second)
    stored, labels = memory.logits[first], memory.labels[second]
    logits = learner.trainer.network(augment(torch.cat([later.images, memory.images[first], memory.images[second]]), mirror,
                                             RECIPE.min_scale, RECIPE.flip))
    expected = (F.cross_entropy(logits[:8], later.labels) + 0.3 * ((logits[8:16] - stored) ** 2).mean()
                + 0.7 * F.cross_entropy(logits[16:], labels))
    weights = learner.trainer.network.fc.weight
    gradient = torch.autograd.grad(expected, weights)[0]
    learner.step(later)
    assert torch.allclose(weights.grad, gradient, atol=1e-5) and torch.equal(outputs[-1][:8], outputs[-2][:8])
    assert memory.bytes == ROOM * (3 * 32 * 32 + 8 + 4 * 4)


# methods beside each other

def test_on_one_task_every_method_is_plain_training(tmp_path):
    images = some_images(12)
    tasks = make_tasks(images, some_images(2, seed=5), images, [(0, 1, 2, 3)])  # memory is filled when the task is over
    room = (ROOM, SHAPE, "cpu")
    learners = {"finetune": FineTune(new_trainer()), "joint": FineTune(new_trainer()),
                "er": ExperienceReplay(new_trainer(), Reservoir(*room)), "agem": AGEM(new_trainer(), TaskMemory(*room)),
                "derpp": DarkExperienceReplay(new_trainer(), Reservoir(*room, logits=4), 0.1, 0.5),
                "task_arithmetic": TaskArithmetic(new_trainer(), Reservoir(*room), "sum", [1.0], 0)}
    for name, learner in learners.items():
        ran(learner, [merge_tasks(tasks)] if name == "joint" else tasks, 3, tmp_path)
    plain = learners.pop("finetune").trainer.network.state_dict()
    merged = learners.pop("task_arithmetic").trainer.network
    for learner in learners.values():
        assert all(value.equal(plain[name]) for name, value in learner.trainer.network.state_dict().items())
    assert all(torch.allclose(value, plain[name], atol=1e-6) for name, value in merged.named_parameters())


def test_experts_begin_where_they_should_and_vectors_cancel():
    tasks = two_tasks(memory=some_images(4, seed=5))

    def experts(**more):
        learner, begun, ends = TaskArithmetic(new_trainer(), Reservoir(ROOM, SHAPE, "cpu"), "sum", [1.0], 0, **more), [], []
        for task in tasks:
            learner.begin(task, 1)
            begun.append(backbone_vector(learner.trainer.network))
            learner.step(next(batches(task.train, range(1), 8, 0, task.index)))
            ends.append(backbone_vector(learner.trainer.network))
            learner.end(task)
        return learner, begun, ends
    learner, begun, ends = experts()
    assert torch.equal(begun[0], begun[1]) and torch.equal(learner.vectors[1], ends[1] - begun[0])
    set_backbone(learner.trainer.network, learner.origin + learner.vectors[0] - learner.vectors[0])
    assert torch.allclose(backbone_vector(learner.trainer.network), begun[0], atol=1e-7)
    learner, begun, ends = experts(sequential=True)
    assert torch.equal(begun[1], ends[0]) and torch.equal(learner.vectors[1], ends[1] - begun[0])
    learner, begun, ends = experts(first_is_start=True)
    assert torch.equal(begun[1], ends[0]) and not learner.vectors[0].any()
    assert torch.equal(learner.vectors[1], ends[1] - ends[0]) and torch.equal(learner.origin, ends[0])


def test_merging_takes_no_seconds_of_another_phase(tmp_path):
    learner = TaskArithmetic(new_trainer(), Reservoir(ROOM, SHAPE, "cpu"), "mean", [1.0], 0)
    learner.begin(task := two_tasks()[0], 1)
    learner.end(task)
    assert set(learner.trainer.timers.phases) == {"buffer", "merge"}


def test_a_head_without_bias_is_merged_too(tmp_path):
    trainer = Trainer(Small(bias=False), RECIPE, 0, Timers("cpu"))
    learner = TaskArithmetic(trainer, Reservoir(ROOM, SHAPE, "cpu"), "sum", [1.0], 2)
    ran(learner, two_tasks(), 2, tmp_path)
    assert sorted(learner.head_rows) == [0, 1, 2, 3] and all(len(own) == 1 for own in learner.head_rows.values())


def test_an_expert_leaves_the_head_of_other_classes_alone_and_test_images_choose_nothing(tmp_path):
    merged = []
    for test in (some_images(3, seed=1), some_images(3, seed=2)):
        tasks = two_tasks(memory=some_images(4, seed=5), test=test)
        learner = TaskArithmetic(new_trainer(), Reservoir(ROOM, SHAPE, "cpu"), "mean", [0.3, 1.0, 2.0], 0)
        untouched = learner.head.weight[[1, 3]].detach().clone()
        learner.begin(tasks[0], 1)
        learner.step(next(batches(tasks[0].train, range(1), 8, 0, 0)))
        assert torch.equal(learner.head.weight[[1, 3]], untouched) and learner.head.weight.grad[[0, 2]].any()
        ran(learner, tasks, 2, tmp_path)
        merged.append((learner.curves, learner.trainer.network.state_dict()))
    (curves, network), (others, other) = merged
    assert curves == others and all(value.equal(other[name]) for name, value in network.items())


def test_the_refitted_head_keeps_the_rows_of_classes_without_an_image_in_the_buffer(tmp_path):
    learner = TaskArithmetic(new_trainer(), Reservoir(2, SHAPE, "cpu"), "mean", [1.0], 3)
    tasks = two_tasks()
    few = tasks[0].memory.rows(tasks[0].memory.labels == tasks[0].classes[0])
    learner.begin(tasks[0], 1)
    learner.end(replace(tasks[0], memory=few))
    present, absent = tasks[0].classes
    assert torch.equal(learner.head.weight[absent], learner.head_rows[absent][0])
    assert torch.equal(learner.head.bias[absent], learner.head_rows[absent][1])
    learner = TaskArithmetic(new_trainer(), Reservoir(ROOM, SHAPE, "cpu"), "mean", [1.0], 3)
    learner.begin(tasks[0], 1)
    learner.end(tasks[0])
    assert not torch.equal(learner.head.weight[absent], learner.head_rows[absent][0])


def test_torchvisions_weights_are_taken_from_the_cache_with_a_new_head(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    given = seeded("resnet18", 1000, "imagenet", 3)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(given.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    network = seeded("resnet18", 1000, "imagenet", 0)
    head = network.fc.weight.detach().clone()
    assert "IMAGENET1K_V1" in pretrained_backbone("resnet18", "imagenet", 32, network)["note"]
    assert torch.equal(backbone_vector(network), backbone_vector(given)) and torch.equal(network.fc.weight, head)
    assert torch.equal(network.bn1.running_var, given.bn1.running_var)
    with pytest.raises(InputError, match="--stem imagenet, found cifar"):
        pretrained_backbone("resnet18", "cifar", 32, network)


def test_folder_names_have_what_is_not_the_default():
    usual = Run("er", "real", "real", 0, 2, "natural", FAST, "imagenet", 32, 14, ROOM, RECIPE, None)
    for name, changes in (
            ("er-real-seed0", {}), ("er-real-seed0", {"schedule": "steps"}),
            ("er-real-soft-memory-distilled-seed0", {"labels": "soft", "buffer_source": "distilled"}),
            ("er-real-class-balanced-seed0", {"buffer": "class-balanced"}),
            ("er-real-steps14-seed0", {"schedule": "steps", "schedule_in_name": True})):
        assert replace(usual, **changes).name == name


# the command line

def test_soft_labels_and_distilled_memory_of_a_real_stream_keep_to_its_size(data, tmp_path, monkeypatch):
    teacher = write_teacher(tmp_path / "teacher")
    methods = ("er", "agem", "derpp", "task_arithmetic")
    in_process(monkeypatch, *tiny(data, tmp_path, "--method", *methods, "--buffer-source", "distilled", "--labels", "soft",
                                  "--teacher", teacher, "--tasks", 2, "--buffer-size", 7, "--bf16", "--arch", FAST))
    for method in methods:
        folder = tmp_path / f"{method}-real-soft-memory-distilled-seed0"
        result, held = json.loads((folder / "result.json").read_text()), read_tensors(folder / "buffer.safetensors")
        distilled = {path.read_bytes() for path in (data / "set").rglob("*.png")}
        assert result["buffer"]["images"] == len(held["labels"]) == (6 if method == "task_arithmetic" else 7)
        if method == "task_arithmetic":     # of the usual start, which is trained on the distilled set
            assert result["memory"].endswith("held out of training, except the start's")
        assert len(distilled) == 8 and result["config"]["digests"]["memory"] != result["config"]["digests"]["train"]
        assert result["labels"] == "soft" and result["config"]["recipe"]["bf16"] and result["seconds"]["teacher"] > 0
        assert result["bytes"]["teacher"] == sum(value.nbytes for value in read_tensors(teacher / "model.safetensors").values())
        assert result["bytes"]["stream"] == 48 * (3 * 32 * 32 + 8) and result["bytes"]["buffer"] == result["buffer"]["bytes"]
        assert np.sum(result["confusion"]) == 12 and len(result["per_class"]) == 4
        right = np.trace(result["confusion"]) / 12
        assert np.mean(result["per_class"]) == pytest.approx(right) == pytest.approx(result["class_il"]["acc"])
        ahead = result["task_il"]["matrix"][0][1] - result["task_il"]["baseline"][1]
        assert result["task_il"]["forward_transfer"] == pytest.approx(ahead)
        assert result["flops"] > 0 and result["peak_memory_bytes"] > 1e7 and result["schedule"] == "steps"


def test_derpp_labels_the_images_of_another_source_that_it_stores():
    train, memory = some_images(6), some_images(9, seed=1)
    run = Run("derpp", "real", "random", 0, 2, "natural", FAST, "imagenet", 32, 1, ROOM, RECIPE, None,
              {"alpha": 0.1, "beta": 0.5})
    learner = prepare(run, Sources(train, some_images(3, seed=2), None, memory), "cpu").learner
    for task in make_tasks(train, memory, memory, [(0, 1), (2, 3)]):
        learner.begin(task, 1)
        learner.end(task)
        images, labels = learner.buffer.contents()
        own = torch.isin(labels, torch.tensor(task.classes))
        assert torch.equal(learner.buffer.logits[:len(labels)][own], predict(learner.trainer.network, images[own]))
    passes = [images for (kind, images), _ in learner.trainer.passes.items() if kind == "forward"]
    assert len(passes) == 2 and passes[0] == ROOM and passes[1] == int(own.sum()) < len(memory) / 2


def test_merging_settings_of_old_folders_still_fit():
    old = Run("task_arithmetic", "real", "real", 0, 2, "natural", FAST, "imagenet", 32, 14, ROOM, RECIPE,
              Merging("random", 1, "mean", [1.0], 0))
    found = settings(old)
    assert "labels" not in found and "bf16" not in found["recipe"] and "experts" not in found["merging"]
    assert settings(replace(old, labels="soft"))["labels"] == "soft" and "schedule" not in settings(replace(old, schedule="x"))
