"""Bad input ends with one line (what, where, expected, found) and exit code 2, and nothing already written is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, IPC, SIZE, edit, new_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from test_verify import rewrite
from tiny_continual import FAST, tiny, write_data, write_teacher

from distillation.ldm import new_vae
from scripts.cli import InputError
from scripts.files import digest, write_tensors
from scripts.networks import predict, seeded
from scripts.pipeline_stable_diffusion_latents2img import decode_latents


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*") if path.is_file()}


def refused(answer, *words) -> bool:
    """One line on stderr, exit code 2, and each of `words` in it."""
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1 and answer.err.endswith("\n"), answer.err
    assert "Traceback" not in answer.err + answer.out
    assert [word for word in map(str, words) if word not in answer.err] == [], answer.err
    assert answer.code == 2
    return True


def good(name: str, *more):
    """A fixture: the command of a stage with good input, to which bad flags are added."""
    @pytest.fixture
    def fixture(request, here, tmp_path):
        stage = request.getfixturevalue(name)
        return lambda *flags: here(stage.module, *stage.flags, *more, stage.output_flag, tmp_path / "out", *flags)
    return fixture


gen_prototype, gen_syn_image, relabel = map(good, ("prototypes", "distilled", "soft_labels"))
train_student = good("student", "--epochs", 1)


# data
def test_missing_data_folder_or_split(gen_prototype, tmp_path):
    assert refused(gen_prototype("--data_dir", tmp_path / "nothing"), tmp_path / "nothing", "train", "no such folder")
    assert refused(gen_prototype("--data_dir", tmp_path), tmp_path, "train", "found none")


def test_missing_data_folder_by_command(command, checkpoint, tmp_path):
    answer = command("distillation.gen_prototype", "--dataset", "imagenet", "--data_dir", tmp_path / "nothing",
                     "--diffusion_checkpoints_path", checkpoint, "--save_prototype_path", tmp_path)
    assert refused(answer, tmp_path / "nothing") and answer.out == ""


@pytest.mark.parametrize(("lines", "found"), [
    (CLASSES[:11], "found 11"), ([*CLASSES, "more"], "found 13"), ([*CLASSES[:5], "", *CLASSES[6:]], "an empty line 6")])
def test_label_file_with_the_wrong_lines(gen_prototype, tmp_path, lines, found):
    (tmp_path / "prompts.txt").write_text("\n".join(lines) + "\n")
    assert refused(gen_prototype("--label_file_path", tmp_path / "prompts.txt"), tmp_path / "prompts.txt", 12, found)
    assert refused(gen_prototype("--label_file_path", tmp_path / "none.txt"), tmp_path / "none.txt", 12)


SPOILS = {"text": lambda content: b"not an image", "cut": lambda content: content[:len(content) // 2],
          "middle": lambda content: content[:60] + bytes(byte ^ 255 for byte in content[60:120]) + content[120:],
          "all": lambda content: b""}


def test_unreadable_image_loses_no_finished_class(gen_prototype, own_image_data, prototypes, tmp_path):
    path = own_image_data / "train" / "sea_lion" / "05.png"
    good = path.read_bytes()
    for spoil in SPOILS.values():
        path.write_bytes(spoil(good))
        assert refused(gen_prototype("--data_dir", own_image_data), path)
    folder = tmp_path / "out" / prototypes.folder.name
    before = contents(folder)
    assert len([name for name in before if name.endswith(".safetensors")]) == 11
    path.write_bytes(good)
    answer = gen_prototype("--data_dir", own_image_data)
    assert answer.code == 0 and "11 of 12 classes are there already" in answer.out
    assert before.items() <= contents(folder).items()


def test_unreadable_synthetic_image_or_one_of_another_size(relabel, copied):
    copy = copied("distilled")
    path = next(copy.rglob("*.png"))
    path.write_bytes(b"not an image")
    assert refused(relabel("--data", copy), path)
    Image.new("RGB", (16, 16)).save(path)
    edit(copy, lambda manifest: manifest.update(bytes={}))  # or the file's size would tell before
    assert refused(relabel("--data", copy), copy, "one size", "(16, 16)", "(32, 32)")


def test_ipc_larger_than_a_class(gen_prototype, gen_syn_image, image_data, tmp_path):
    assert refused(gen_prototype("--ipc", 15), "--ipc", "at most 14", "found 15", "ant")
    assert refused(gen_syn_image("--method", "random", "--data_dir", image_data, "--ipc", 15), "at most 14", "found 15")
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.fixture
def train_on_hard_labels(here, image_data, distilled, tmp_path):
    words = ("validate.train_FKD", "--labels", "hard", "--train-dir", distilled.folder, "--dataset", "folder", "--data_dir",
             image_data, "--input-size", SIZE, "--batch-size", 36, "--epochs", 1, "--output-dir", tmp_path / "out")
    return lambda *flags: here(*words, *flags)


@pytest.fixture
def train_ldm(here, tmp_path):
    return lambda *flags: here("distillation.train_ldm", "--output_dir", tmp_path / "ldm", *flags)


@pytest.mark.parametrize(("stage", "cases"), [
    ("gen_prototype", [("--ipc", 0), ("--km_expand", 0), ("--batch_size", 0), ("--size", 3), ("--num_workers", -1)]),
    ("gen_syn_image", [("--strength", 1.5), ("--strength", -0.1), ("--ipc", 4), ("--ipc", 0), ("--batch_size", 0),
                       ("--num_inference_steps", 0), ("--image_size", 0), ("--guidance_scale", 0.5),
                       ("--guidance_scale", "nan")]),
    ("train_ldm", [("--vae_steps", 0), ("--unet_steps", -1), ("--vae_lr", "nan"), ("--ema_decay", 2), ("--seed", 2 ** 63),
                   ("--vae_channels", 10), ("--unet_channels", 24), ("--text_width", 63), ("--text_width", 0)]),
    ("relabel", [("--cutmix", 0, "--mix-type", "cutmix"), ("--mixup", 0, "--mix-type", "mixup"), ("--min-scale-crops", 2),
                 ("--flip", 2), ("--workers", -1), ("--epochs", 0)]),
    ("train_on_hard_labels", [("--min-scale-crops", 2), ("--flip", -1), ("--workers", -1), ("--temperature", 0),
                              ("--keep-topk", 0), ("--batch-size", 0), ("--gradient-accumulation-steps", 0),
                              ("--adamw-lr", -1), ("--adamw-weight-decay", -5), ("--momentum", -1)])])
def test_numbers_out_of_range(request, stage, cases):
    command = request.getfixturevalue(stage)
    assert all(refused(command(*flags), *flags[:2]) for flags in cases)


def test_a_flag_without_effect_is_refused(train_on_hard_labels):
    for flags, words in ((("-lr", 0.5), "--learning-rate: expected --sgd beside it"),
                         (("--sgd", "--adamw-lr", 0.5), "--adamw-lr: expected no --sgd beside it"),
                         (("--fkd_seed", 9), "--fkd-seed needs --labels soft (got hard)"),
                         (("-T", 7), "--temperature needs --labels soft (got hard)"),
                         (("--keep-topk", 2), "--keep-topk needs --labels soft (got hard)"),
                         (("--max-scale-crops", 0.05), "--max-scale-crops: expected a value in [0.08, 1]")):
        assert refused(train_on_hard_labels(*flags), words)


def test_a_teacher_refuses_flags_without_effect(here, tmp_path):
    for flags, words in ((("--momentum", 0.5), "--momentum needs --optimizer sgd"), (("--pad", 8), "--pad needs --crop pad"),
                         (("--crop", "pad", "--min-scale-crops", 0.5), "--min-scale-crops needs --crop resized"),
                         (("--seed", 2 ** 63, "--arch", "convnet_d1_w8"), "--seed: expected a value in"),
                         (("--arch", "alexnet"), "alexnet: expected images of a size that it takes, found 32 pixels (")):
        assert refused(here("matching.train_teacher", "--output-dir", tmp_path / "out", *flags), words)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_something_else_is_no_finished_folder(here, tmp_path):
    words = ("matching.train_teacher", "--arch", "convnet_d1_w8", "--output-dir", tmp_path)
    for content, found in (("{}", "expected the kind and configuration of a run, found something else"),
                           ('{"kind": "student", "config": {}}', "expected a folder of kind teacher, found student")):
        (tmp_path / "manifest.json").write_text(content)
        assert refused(here(*words), found)


def test_flags_that_are_missing_or_unknown(here):
    assert refused(here("distillation.gen_syn_image", "--dataset", "digits"), "--prototype_path", "d4m")
    assert refused(here("distillation.gen_syn_image", "--method", "noise"), "--ipc")
    assert refused(here("validate.train_FKD"), "--fkd-path")
    answer = here("distillation.gen_prototype", "--dataset", "nothing")
    assert answer.code == 2 and "nothing" in answer.err and "digits" in answer.err.splitlines()[-1]


# checkpoints
def test_checkpoint_that_looks_like_a_hub_name_or_has_a_revision_and_is_none(gen_prototype):
    answer = gen_prototype("--diffusion_checkpoints_path", "runs/nothing")
    assert refused(answer, "runs/nothing", "Stable Diffusion") and answer.out == ""
    assert refused(gen_prototype("--revision", "v1"), "--revision: expected with the name of a hub checkpoint")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def without(name: str):
    return lambda folder: shutil.rmtree(folder / name)


def cut(name: str):
    return lambda folder: (folder / name).write_bytes(SPOILS["cut"]((folder / name).read_bytes()))


@pytest.mark.parametrize(("stage", "spoil", "words"), [
    ("gen_prototype", empty, ["model_index.json"]), ("gen_syn_image", empty, ["model_index.json"]),
    ("gen_prototype", shutil.rmtree, ["nothing"]), ("gen_syn_image", shutil.rmtree, ["nothing"]),
    *[("gen_prototype", spoil, []) for spoil in (cut("vae/diffusion_pytorch_model.safetensors"), without("vae"))],
    *[("gen_syn_image", cut(name), []) for name in ("vae/diffusion_pytorch_model.safetensors", "model_index.json",
                                                    "unet/diffusion_pytorch_model.safetensors")],
    *[("gen_syn_image", without(name), []) for name in ("unet", "scheduler", "tokenizer")]])
def test_damaged_checkpoint(request, checkpoint, tmp_path, stage, spoil, words):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    spoil(copy)
    assert refused(request.getfixturevalue(stage)("--diffusion_checkpoints_path", copy), copy, "Stable Diffusion", *words)


# folders of earlier stages
@pytest.mark.parametrize(("artefact", "stage", "flag", "unit"), [
    ("prototypes", "gen_syn_image", "--prototype_path", "00004_eel.safetensors"),
    ("teacher", "relabel", "--teacher", "model.safetensors"),
    ("soft_labels", "train_student", "--fkd-path", "epoch_0000.safetensors")])
def test_damaged_folder(request, copied, artefact, stage, flag, unit):
    command, copy = request.getfixturevalue(stage), copied(artefact)
    cut(unit)(copy)
    assert refused(command(flag, copy), copy / unit, "safetensors")
    good = (copy / "manifest.json").read_bytes()
    for spoil in ("text", "cut", "all"):
        (copy / "manifest.json").write_bytes(SPOILS[spoil](good))
        assert refused(command(flag, copy), copy / "manifest.json", "JSON")
    for name, words in (("manifest.json", "unfinished"), ("config.json", "without manifest.json")):
        (copy / name).unlink()
        assert refused(command(flag, copy), copy, artefact, words)


def test_checkpoint_with_weights_or_a_latent_shape_of_another(gen_syn_image, checkpoint, tmp_path):
    copy = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    wider, larger = new_checkpoint(tmp_path / "wider", text_width=32), new_checkpoint(tmp_path / "larger", levels=2)
    shutil.copy(wider / "unet" / "diffusion_pytorch_model.safetensors", copy / "unet")
    assert refused(gen_syn_image("--diffusion_checkpoints_path", copy), copy)
    assert refused(gen_syn_image("--diffusion_checkpoints_path", larger), "(4, 16, 16)", "(4, 8, 8)")
    path = tmp_path / "three.json"
    path.write_text(json.dumps({name: [[[[0.0] * 8] * 8] * 3] for name in CLASSES}))
    assert refused(gen_syn_image("--prototype_path", path), path, "(4, 8, 8)", "(3, 8, 8)")


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", '{"ant": "x"}', '{"ant": [1, 2]}', '{"ant": [[[[1]]]], "bear": [[[[1, 2]]]]}'])
def test_json_that_holds_no_prototypes(gen_syn_image, tmp_path, text):
    (tmp_path / "some.json").write_text(text)
    assert refused(gen_syn_image("--prototype_path", tmp_path / "some.json"), tmp_path / "some.json")


@pytest.mark.parametrize(("stage", "flag", "kind"), [("gen_syn_image", "--prototype_path", "prototypes"),
                                                     ("relabel", "--data", "distilled set")])
def test_folders_that_do_not_exist_or_are_empty(request, tmp_path, stage, flag, kind):
    command = request.getfixturevalue(stage)
    for name, words in (("none", (kind.split()[0], "nothing")), ("none.json", ("nothing",)), ("", (kind,))):
        assert refused(command(flag, tmp_path / name), tmp_path / name, *words)


def test_manifest_of_another_kind_or_version(gen_syn_image, relabel, prototypes, distilled, copied):
    assert refused(gen_syn_image("--prototype_path", distilled.folder), distilled.folder, "prototypes", "distilled")
    assert refused(relabel("--data", prototypes.folder), prototypes.folder, "distilled", "prototypes")
    copy = copied("prototypes")
    edit(copy, lambda manifest: manifest.update(version=99))
    assert refused(gen_syn_image("--prototype_path", copy), copy, "version 1", "found 99")


# teachers, soft labels, students
def test_teacher_of_other_classes_or_sizes(relabel, copied):
    copy = copied("teacher")
    edit(copy, lambda manifest: manifest["classes"].reverse())
    assert refused(relabel("--teacher", copy), copy, "12 classes", "ant")
    assert refused(relabel("--input-size", 64), "--input-size", 32, 64)


def test_soft_labels_of_another_distilled_set_or_of_the_original(train_student, gen_syn_image, image_data, tmp_path):
    assert gen_syn_image("--method", "random", "--data_dir", image_data, "--ipc", 6, "--image_size", SIZE).code == 0
    answer = train_student("--train-dir", tmp_path / "out" / "folder_random_ipc6", "--output-dir", tmp_path / "student")
    assert refused(answer, "folder_random_ipc6", "folder_ipc3_6")
    (tmp_path / "FKD" / "epoch_0").mkdir(parents=True)
    (tmp_path / "FKD" / "epoch_0" / "batch_0.tar").write_bytes(b"anything")
    assert refused(train_student("--fkd-path", tmp_path / "FKD"), tmp_path / "FKD", "pickled", "generate_soft_label")


def test_test_images_that_do_not_exist_or_have_other_classes(here, train_student, image_data, own_image_data, tmp_path):
    assert refused(train_student("--val-dir", tmp_path / "none"), "--val-dir", tmp_path / "none")
    shutil.rmtree(own_image_data / "test" / "gnu")
    assert refused(train_student("--val-dir", own_image_data / "test"), "12 classes", "found 11 classes, 1 missing: ")
    shutil.rmtree(own_image_data / "test")
    assert refused(here("matching.train_teacher", "--dataset", "folder", "--data_dir", own_image_data, "--output-dir",
                        tmp_path / "teacher"), own_image_data, "val or test")


# folders begun before
@pytest.mark.parametrize(("stage", "flag", "had", "wanted"), [
    ("prototypes", "--seed", 0, 7), ("distilled", "--num_inference_steps", 4, 3), ("teacher", "--epochs", 3, 4),
    ("soft_labels", "--fkd-seed", 42, 7), ("student", "--adamw-lr", 0.001, 0.5)])
def test_a_changed_configuration_or_kind_is_refused_with_both_values(request, here, train_student, stage, flag, had, wanted):
    done = request.getfixturevalue(stage)
    before = contents(done.folder)
    root = done.folder if done.folder.name == "whole" else done.folder.parent
    answer = here(done.module, *done.flags, done.output_flag, root, flag, wanted)
    assert refused(answer, done.folder, had, wanted, flag.strip("-").replace("-", "_"))
    assert stage == "student" or refused(train_student("--output-dir", done.folder), done.folder, "student", stage)
    assert contents(done.folder) == before


@pytest.mark.parametrize("stage", ["gen_prototype", "gen_syn_image"])
def test_other_prompts_in_the_same_folder_are_refused(here, prototypes, checkpoint, image_data, tmp_path, stage):
    """Prompts decide the images: a finished folder with other prompts is not "complete"."""
    (tmp_path / "prompts.txt").write_text("".join(f"a photo of {name}\n" for name in CLASSES))
    if stage == "gen_prototype":
        flags = [*prototypes.flags, prototypes.output_flag, prototypes.folder.parent]
    else:
        flags = ["--dataset", "folder", "--data_dir", image_data, "--method", "noise", "--ipc", 1, "--num_inference_steps", 2,
                 "--diffusion_checkpoints_path", checkpoint, "--save_init_image_path", tmp_path]
        assert here(f"distillation.{stage}", *flags).code == 0
    assert refused(here(f"distillation.{stage}", *flags, "--label_file_path", tmp_path / "prompts.txt"))


@pytest.mark.parametrize("stage", ["prototypes", "teacher"])
def test_other_images_in_the_same_folder_are_refused(request, here, own_image_data, stage):
    """Another data folder decides other results: a folder finished with the first is not "complete".

    The teacher reads every image before it answers; the prototypes, which may be of a million, know files by their names.
    """
    done = request.getfixturevalue(stage)
    for path in sorted((own_image_data / "train").rglob("*.png"))[::2]:
        Image.new("RGB", (SIZE, SIZE), (1, 2, 3)).save(path.with_stem(path.stem + "-other"))
        path.unlink()
    flags = [own_image_data if before == "--data_dir" else flag
             for before, flag in zip(["", *done.flags], done.flags, strict=False)]
    root = done.folder if done.folder.name == "whole" else done.folder.parent
    assert refused(here(done.module, *flags, done.output_flag, root))


def test_another_checkpoint_of_the_same_name_is_refused(here, prototypes, checkpoint, tmp_path):
    other = new_checkpoint(tmp_path / checkpoint.name)
    vae = other / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(vae.read_bytes())
    content[-2000:] = bytes(2000)
    vae.write_bytes(content)
    assert refused(here(prototypes.module, *prototypes.flags, "--diffusion_checkpoints_path", other, prototypes.output_flag,
                        prototypes.folder.parent))


# NaN and infinity

TENSORS = {"encoder": "vae/diffusion_pytorch_model encoder.conv_out.bias", "UNet": "unet/diffusion_pytorch_model conv_out.bias",
           "decoder": "vae/diffusion_pytorch_model decoder.conv_out.bias",
           "text encoder": "text_encoder/model final_layer_norm.bias"}
IMAGE, REAL, NAN = "00000_ant/00000-p000-r00.png", "class ant, image 0", "expected finite values, found nan"


def damage(path: Path, ending: str, value=torch.nan) -> Path:
    """Write `value` into all of a tensor of a file."""
    tensors = load_file(path)
    tensors[next(name for name in tensors if name.endswith(ending))].fill_(value)
    save_file(tensors, path, {"format": "pt"})
    return path


@pytest.fixture
def broken(checkpoint, tmp_path):
    """A copy of the checkpoint with NaN in one of its networks."""
    def call(part: str) -> Path:
        copy, (name, tensor) = Path(shutil.copytree(checkpoint, tmp_path / "broken")), TENSORS[part].split()
        damage(copy / f"{name}.safetensors", tensor)
        return copy
    return call


def stored(folder: Path) -> list[str]:
    """The files of a refused command, beside its configuration."""
    return [path.name for path in folder.rglob("*") if path.is_file() and path.name != "config.json"]


def test_an_encoder_of_nan(gen_prototype, broken, tmp_path):
    answer = gen_prototype("--diffusion_checkpoints_path", broken("encoder"))
    assert refused(answer, f"error: encoder: {REAL}: {NAN}; the weights are damaged") and stored(tmp_path / "out") == []


@pytest.mark.parametrize(("part", "name", "flags"), [
    ("UNet", IMAGE, []), ("UNet", IMAGE, ["--guidance", "mode"]), ("decoder", IMAGE, []),
    ("decoder", IMAGE, ["-s", 0, "--ipc", IPC]), ("text encoder", "ant", []),
    ("encoder", REAL, ["--method", "herding", "--ipc", 1])])
def test_a_checkpoint_of_nan_makes_no_images(gen_syn_image, copied, broken, image_data, tmp_path, part, name, flags):
    prototypes = copied("prototypes")
    edit(prototypes, lambda manifest: manifest.pop("autoencoder"))  # which refuses another decoder, NaN or not
    answer = gen_syn_image("--diffusion_checkpoints_path", broken(part), "--num_inference_steps", 2, "--data_dir", image_data,
                           "--prototype_path", prototypes, *flags)
    assert refused(answer, f"error: {part}: {name}: {NAN}") and stored(tmp_path / "out") == []


@pytest.mark.parametrize(("part", "name"), [("encoder", REAL), ("UNet", IMAGE), ("decoder", IMAGE), ("text encoder", "ant")])
def test_nor_by_both_stages_in_one(here, broken, image_data, tmp_path, part, name):
    answer = here("distillation.distill", "--dataset", "folder", "--data_dir", image_data, "--ipc", 1, "--num_inference_steps",
                  2, "--diffusion_checkpoints_path", broken(part), "--save_init_image_path", tmp_path / "out")
    assert refused(answer, f"error: {part}: {name}: {NAN}") and stored(tmp_path / "out") == []


@pytest.mark.parametrize(("part", "words"), [
    ("encoder", f"{REAL}.0: {NAN}"), ("UNet", "unet: expected a finite loss, found nan at step 0; the weights it began with"),
    ("decoder", f"vae.decoder.conv_out.bias: {NAN}"), ("text encoder", f"ant: {NAN}")])
def test_a_checkpoint_of_nan_is_not_fine_tuned(here, broken, image_data, tmp_path, part, words):
    answer = here("distillation.train_ldm", "--init", broken(part), "--dataset", "folder", "--data_dir", image_data,
                  "--unet_steps", 1, "--batch_size", 2, "--output_dir", tmp_path / "out")
    assert refused(answer, words) and stored(tmp_path / "out") == []


@pytest.mark.parametrize(("module", "part"), [("misc.judge", "UNet"), ("misc.judge", "decoder"), ("misc.judge", "text encoder"),
                                              ("misc.show_distilled", "encoder")])
def test_a_checkpoint_of_nan_is_not_judged_nor_shown(here, broken, distilled, image_data, tmp_path, module, part):
    answer = here(module, "--dataset", "folder", "--data_dir", image_data, "--diffusion_checkpoints_path", broken(part), *(
        ["--images", 12, "--num_inference_steps", 2, "--output", tmp_path / "out" / "judge.json"] if module == "misc.judge"
        else [distilled.folder, "--output_dir", tmp_path / "out"]))
    assert refused(answer, f"error: {part}: ", NAN) and not (tmp_path / "out" / "judge.json").exists()


def test_images_before_an_overflow_stay(gen_syn_image, prototypes, tmp_path):
    copy = Path(shutil.copytree(prototypes.folder, tmp_path / "copy"))
    rewrite(copy, "00011_sea_lion.safetensors", lambda tensors: tensors["centroids"].fill_(3e38))
    answer = gen_syn_image("--prototype_path", copy, "-s", 0, "--ipc", IPC, "--batch_size", IPC)
    assert refused(answer, f"error: decoder: 00011_sea_lion/00011-p000-r00.png: {NAN}")
    assert sorted({name[:5] for name in stored(tmp_path / "out")}) == [f"{label:05d}" for label in range(11)]
    assert len(stored(tmp_path / "out")) == 11 * IPC


def test_infinity_is_no_white_image_and_float16_is_the_likely_cause():
    vae = new_vae(SIZE, [8])
    torch.nn.init.constant_(vae.decoder.conv_out.bias, torch.inf)
    with pytest.raises(InputError, match="^decoder: cat: expected finite values, found inf; the weights are damaged"):
        decode_latents(vae, torch.zeros(1, 4, 4, 4), ["cat"])
    torch.nn.init.constant_(vae.decoder.conv_out.bias, 65504)
    torch.nn.init.constant_(vae.decoder.conv_out.weight, 60000)
    with pytest.raises(InputError, match="decoder: 0: .*; float16 overflows above 65504, use --dtype bfloat16 or float32$"):
        decode_latents(vae.half(), torch.ones(1, 4, 4, 4))


@pytest.fixture
def teacher_file(tmp_path):
    """An untrained classifier of the 12 classes, with `value` in its last bias."""
    def call(value) -> Path:
        write_tensors(tmp_path / "net.safetensors", seeded(FAST, len(CLASSES), "imagenet", 0, SIZE).state_dict())
        return damage(tmp_path / "net.safetensors", "9.bias", value)
    return call


@pytest.mark.parametrize(("value", "flags", "words"), [
    (torch.nan, [], "net.safetensors: 9.bias"), (1e5, ["--use-fp16"], "epoch_0000.safetensors: logits")])
def test_a_teacher_of_nan_or_beyond_float16_gives_no_labels(here, teacher_file, image_data, tmp_path, value, flags, words):
    answer = here("matching.generate_soft_label", "--dataset", "folder", "--data_dir", image_data, "--teacher",
                  teacher_file(value), "-a", FAST, "--input-size", SIZE, "--epochs", 1, "--fkd-path", tmp_path / "out", *flags)
    error = answer.err.splitlines()[-1]     # before it may stand that the file has no class list
    assert answer.code == 2 and all(word in error for word in (words, "expected finite values", *flags))
    assert stored(tmp_path / "out") == []


@pytest.mark.parametrize("stage", ["filter", "on the fly"])
def test_a_teacher_folder_of_nan(request, here, teacher, image_data, tmp_path, stage):
    copy = Path(shutil.copytree(teacher.folder, tmp_path / "teacher"))
    rewrite(copy, "model.safetensors", lambda tensors: tensors["fc.bias"].fill_(torch.nan))
    answer = request.getfixturevalue("gen_syn_image")("--filter_teacher", copy) if stage == "filter" else here(
        "validate.train_FKD", "--dataset", "folder", "--data_dir", image_data, "--mode", "on-the-fly", "--teacher", copy,
        "--input-size", SIZE, "--output-dir", tmp_path / "out")
    assert refused(answer, "model.safetensors", f"fc.bias: {NAN}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("module", "name", "flags"), [
    ("matching.train_teacher", "teacher", ["--arch", FAST, "--optimizer", "sgd", "-lr", 1000, "--weight-decay", 1000,
                                           "--epochs", 9]),
    ("validate.train_FKD", "student", ["--model", FAST, "--labels", "hard", "--input-size", SIZE, "--sgd", "-lr", 1e30,
                                       "--batch-size", 42, "--epochs", 1]),
    ("distillation.train_ldm", "autoencoder", ["--vae_channels", 8, 8, "--vae_lr", 1e30, "--vae_steps", 4, "--batch_size", 2]),
    ("distillation.train_ldm", "unet", ["--vae_channels", 8, 8, "--unet_channels", 16, 16, "--unet_lr", 1e30, "--unet_steps", 4,
                                        "--vae_steps", 1, "--batch_size", 2])])
def test_training_that_diverges(here, image_data, tmp_path, module, name, flags):
    """The last resume point was sound, and stays."""
    output = "--output_dir" if name in ("autoencoder", "unet") else "--output-dir"
    answer = here(module, "--dataset", "folder", "--data_dir", image_data, *flags, "--save_seconds", 0, output,
                  tmp_path / "out")
    assert refused(answer, f"error: {name}: expected a finite loss, found ", "lower the learning rate")
    assert not list((tmp_path / "out").rglob("*.safetensors")) and not (tmp_path / "out" / "manifest.json").exists()
    for path in (tmp_path / "out").rglob("*.pt"):
        assert all(value.isfinite().all() for value in torch.load(path, weights_only=True)["module"].values())


@pytest.mark.parametrize("method", ["finetune", "er", "derpp", "agem", "task_arithmetic"])
def test_a_stream_that_diverges(here, tmp_path, method):
    data = write_data(tmp_path / "data")
    answer = here("continual.train_continual", *tiny(data, tmp_path / "out", "--method", method, "--arch", FAST, "--tasks", 2,
                                                     "--optimizer", "sgd", "--lr", 1e30, "--start", "random"))
    assert refused(answer, f"error: {method}-real-seed0: loss at step 2: expected finite values")
    assert stored(tmp_path / "out") == []


def test_images_that_do_not_fit_into_memory(here, tmp_path):
    data = write_data(tmp_path / "data")
    answer = here("continual.train_continual", *tiny(data, tmp_path / "out", "--arch", FAST, "--size", 300_000))
    assert refused(answer, "expected images that fit into the free memory, found ", " of 300000 pixels)")


@pytest.mark.parametrize(("flag", "flags"), [("--teacher", ["--labels", "soft"]), ("--start", ["--method", "task_arithmetic"])])
def test_a_stream_with_a_teacher_or_start_of_nan(here, tmp_path, flag, flags):
    data, folder = write_data(tmp_path / "data"), write_teacher(tmp_path / "teacher")
    rewrite(folder, "model.safetensors", lambda tensors: tensors["9.bias"].fill_(torch.nan))
    answer = here("continual.train_continual", *tiny(data, tmp_path / "out", "--arch", FAST, "--tasks", 2, *flags, flag,
                                                     folder))
    assert refused(answer, f"model.safetensors: 9.bias: {NAN}") and stored(tmp_path / "out") == []


def test_logits_of_nan_are_no_accuracy():
    network = seeded(FAST, 2, "imagenet", 0, 8)
    torch.nn.init.constant_(network[-1].bias, torch.nan)
    with pytest.raises(InputError, match=f"Sequential: logits: {NAN}"):
        predict(network, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
