"""The report: numbers against hand-computed ones, gaps said aloud, and a page that needs nothing but itself."""

import base64
import html
import io
import json
import re
import statistics

import pytest
from PIL import Image
from test_bad_input import refused

from distillation.distilled_set import finish_distilled, row, write_image
from misc.report.continual import distilling
from misc.report.page import html_section
from misc.report.results import Results, Run
from misc.report.section import Section, cell, left_columns, markdown, plain_table
from misc.report.statistics import kept, mean_std, saved
from misc.report.tables import run_students, students_by_name
from scripts.artefact import begin, write_result
from scripts.files import write_json

CLASSES = [{"name": "cat & dog", "prompt": "a cat"}, {"name": "<eel>", "prompt": "an eel"}]
SHADES = {"d4m": 40, "prototype": 120, "random": 200}
STUDENTS = {("distilled", "hard"): [0.9, 0.94, 0.95], ("random", "hard"): [0.8, 0.81, 0.83], ("real", "hard"): [0.97],
            ("distilled", "soft"): [0.91]}
STEPS = {"real": 105, "random": 120, "distilled": 120}
ER = {"real": ([0.8, 0.9], [30.0, 32.0]), "distilled": ([0.8, 0.82], [10.0, 12.0])}


def write_images(run, method: str, source: str = "same") -> None:
    """Two images per class in one shade plus 10 times the prototype's number; prototype 1 has the larger cluster."""
    folder = run / "distilled" / f"digits_{method}"
    config = {"method": method, "strength": 0.7, "guidance_scale": 2, "source": {"prototypes": source}}
    begin(folder, "distilled", config)
    rows = [row(label, entry["name"], prototype, 0, 0, (0.25, 0.75)[prototype])
            for label, entry in enumerate(CLASSES) for prototype in (0, 1)]
    for this in rows:
        write_image(folder, this["file_name"], Image.new("RGB", (8, 8), (SHADES[method] + 10 * this["prototype"],) * 3))
    finish_distilled(folder, CLASSES, config, rows)
    write_result(folder, "distilled", config, {"images": 4}, {"synthesise": 30.0})


def write_student(run, arm: str, labels: str, seed: int, accuracy: float) -> None:
    write_result(run / "students" / f"{arm}-{labels}-seed{seed}", "student",
                 {"labels": labels, "arch": "resnet18", "batch_size": 50, "epochs": 5 if arm == "real" else 60},
                 {"test_accuracy": accuracy, "train_images": 1352 if arm == "real" else 20, "steps": STEPS[arm]}, {"train": 20})


def write_continual(run, method: str, stream: str, seed: int, acc: float, seconds: float) -> None:
    joint = method == "joint"
    write_json(run / "continual" / f"{method}-{stream}-seed{seed}" / "result.json", {
        "kind": "continual", "method": method, "stream": stream, "buffer_source": stream, "seed": seed,
        "config": {"arch": "resnet18", "tasks": 5, "recipe": {"batch_size": 32}, "buffer_size": 200, "steps": 7},
        "class_il": {"acc": acc, "forgetting": None if joint else 0.125}, "task_il": {"acc": 0.99},
        "seconds": {"train": seconds}, "steps": 70 if stream == "real" else 35, "stream_images": 100, "code": "abc",
        "hardware": "Some processor, 2 threads"})


def write_run(run):
    """Everything but the decoded prototypes' student, A-GEM, fine-tune, Task Arithmetic and most of joint training."""
    for method in SHADES:
        write_images(run, method)
    write_result(run / "prototypes" / "digits-ipc2", "prototypes", {}, {"images": 9}, {"encode": 9, "cluster": 1})
    write_result(run / "teacher", "teacher", {}, {"test_accuracy": 0.9775}, {"train": 1})
    write_result(run / "soft-labels" / "distilled", "soft_labels", {}, {"bytes": 1_234_567}, {"relabel": 1})
    for (arm, labels), accuracies in STUDENTS.items():
        for seed, accuracy in enumerate(accuracies):
            write_student(run, arm, labels, seed, accuracy)
    for stream, runs in ER.items():
        for seed, (acc, seconds) in enumerate(zip(*runs, strict=True)):
            write_continual(run, "er", stream, seed, acc, seconds)
    write_continual(run, "joint", "real", 0, 0.95, 40.0)
    (run / "stages.jsonl").write_text("".join(json.dumps({"stage": stage, "seconds": seconds}) + "\n" for stage, seconds in (
        ("images", 12), ("teacher", 40), ("images", 3), ("teacher", 41))))
    return run


