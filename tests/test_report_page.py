"""The page of a collected file: well formed, needing nothing but itself, its captions true, and as a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from misc.report.page import html_section
from misc.report.results import Results, Run, collect, read_collected
from misc.report.section import Section
from scripts.cli import ROOT
from tests.test_report import write_student

KEPT = ROOT / "misc" / "results"
FIGURES = {"matching_digits": ("Accuracy against label bytes",),
           "continual_digits_resnet50": ("Accuracy against training time", "As the stream goes on", "Accuracy matrices",
                                         "Scale of the merged vector", "Confusion")}
VOID = {"meta", "link", "img"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>addEventListener("load", () => { document.body.dataset.found = JSON.stringify({
  widths: [...document.images].map(image => image.naturalWidth), across: document.documentElement.scrollWidth,
  names: Math.max(...[...document.querySelectorAll("tbody th")].map(cell => cell.offsetWidth)),
  window: innerWidth, back: getComputedStyle(document.body).backgroundColor}) })</script>"""


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, tags around it), its text by tag, and whether every end has its start."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.elements, self.texts, self.wrong = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module", params=FIGURES)
def site(request, tmp_path_factory, command):
    """The page of one of the repository's own result files."""
    folder = tmp_path_factory.mktemp("site")
    answer = command("misc.report", "run", KEPT / f"{request.param}.jsonl", "--output", folder)
    assert (answer.code, answer.err) == (0, "")
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    return folder / "report.html"


@pytest.fixture(scope="module")
def text(site):
    return site.read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_the_page_is_well_formed_and_needs_nothing_else(page, text):
    assert page.wrong == [] and page.open == []
    for _, attributes, _ in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "href", "srcset", "action") or value.startswith("data:"), value[:80]
    style = "".join(page.texts["style"])
    assert not re.search(r"url\(|@import|//", style) and page.all("script") == []
    assert "prefers-color-scheme: dark" in style and "color-scheme: light dark" in style
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert str(KEPT) not in text


def test_every_figure_decodes_and_says_what_it_is_and_what_made_it(text):
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert len(figures) == text.count("<img") >= 1
    for figure in figures:
        (image,), (_, *codes) = Page(figure).all("img"), ["", *Page(figure).all("code")]
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        decoded = Image.open(io.BytesIO(base64.b64decode(data)))
        decoded.load()
        shares = int(image["width"]) / decoded.width, int(image["height"]) / decoded.height
        assert min(decoded.size) > 100 and shares[0] == pytest.approx(shares[1], rel=0.01)
        assert len(image["alt"]) > 30 and len(codes) == 1 and "Made by" in figure
        assert "qual: " in words(figure)


def test_each_figure_wanted_is_there(site, request, text):
    for title in FIGURES[request.node.callspec.params["site"]]:
        part = text.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
        assert "<img" in part and re.search(r"<code>[^<]*\bsh [\w/]+\.sh</code>", part), title


# a browser

