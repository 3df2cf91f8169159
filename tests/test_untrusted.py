"""Files from others: a reader returns something valid or raises InputError, opens nothing outside its folder and runs nothing.

Hypothesis writes the damage: bytes, JSON trees, safetensors headers, tensors and image headers.
"""

import copy
import functools
import json
import operator
import os
import resource
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save

from distillation.distilled_set import finish_distilled, read_distilled, row, write_image
from distillation.images import open_image
from distillation.prompts import file_prompts
from distillation.prototypes import Prototypes, class_file, read_prototypes, write_class, write_json_file
from matching.augmentation import draw_epoch
from matching.image_set import distilled_images
from matching.soft_labels import SoftLabels, epoch_file, leading_answers, write_epoch
from scripts import artefact
from scripts.cli import InputError, printable
from scripts.files import LARGEST_BYTES, read_json, read_tensors, write_tensors
from scripts.networks import load_checkpoint, load_model, read_state_dict, seeded

NAMES, IPC, SIZE, ARCH = ("ant", "sea lion", "crane"), 2, 8, "convnet_d1_w4"
CLASSES = [{"name": name, "prompt": f"a photo of a {name}"} for name in NAMES]
TEACHER = {"arch": ARCH, "stem": "imagenet", "input_size": SIZE}
FORMATS = {"rgb.png": "RGB", "palette.png": "P", "alpha.png": "RGBA", "photo.jpg": "RGB", "photo.webp": "RGB", "old.bmp": "RGB",
           "moving.gif": "P", "scan.tif": "RGB", "plain.ppm": "RGB"}


# sound artefacts, one of each kind, and their readers


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    root = tmp_path_factory.mktemp("untrusted")
    rng, files = np.random.default_rng(0), [class_file(label, name) for label, name in enumerate(NAMES)]
    found = [Prototypes(torch.from_numpy(rng.normal(size=(IPC, 4, 4, 4)).astype(np.float32)), torch.tensor([3, 2]),
                        torch.tensor(1.5), torch.tensor([0, 4]), torch.empty(0, dtype=torch.int64)) for _ in NAMES]
    for label, name in enumerate(NAMES):
        write_class(root / "prototypes", label, name, found[label])
    artefact.finish(root / "prototypes", "prototypes", CLASSES, {"ipc": IPC}, files)
    write_json_file(root / "prototypes.json", CLASSES, found)

    rows = [row(label, name, place, 0, 7, 1 / IPC) for label, name in enumerate(NAMES) for place in range(IPC)]
    for each in rows:
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        write_image(root / "distilled", each["file_name"], Image.fromarray(pixels))
    finish_distilled(root / "distilled", CLASSES, {"method": "random", "ipc": IPC, "image_size": SIZE}, rows)

    for epoch in range(2):
        drawn = draw_epoch(len(rows), (SIZE, SIZE), SIZE, rng, mix="cutmix")
        logits = torch.from_numpy(rng.normal(size=(len(rows), 3)).astype(np.float32))
        write_epoch(root / "soft_labels", epoch, drawn, leading_answers(logits, 2, 20.0))
    artefact.finish(root / "soft_labels", "soft_labels", CLASSES, {"epochs": 3, "input_size": SIZE, "fkd_seed": 42},
                    [epoch_file(0), epoch_file(1)], images=distilled_images(root / "distilled").digest)

    artefact.begin(root / "teacher", "teacher", TEACHER)
    state = seeded(ARCH, 3, "imagenet", 0, SIZE).state_dict()
    for path in (root / "teacher" / "model.safetensors", root / "weights.safetensors"):
        write_tensors(path, state)
    torch.save({"state_dict": state}, root / "weights.pt")
    artefact.finish(root / "teacher", "teacher", CLASSES, TEACHER, ["model.safetensors"])
    for folder in ("prototypes", "distilled", "soft_labels", "teacher"):  # without sizes damage gets past the first check
        edit(root / folder, lambda manifest: manifest.pop("bytes"))
    (root / "images").mkdir()
    for name, mode in FORMATS.items():
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE + 3, 3), dtype=np.uint8)).convert(mode).save(root / "images" / name)
    (root / "labels.txt").write_text("an ant\na sea lion\na crane\n")
    return root