@pytest.fixture
def a_run(tmp_path):
    return write_run(tmp_path / "trial")


@pytest.fixture(scope="module")
def reported(tmp_path_factory, command):
    """The same with its report."""
    run = write_run(tmp_path_factory.mktemp("report") / "trial")
    answer = command("misc.report", "run", run, "--command", "sh my.sh")
    assert (answer.code, answer.err) == (0, "")
    return run


def table(page: str, title: str) -> list[list[str]]:
    """The rows of the table under a heading of the page, read back."""
    part = page.split(f">{title}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part.split("<tbody>")[1], re.DOTALL)
    return [[html.unescape(text) for text in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)] for line in rows]


def spread(values: list[float]) -> str:
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def test_tables_hold_the_numbers_of_the_result_files(reported):
    page = (reported / "report.html").read_text()
    real, random, distilled = table(page, "Students")     # decoded prototypes are an extra: no row unless they were run
    assert distilled == ["D4M images", "20", spread(STUDENTS["distilled", "hard"]), "91.0", "20.0 ± 0.0", "20.0", "1.23",
                         "3 / 1"]
    assert random[2:4] == [spread(STUDENTS["random", "hard"]), "not run"]
    assert real[:3] == ["real, whole training split", "1352", "97.0"] and real[-1] == "1"
    assert table(page, "Stages") == [["images", "12"], ["teacher", "41"], ["total", "53"]]
    rows = {(method, source): rest for method, source, *rest in table(page, "Runs")}
    assert len(rows) == 15
    assert rows["ER", "real"] == [spread([0.8, 0.9]), "99.0 ± 0.0", "12.5 ± 0.0", "70", "31.0", "–", "–", "2"]
    assert rows["ER", "distilled"] == [spread([0.8, 0.82]), "99.0 ± 0.0", "12.5 ± 0.0", "35", "11.0", "64.6", "0.955",
                                       "2"]
    assert rows["Joint (upper bound)", "real"][:3] == ["95.0", "99.0", "–"]
    assert rows["ER", "random"] == rows["A-GEM", "real"] == ["not run"] * 8
    ((method, source, time, *_, n, verdict),) = table(page, "The claim")
    assert (method, source, time, verdict) == ("ER", "distilled", "64.6 (25.3 to 83.3)", "not shown")
    assert table(page, "Cost of distillation")[0][3:] == ["40.0", "+20.0 (20.0 to 20.0)", "2.0"]     # 40 s / (31 s - 11 s)


def test_captions_name_what_is_equal(reported):
    text = " ".join(re.sub(r"<[^>]+>", " ", (reported / "report.html").read_text()).split())
    assert "teacher: 97.8 %. Equal: network resnet18, batch size 50." in text
    assert "steps (120 for distilled, random; 105 for real)" in text
    assert "Equal: network resnet18, tasks 5, batch size 32, buffer images 200, hardware Some processor, 2 threads, " in text
    assert "Not equal: steps (70 for real; 35 for distilled)" in text
    assert "n = 1 or 2, bars of one standard deviation" in text
    assert "abc" in text and "torch " in text


def test_the_page_holds_its_figures(reported):
    page = (reported / "report.html").read_text()
    images = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)" ', page)
    assert len(images) == 3 == page.count("<img")
    for (_, data), name in zip(images, ("grid.png", "beside.png", "accuracy_vs_time.png"), strict=True):
        assert base64.b64decode(data) == (reported / name).read_bytes()
        assert Image.open(io.BytesIO(base64.b64decode(data))).width > 600
    assert "cat &amp; dog" in page and "&lt;eel&gt;" in page and "<eel>" not in page and '<html lang="en">' in page


