"""The pages of docs/read: not older than their sources, the scripts in them untouched, links that lead somewhere."""

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "read").glob("*.html"))}


@pytest.fixture
def packages():
    """Skip a test if the packages that write the pages are not installed."""
    for package in ("pygments", "latex2mathml"):
        pytest.importorskip(package, reason="pip install -r requirements-docs.txt")


def read(*options: str, root: Path = ROOT) -> subprocess.CompletedProcess:
    """Run docs/read.py of a copy of the repository."""
    return subprocess.run([sys.executable, "docs/read.py", *options], cwd=root, capture_output=True, text=True)


def test_pages_are_not_older_than_their_sources(packages):
    run = read("--check")
    assert run.returncode == 0, run.stdout + run.stderr


def test_check_notices_a_change_and_a_number_that_no_file_explains(packages, tmp_path):
    for path in [*ROOT.glob("*.py"), ROOT / "README.md"]:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png", "*.gif"))
    script, before = tmp_path / "ditto.py", (ROOT / "ditto.py").read_text()
    script.write_text(before.replace("clamp_min(1e-8)", "clamp_min(1e-6)", 1))
    run = read("--check", root=tmp_path)
    assert run.returncode == 1 and "ditto.html" in run.stderr and "bco.html" not in run.stderr
    assert read(root=tmp_path).returncode == 0 and read("--check", root=tmp_path).returncode == 0
    script.write_text(before.replace("Eq. 15:", "Eq. 99:"))
    assert "DITTO Eq. 99 is not in docs/equations" in read("--check", root=tmp_path).stderr


def lines(page: str) -> list[str]:
    """The source that a page shows: its lines without the marks in the margin."""
    found = re.findall(r'<div class="ln[^>]*>(.*?)</div>', page)
    return [html.unescape(re.sub(r"<b.*?</b>|<[^>]*>", "", line)) for line in found]


def test_scripts_are_shown_untouched_in_their_order(packages):
    shown = [name for name in PAGES if (ROOT / name.replace(".html", ".py")).exists()]
    assert len(shown) >= 8
    for name in shown:
        assert lines(PAGES[name]) == (ROOT / name.replace(".html", ".py")).read_text().splitlines(), name


def test_links_lead_somewhere_and_nothing_is_fetched():
    places = {name: re.findall(r'\bid="([^"]+)"', page) for name, page in PAGES.items()}
    for name, page in PAGES.items():
        assert len(places[name]) == len(set(places[name])), name
        assert not re.search(r"<script|\bsrc=|\bon\w+=|@import|url\((?!#)", page), name
        for target in re.findall(r'\bhref="([^"]+)"', page):
            file, _, place = target.partition("#")
            if target.startswith("https://arxiv.org/abs/") or target == "style.css":
                continue
            if file.startswith("../"):
                assert (ROOT / "docs" / "read" / file).exists(), (name, target)
                continue
            assert file in ("", *PAGES), (name, target)
            assert not place or place in places[file or name], (name, target)


def test_every_step_and_every_indexed_equation_has_its_note():
    for number in range(1, 9):
        assert PAGES["ditto.html"].count(f'id="step-{number}"') == 1 and f'href="#step-{number}"' in PAGES["ditto.html"]
    for equation in (3, 8, 9, 10, 11, 12, 14, 15, 16):
        assert f'id="ditto-eq-{equation}"' in PAGES["equations.html"]
    assert sum(map(len, PAGES.values())) < 3_000_000