def read_views(root: Path):
    """Soft labels with the views made of them, as in training."""
    images = distilled_images(root / "distilled")
    store = SoftLabels(root / "soft_labels", images)
    for epoch in range(min(store.epochs, 3)):
        drawn, answers = store.epoch(epoch, "cpu")
        images.views(drawn, torch.arange(len(images)), min(store.size, 64))
        answers[drawn.order.long()]


@pytest.fixture
def sound(artefacts, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copytree(artefacts, tmp_path / "sound"))


def refused(read, *words) -> bool:
    with pytest.raises(InputError) as caught:
        read()
    assert [word for word in map(str, words) if word not in str(caught.value)] == [], caught.value
    return True


# damage

ODD = (None, True, [], {}, [[]], {"a": 1}, 0, 1, -1, 3, 2 ** 31, 2 ** 63, 10 ** 400, 0.5, 1e308, float("nan"), float("inf"), "",
       "..", "../../etc/passwd", "/etc/passwd", "a\0b", "\n", "\x1b[2J", "\ud800", "x" * 300, "0" * 64, "cifar", "vit_b_16",
       "inception_v3", "convnet_d9_w9999", "F64", "BF16", "I64", "F8_E4M3", "00000_ant/00000-p000-r00.png")
DTYPES = (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e5m2, torch.uint16)
VALUES = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=4) | st.lists(st.integers(), max_size=5)


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    """Bytes replaced, inserted, cut out, or the end lost."""
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(content)))
        last = first + draw(st.integers(0, 16) | st.just(len(content)))
        content = content[:first] + draw(st.binary(max_size=16)) + content[last:]
    return content