def test_the_page_escapes_every_text(tmp_path):
    section = html_section(Section("<i>", "<i>", ("<i>", "<i>"), (("<i>", "<i>"),)))
    assert "<i>" not in section and section.count("&lt;i&gt;") == 7     # title, its region's label, words, four cells


def shades(path) -> set[int]:
    """The greys that fill a large part of a picture."""
    image = Image.open(path).convert("RGB")
    return {colour[0] for count, colour in image.getcolors(1 << 20) if count > image.width * image.height / 100}


def test_the_grid_shows_the_largest_cluster_and_what_was_made_from_it(reported):
    assert shades(reported / "grid.png") - {0, 255} == {SHADES["d4m"] + 10, SHADES["prototype"] + 10, SHADES["random"]}


def test_the_grid_pairs_no_images_of_other_prototypes(a_run, here):
    for path in (a_run / "distilled" / "digits_prototype").iterdir():
        if path.is_file():
            path.unlink()
    write_images(a_run, "prototype", source="others")
    assert "Row prototype: not run." in " ".join(here("misc.report.__main__", "run", a_run).out.split())
    assert SHADES["prototype"] + 10 not in shades(a_run / "grid.png")


def test_the_same_files_give_the_same_report(a_run, here):
    names = ("report.html", "grid.png", "beside.png", "accuracy_vs_time.png")
    here("misc.report.__main__", "run", a_run)
    before = [(a_run / name).read_bytes() for name in names]
    answer = here("misc.report.__main__", "run", a_run)
    assert before == [(a_run / name).read_bytes() for name in names]
    assert answer.out.rstrip().endswith("\n".join(["Written:", *(f"  {a_run / name}" for name in (
        "report.html", "grid.png", "beside.png", "accuracy_vs_time.png"))]))


def test_the_folder_of_one_stage_makes_a_report(a_run, here, tmp_path):
    answer = here("misc.report.__main__", "run", a_run / "students" / "real-hard-seed0", "--output", tmp_path / "out")
    assert answer.code == 0 and "1352" in answer.out and "97.0" in answer.out


def test_stages_alone_make_a_report(tmp_path, here):
    (tmp_path / "stages.jsonl").write_text('{"stage": "prototypes", "seconds": 12}\n')
    answer = here("misc.report.__main__", "run", tmp_path)
    assert answer.code == 0 and "The 59 % claim is not run" in answer.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "stages.jsonl"]
    assert "<img" not in (tmp_path / "report.html").read_text()


NO_RUN = "expected the folder of a run (with stages.jsonl, students/*/result.json, ...) or a .jsonl file of `python -m " \
         "misc.report collect`, found neither"


@pytest.mark.parametrize("spoil, expected", [
    (lambda run: None, NO_RUN),
    (lambda run: run.rmdir(), "expected a folder or file, found none"),
    (lambda run: write_json(run / "settings.json", {"a": 1}), NO_RUN),
    (lambda run: (run / "stages.jsonl").write_text('{"stage": "a", "seconds": 1}\n{"stage"\n'),
     "stages.jsonl, line 2: expected JSON"),
    (lambda run: (run / "stages.jsonl").write_text('{"stage": "a"}\n'),
     "line 1: expected a JSON object with stage, seconds, found"),
    (lambda run: write_json(run / "students" / "real-hard" / "result.json", {"kind": "student", "config": {"labels": "hard"}}),
     "students/real-hard/result.json: expected the field metrics.test_accuracy, found none"),
    (lambda run: write_json(run / "teacher" / "result.json", []), "teacher/result.json: expected the field kind, found none"),
])
def test_what_does_not_fit_is_answered_with_one_line(tmp_path, here, spoil, expected):
    run = tmp_path / "run"
    run.mkdir()
    spoil(run)
    assert refused(here("misc.report.__main__", "run", run), expected) and not (run / "report.html").exists()


