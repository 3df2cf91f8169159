"""Stage 3: views against torchvision on PIL images, losses against torch's own, soft labels by round trip."""

import json
import re
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EPOCHS, IPC, REPEATS, SIZE
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import ks_2samp, kstest
from torchvision import models
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as TF

from matching import augmentation
from matching import soft_labels as labelling
from matching.augmentation import Drawn, Views, crop_resize, draw_epoch, draw_mix, views
from matching.image_set import ImageSet, distilled_images, image_set
from matching.soft_labels import Answers, SoftLabels, keep_largest, leading_answers, soft_loss, write_epoch
from matching.teachers import load_teacher
from matching.training import Labels, Recipe, train
from scripts.artefact import finish
from scripts.cli import ROOT
from scripts.networks import accuracy, build, load_model, predict, seeded
from scripts.training import parameter_groups


def logits(*shape, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# views

def test_a_crop_of_an_oblong_image_takes_rows_from_the_top():
    picture = torch.arange(20 * 40, dtype=torch.float).reshape(1, 1, 20, 40).expand(1, 3, 20, 40) % 256
    cut = crop_resize(picture.to(torch.uint8), torch.tensor([[2, 30, 8, 8]]), torch.tensor([False]), 8) * 255
    torch.testing.assert_close(cut, picture[:, :, 2:10, 30:38], atol=1e-3, rtol=0)


@pytest.mark.parametrize(("source", "scale"), [((200, 240), (0.08, 1.0)), ((224, 224), (0.3, 0.7)), ((32, 32), (0.08, 1.0))])
def test_crops_are_distributed_as_torchvisions(source, scale):
    count = 3000
    ours = augmentation.draw_crops(count, source, np.random.default_rng(1), scale)
    image = Image.new("L", source[::-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)])
    for value in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(value(ours), value(theirs)).pvalue > 1e-3


@pytest.mark.parametrize("source", [(32, 32), (90, 256), (3, 2), (1, 1)])
def test_crops_lie_within_the_image(source):
    top, left, height, width = augmentation.draw_crops(2000, source, np.random.default_rng(0)).T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= source[0]).all() and (left + width <= source[1]).all()


def test_the_pasted_area_is_what_the_ratio_says():
    partner, ratio, box = draw_mix(2000, SIZE, np.random.default_rng(0), "cutmix", 1.0)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    assert np.allclose(1 - ratio, area / SIZE ** 2, atol=1e-6)
    assert sorted(partner) == list(range(2000))
    assert (box >= 0).all() and (box <= SIZE).all() and 0.05 < area.mean() / SIZE ** 2 < 0.5


def test_mixup_shares_are_beta_distributed_and_without_mixing_an_image_is_its_own_partner():
    (_, ratio, box), (partner, whole, none) = (draw_mix(2000, SIZE, np.random.default_rng(0), *how)
                                               for how in (("mixup", 0.8), ("none", 1.0)))
    assert kstest(ratio, "beta", args=(0.8, 0.8)).pvalue > 0.001
    assert partner.tolist() == list(range(2000)) and (whole == 1).all() and not box.any() and not none.any()


def test_mix_pastes_the_box_and_blends_where_there_is_none():
    own, other = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    box = torch.tensor([[1, 2, 4, 7], [0, 0, 8, 8], [3, 3, 3, 3], [0, 0, 0, 0]])
    mixed = augmentation.mix(own, other, torch.tensor([1 - 15 / 64, 0.0, 1.0, 0.3]), box)
    expected = own[0].clone()
    expected[:, 1:4, 2:7] = other[0][:, 1:4, 2:7]
    assert torch.equal(mixed[0], expected)
    assert torch.equal(mixed[1], other[1]) and torch.equal(mixed[2], own[2])
    torch.testing.assert_close(mixed[3], 0.3 * own[3] + 0.7 * other[3])