def places(tree, at=()) -> list[tuple]:
    """The path of every value in a JSON tree, as keys and indices."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


@st.composite
def damaged_json(draw, content: bytes) -> bytes:
    """JSON with values replaced, exchanged or removed; or with brackets within brackets."""
    if draw(st.integers(0, 9)) == 0:
        place, depth = draw(st.integers(0, len(content))), draw(st.sampled_from((30, 900, 5000, 100_000)))
        return content[:place] + draw(st.sampled_from((b"[", b'{"a":'))) * depth + content[place:]
    tree = [json.loads(content)]
    for _ in range(draw(st.integers(1, 3))):
        *above, key = draw(st.sampled_from(places(tree)[1:] or [(0,)]))
        holder = functools.reduce(operator.getitem, above, tree)
        if above and draw(st.integers(0, 3)) == 0:
            del holder[key]
        elif tree and draw(st.booleans()):
            holder[key] = copy.deepcopy(functools.reduce(operator.getitem, draw(st.sampled_from(places(tree)[1:])), tree))
        else:
            holder[key] = draw(VALUES)
    return json.dumps(tree[0]).encode()


@st.composite
def damaged_tensors(draw, content: bytes) -> bytes:
    """A safetensors file with another header or header length; or a sound one with a tensor changed, renamed or removed."""
    length, = struct.unpack("<Q", content[:8])
    header, data = content[8:8 + length], content[8 + length:]
    kind = draw(st.sampled_from(("bytes", "length", "header", "header", "tensor", "tensor")))
    if kind == "bytes":
        return draw(damaged_bytes(content))
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2 * len(content)) | st.integers(0, 2 ** 64 - 1))) + header + data
    if kind == "header":
        header = draw(damaged_json(header))
        return struct.pack("<Q", len(header)) + header + data
    tensors = load(content)
    name = draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    others = [*map(value.to, DTYPES), value.flatten(), value[None], value.reshape(-1)[:0], value.sum(), value * float("nan"),
              value * float("inf"), *(torch.full_like(value, number) for number in (0, 1, 3, 127))]
    if draw(st.integers(0, 9)):  # otherwise the tensor is missing
        tensors[draw(st.sampled_from((name, name, f"{name}x")))] = draw(st.sampled_from(others))
    return save({key: each.contiguous() for key, each in tensors.items()})


def with_header(png: bytes, width: int, height: int, kind: bytes) -> bytes:
    """A PNG with another header, under a checksum that fits."""
    chunk = b"IHDR" + struct.pack(">II", width, height) + kind
    return png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


@st.composite
def damaged_image(draw, content: bytes) -> bytes:
    """An image with other bytes, or a PNG with another size or type in its header."""
    if content[12:16] != b"IHDR" or draw(st.booleans()):
        return draw(damaged_bytes(content))
    sides = st.sampled_from((0, 1, 7, SIZE, 9500, 40_000, 2 ** 31 - 1, 2 ** 32 - 1))
    return with_header(content, draw(sides), draw(sides), draw(st.just(content[24:29]) | st.binary(min_size=5, max_size=5)))


READERS = {  # what is damaged: the files, the damage, the reader
    "prototypes": ("prototypes/manifest.json", damaged_json, lambda root: read_prototypes(root / "prototypes")),
    "distilled": ("distilled/manifest.json", damaged_json, lambda root: read_distilled(root / "distilled")),
    "soft_labels": ("soft_labels/manifest.json", damaged_json, read_views),
    "teacher": ("teacher/manifest.json", damaged_json, lambda root: load_model(root / "teacher", "teacher")),
    "configuration": ("teacher/config.json", damaged_json, lambda root: artefact.begin(root / "teacher", "teacher", TEACHER)),
    "JSON prototypes": ("prototypes.json", damaged_json, lambda root: read_prototypes(root / "prototypes.json")),
    "prototype tensors": ("prototypes/*.safetensors", damaged_tensors, lambda root: read_prototypes(root / "prototypes")),
    "soft-label tensors": ("soft_labels/*.safetensors", damaged_tensors, read_views),
    "teacher tensors": ("teacher/*.safetensors", damaged_tensors, lambda root: load_model(root / "teacher", "teacher")),
    "distilled images": ("distilled/*/*.png", damaged_image, lambda root: distilled_images(root / "distilled")),
    "images": ("images/*", damaged_image, lambda root: [open_image(path) for path in sorted(root.glob("images/*"))]),
    "label file": ("labels.txt", damaged_bytes, lambda root: file_prompts(root / "labels.txt", "folder", list(NAMES))),
    "torch.save": ("weights.pt", damaged_bytes, lambda root: read_state_dict(root / "weights.pt")),
    "checkpoint": ("weights.safetensors", damaged_tensors,
                   lambda root: load_checkpoint(root / "weights.safetensors", ARCH, 3, size=SIZE))}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
@settings(derandomize=True, deadline=None, database=None, max_examples=80)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(artefacts, name, data):
    files, damage, read = READERS[name]
    path = data.draw(st.sampled_from(sorted(artefacts.glob(files))))
    read(artefacts)     # with what it imports
    whole = path.read_bytes()
    path.write_bytes(data.draw(damage(whole)))
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()  # Hypothesis's own are not ours
    try:
        read(artefacts)
    except InputError:
        pass
    finally:
        path.write_bytes(whole)
    assert time.process_time() - started < 3 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2 ** 20  # 1 GiB


# cases by hand

FOUND = [("teacher", "kind", []), ("teacher", "config.arch", None), ("teacher", "config.input_size", "8"),
         ("teacher", "config.input_size", 16_000), ("teacher", "bytes", {"model.safetensors": 1}),  # 16,000 pixels: 3 GB
         ("teacher", "files", {"\ud800": "0" * 64}), ("prototypes", "files", None), ("prototypes", "classes", [3]),
         ("distilled", "rows", None), ("distilled", "rows.1.label", 3), ("distilled", "rows.1.label", 2 ** 63),
         ("distilled", "rows.1.weight", 10 ** 400), ("distilled", "rows.0.file_name", "../secret.png"),
         ("distilled", "files", {"/etc/passwd": "0" * 64}), ("soft_labels", "images", None),
         ("soft_labels", "config.epochs", "3")]


@pytest.mark.parametrize(("kind", "key", "value"), FOUND)
def test_a_manifest_with_one_wrong_value_is_refused(sound, kind, key, value):
    def change(manifest):
        *above, last = (int(word) if word.isdecimal() else word for word in key.split("."))
        functools.reduce(operator.getitem, above, manifest)[last] = value
    edit(sound / kind, change)
    assert refused(lambda: READERS[kind][2](sound))


@pytest.mark.parametrize(("kind", "name", "change"), [
    ("prototype", "centroids", lambda value: value[:0]), ("prototype", "centroids", lambda value: value * torch.nan),
    ("soft-label", "partner", lambda value: value.fill_(99)), ("soft-label", "crop", torch.zero_),
    ("soft-label", "crop", lambda value: value.fill_(7)), ("soft-label", "leading", lambda value: value.fill_(3)),
    ("soft-label", "ratio", torch.Tensor.double), ("teacher", "0.weight", lambda value: value.fill_(torch.inf))])
def test_a_tensor_with_wrong_values_is_refused(sound, kind, name, change):
    files, _, read = READERS[f"{kind} tensors"]
    path = min(sound.glob(files))
    tensors = load(path.read_bytes())
    path.write_bytes(save({**tensors, name: change(tensors[name].clone())}))
    assert refused(lambda: read(sound), path)


@pytest.mark.parametrize(("text", "words"), [
    ("[" * 100_000 + "]" * 100_000, "brackets"), ('{"a":' * 10 ** 6, "brackets"), ("[NaN]", "NaN"),
    ("[1, -Infinity]", "-Infinity"), ("9" * 5000, "expected JSON"), ("\ufeff{}", "expected JSON"), ("", "JSON"),
    (None, LARGEST_BYTES + 1)])
def test_json_that_is_none_too_deep_or_too_large(tmp_path, text, words):
    path = tmp_path / "some.json"
    path.write_text(text or "")
    if text is None:
        os.truncate(path, LARGEST_BYTES + 1)  # takes no room
    assert refused(lambda: read_json(path), path, words)


@pytest.mark.parametrize("name", ["pipe", ".", "none", "x" * 300])
def test_what_is_no_file_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    assert refused(lambda: read_json(tmp_path / name), "found")
    assert refused(lambda: read_tensors(tmp_path / name), "expected a safetensors file")


def test_a_name_that_is_too_long_is_bad_input_wherever_it_is_met(here):
    for module, dataset, flag in (("matching.generate_soft_label", "digits", "--teacher"),
                                  ("matching.train_teacher", "folder", "--data_dir")):
        answer = here(module, "--dataset", dataset, flag, "x" * 300)
        assert answer.code == 2 and "x" * 300 in answer.err and answer.err.count("\n") == 1, answer.err


def test_a_network_that_cannot_be_built_names_its_manifest_and_a_regnet_is_read(sound):
    edit(sound / "teacher", lambda manifest: manifest["config"].update(arch="resnet19"))
    assert refused(lambda: load_model(sound / "teacher", "teacher"), sound / "teacher" / "manifest.json", "resnet19")
    network = seeded("regnet_x_400mf", 3, "imagenet", 0)
    write_tensors(sound / "teacher" / "model.safetensors", network.state_dict())
    edit(sound / "teacher", lambda manifest: manifest["config"].update(arch="regnet_x_400mf"))
    loaded, _ = load_model(sound / "teacher", "teacher")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())


def test_messages_cannot_move_the_cursor_and_names_cannot_leave_a_folder():
    assert printable("a\nb\x1b[2J\u2028é\ud800") == r"a\nb\x1b[2J\u2028é\ud800"
    leaving = ["/etc/passwd", "../x", "a/../../x", "a\0b", "", ".", "a\\..\\b", "\ud800", "x" * 256, 3]
    assert not any(map(artefact.is_inner, leaving))
    assert all(map(artefact.is_inner, ["a", "a/b.png", "é/..b", "00000_a/00000-p000-r00.png"]))


def test_links_are_followed_within_the_folder_and_refused_elsewhere(sound):
    image, elsewhere, inside = min(sound.glob("distilled/*/*.png")), sound / "elsewhere.png", sound / "distilled" / "kept.png"
    shutil.copy(image, elsewhere)
    shutil.move(image, inside)
    for target, words in ((elsewhere, ("inside the folder", elsewhere)), (image, ("expected a file, found",))):
        image.symlink_to(target)
        assert refused(lambda: read_distilled(sound / "distilled"), image.name, *words)  # noqa: B023
        image.unlink()
    image.symlink_to("../kept.png")
    (sound / "link").symlink_to(sound / "distilled")
    assert len(read_distilled(sound / "link")[1]) == 6
    shutil.move(inside, image)
    shutil.move(image.parent, sound / "moved")
    image.parent.symlink_to(sound / "moved")
    assert refused(lambda: read_distilled(sound / "distilled"), "inside the folder", sound / "moved")


def test_an_image_bomb_is_refused(artefacts, tmp_path):
    """Pillow only warns at 89 million pixels, and refuses twice as many."""
    bomb, small = tmp_path / "bomb.png", min(artefacts.glob("distilled/*/*.png")).read_bytes()
    Image.new("1", (3000, 500)).save(bomb)
    assert open_image(bomb).size == (3000, 500)
    for side in (20_000, 10_000):
        bomb.write_bytes(with_header(small, side, side, small[24:29]))
        assert refused(lambda: open_image(bomb), bomb, "limit")
