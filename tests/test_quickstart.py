"""The README's first command in its smallest settings: every stage, by the shell scripts users run."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import shell

STAGES = ["prototypes", "images", "decoded", "random", "teacher", "distilled", "random-students", "real-students", "continual",
          "report"]


def quickstart(run: Path) -> subprocess.CompletedProcess:
    return shell("scripts/quickstart.sh", QUICK=1, RUN=run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("quickstart")
    answer = quickstart(run)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return run, answer.stdout


def test_every_stage_ran_and_the_report_has_its_files_and_complete_tables(finished):
    run, printed = finished
    assert [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()] == STAGES
    for name in ("report.html", "grid.png", "accuracy_vs_time.png"):
        assert (run / name).stat().st_size > 500 and str(run / name) in printed
    page = (run / "report.html").read_text()
    assert "not run" not in page and page.count("<img") >= 6
    for name in ("Fine-tune", "Joint", "ER", "A-GEM", "Task Arithmetic"):
        rows = re.findall(rf'<th scope="row" class="left">{name}[^<]*</th><td[^>]*>(real|random|distilled)</td>', page)
        assert {"real", "random", "distilled"} <= set(rows), name


def test_a_second_run_skips_what_is_finished_and_changes_nothing(finished):
    run, _ = finished
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.suffix in (".safetensors", ".png", ".json")
            and path.parent != run}
    again = quickstart(run)
    assert again.returncode == 0 and again.stdout.count("complete, nothing to do") == 14 + 15 + 2   # a common start, the report
    assert {path: path.read_bytes() for path in kept} == kept