@pytest.mark.parametrize("change, expected", [
    ({"stream": "foreign"}, "expected a stream of real, random, distilled, found foreign"),
    ({"seed": [1]}, "as config.seed, found [1]"), ({"seconds": {"train": "long"}}, "as seconds.train, found 'long'"),
    ({"class_il": {"acc": "high"}}, "as metrics.acc, found 'high'"), ({"kind": ["continual"]}, "as kind, found ['continual']"),
    ({"class_il": {"acc": 0.5, "matrix": 5}}, "as metrics.matrix, found 5"),
    ({"confusion": [1, 2]}, "as metrics.confusion, row 0, found 1")])
def test_a_field_of_another_type_is_answered_with_one_line(tmp_path, here, change, expected):
    write_continual(tmp_path, "er", "real", 0, 0.5, 1.0)
    path = tmp_path / "continual/er-real-seed0/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert refused(here("misc.report.__main__", "compare", tmp_path, "--output", tmp_path / "out"), "er-real-seed0", expected)


def test_the_names_of_files_and_folders_are_checked(tmp_path, here):
    (tmp_path / "run").mkdir()
    assert refused(here("misc.report.__main__", "collect", tmp_path / "run", tmp_path / "README.md"), "expected the name of")
    assert refused(here("misc.report.__main__", "tables", "--root", tmp_path / "none"), "expected a folder or file, found none")


@pytest.mark.parametrize("name, text, expected", [
    ("a.jsonl", "{}\n", "a.jsonl: expected a file of `python -m misc.report collect`"),
    ("a.jsonl", "[]\n", "a.jsonl, line 1: expected a JSON object, found []"),
    ("a.jsonl", '{"runs": 1}\n{"run": "a", "kind": "student", "metrics": {"acc": NaN}}\n',
     "a.jsonl, line 2: expected JSON, found the number NaN"),
    ("a.jsonl", '{"runs": 1, "config": {"student": 3}}\n{"run": "a", "kind": "student"}\n', "expected an object as config"),
    ("plan_imagenet.json", "{}", NO_RUN), ("plan_imagenet.json", "[]", NO_RUN)])
def test_a_file_that_was_not_collected_is_answered_with_one_line(tmp_path, here, name, text, expected):
    (tmp_path / name).write_text(text)
    answer = here("misc.report.__main__", "run", tmp_path / name, "--output", tmp_path / "out")
    assert refused(answer, name, expected) and not (tmp_path / "out").exists()


def test_mean_and_spread_are_those_of_a_sample():
    assert mean_std([1.0, 2.0, 6.0]) == {"mean": pytest.approx(3), "std": pytest.approx(7 ** 0.5)}
    assert mean_std([0.5]) == {"mean": 0.5, "std": None}
    assert mean_std([None, 1.0]) == {"mean": None, "std": None}
    assert cell({"a": mean_std([0.1, 0.3])}, "a", 100) == "20.0 ± 14.1"
    assert cell(None, "a") == "not run" and cell({"a": None}, "a") == "–"


def test_a_zero_on_real_images_is_not_divided_by():
    real, own = ({0: Run("a", "continual", {"tasks": 50}, {"acc": acc}, {"train": seconds})} for acc, seconds in
                 ((0.0, 2.0), (0.1, 3.0)))
    assert kept(own, real)["mean"] is None and saved(own, real)["mean"] == pytest.approx(-0.5)
    real = {0: Run("a", "continual", {"tasks": 1}, {"acc": 0.0}, {"train": 0.0})}
    assert saved(own, real)["mean"] is None


def test_students_of_a_run_are_not_averaged_over_images_per_class_and_networks():
    metrics = {"train_images": 10, "steps": 5}
    runs = [Run(f"students/{name}-{labels}-seed{seed}", "student", {"labels": labels, "arch": "a"},
                metrics | {"test_accuracy": accuracy}, {"train": 1.0})
            for name, labels, seed, accuracy in (
                ("distilled-ipc1-resnet18-d4m", "soft", 0, 0.4), ("distilled-ipc1-resnet18-d4m", "soft", 1, 0.4),
                ("distilled-ipc50-resnet18-d4m", "soft", 0, 0.8), ("distilled-ipc50-convnet-d4m", "hard", 0, 0.6),
                ("herding-ipc1-resnet18-d4m", "soft", 0, 0.3))]
    runs.append(Run("soft-labels/distilled-ipc50", "soft_labels", {}, {"bytes": 2e6}, {}))
    (section,) = run_students(Results(runs))
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["D4M images (distilled-ipc1-resnet18-d4m)"][1:3] == ("not run", "40.0 ± 0.0")
    assert rows["D4M images (distilled-ipc50-resnet18-d4m)"][2] == "80.0"
    assert rows["D4M images (distilled-ipc50-resnet18-d4m)"][5:] == ("2.00", "1")
    assert rows["D4M images (distilled-ipc50-convnet-d4m)"][1] == "60.0"
    assert rows["real images by herding (herding-ipc1-resnet18-d4m)"][2] == "30.0" and "D4M images" not in rows


