"""The house: imports point upstream only, nothing is unpickled, command lines are what they should be."""

import ast
import re
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from scripts.cli import ROOT

STAGES = ["scripts", "distillation", "matching", "validate", "continual", "misc"]  # each imports only from its left
FILES = [path for folder in STAGES for path in sorted((ROOT / folder).rglob("*.py"))]
FLAGS = {
    "distillation.gen_prototype":
        "--batch_size --data_dir --dataset --diffusion_checkpoints_path --ipc --km_expand --label_file_path --num_workers "
        "--save_prototype_path --size",
    "distillation.gen_syn_image":
        "--batch_size --diffusion_checkpoints_path --dataset --guidance_scale -g --ipc --km_expand --label_file_path "
        "--prototype_path --save_init_image_path --strength -s",
    "distillation.train_ldm": "--dataset --data_dir --output_dir",
    "matching.train_teacher": "--dataset --data_dir --output-dir --arch --epochs",
    "matching.generate_soft_label":
        "--data -a --arch -j --workers -b --batch-size --epochs --input-size --min-scale-crops --max-scale-crops --fkd-path "
        "--use-fp16 --mode --fkd-seed --mix-type --mixup --cutmix",
    "validate.train_FKD":
        "--batch-size --gradient-accumulation-steps --epochs -j --workers --train-dir --val-dir --output-dir "
        "--cos --sgd -lr --learning-rate --momentum --weight-decay --adamw-lr --adamw-weight-decay --model --keep-topk -T "
        "--temperature --fkd-path --wandb-project --mix-type --fkd_seed",
}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")


ENTRY_POINTS = [module_name(path) for path in FILES if "def parse_args" in path.read_text()]


def stage_of(module: str) -> str | None:
    """The stage a dotted module name belongs to; None for what is not ours."""
    top = module.partition(".")[0]
    return top if top in STAGES else None


def imports_of(source: str) -> set[str]:
    """Every module a source imports, at any depth, with `from a import b` as both a.b and (for packages only) a."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            package = stage_of(node.module) and (ROOT / node.module.replace(".", "/")).is_dir()
            found |= {f"{node.module}.{name.name}" for name in node.names} if package else {node.module}
    return found


def wrong_imports(module: str, source: str) -> list[str]:
    """The imports from the right; validate and continual stand side by side."""
    own, order = stage_of(module), {stage: min(place, STAGES.index("validate")) for place, stage in enumerate(STAGES)}
    order["misc"] = len(STAGES)
    return [found for found in imports_of(source) if (stage := stage_of(found)) and stage != own and order[stage] >= order[own]]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_upstream_only(path):
    if path.name == "__init__.py":
        assert not path.read_text().strip()
    else:
        assert wrong_imports(module_name(path), path.read_text()) == []


def test_no_circle_of_imports_at_any_depth():
    TopologicalSorter({module_name(path): {found for found in imports_of(path.read_text()) if stage_of(found)} -
                       {module_name(path)} for path in FILES}).prepare()  # raises CycleError with the modules of a circle


def test_the_walk_sees_wrong_imports_and_right_ones():
    assert wrong_imports("distillation.a", "def f():\n    from matching import views") == ["matching.views"]
    assert wrong_imports("distillation.a", "from misc.report.page import page") == ["misc.report.page"]
    assert wrong_imports("matching.a", "import continual.buffer as b, os") == ["continual.buffer"]
    assert wrong_imports("continual.a", "import matching.b\nfrom scripts import cli\nimport torch") == []
    assert wrong_imports("continual.a", "import validate.b") == ["validate.b"]
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}
    assert len(FILES) > 20 and set(FLAGS) <= set(ENTRY_POINTS)
    edges = {(stage_of(module_name(path)), stage_of(found)) for path in FILES for found in imports_of(path.read_text())}
    assert {("distillation", "scripts"), ("matching", "distillation"), ("validate", "matching")} <= edges


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_is_unpickled_and_no_code_of_others_is_run(path):
    source = path.read_text()
    assert not {name.partition(".")[0] for name in imports_of(source)} & {"pickle", "cPickle", "dill", "cloudpickle", "joblib"}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("allow_pickle", "False") == keywords.get("trust_remote_code", "False") == "False"
            assert "custom_pipeline" not in keywords and keywords.get("weights_only", "True") == "True"
            if ast.unparse(node.func) == "torch.load":
                assert keywords.get("weights_only") == "True", f"{path.name}:{node.lineno}"


def test_the_originals_commands_start_as_files_from_anywhere(tmp_path):
    for module in ("distillation.gen_prototype", "distillation.gen_syn_image", "matching.generate_soft_label",
                   "validate.train_FKD"):
        done = subprocess.run([sys.executable, file_of(module), "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "usage" in done.stdout, done.stderr


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_help_answers_at_once_and_lists_the_original_flags(module):
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert (done.returncode, done.stderr) == (0, "")
    listed = {flag for line in done.stdout.splitlines() if re.match(r" +-", line)
              for flag in re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", line)}
    assert set(FLAGS.get(module, "--help").split()) - listed == set()
    assert seconds < 5  # alone about 0.3; the limit is for a machine that does other work


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_entry_point_says_its_command_and_does_nothing_on_import(module):
    tree = ast.parse(file_of(module).read_text())
    assert f"python -m {module}" in ast.get_docstring(tree)
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = [node for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    assert called == [], "a call at the top of the module"


PAGES = [ROOT / "README.md", *(path for folder in STAGES for path in sorted((ROOT / folder).rglob("*.md")))]


def anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, place = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not place or place in map(anchor, re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)), link