@pytest.mark.parametrize("kind", ["none", "cutmix", "mixup"])
@pytest.mark.parametrize("size", [24, 48])  # 48: on a CPU one by one
def test_views_are_own_and_partners_crop_mixed(digits, kind, size):
    drawn = draw_epoch(64, (SIZE, SIZE), size, np.random.default_rng(3), mix=kind, alpha=1.0)
    rows = torch.tensor([5, 60, 0, 17])
    got, theirs = views(digits.images, drawn, rows, size), models.ResNet18_Weights.DEFAULT.transforms()
    crops = crop_resize(digits.images, drawn.crop, drawn.flip, size)
    for index, row in enumerate(rows.tolist()):
        partner = int(drawn.partner[row])
        expected = augmentation.mix(crops[[row]], crops[[partner]], drawn.ratio[[row]], drawn.box[[row]])
        torch.testing.assert_close(got[[index]], TF.normalize(expected, theirs.mean, theirs.std), atol=1e-5, rtol=1e-5)
    assert sorted(drawn.order.tolist()) == list(range(64))


def test_draws_are_a_function_of_the_generator_and_half_are_flipped():
    first, again, other = (draw_epoch(500, (SIZE, SIZE), SIZE, np.random.default_rng(seed), mix="cutmix") for seed in (0, 0, 1))
    same = [torch.equal(getattr(first, field.name), getattr(again, field.name)) for field in fields(Drawn)]
    assert all(same) and not torch.equal(first.crop, other.crop)
    assert 200 < int(first.flip.sum()) < 300
    assert not draw_epoch(50, (SIZE, SIZE), SIZE, np.random.default_rng(0), flip=0).flip.any()


# soft labels

@pytest.mark.parametrize("kind", ["none", "cutmix", "mixup"])
def test_stored_draws_give_the_same_views_to_the_bit(digits, tmp_path, kind):
    drawn = draw_epoch(64, (SIZE, SIZE), SIZE, np.random.default_rng(0), mix=kind)
    write_epoch(tmp_path, 0, drawn, Answers(10, logits(64, 10)), torch.float32)
    read, teacher = finished_store(tmp_path, digits, 1, 1).epoch(0, "cpu")
    rows = drawn.order[:20].long()
    assert torch.equal(read.order.long(), drawn.order.long())
    assert torch.equal(views(digits.images, read, rows, SIZE), views(digits.images, drawn, rows, SIZE))
    assert torch.equal(teacher[rows], logits(64, 10)[rows])


def finished_store(folder, images, epochs: int, stored: int) -> SoftLabels:
    finish(folder, "soft_labels", images.classes, {"epochs": epochs, "input_size": SIZE, "fkd_seed": 42},
           [f"epoch_{epoch:04d}.safetensors" for epoch in range(stored)], images=images.digest)
    return SoftLabels(folder, images)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
@pytest.mark.parametrize("k", [1, 3, 9, 10])
def test_stored_leading_logits_give_what_keeping_the_largest_probabilities_gives(digits, tmp_path, k, temperature):
    """At the temperature they were stored for; the reference keeps all logits and cuts the probabilities."""
    teacher, student, weights = logits(64, 10), logits(64, 10, seed=1), torch.ones(64)
    write_epoch(tmp_path, 0, draw_epoch(64, (SIZE, SIZE), SIZE, np.random.default_rng(0)),
                leading_answers(teacher, k, temperature), torch.float32)
    _, read = finished_store(tmp_path, digits, 1, 1).epoch(0, "cpu")
    rows = torch.randperm(64)
    expected = keep_largest(F.softmax(teacher[rows] / temperature, 1), k)
    torch.testing.assert_close(F.softmax(read[rows] / temperature, 1), expected)
    torch.testing.assert_close(soft_loss(student[rows], read[rows], temperature, weights, 1000),
                               soft_loss(student[rows], teacher[rows], temperature, weights, k))


@pytest.mark.parametrize(("classes", "bytes_each"), [(10, 1), (256, 1), (257, 2), (1000, 2)])
def test_leading_logits_take_the_bytes_they_should(digits, tmp_path, classes, bytes_each):
    drawn = draw_epoch(64, (SIZE, SIZE), SIZE, np.random.default_rng(0))
    write_epoch(tmp_path, 0, drawn, leading_answers(logits(64, classes), 5, 20.0))
    stored = load_file(tmp_path / "epoch_0000.safetensors")
    assert stored["leading"].nbytes == 64 * 5 * bytes_each and stored["logits"].nbytes == 64 * 5 * 2
    assert stored["rest"].nbytes == 64 * 2
    assert torch.equal(stored["leading"].long(), logits(64, classes).topk(5, dim=1).indices)