def look(page, folder, width: int, *flags) -> dict:
    """What a headless Chromium finds in a page at this width, and what its console says.

    The page stands in a frame, since a window has a least width that is more than a phone's.
    """
    (folder / "page.html").write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    (folder / "frame.html").write_text(
        f'<!DOCTYPE html><title>frame</title><body><iframe src="page.html" style="width:{width}px;height:900px;border:0" '
        'onload="document.body.dataset.found = this.contentDocument.body.dataset.found"></iframe></body>')
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", f"--window-size={width + 100},1000", "--virtual-time-budget=5000", *flags,
         "--dump-dom", (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'data-found="([^"]+)"', done.stdout)
    assert found, done.stderr[-2000:]
    return {**json.loads(found[1].replace("&quot;", '"')), "console": re.findall(r".*CONSOLE.*", done.stderr)}


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width, scheme, back", [(1100, 1, "rgb(255, 255, 255)"), (390, 0, "rgb(20, 24, 28)")])
def test_a_browser_shows_every_image_and_complains_of_nothing(site, text, tmp_path, width, scheme, back):
    found = look(site, tmp_path, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert found["console"] == []
    assert len(found["widths"]) == text.count("<img") and min(found["widths"]) > 0
    assert found["window"] == width and found["across"] <= width    # nothing but tables and figures scrolls sideways
    assert found["names"] < width / 2    # the column of names stays in place and must leave room for the others
    assert found["back"] == back


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
def test_the_browsers_complaints_would_be_seen(tmp_path):
    page = tmp_path / "broken.html"
    page.write_text('<!DOCTYPE html><body><img alt="" src="data:image/png;base64,AAAA"><script>nothing()</script></body>')
    found = look(page, tmp_path, 800)
    assert found["widths"] == [0] and any("nothing is not defined" in line for line in found["console"])


# what else is kept

@pytest.mark.parametrize("words, command", [((), "python -m validate.train_FKD"),
                                            (("--kind", "student", "--command", "sh my.sh <1>"), "sh my.sh &lt;1&gt;")])
def test_a_collected_file_gives_back_its_runs_and_a_page_with_their_command(tmp_path, here, words, command):
    for seed, accuracy in enumerate((0.5, 0.7, 0.6000000001)):
        write_student(tmp_path / "study", "distilled", "hard", seed, accuracy)
    kept, output = tmp_path / "kept" / "my_study.jsonl", tmp_path / "out"
    assert here("misc.report.__main__", "collect", tmp_path / "study", kept, *words).code == 0
    header, *lines = map(json.loads, kept.read_text().splitlines())
    assert len(lines) == header["runs"] == 3 and header["config"]["student"]["arch"] == "resnet18"
    assert all("config" not in line and "packages" not in line for line in lines)      # equal in all, so in the header
    runs = read_collected(kept).runs
    assert [run.metrics["test_accuracy"] for run in runs] == [0.5, 0.7, 0.6000000001]
    assert all(run.config["epochs"] == 60 and run.made["packages"] for run in runs)
    assert here("misc.report.__main__", "run", kept, "--output", output).code == 0
    page = (output / "report.html").read_text()
    assert "<h1>Report of my_study.jsonl</h1>" in page and page.count(f"<code>{command}</code>") == 1
    assert '<th scope="row" class="left">distilled-hard</th><td>60.0 ± 10.0</td>' in page
    kept.write_text(kept.read_text().rpartition('{"run"')[0])      # a line lost
    answer = here("misc.report.__main__", "run", kept, "--output", output)
    assert answer.code == 2 and "with its header and all its runs" in answer.err


def test_a_collected_file_takes_more_runs_and_the_last_of_one_name_counts(tmp_path, here):
    for study, seed, accuracy in (("first", 0, 0.5), ("first", 1, 0.6), ("second", 1, 0.7), ("second", 2, 0.8)):
        write_student(tmp_path / study, "distilled", "hard", seed, accuracy)
    kept = tmp_path / "kept.jsonl"
    assert here("misc.report.__main__", "collect", tmp_path / "first", kept, "--command", "sh my.sh").code == 0
    assert here("misc.report.__main__", "collect", tmp_path / "second", kept, kept).code == 0
    found = read_collected(kept)
    assert {run.name[-1]: run.metrics["test_accuracy"] for run in found.runs} == {"0": 0.5, "1": 0.6, "2": 0.8}
    assert found.command == "sh my.sh"
    assert here("misc.report.__main__", "collect", kept, tmp_path / "second", kept).code == 0
    assert {run.name[-1]: run.metrics["test_accuracy"] for run in read_collected(kept).runs} == {"0": 0.5, "1": 0.7, "2": 0.8}


def test_a_run_that_does_not_name_its_processor_is_not_given_that_of_another(tmp_path):
    runs = [Run(name, "student", {}, {}, {}, made) for name, made in (("a", {"hardware": "one"}), ("b", {}))]
    collect(Results(runs), tmp_path / "kept.jsonl")
    assert [run.made for run in read_collected(tmp_path / "kept.jsonl").runs] == [{"hardware": "one"}, {}]


def test_runs_that_do_not_make_rows_are_named(tmp_path, here):
    one = read_collected(KEPT / "continual_digits_resnet50.jsonl").of_kind("continual")[0]
    other = replace(one, name="other", config={**one.config, "size": 64})
    collect(Results([one, other]), tmp_path / "mixed.jsonl")
    answer = here("misc.report.__main__", "run", tmp_path / "mixed.jsonl", "--output", tmp_path / "out")
    assert answer.code == 0 and "Not compared: " in (tmp_path / "out" / "report.html").read_text()


def test_a_figure_is_not_wider_than_printed_nor_much_narrower(tmp_path):
    Image.new("RGB", (1600, 800)).save(tmp_path / "a.png", dpi=(160, 160))
    section = html_section(Section("T", "", figure=tmp_path / "a.png", alt="a", command="c"))
    assert 'width="960" height="480" style="min-width: 480px"' in section and Page(section).wrong == []
