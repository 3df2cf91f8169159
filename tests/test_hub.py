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
from conftest import IPC, manifest_in

from scripts.cli import ROOT

COMMIT = "0" * 40


class Hub(http.server.SimpleHTTPRequestHandler):
    """Speaks of the repository owner/there, the files of `directory`, as huggingface.co does; notes questions in `asked`."""

    asked: list[str] = []

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
        for name, value in (("X-Repo-Commit", COMMIT), ("ETag", '"' + self.path.replace("/", "-") + '"'),
                            ("X-HF-Warning", "accounts; have one")):
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture
def environment(checkpoint, tmp_path):
    """The environment that names a hub with the checkpoint `owner/there`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=checkpoint))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_ETAG_TIMEOUT": "4",
           "HF_HOME": str(tmp_path / "home")}
    server.shutdown()
    server.server_close()


ONE_AFTER_ANOTHER = """
import sys
from distillation import gen_prototype
from scripts.cli import run
command, names = sys.argv[:-5], sys.argv[-5:]
for name in names:
    sys.argv = [*command, "--diffusion_checkpoints_path", name]
    try:
        run(gen_prototype.parse_args, gen_prototype.main)
    except SystemExit as stop:
        print(stop.code)
"""


def test_a_hub_name_is_loaded_or_refused_in_one_line_after_one_question(environment, image_data, tmp_path):
    """One Python runs five commands in turn, since most of a command's seconds are imports."""
    flags = map(str, ["--dataset", "folder", "--data_dir", image_data, "--ipc", IPC, "--save_prototype_path", tmp_path,
                      "--revision", "v1"])
    names = ["owner/404", "owner/500", "owner/hangs-up", "owner/hangs", "owner/there"]
    answer = subprocess.run([sys.executable, "-c", ONE_AFTER_ANOTHER, *flags, *names], cwd=ROOT, text=True,
                            capture_output=True, env={**os.environ, **environment})
    for name, line in zip(names[:4], answer.stderr.splitlines(), strict=False):
        assert line.startswith(f"error: {name}: expected a Stable Diffusion checkpoint"), answer.stderr
    assert [Hub.asked.count(name) for name in ("404", "500", "hangs-up", "hangs")] == [1] * 4
    assert answer.stdout.split()[:4] == ["2"] * 4 and "36 prototypes of 168 images" in answer.stdout, answer.stderr
    manifest = manifest_in(next(tmp_path.glob("folder-*")))
    assert manifest["config"]["checkpoint"] == f"owner/there@{COMMIT}"
    assert (tmp_path / "home" / "hub" / "models--owner--there" / "refs" / "v1").read_text() == COMMIT