def test_kept_epochs_take_turns_in_a_new_order_each_time(digits, tmp_path):
    written = []
    for epoch in range(2):
        written.append((draw_epoch(64, (SIZE, SIZE), SIZE, np.random.default_rng(epoch)), logits(64, 10, seed=epoch)))
        write_epoch(tmp_path, epoch, written[-1][0], Answers(10, written[-1][1]), torch.float32)
    store, orders = finished_store(tmp_path, digits, 7, 2), set()
    for epoch in range(7):
        drawn, answers = store.epoch(epoch, "cpu")
        again, _ = store.epoch(epoch, "cpu")
        assert torch.equal(drawn.crop, written[epoch % 2][0].crop.to(drawn.crop.dtype))
        assert torch.equal(answers[torch.arange(64)], written[epoch % 2][1])
        assert sorted(drawn.order.tolist()) == list(range(64)) and torch.equal(drawn.order, again.order)
        orders.add(tuple(drawn.order.tolist()))
    assert len(orders) == 7


@pytest.mark.parametrize(("epochs", "share", "stored"), [(300, 1, 300), (300, 0.025, 8), (10, 0.5, 5), (4, 0.01, 1)])
def test_a_share_of_the_epochs(epochs, share, stored):
    assert labelling.stored_epochs(epochs, share) == stored


def test_the_students_views_are_what_the_teacher_was_asked(soft_labels, distilled, teacher):
    """Alignment, end to end: the teacher's answer to the views read back is the answer that is stored."""
    images = distilled_images(distilled.folder)
    network, _ = load_model(teacher.folder, "teacher")
    store = SoftLabels(soft_labels.folder, images)
    assert (store.epochs, store.size) == (EPOCHS, SIZE)
    seen = []
    for epoch in (0, EPOCHS - 1):
        drawn, stored = store.epoch(epoch, "cpu")
        with torch.inference_mode():
            asked = network(views(images.images, drawn, torch.arange(len(images)), SIZE))
        torch.testing.assert_close(asked, stored[torch.arange(len(images))], atol=2e-3 * float(asked.abs().max()), rtol=2e-3)
        assert (drawn.ratio < 1).float().mean() > 0.5  # CutMix took place
        seen.append(drawn.crop)
    assert not torch.equal(*seen)
    manifest = json.loads((soft_labels.folder / "manifest.json").read_text())
    assert manifest["images"] == images.digest
    assert list(manifest["files"]) == [f"epoch_{epoch:04d}.safetensors" for epoch in range(EPOCHS)]
    tensors = load_file(soft_labels.folder / "epoch_0000.safetensors")
    assert tensors["logits"].dtype == torch.float16 and tensors["logits"].shape == (12 * IPC * REPEATS, 12)
    assert set(tensors) == {field.name for field in fields(Drawn)} | {"logits"}
    printed = (soft_labels.err + teacher.err).splitlines()
    assert [line for line in printed if not line.startswith(("relabel:", "teacher:"))] == []  # progress alone


def test_labels_of_other_images_under_the_same_name_are_not_continued(here, image_data, teacher, tmp_path):
    for seed in (0, 1):
        assert here("distillation.gen_syn_image", "--method", "random", "--dataset", "folder", "--data_dir", image_data,
                    "--ipc", 2, "--seed", seed, "--save_init_image_path", tmp_path / f"seed{seed}").code == 0

    def label(seed):
        return here("matching.generate_soft_label", "--data", tmp_path / f"seed{seed}" / "folder_random_ipc2", "--teacher",
                    teacher.folder, "--epochs", 2, "--input-size", SIZE, "--fkd-path", tmp_path / "labels")
    assert label(0).code == 0
    (tmp_path / "labels" / "manifest.json").unlink()
    sorted((tmp_path / "labels").glob("*.safetensors"))[-1].unlink()
    answer = label(1)
    assert answer.code == 2 and "images_digest" in answer.err
    assert label(0).code == 0


