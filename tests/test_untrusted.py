"""Files of others: whatever they hold, a reader says one line, opens nothing outside their folder, and runs nothing."""

import json
import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from distillation.datasets import load_split
from distillation.distilled_set import read_distilled
from distillation.images import BadImage, open_image
from distillation.prototypes import read_prototypes
from distillation.verification import strictly, verify
from misc import fuzz, fuzz_readers
from misc.fuzz_readers import CHECKS, cases
from scripts.artefact import (
    DEEPEST,
    LARGEST_BYTES,
    digest,
    is_inner,
    nesting,
    read_json,
    read_manifest,
    read_tensors,
    read_torch,
    write_json,
)
from scripts.cli import InputError, printable


@pytest.fixture
def sound(tmp_path):
    """A small sound artefact of every kind below tmp_path, and the fuzzer's cases of them."""
    return cases(tmp_path)


def refused(read, *words) -> bool:
    with pytest.raises(InputError) as caught:
        read()
    assert [word for word in map(str, words) if word not in str(caught.value)] == [], caught.value
    return "\n" not in printable(str(caught.value))


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


# JSON

@pytest.mark.parametrize(("text", "words"), [
    ("[" * 100_000 + "]" * 100_000, "brackets"), ('{"a":' * 100_000 + "1" + "}" * 100_000, "brackets"),
    ("[" * 10 ** 6, "brackets"), ("[NaN]", "NaN"), ("[1, -Infinity]", "-Infinity"), ("9" * 5000, "expected JSON"),
    ("\ufeff{}", "expected JSON"), ("", "JSON")])
def test_json_that_is_none_or_too_deep(tmp_path, text, words):
    path = tmp_path / "some.json"
    path.write_text(text)
    assert refused(lambda: read_json(path), path, words)


def test_nesting_counts_brackets_outside_of_strings():
    depth = DEEPEST
    assert json.loads("[" * depth + "]" * depth) is not None and nesting(b"[" * depth + b"]" * depth) == depth
    assert nesting(json.dumps({"a[[": ['\\"[[', "]]", {"b": []}]}).encode()) == 4
    assert nesting(b"[]" * 3_000_000) == 1 and nesting(b'["\\"[[') == 1 and nesting(b"]]") == 0


