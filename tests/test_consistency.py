"""What the files say about each other: shared blocks, dependencies, arguments, equations, commands, metrics, links."""

import ast
import dataclasses
import difflib
import functools
import re
import shlex
import sys
from pathlib import Path

import pytest
import test_aime
import test_aime_atari
import test_baselines
import test_bco
import test_cmil
import test_ditto
import test_world_model
import tyro

import aime
import aime_atari
import bc_pixels
import bco
import cmil
import collect_data
import control
import d_bc
import d_gail
import ditto
import dmc
import import_data
import train_expert
import world_model

ROOT = Path(ditto.__file__).parent
sys.path.insert(0, str(ROOT / "benchmark"))
import add_pictures  # noqa: E402
import check_body  # noqa: E402
import clip  # noqa: E402
import endurance  # noqa: E402
import speed  # noqa: E402

SCRIPTS = {"collect_data.py": collect_data, "train_expert.py": train_expert, "world_model.py": world_model,
           "ditto.py": ditto, "d_gail.py": d_gail, "d_bc.py": d_bc, "bc_pixels.py": bc_pixels,
           "aime.py": aime, "aime_atari.py": aime_atari, "bco.py": bco, "dmc.py": dmc, "cmil.py": cmil,
           "control.py": control,
           "benchmark/speed.py": speed, "benchmark/check_body.py": check_body,
           "benchmark/add_pictures.py": add_pictures, "benchmark/clip.py": clip,
           "benchmark/endurance.py": endurance, "import_data.py": import_data}  # fmt: skip
AGENTS = ["ditto.py", "d_gail.py", "d_bc.py", "bc_pixels.py", "aime_atari.py"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def source(name: str) -> str:
    """Text of a script."""
    return (ROOT / name).read_text()


@functools.cache
def tree(name: str) -> ast.Module:
    """Syntax tree of a script."""
    return ast.parse(source(name))


def args_fields(name: str) -> dict[str, tuple[str, str, str]]:
    """Type, default and help text of every field of a script's Args."""
    (cls,) = [n for n in tree(name).body if isinstance(n, ast.ClassDef) and n.name == "Args"]
    fields = {}
    for field, text in zip(cls.body, cls.body[1:]):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(text, ast.Expr), f"{name}: {field.target.id} has no help text"
            fields[field.target.id] = ast.unparse(field.annotation), ast.unparse(field.value), text.value.value
    return fields


# blocks and dependencies


def shared_blocks(name: str) -> dict[str, list[str]]:
    """Bodies of the fenced blocks of a script, by the list of scripts in which they must be equal."""
    blocks: dict[str, list[str]] = {}
    for names, body in re.findall(r"^# --- same in: (.*?) ---\n(.*?)^# --- end ---$", source(name), re.M | re.S):
        blocks.setdefault(names, []).append(body)
    assert source(name).count("# --- same in:") == sum(map(len, blocks.values())), f"{name}: a block has no end"
    return blocks


def test_shared_blocks_are_equal_byte_for_byte():
    found = 0
    for script in sorted(path.name for path in ROOT.glob("*.py")):
        for names, bodies in shared_blocks(script).items():
            assert Path(script).stem in names.split(", "), f"{script} has a block that names only {names}"
            for other in names.split(", "):
                assert shared_blocks(f"{other}.py").get(names) == bodies, f"{script} and {other}.py differ: {names}"
                found += other != Path(script).stem
    assert found  # the pattern still finds them


def hunks(left: str, right: str) -> list[tuple[int, int]]:
    """Removed and added lines of every hunk between two scripts."""
    matcher = difflib.SequenceMatcher(None, source(left).splitlines(), source(right).splitlines(), autojunk=False)
    return [(b - a, d - c) for tag, a, b, c, d in matcher.get_opcodes() if tag != "equal"]


@pytest.mark.parametrize(
    "left, right, lines, count",
    [("ditto", "d_gail", 75, 14), ("ditto", "d_bc", 116, 20), ("d_bc", "bc_pixels", 250, 40),
     ("d_bc", "aime_atari", 150, 30), ("aime", "bco", 500, 45)],
)  # fmt: skip
def test_the_familys_diffs_stay_lessons(left, right, lines, count):
    found = hunks(f"{left}.py", f"{right}.py")
    assert 0 < sum(map(sum, found)) <= lines and len(found) <= count, (sum(map(sum, found)), len(found))


LINES = {"ditto.py": 430, "d_gail.py": 460, "d_bc.py": 350, "bc_pixels.py": 340, "aime.py": 430, "aime_atari.py": 400,
         "bco.py": 400, "cmil.py": 480, "control.py": 430, "collect_data.py": 330, "import_data.py": 235,
         "world_model.py": 1400}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_scripts_stay_short_and_the_loop_on_two_screens(name):
    assert len(source(name).splitlines()) <= LINES[name]
    main = find(name, "main")
    assert main.end_lineno - main.lineno < 120
    local = {"world_model", "dmc", "control", "expert_policies", "collect_data"}
    imported = {n.module for n in tree(name).body if isinstance(n, ast.ImportFrom)} & local
    allowed = {"aime.py": {"dmc"}, "bco.py": {"dmc"}, "cmil.py": {"control"}, "control.py": {"dmc"},
               "collect_data.py": {"expert_policies"},
               "import_data.py": {"expert_policies", "collect_data"}}.get(name, set())  # fmt: skip
    assert imported <= ({"world_model"} if name != "world_model.py" else set()) | allowed


def test_dependency_blocks_are_equal_and_match_requirements():
    blocks = {name: re.search(r"^# /// script\n(.*?)^# ///$", source(name), re.M | re.S)[1] for name in SCRIPTS}
    assert len(set(blocks.values())) == 1, blocks
    dependencies = ast.literal_eval(re.search(r"dependencies = (\[.*\])", blocks["ditto.py"])[1])
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line)
    assert sorted(pinned) == sorted([*dependencies, "pytest"]) and pinned["torch"] == "2.13.0"