def test_the_readers_lines_in_the_readme_run(soft_labels, distilled):
    text = (ROOT / "matching" / "README.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "SoftLabels" in block)
    code = re.sub(r'"runs/quickstart/distilled/[^"]*"', repr(str(distilled.folder)), code)
    code = re.sub(r'"runs/quickstart/soft-labels/[^"]*"', repr(str(soft_labels.folder)), code)
    found: dict = {}
    exec(code, found)
    assert found["views"].shape == (50, 3, SIZE, SIZE) and found["logits"].shape == (50, 12)


def test_torchvisions_teacher_answers_by_wnid(here, tmp_path, monkeypatch):
    """Before, a subset ended at `expected 3 outputs, found 1000`, and 1,000 folders of any names were accepted."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    given = seeded("resnet18", 1000, "imagenet", 3).eval()
    torch.save(given.state_dict(), tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    columns = [701, 0, 134]
    wnids = (ROOT / "distillation" / "label-prompt" / "imagenet_wnids.txt").read_text().split()
    images = image_set("set", [{"name": wnids[column]} for column in columns], torch.zeros(3, 3, 32, 32), torch.arange(3))
    views = torch.randn(2, 3, 32, 32)
    network, name = load_teacher(None, "resnet18", "imagenet", "IMAGENET1K_V1", images, 32)
    with torch.no_grad():
        assert torch.equal(network(views), given(views)[:, columns]) and name == "resnet18 IMAGENET1K_V1"
    for part in ("ant", "bear"):
        (tmp_path / "train" / part).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / part / "a.png")
    answer = here("matching.generate_soft_label", "--dataset", "folder", "--data_dir", tmp_path, "--weights", "IMAGENET1K_V1",
                  "--epochs", 1, "--input-size", 32, "--fkd-path", tmp_path / "labels")
    assert answer.code == 2 and "1000 wnids of ImageNet, found ant" in answer.err and not (tmp_path / "labels").exists()


def test_logits_do_not_depend_on_how_many_views_the_teacher_sees_at_once(digits):
    network = seeded("resnet18", 10, "imagenet", 0).eval()
    drawn = draw_epoch(64, (SIZE, SIZE), SIZE, np.random.default_rng(0), mix="cutmix")
    small, large = (labelling.relabel(network, digits, drawn, SIZE, batch_size) for batch_size in (5, 64))
    torch.testing.assert_close(small, large, atol=1e-4, rtol=1e-4)


def test_soft_loss_is_torchs_kl_divergence_weighted():
    student, teacher, weights = logits(8, 10), logits(8, 10, seed=1), torch.linspace(0.5, 1.5, 8)
    expected = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction="none").sum(1)
    torch.testing.assert_close(soft_loss(student, teacher, 4.0, weights, 1000), (expected * weights).mean())


@pytest.mark.parametrize("k", [1, 3, 9, 10, 1000])
def test_keep_largest_keeps_k_and_spreads_the_rest(k):
    probabilities = F.softmax(logits(6, 10), 1)
    kept = keep_largest(probabilities, k)
    torch.testing.assert_close(kept.sum(1), torch.ones(6))
    for before, after in zip(probabilities, kept, strict=True):
        order = before.argsort(descending=True)
        assert torch.equal(after[order[:k]], before[order[:k]])
        if k < 10:
            torch.testing.assert_close(after[order[k:]], (before[order[k:]].sum() / (10 - k)).expand(10 - k))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_loss_is_cross_entropy_with_mixed_labels(smoothing):
    student, labels, partners, ratio = logits(8, 5), torch.arange(8) % 5, torch.arange(8) % 3, torch.linspace(0, 1, 8)
    target = ratio[:, None] * F.one_hot(labels, 5) + (1 - ratio[:, None]) * F.one_hot(partners, 5)
    expected = F.cross_entropy(student, target, reduction="none", label_smoothing=smoothing)
    for weights in (torch.ones(8), torch.linspace(0.5, 1.5, 8)):
        found = labelling.hard_loss(student, labels, partners, ratio, weights, smoothing)
        torch.testing.assert_close(found, (expected * weights).mean())


# networks and training

@pytest.mark.parametrize("count", [3, 10, 70, 100])
def test_equal_weights_are_one_to_the_last_bit_and_others_have_mean_one(count):
    images, labels = torch.zeros(count, 3, 2, 2, dtype=torch.uint8), torch.zeros(count)
    assert image_set("x", [], images, labels, torch.full((count,), 1 / count)).weights.tolist() == [1.0] * count
    weights = image_set("x", [], images, labels, torch.arange(1.0, count + 1)).weights
    torch.testing.assert_close(weights, torch.arange(1.0, count + 1) * 2 / (count + 1))


@pytest.mark.parametrize(("arch", "counts", "tables"), [  # tables: not vectors, and no "weight" in the name
    ("resnet18", (21, 41), []), ("swin_t", (53, 120), ["relative_position_bias_table"] * 12),
    ("vit_b_16", (50, 102), ["class_token", "pos_embedding"])])
def test_weight_decay_spares_biases_normalisation_tokens_and_position_tables(arch, counts, tables):
    with torch.device("meta"):
        network = build(arch, 7)
    decayed, spared = parameter_groups(network, 0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert (len(decayed["params"]), len(spared["params"])) == counts
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert all("weight" in names[id(p)] and p.ndim > 1 for p in decayed["params"])
    assert [names[id(p)].rpartition(".")[2] for p in spared["params"] if p.ndim > 1] == tables


def test_a_seeded_network_is_torchvisions_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    network, same, other = (seeded("resnet18", 7, "imagenet", seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    expected = models.resnet18(num_classes=7).state_dict()
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert torch.equal(network.fc.weight, same.fc.weight) and not torch.equal(network.fc.weight, other.fc.weight)


def test_the_cifar_stem_keeps_the_resolution():
    network = build("resnet18", 3, stem="cifar")
    features = network.layer1(network.maxpool(network.relu(network.bn1(network.conv1(torch.zeros(1, 3, SIZE, SIZE))))))
    assert features.shape[-1] == SIZE


def test_predict_does_not_depend_on_the_batch_and_accuracy_counts(digits):
    network = seeded("resnet18", 10, "imagenet", 0)
    torch.testing.assert_close(predict(network, digits.images, 7), predict(network, digits.images, 64), atol=1e-4, rtol=1e-4)
    assert accuracy(torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]]), torch.tensor([0, 1, 0, 0])) == 0.75


def small_recipe(**settings) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": 30, "views": Views(8, 0), "lr_schedule": "cosine", **settings})


def small_network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    return network, torch.optim.SGD(network.parameters(), 0.1)


def test_every_image_is_seen_once_an_epoch_in_batches_of_nearly_one_size(digits, tmp_path):
    seen = []

    class Recorded(ImageSet):
        def in_turn(self, drawn, parts, size):
            parts = list(parts)
            seen.extend(part.tolist() for part in parts)
            return super().in_turn(drawn, parts, size)
    network, optimizer = small_network()
    _, loop = train(network, Recorded(**vars(digits)), Labels(digits.weights), small_recipe(), optimizer, tmp_path, "test")
    assert [len(rows) for rows in seen] == [22, 21, 21] * 2 and len(loop.losses) == 6
    assert sorted(sum(seen[:3], [])) == sorted(sum(seen[3:], [])) == list(range(64))
    assert seen[0] != seen[3]


def test_a_batch_in_parts_gives_the_same_step(digits, tmp_path):
    weights = []
    for parts in (1, 3):
        network, optimizer = small_network()
        train(network, digits, Labels(digits.weights), small_recipe(parts=parts, lr_schedule="linear"), optimizer,
              tmp_path / str(parts), "test")
        weights.append(network[1].weight.detach())
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], small_network()[0][1].weight)