def test_json_at_the_limits_of_depth_and_size(tmp_path):
    path = tmp_path / "some.json"
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    read_json(path)
    path.write_text("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    assert refused(lambda: read_json(path), DEEPEST + 1)
    with open(path, "wb") as file:
        file.truncate(LARGEST_BYTES + 1)  # takes no room
    assert refused(lambda: read_json(path), LARGEST_BYTES + 1)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for name, found in (("pipe", "no file"), (".", "a folder"), ("none", "nothing"), ("x" * 300, "nothing")):
        assert refused(lambda name=name: read_json(tmp_path / name), found)
    for name in ("pipe", ".", "none"):
        assert refused(lambda name=name: read_tensors(tmp_path / name), "expected a safetensors file")


def test_messages_cannot_move_the_cursor():
    assert printable("a\nb\x1b[2J\u2028é\ud800") == r"a\nb\x1b[2J\u2028é\ud800"


# paths

@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\0b", "", ".", "a\\..\\b", "\ud800", "x" * 256, 3])
def test_names_that_leave_a_folder(name):
    assert not is_inner(name)


def test_names_that_stay_in_a_folder():
    assert all(map(is_inner, ["a", "a/b.png", "é/..b", "00000_a/00000-p000-r00.png"]))


@pytest.mark.parametrize("name", ["../secret.png", "{root}/secret.png"])
def test_a_manifest_that_names_files_outside(sound, tmp_path, name):
    folder, name = tmp_path / "distilled", name.format(root=tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")

    def point_outside(manifest):
        manifest["files"][name] = digest(tmp_path / "secret.png")
        manifest["rows"][0]["file_name"] = name
    edit(folder, point_outside)
    assert refused(lambda: read_distilled(folder), folder, "inside the folder")


def test_links_that_leave_the_folder(sound, tmp_path):
    folder = tmp_path / "distilled"
    image = min(folder.glob("*/*.png"))
    shutil.move(image, tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    assert refused(lambda: read_distilled(folder), image.name, "inside the folder", tmp_path / "elsewhere.png")
    assert verify(folder, CHECKS).problems[0].startswith(f"{image.parent.name}/{image.name}: expected a file inside")
    image.unlink()
    image.symlink_to(image.name)
    assert refused(lambda: read_distilled(folder), "expected a file, found")
    image.unlink()
    shutil.move(tmp_path / "elsewhere.png", image)
    shutil.move(image.parent, tmp_path / "moved")
    image.parent.symlink_to(tmp_path / "moved")
    assert refused(lambda: read_distilled(folder), "inside the folder", tmp_path / "moved")


def test_links_within_the_folder_and_to_it_are_followed(sound, tmp_path):
    image = min((tmp_path / "distilled").glob("*/*.png"))
    shutil.move(image, tmp_path / "distilled" / "kept.png")
    image.symlink_to("../kept.png")
    (tmp_path / "link").symlink_to(tmp_path / "distilled")
    assert len(read_distilled(tmp_path / "link")[1]) == 6


def test_a_pipe_in_place_of_a_file(sound, tmp_path):
    path = min((tmp_path / "prototypes").glob("*.safetensors"))
    path.unlink()
    os.mkfifo(path)
    assert refused(lambda: read_prototypes(path.parent), path.name, "something else")


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "sub/a.png"])
def test_annotations_name_files_beside_them(tmp_path, name):
    (tmp_path / "val" / "images").mkdir(parents=True)
    (tmp_path / "val" / "val_annotations.txt").write_text(f"{name}\tn01443537\t0\t0\t1\t1\n")
    assert refused(lambda: load_split("tiny_imagenet", tmp_path, "test"), "val_annotations.txt", "line 1", name)


# safetensors and torch.save

def tensors_of(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


SAFETENSORS = {
    "truncated": save({"a": torch.ones(8)})[:-5],
    "cut in its header": save({"a": torch.ones(8)})[:20],
    "empty": b"",
    "header beyond the file": struct.pack("<Q", 10 ** 6) + b"{}",
    "header of 2^63 bytes": struct.pack("<Q", 2 ** 63) + b"{}",
    "overlapping": tensors_of({name: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),
    "backwards": tensors_of({"a": {"dtype": "U8", "shape": [4], "data_offsets": [4, 0]}}, bytes(4)),
    "a hole": tensors_of({"a": {"dtype": "U8", "shape": [1], "data_offsets": [3, 4]}}, bytes(4)),
    "shape beyond the data": tensors_of({"a": {"dtype": "F32", "shape": [2 ** 40], "data_offsets": [0, 4]}}, bytes(4)),
    "product overflows": tensors_of({"a": {"dtype": "F32", "shape": [2 ** 62, 4], "data_offsets": [0, 0]}}, b""),
    "unknown type": tensors_of({"a": {"dtype": "X", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
    "nested header": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors_that_are_none(tmp_path, case):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SAFETENSORS[case])
    assert refused(lambda: read_tensors(path), path, "expected a safetensors file")


def test_a_pickle_is_not_run_and_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "state.pt"
    torch.save({"a": Path}, path)  # a class, which weights_only refuses
    assert refused(lambda: read_torch(path, "a resume point"), path, "which was not run")
    torch.save({"a": torch.ones(3)}, path)
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:100], whole[20:], b""):
        path.write_bytes(content)
        assert refused(lambda: read_torch(path, "a resume point"), path, "damaged")


def test_a_manifest_cannot_ask_for_a_network_that_fills_the_memory(sound, tmp_path):
    """At 16,000 pixels the last layer alone would take 3 GB."""
    edit(tmp_path / "teacher", lambda manifest: manifest["config"].update(input_size=16_000))
    assert refused(lambda: sound["manifest of teacher"].read(None), "model.safetensors", "found others")


# images

def png(width: int, height: int) -> bytes:
    """A sound black image of 1 bit per pixel; 10,000 x 10,000 of them take 12 kB."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) \
        + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_bomb_is_refused_in_one_line(command, tmp_path, side):
    """Pillow warns beyond its limit of 89 million pixels, and refuses by itself only twice as many."""
    for name in ("ant", "bear"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "ant" / "b.png")
    bomb = tmp_path / "train" / "bear" / "bomb.png"
    bomb.write_bytes(png(side, side))
    with pytest.raises(BadImage, match="limit"):
        open_image(bomb)
    if side == 10_000:
        answer = command("distillation.gen_syn_image", "--method", "random", "--ipc", 2, "--dataset", "folder", "--data_dir",
                         tmp_path, "--image_size", 8, "--save_init_image_path", tmp_path / "out")
        assert answer.code == 2 and answer.err.count("\n") == 1 and str(bomb) in answer.err, answer.err


def test_an_image_within_the_limit_is_read(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3000, 500))
    assert open_image(tmp_path / "a.png").size == (3000, 500)


# what the fuzzer found

def spoil_manifest(folder: str, change):
    def spoil(root: Path):
        edit(root / folder, change)
    return spoil


def spoil_tensors(folder: str, change):
    def spoil(root: Path):
        path = min((root / folder).glob("*.safetensors"))
        tensors = {name: value.clone() for name, value in read_tensors(path).items()}
        change(tensors)
        save_file(tensors, path)
    return spoil


def spoil_json(name: str, text: str):
    def spoil(root: Path):
        (root / name).write_text(text)
    return spoil


FOUND = {
    "a kind that is a list": ("manifest of teacher", spoil_manifest("teacher", lambda m: m.update(kind=[]))),
    "files that are a list": ("manifest of teacher", spoil_manifest("teacher", lambda m: m.update(files=[]))),
    "no files": ("manifest of prototypes", spoil_manifest("prototypes", lambda m: m.pop("files"))),
    "no classes": ("manifest of soft_labels", spoil_manifest("soft_labels", lambda m: m.pop("classes"))),
    "a class that is a number": ("manifest of prototypes", spoil_manifest("prototypes", lambda m: m["classes"].append(3))),
    "a class without a file": ("manifest of prototypes", spoil_manifest(
        "prototypes", lambda m: m["classes"].append({"name": "x" * 300, "prompt": ""}))),
    "rows that are none": ("manifest of distilled", spoil_manifest("distilled", lambda m: m.update(rows=None))),
    "a row without a weight": ("manifest of distilled", spoil_manifest("distilled", lambda m: m["rows"][1].pop("weight"))),
    "a label beyond the classes": ("manifest of distilled", spoil_manifest(
        "distilled", lambda m: m["rows"][1].update(label=3))),
    "a label of 2^63": ("manifest of distilled", spoil_manifest("distilled", lambda m: m["rows"][1].update(label=2 ** 63))),
    "a weight of 10^400": ("manifest of distilled", spoil_manifest(
        "distilled", lambda m: m["rows"][1].update(weight=10 ** 400))),
    "no configuration": ("manifest of teacher", spoil_manifest("teacher", lambda m: m.update(config=None))),
    "no architecture": ("manifest of teacher", spoil_manifest("teacher", lambda m: m["config"].pop("arch"))),
    "a size that is text": ("manifest of teacher", spoil_manifest("teacher", lambda m: m["config"].update(input_size="8"))),
    "epochs that are text": ("manifest of soft_labels", spoil_manifest(
        "soft_labels", lambda m: m["config"].update(epochs="3"))),
    "no digest of the images": ("manifest of soft_labels", spoil_manifest("soft_labels", lambda m: m.pop("images"))),
    "a name that is half a character": ("manifest of teacher", spoil_manifest("teacher", lambda m: m["files"].update(
        {"\ud800": "0" * 64}))),
    "no sizes": ("tensors of prototypes", spoil_tensors("prototypes", lambda t: t.pop("sizes"))),
    "a name too many": ("tensors of prototypes", spoil_tensors("prototypes", lambda t: t.update(more=torch.ones(1)))),
    "no centroids": ("tensors of prototypes", spoil_tensors("prototypes", lambda t: t.update(centroids=t["centroids"][:0]))),
    "latents that are not finite": ("tensors of prototypes", spoil_tensors(
        "prototypes", lambda t: t["centroids"].view(-1)[:1].fill_(torch.nan))),
    "no order": ("tensors of soft_labels", spoil_tensors("soft_labels", lambda t: t.pop("order"))),
    "a partner that is not there": ("tensors of soft_labels", spoil_tensors("soft_labels", lambda t: t["partner"].fill_(99))),
    "a crop of nothing": ("tensors of soft_labels", spoil_tensors("soft_labels", lambda t: t["crop"].zero_())),
    "a crop beyond the image": ("tensors of soft_labels", spoil_tensors("soft_labels", lambda t: t["crop"].fill_(7))),
    "a leading class too many": ("tensors of soft_labels", spoil_tensors("soft_labels", lambda t: t["leading"].fill_(3))),
    "a ratio of another type": ("tensors of soft_labels", spoil_tensors(
        "soft_labels", lambda t: t.update(ratio=t["ratio"].double()))),
    "weights that are not finite": ("tensors of teacher", spoil_tensors("teacher", lambda t: t["0.weight"].fill_(torch.inf))),
    "brackets in metadata": ("metadata.jsonl", spoil_json("distilled/metadata.jsonl", "[" * 100_000)),
    "prototypes of 10^400": ("JSON prototypes", spoil_json("prototypes.json", json.dumps({"ant": [[[[10 ** 400]]]]}))),
    "prototypes of 2^64": ("JSON prototypes", spoil_json("prototypes.json", json.dumps({"ant": [[[[2 ** 64, "1"]]]]}))),
    "prototypes beyond float": ("JSON prototypes", spoil_json("prototypes.json", '{"ant": [[[[1e999]]]]}')),
    "prototypes of nothing": ("JSON prototypes", spoil_json("prototypes.json", '{"ant": [[[[]]]]}')),
    "a configuration that is a list": ("configuration", spoil_json("teacher/config.json", "[]")),
    "a configuration without one": ("configuration", spoil_json("teacher/config.json", '{"kind": "teacher"}')),
}



@pytest.mark.parametrize("case", FOUND)
def test_what_the_fuzzer_found(sound, tmp_path, case):
    name, spoil = FOUND[case]
    spoil(tmp_path)
    assert refused(lambda: sound[name].read(sound[name].files[0]))


def test_sound_files_are_read_by_every_reader_of_the_fuzzer(sound, tmp_path):
    for case in sound.values():
        for path in case.files:
            case.read(path)
    strictly([tmp_path / name for name in ("prototypes", "distilled", "soft_labels", "teacher", "continual")], CHECKS)


def test_hundreds_of_damaged_files(here, tmp_path):
    answer = here("misc.fuzz", "--count", 360, "--seed", 7, "--output", tmp_path / "fuzz.json")
    assert answer.code == 0, answer.out
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert result["count"] == 360 and result["failures"] == []
    assert all(each["inputs"] == 20 and each["read"] + each["refused"] == 20 for each in result["readers"].values())
    assert sum(each["refused"] for each in result["readers"].values()) > 180


def test_the_fuzzer_counts_what_it_is_for(tmp_path, monkeypatch):
    """Readers that refuse, crash, end the process, take their time or memory, or do as they should, in place of ours."""
    monkeypatch.setattr(fuzz, "LONGEST_SECONDS", 0.3)
    monkeypatch.setattr(fuzz, "LARGEST_BYTES", 2 ** 25)

    def misbehave(path: Path):
        kind = path.read_bytes()
        if kind == b"0":
            raise InputError("no")
        if kind == b"1":
            raise KeyError("crash")
        if kind == b"2":
            os._exit(9)
        if kind == b"3":
            until = time.process_time() + 0.5
            while time.process_time() < until:
                pass
        if kind == b"4":
            np.ones(2 ** 24)
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    given = []

    def damage(content: bytes, rng) -> bytes:
        assert content == b"whole"
        given.append(str(rng.integers(6)).encode())
        return given[-1]
    case, names = fuzz_readers.Case([path], damage, misbehave), ("refused", "crashed", "died", "hung", "memory", "read")
    found = [each["outcome"] for each in fuzz.examine("some", case, 0, range(30))]
    for number in range(30):
        fuzz.damaged("some", case, {path: b"whole"}, 0, number)
    assert found == [names[int(kind)] for kind in given] and set(found) == set(names)
    assert path.read_bytes() == b"whole"


def test_an_input_is_a_function_of_seed_reader_and_number(sound):
    case = sound["tensors of teacher"]
    whole = {path: path.read_bytes() for path in case.files}
    first, again, other = (fuzz.damaged("a", case, whole, 0, number)[1] for number in (3, 3, 4))
    assert first == again != other


def test_existing_manifests_without_sizes_are_read(sound, tmp_path):
    assert "bytes" not in read_manifest(tmp_path / "teacher", "teacher")
    write_json(tmp_path / "teacher" / "manifest.json", {**read_manifest(tmp_path / "teacher", "teacher"),
                                                        "bytes": {"model.safetensors": 1}})
    assert refused(lambda: read_manifest(tmp_path / "teacher", "teacher"), "expected 1 bytes")