@pytest.mark.parametrize("name", SCRIPTS)
def test_importing_a_script_runs_nothing(name):
    allowed = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign
    for node in tree(name).body[1:]:
        text = ast.unparse(node)
        assert isinstance(node, allowed) or text.startswith(("gym.register_envs", "sys.path.insert", "if __name__"))
    assert len(ast.get_docstring(tree(name)).splitlines()) <= 40


# arguments


def test_equal_arguments_of_world_model_and_ditto():
    left, right = args_fields("world_model.py"), args_fields("ditto.py")
    own_meaning = {"env_id", "run_dir", "seed", "data_dir", "batch_size", "updates", "eval_every", "log_every"}
    shared = left.keys() & right.keys()
    assert own_meaning <= shared
    for name in shared:
        assert left[name][0] == right[name][0], name
        assert name in own_meaning or left[name] == right[name], name


def test_equal_arguments_of_the_agents():
    fields = {script: args_fields(script) for script in AGENTS}
    on_purpose = {  # arguments that mean something else somewhere: their type must agree, default and help need not
        ("entropy", "d_bc.py"): "eta_BC of Eq. 9, weight of the entropy",
        ("entropy", "bc_pixels.py"): "eta_BC of Eq. 9, weight of the entropy",
        ("batch_size", "bc_pixels.py"): "B, expert frames per update",
        ("batch_size", "d_bc.py"): "B, windows of H expert states per update",
        ("batch_size", "aime_atari.py"): "B, streams of expert frames",
        ("entropy", "aime_atari.py"): "weight of the policy's entropy (AIME has none)",
    }
    for (name, script), text in on_purpose.items():
        assert fields[script][name][2] == text and fields["ditto.py"][name] != fields[script][name]
    for script in AGENTS[1:]:
        shared = fields["ditto.py"].keys() & fields[script].keys()
        assert len(shared) > 20
        for name in shared:
            assert fields[script][name][0] == fields["ditto.py"][name][0], (script, name)
            assert (name, script) in on_purpose or fields[script][name] == fields["ditto.py"][name], (script, name)


def test_equal_arguments_of_aime_and_bco():
    left, right, trunk = (args_fields(script) for script in ("aime.py", "bco.py", "ditto.py"))
    own_meaning = {"batch_size", "learning_rate"}
    shared = left.keys() & right.keys()
    assert own_meaning <= shared and len(shared) > 12
    for name in shared:
        assert left[name][0] == right[name][0], name
        assert name in own_meaning or left[name] == right[name], name
    for name in ("size", "seed", "device", "eval_only", "log_every", "threads"):
        assert left[name] == trunk[name], name


TRAININGS = [world_model, ditto, d_gail, d_bc, bc_pixels, aime, aime_atari, bco, cmil]


def test_every_training_says_the_same_of_its_device():
    fields = {name: args_fields(name) for name in SCRIPTS}
    having = {name for name in SCRIPTS if "device" in fields[name]}
    assert having == {*(f"{module.__name__}.py" for module in TRAININGS), "benchmark/speed.py"}
    assert len({fields[name]["device"] for name in having}) == 1
    for name in SCRIPTS:
        assert "cuda" not in fields[name] and "no-cuda" not in source(name)


