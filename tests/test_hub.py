"""Checkpoints by hub name: a hub on this machine has one, and otherwise says 404 or 500, hangs up, or never answers."""

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import IPC, start

from scripts.cli import ROOT

COMMIT = "0" * 40


class Hub(http.server.SimpleHTTPRequestHandler):
    """Speaks of the repository owner/there, the files of `directory`, as huggingface.co does; notes questions in `asked`."""

    def __init__(self, *request, asked, **settings):
        self.asked = asked
        super().__init__(*request, **settings)

    def do_GET(self):
        if "/resolve/" in self.path:
            return super().do_GET()
        name = self.path.split("/")[4]
        self.asked.append(name)
        self.close_connection = True
        if name in ("404", "500"):
            return self.send_error(int(name))
        if name != "there":
            return time.sleep(6 if name == "hangs" else 0)
        root = Path(self.directory)
        files = [{"type": "file", "path": path.relative_to(root).as_posix(), "size": path.stat().st_size, "oid": "1"}
                 for path in root.rglob("*") if path.is_file()]
        listed = [{"rfilename": file["path"]} for file in files]
        answer = json.dumps(files if "/tree/" in self.path else {"id": "owner/there", "sha": COMMIT, "siblings": listed})
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    def translate_path(self, path):
        """/owner/there/resolve/<revision>/<file> -> the file."""
        return str(Path(self.directory, *path.split("/")[5:]))

    def end_headers(self):
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"' + self.path.replace("/", "-") + '"')
        self.send_header("X-HF-Warning", "accounts; have one")
        super().end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def hub(checkpoint, tmp_path):
    """The environment that names a hub with the checkpoint `owner/there`, and the list of repositories it was asked for."""
    asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=checkpoint, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "4",
           "HF_HOME": str(tmp_path / "home")}, asked
    server.shutdown()
    server.server_close()


def says_one_line(err: str, name: str) -> bool:
    return err.startswith(f"error: {name}: expected a Stable Diffusion checkpoint") and err.count("\n") == 1


ONE_AFTER_ANOTHER = """
import sys
from distillation import gen_prototype
from scripts.cli import run
command, names = sys.argv[:-4], sys.argv[-4:]
for name in names:
    sys.argv = [*command, "--diffusion_checkpoints_path", name]
    try:
        run(gen_prototype.parse_args, gen_prototype.main)
    except SystemExit as stop:
        print(stop.code)
"""


def test_a_hub_name_is_loaded_or_refused_in_one_line_after_one_question(hub, image_data, tmp_path):
    """A command, and beside it one Python that runs four in turn, since most of a command's seconds are imports."""
    environment, asked = hub
    flags = list(map(str, ["--dataset", "folder", "--data_dir", image_data, "--ipc", IPC, "--save_prototype_path", tmp_path,
                           "--revision", "v1"]))
    missing = start("distillation.gen_prototype", *flags, "--diffusion_checkpoints_path", "owner/404", **environment)
    names = ["owner/500", "owner/hangs-up", "owner/hangs", "owner/there"]
    others = subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER, *flags, *names], cwd=ROOT, text=True,
                            capture_output=True, env={**os.environ, **environment})
    out, err = missing.communicate()
    assert (missing.returncode, out) == (2, "") and says_one_line(err, "owner/404")
    lines = others.stderr.splitlines(keepends=True)
    assert all(map(says_one_line, lines, names[:3])), others.stderr
    assert [asked.count(name) for name in ("404", "500", "hangs-up", "hangs")] == [1] * 4
    assert others.stdout.split()[:3] == ["2"] * 3 and "36 prototypes of 168 images" in others.stdout, others.stderr
    manifest = json.loads(next(tmp_path.glob("*/manifest.json")).read_text())
    assert manifest["config"]["checkpoint"] == f"owner/there@{COMMIT}"
    assert (tmp_path / "home" / "hub" / "models--owner--there" / "refs" / "v1").read_text() == COMMIT


def test_a_revision_is_of_a_hub(here, image_data, checkpoint, tmp_path):
    answer = here("distillation.gen_prototype", "--dataset", "folder", "--data_dir", image_data, "--ipc", IPC,
                  "--diffusion_checkpoints_path", checkpoint, "--revision", "v1", "--save_prototype_path", tmp_path)
    assert answer.code == 2 and "--revision: expected with the name of a hub checkpoint" in answer.err
