"""A command killed half-way and given again ends in the same bytes."""

import json
import shutil

import pytest

STAGES = ["prototypes", "distilled", "teacher", "soft_labels", "student"]


def manifest_of(folder):
    """Everything but the commit, which may be made while the tests run."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("code")
    return manifest


@pytest.fixture(scope="module", params=STAGES)
def stage(request):
    return request.getfixturevalue(request.param)


def test_killed_and_continued_equals_one_go(here, stage):
    files = list(manifest_of(stage.folder)["files"])
    there = [name for name in files if (stage.killed / name).exists()]
    assert not (stage.killed / "manifest.json").exists() and len(there) < len(files)
    assert there or (stage.killed / "state.pt").exists()

    answer = here(stage.module, *stage.flags, stage.output_flag, stage.killed_root)
    assert answer.code == 0, answer.err
    assert {name: (stage.killed / name).read_bytes() == (stage.folder / name).read_bytes() for name in files} == \
        dict.fromkeys(files, True)
    assert manifest_of(stage.killed) == manifest_of(stage.folder)

    answer = here(stage.module, *stage.flags, stage.output_flag, stage.killed_root)
    assert answer.code == 0 and "complete, nothing to do" in answer.out and answer.err == ""


def test_a_finished_unit_is_not_made_again(here, prototypes, tmp_path):
    folder = tmp_path / prototypes.folder.name
    shutil.copytree(prototypes.folder, folder)
    (folder / "manifest.json").unlink()
    kept, *lost = sorted(folder.glob("*.safetensors"))
    for path in lost:
        path.unlink()
    before = kept.stat().st_mtime_ns
    answer = here(prototypes.module, *prototypes.flags, prototypes.output_flag, tmp_path)
    assert answer.code == 0 and "1 of 12 classes are there already" in answer.out
    assert kept.stat().st_mtime_ns == before
    assert manifest_of(folder) == manifest_of(prototypes.folder)