@pytest.mark.parametrize("module", TRAININGS)
def test_a_device_that_is_not_there_is_refused_before_any_work(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world_model.torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:7", "mps", "gpu", "CPU", ""):
        with pytest.raises(SystemExit) as stop:
            module.main(module.Args(**module.SIZES["debug"] | {"size": "debug", "device": device}))
        assert stop.value.code == f"--device {device}: PyTorch finds only cpu here; name one of these, or auto."
        with pytest.raises(SystemExit, match="PyTorch finds only cpu here"):
            world_model.parse_args(module.Args, module.SIZES, ["--device", device])  # --size auto asks already
    assert not list(tmp_path.iterdir())


def test_equal_arguments_of_world_model_and_bc_pixels():
    left, right = args_fields("world_model.py"), args_fields("bc_pixels.py")
    for name in ("depth", "pixel_stats", "pixel_std_floor", "dilation"):  # the encoder is the world model's
        assert left[name] == right[name], name
        assert world_model.SIZES["small"][name] == bc_pixels.SIZES["small"][name], name


def test_the_same_argument_has_the_same_type_everywhere():
    types: dict[str, dict[str, str]] = {}
    for script in SCRIPTS:
        for name, (kind, _, _) in args_fields(script).items():
            types.setdefault(name, {})[script] = kind.replace(" | None", "")
    for name, kinds in types.items():
        own = name in ("size", "method")  # named per script
        assert own or len(set(kinds.values())) == 1, (name, kinds)


@pytest.mark.parametrize("module", TRAININGS)
def test_sizes_hold_existing_arguments_of_the_right_type(module):
    fields = {field.name: field.type for field in dataclasses.fields(module.Args)}
    for size, values in module.SIZES.items():
        for name, value in values.items():
            assert name in fields, f"{size}: {name}"
            assert not isinstance(fields[name], type) or isinstance(value, fields[name]), f"{size}: {name}"
    assert list(module.SIZES) == ["paper", "small", "debug"] and module.SIZES["paper"] == {}


@pytest.mark.parametrize("module", [d_gail, d_bc, bc_pixels])
def test_baselines_have_the_sizes_of_ditto(module):
    encoder, no_windows = {"depth", "pixel_stats", "pixel_std_floor", "dilation"}, {"horizon", "batch_size"}
    free = encoder | no_windows if module is bc_pixels else set()
    free |= (
        {"entropy", "entropy_end"} if module is not d_gail else set()
    )  # eta of Eq. 16; cloning has eta_BC, 0.1 always
    for size in ditto.SIZES:
        left, right = ({k: v for k, v in sizes[size].items() if k not in free} for sizes in (ditto.SIZES, module.SIZES))
        assert left == right, size


# equations


def find(name: str, qualified: str) -> ast.AST | None:
    """The function, method or class of this name in a script."""
    body, node = tree(name).body, None
    for part in qualified.split("."):
        node = next((n for n in body if getattr(n, "name", None) == part), None)
        if node is None:
            return None
        body = node.body
    return node


PAGE_OF = {"world_model.py": "ditto.md", "ditto.py": "ditto.md", "d_gail.py": "d_gail.md", "d_bc.py": "d_bc.md",
           "bc_pixels.py": "bc_pixels.md", "aime.py": "aime.md", "aime_atari.py": "aime_atari.md",
           "cmil.py": "cmil.md"}  # fmt: skip


def section(page: str, heading: str) -> str:
    """Text under a heading of a page in docs/."""
    return (ROOT / "docs" / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def equation_index(page: str) -> set[tuple[str, str, str]]:
    """Rows (equation, file, function) of the table in a page."""
    lines = section(page, "Equations").splitlines()
    cells = [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in lines if line[:2] == "| "]
    return {tuple(row) for row in cells if row[0].startswith("Eq. ")}


def indexed(name: str) -> set[tuple[str, str]]:
    """Pairs (equation, function) documented for a script: on its page, or by ditto.py's rows if the code is shared."""
    pairs = {(equation, function) for equation, file, function in equation_index(PAGE_OF[name]) if file == name}
    blocks = [body for names, bodies in shared_blocks(name).items() if "ditto" in names.split(", ") for body in bodies]
    shared = {node.name for body in blocks for node in ast.parse(body).body}
    rows = [(equation, function) for equation, file, function in equation_index("ditto.md") if file == "ditto.py"]
    return pairs | {row for row in rows if row[1].split(".")[0] in shared}


@pytest.mark.parametrize("page", sorted(set(PAGE_OF.values())))
def test_every_row_of_the_equation_index_names_a_function(page):
    index = equation_index(page)
    assert index and (page != "ditto.md" or len(index) > 5)
    for equation, name, function in index:
        assert PAGE_OF[name] == page and find(name, function) is not None, (equation, name, function)


@pytest.mark.parametrize("name", PAGE_OF)
def test_every_cited_equation_is_in_the_index(name):
    index = indexed(name)
    cited = set(re.findall(r"(?<![A-Za-z0-9] )\bEq\. \d+(?! of AIME)", source(name)))
    assert cited and cited == {equation for equation, _ in index}
    functions = [(None, n) for n in tree(name).body if isinstance(n, ast.FunctionDef)]
    classes = [n for n in tree(name).body if isinstance(n, ast.ClassDef)]
    functions += [(c.name, n) for c in classes for n in c.body if isinstance(n, ast.FunctionDef)]
    for owner, function in functions:
        for equation in re.findall(r"\bEq\. \d+(?! of AIME)", ast.get_docstring(function) or ""):
            qualified = f"{owner}.{function.name}" if owner else function.name
            assert (equation, qualified) in index, (equation, name, qualified)


@pytest.mark.parametrize(
    "name, count",
    [
        ("world_model.py", 6),
        ("ditto.py", 8),
        ("d_gail.py", 9),
        ("d_bc.py", 3),
        ("bc_pixels.py", 3),
        ("aime.py", 6),
        ("aime_atari.py", 3),
        ("bco.py", 6),
        ("cmil.py", 10),
    ],
)
def test_algorithm_lines_of_the_docstring_name_functions_and_are_marked_in_main(name, count):
    lines = re.findall(r"^  \((\d+)\) .*`([\w.]+)`$", ast.get_docstring(tree(name), clean=False), re.M)
    assert [number for number, _ in lines] == [str(k + 1) for k in range(count)]
    parts = [find(name, part) for part in ("main", "agent_loss") if find(name, part)]
    marked = set()
    for comment in re.findall(r"#.*$", "\n".join(ast.get_source_segment(source(name), part) for part in parts), re.M):
        numbers = [int(k) for k in re.findall(r"\((\d+)\)", comment)]
        marked |= set(range(min(numbers), max(numbers) + 1)) if numbers else set()
    for number, function in lines:
        assert find(name, function) is not None, function
        assert int(number) in marked, f"{name}: step ({number}) is not marked in main"


# commands and metrics


def commands(text: str) -> list[str]:
    """The commands in a text that run a script, `python X.py ...` or `torchrun ... X.py ...`, without remarks."""
    lines = (part.strip() for line in text.splitlines() for part in line.split("&&"))
    lines = (re.split(r"\s+#|\s{2,}\(", line)[0] for line in lines)
    return [line for line in lines if re.match(r"(uv run|python|torchrun)\s.*\.py\b", line)]


def parse(command: str) -> None:
    """Parse a command line with the Args of its script, without running it."""
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    module, argv = SCRIPTS[words[place]], words[place + 1 :]
    if hasattr(module, "SIZES") and "paper" in module.SIZES:
        world_model.parse_args(module.Args, module.SIZES, argv)
    else:
        tyro.cli(module.Args, args=argv)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_the_pages_parse(page):
    blocks = re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", page.read_text(), re.M | re.S)
    found = [command for block in blocks for command in commands(block)]
    assert found or page.name not in ("README.md", "ditto.md")
    for command in found:
        parse(command)


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_of_the_docstrings_parse(name):
    found = commands(ast.get_docstring(tree(name)))
    assert found
    for command in found:
        parse(command)


def test_readme_installs_and_tests_in_two_commands():
    readme = (ROOT / "README.md").read_text()
    test_command = "pip install -r requirements.txt && python -m pytest tests"
    assert test_command in readme
    ci = (ROOT / ".ci" / "run").read_text()
    assert "-r requirements.txt" in ci and ci.rstrip().endswith("python -m pytest tests")


@pytest.mark.parametrize(
    "page, keys",
    [("world_model.md", test_world_model.LOG_KEYS), ("ditto.md", test_ditto.LOG_KEYS),
     ("d_gail.md", test_baselines.D_GAIL_KEYS), ("d_bc.md", test_baselines.D_BC_KEYS),
     ("bc_pixels.md", test_baselines.BC_PIXELS_KEYS), ("aime.md", test_aime.LOG_KEYS),
     ("aime_atari.md", test_aime_atari.LOG_KEYS),
     ("bco.md", test_bco.LOG_KEYS), ("cmil.md", test_cmil.LOG_KEYS)],
)  # fmt: skip
def test_every_metric_is_documented(page, keys):
    text = section(page, "Metrics")
    text += section("ditto.md", "Metrics") if "Those of [DITTO](ditto.md#metrics)" in text else ""
    rows = set(re.findall(r"^\| `([\w/]+)` \|", text, re.M))
    assert keys <= rows, f"docs/{page} lacks {sorted(keys - rows)}"
    pictures = {"world_model/truth_posterior_dream_error"}
    assert rows - pictures <= keys, f"docs/{page} documents {sorted(rows - keys)}, which nobody logs"


def anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert fragment in map(anchor, headings), target