def test_students_that_were_tested_on_held_out_images_say_so():
    runs = [Run(f"students/{name}-hard", "student", {"labels": "hard", "arch": "a", **more},
                {"train_images": 10, "steps": 5, "test_accuracy": 0.5}, {"train": 1.0})
            for name, more in (("real", {"validation": 5000}), ("random", {}))]
    held_out = "Accuracy on 5,000 training images that were held out"
    assert run_students(Results(runs[:1]))[0].says.startswith(held_out)
    assert run_students(Results(runs[1:]))[0].says.startswith("Accuracy on the real test images;")
    assert f"the real test images or {held_out.partition('on ')[2]}" in students_by_name(Results(runs))[0].says


def test_what_a_set_costs_by_hand():
    runs = [Run(name, kind, {}, {}, seconds) for seed, encode in ((0, 150), (1, 170)) for name, kind, seconds in (
        (f"seed{seed}/prototypes/fashion_mnist-ipc10-kmexpand1", "prototypes", {"wait": 10, "encode": encode, "cluster": 10}),
        (f"seed{seed}/prototypes/fashion_mnist-ipc10-kmexpand1-random", "prototypes", {"wait": 1, "encode": 1, "cluster": 1}),
        (f"seed{seed}/distilled/fashion_mnist_ipc10_10_s0.7_g2.0_kmexpand1", "distilled", {"synthesise": 20}),
        (f"seed{seed}/distilled/fashion_mnist_random_ipc10", "distilled", {"synthesise": 1}))]
    unfinished = Run("seed0/prototypes/fashion_mnist-ipc50-kmexpand1", "prototypes", {}, {}, runs[0].seconds)
    resumed = [Run(f"seed{seed}/{kind}/fashion_mnist{rest}", kind, {}, {}, {}) for seed, ipc in ((2, 10), (0, 1))
               for kind, rest in (("prototypes", f"-ipc{ipc}-kmexpand1"),
                                  ("distilled", f"_ipc{ipc}_{ipc}_s0.7_g2.0_kmexpand1"))]
    section, = distilling(Results([*runs, unfinished, *resumed]))
    assert section.rows == [("10", "10.0 ± 0.0 (5 %)", "150.0 ± 14.1 (79 %)", "10.0 ± 0.0 (5 %)", "20.0 ± 0.0 (11 %)", "190",
                             "2")]


def test_a_mark_without_a_table_leaves_every_page_as_it_was(here, tmp_path):
    (tmp_path / "misc" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("<!-- table: headline -->")
    (tmp_path / "misc" / "page.md").write_text("<!-- table: no-such-table -->")
    answer = here("misc.report.__main__", "tables", "--root", tmp_path)
    assert answer.code == 2 and "no-such-table" in answer.err
    assert (tmp_path / "README.md").read_text() == "<!-- table: headline -->"


def test_tables_as_text():
    header, rows = ("Name", "Long header"), [("a|b", "1.5 ± 0.1"), ("cd", "not run")]
    assert left_columns(header, rows) == [True, False]
    assert markdown(Section("", "", header, rows)).splitlines() == [
        "| Name | Long header |", "| :--- | ---: |", "| a\\|b | 1.5 ± 0.1 |", "| cd | not run |"]
    assert plain_table(header, rows).splitlines() == [
        "           Long", "Name     header", "----  ---------", "a|b   1.5 ± 0.1", "cd      not run"]
