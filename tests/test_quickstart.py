"""The README's first command in its smallest settings: every stage, by the shell scripts users run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ["prototypes", "images", "decoded", "random", "teacher", "distilled", "random-students", "real-students", "continual",
          "report"]


def quickstart(run: Path) -> subprocess.CompletedProcess:
    # the Python that runs the tests is the active one, so that set-up finds everything there
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "QUICK": "1", "RUN": str(run), "PATH": path}
    env.pop("OMP_NUM_THREADS", None)
    return subprocess.run(["sh", "scripts/quickstart.sh"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)


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
    assert again.returncode == 0 and again.stdout.count("complete, nothing to do") == 14 + 15 + 1   # with a common start
    assert {path: path.read_bytes() for path in kept} == kept
