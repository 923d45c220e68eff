"""Write docs/read/: each script beside the equations it computes, static pages that need no JavaScript and no network.

    pip install -r requirements-docs.txt
    python docs/read.py            write the pages, and the equation tables of docs/*.md
    python docs/read.py --check    fail if one of them is older than its source

Sources: the scripts as they are; equations/*.toml, a file per paper; diffs.toml, what the hunks mean; index.html beside
this file, the student's path. A script, a diff of the README or an equation that is added is picked up.
"""

import ast
import difflib
import html
import io
import re
import sys
import tokenize
import tomllib
from bisect import bisect_right
from pathlib import Path

from latex2mathml.converter import convert
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ORDER = ["world_model", "ditto", "d_gail", "d_bc", "bc_pixels", "aime", "aime_atari", "bco", "cmil"]
NAMES = [name for name in ORDER if (ROOT / f"{name}.py").exists()]
TOML = {path.stem: tomllib.loads(path.read_text()) for path in sorted((DOCS / "equations").glob("*.toml"))}
SYMBOLS = TOML.pop("symbols")["symbol"]
PAPERS = {paper["short"]: paper for paper in TOML.values()}
CITED = re.compile(r"(?:(\w+),? )?(Eq\. |Alg\. |[Aa]lgorithm )(\d+(?:(?:, | and | to )\d+)*)(?: of (\w+))?")
DEPARTS = re.compile(r"[Dd]iffers from|[Dd]ifferences from|our choice", re.A)
esc = html.escape


def math(latex: str, big: bool = False) -> str:
    """MathML of a formula."""
    return convert(latex, display="block" if big else "inline").replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")


def anchor(paper: str, number: str) -> str:
    """Place of an equation on the page of all."""
    return f"{paper}-{number}".lower().replace(". ", "-")


class Script:
    """What a page needs to know of a script: its blocks, steps, citations, departures, and coloured lines."""

    def __init__(self, name: str):
        self.name, self.text = name, (ROOT / f"{name}.py").read_text()
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        self.title = ast.get_docstring(self.tree).splitlines()[0]
        self.doc = self.tree.body[0].lineno, self.tree.body[0].end_lineno
        found = [(self.text.find(paper["arxiv"]), short) for short, paper in PAPERS.items()]
        self.paper = min((place, short) for place, short in found if place >= 0)[1]
        self.fences, begun = [], None  # (first line, last line, scripts) of blocks that several scripts share
        for n, line in enumerate(self.lines, 1):
            if line.startswith("# --- same in: "):
                begun = n, line[15:-4].split(", ")
            elif line == "# --- end ---":
                self.fences.append((begun[0], n, begun[1]))
        self.find_blocks()
        self.find_prose()

    def find_blocks(self):
        """Blocks (first line, name), in order: every function, method and class, and what stands between them."""
        self.defs, self.methods = {}, {}
        starts = {1: "", self.doc[0]: "docstring", self.doc[1] + 1: ""}
        for node in self.tree.body:
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
            while first > 1 and self.lines[first - 2].startswith("#"):
                first -= 1
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) or ast.unparse(node).startswith(("SMALL", "if __")):
                starts[first] = getattr(node, "name", "")
                self.defs |= {node.name: node.lineno} if hasattr(node, "name") else {}
            for part in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(part, ast.FunctionDef):
                    first = min([part.lineno, *(d.lineno for d in part.decorator_list)])
                    starts[first] = f"{node.name}.{part.name}"
                    self.defs[starts[first]] = part.lineno
                    self.methods.setdefault(node.name, set()).add(part.name)
        self.blocks = sorted(starts.items())

    def find_prose(self):
        """Citations, steps, departures and links, from comments and docstrings; names that other pages explain."""
        doc_lines, names, inside, last = {}, [], 0, ["", ""]
        imported = {a.name: n.module for n in self.tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
        for kind, text, (row, col), (end, stop), _ in tokenize.generate_tokens(io.StringIO(self.text).readline):
            inside += tokenize.tok_name[kind] == "FSTRING_START"  # Python 3.12 looks into f-strings, 3.11 does not
            inside -= tokenize.tok_name[kind] == "FSTRING_END"
            if kind == tokenize.COMMENT or kind == tokenize.STRING and text.startswith('"""'):
                for n in range(row, end + 1):
                    doc_lines[n] = col if n == row else 0, kind == tokenize.COMMENT
            elif kind == tokenize.NAME and not inside:
                where, owner = "", self.block(row).split(".")[0]
                if last[1] == "." and last[0] in ("model", "self"):
                    if last[0] == "self" and text in self.methods.get(owner, ()):
                        where = f"#{owner}.{text}"
                    elif last[0] == "model" and self.name != "world_model" and text in MODEL:
                        where = f"world_model.html#WorldModel.{text}"
                elif last[1] != "." and imported.get(text) in NAMES:
                    where = f"{imported[text]}.html#{text}"
                elif last[1] not in (".", "def", "class") and text in self.defs and text != "main":
                    where = f"#{text}"
                if where:
                    names.append((row, col, stop, where))
            if text.strip():
                last = [last[1], text]
        self.steps, self.marks, self.cites, self.departures = {}, [], [], set()
        self.links = {n: [] for n in range(1, len(self.lines) + 1)}
        for row, col, stop, where in names:
            self.links[row].append((col, stop, where))
        for n in range(*self.doc):
            if step := re.match(r"  \((\d+)\) (.*?) {2,}.*`([\w.]+)`$", self.lines[n - 1]):
                self.steps[int(step[1])] = n, re.sub(r" +(Eq|Alg)\..*", "", step[2]), step[3]
                self.links[n].append((*step.span(3), f"#{step[3]}"))
        going = False
        for n, (col, comment) in doc_lines.items():
            line = self.lines[n - 1]
            for cite in CITED.finditer(line, col):
                for m in re.finditer(r"\d+", cite[3]):
                    key = self.resolve(cite, int(m[0]), n)
                    if key:
                        a = cite.start(2) if m.start() == 0 else cite.start(3) + m.start()
                        self.cites.append((n, key))
                        self.links[n].append((a, cite.start(3) + m.end(), f"equations.html#{anchor(*key)}"))
            for m in re.finditer(r"\((\d+)\)", line[col:]):
                if int(m[1]) in self.steps and (comment or self.doc[0] <= n <= self.doc[1]):
                    if comment:
                        self.marks.append((n, int(m[1])))
                    self.links[n].append((col + m.start(), col + m.end(), f"#step-{m[1]}" if comment else f"#at-{m[1]}"))
            going = bool(DEPARTS.search(line, col)) or going and bool(line.strip(' "')) and n - 1 in doc_lines
            going = going and not re.match(r" *(Shapes|    python|The (value|same))", line)
            if going:
                self.departures.add(n)
            going = going and (self.doc[0] <= n <= self.doc[1] or not re.search(r'[.:;]"*$', line))

    def resolve(self, cite: re.Match, number: int, n: int) -> tuple[str, str] | None:
        """Paper and number that a citation means: the one it names, in a block shared with ditto.py DITTO, else ours."""
        kind = "Eq. " if cite[2] == "Eq. " else "Alg. "
        shared = any(a <= n <= b and "ditto" in names for a, b, names in self.fences)
        named = cite[4] if cite[4] in PAPERS else cite[1] if cite[1] in PAPERS else None
        paper, number = named or ("DITTO" if shared else self.paper), f"{kind}{number}"
        if (paper, number) in EQUATIONS:
            return paper, number
        if kind == "Eq. ":
            sys.exit(f"{self.name}.py, line {n}: {number} of {paper} is not in docs/equations.")

    def block(self, n: int) -> str:
        """Name of the block that line n is in."""
        return self.blocks[bisect_right(self.blocks, (n, "\uffff")) - 1][1]

    def colour(self) -> list[str]:
        """HTML of every line: Pygments' colours and the links."""
        out, row, col = [[] for _ in self.lines], 1, 0
        for kind, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(self.text):
            css = STANDARD_TYPES.get(kind, "")
            css = {"sd": "d", "nf": "f", "nc": "f", "nd": "f", "nb": "b", "ow": "k"}.get(css, css[:1])
            css = css if css in "kscmdfb" else ""
            for k, part in enumerate(value.split("\n")):
                row, col = (row + 1, 0) if k else (row, col)
                if part:
                    piece, at = "", col
                    for a, b, where in sorted(self.links[row]):
                        if col <= a and b <= col + len(part) and a >= at:
                            text = [esc(self.lines[row - 1][i:j], False) for i, j in ((at, a), (a, b))]
                            piece, at = f'{piece}{text[0]}<a href="{where}">{text[1]}</a>', b
                    piece += esc(self.lines[row - 1][at : col + len(part)], False)
                    out[row - 1].append(f'<i class="{css}">{piece}</i>' if css else piece)
                    col += len(part)
        return ["".join(parts) for parts in out]

    def source(self, first: int, last: int, ids: bool = True) -> str:
        """Lines first to last as HTML."""
        rows, marked = [], dict(reversed(self.marks))
        for n in range(first, last + 1):
            line = self.lines[n - 1]
            css = f"l i{min((len(line) - len(line.lstrip())) // 4, 6)}" + " differs" * (n in self.departures)
            step = next((k for k, step in self.steps.items() if step[0] == n), None) if ids else None
            tag = f' id="L{n}"' if ids else ""
            mark = f'<b id="step-{step}">{step}</b>' if step else ""
            if ids and n in marked:
                firsts = [k for k in self.steps if (n, k) in self.marks and min(m for m, j in self.marks if j == k) == n]
                here = [k for m, k in self.marks if m == n]
                mark = "".join(f'<s id="at-{k}"></s>' for k in firsts) + f"<b>{here[0] if len(here) == 1 else '⋮'}</b>"
            rows.append(f'<div class="{css}"{tag} data-n="{n}">{mark}{self.html[n - 1] or "&#8203;"}</div>')
        return '<div class="src">' + "".join(rows) + "</div>"


def card(key: tuple[str, str], place: str = "") -> str:
    """An equation: number, formula, one line of meaning, and what the code computes if that is something else."""
    eq, paper = EQUATIONS[key], PAPERS[key[0]]
    old = f" [{eq['old']}]" if "old" in eq else ""
    head = f'<a href="equations.html#{anchor(*key)}">{key[0]} {key[1]}</a> <small>{paper["version"]}{old}</small>'
    lines = "".join(f'<p class="m">{math(line, True)}</p>' for line in eq["latex"])
    ours = "".join(f'<p class="m">{math(line, True)}</p>' for line in eq.get("ours", []))
    ours = f'<div class="ours"><em>differs</em>{ours}<p>{esc(eq["ours_says"])}</p></div>' if ours else ""
    return f'<div class="eq"{place}><h3>{head}</h3>{lines}<p>{esc(eq["says"])}</p>{ours}</div>'


def notes(script: Script, first: int, last: int, name: str) -> tuple[str, float]:
    """The left side of a block, and how many lines of code it is about as high as."""
    out, height, cites, steps = [], 0.0, [], []
    owner = script.defs.get(name)
    for n, k in script.marks:
        if first <= n <= last and k not in steps:
            steps.append(k)
    if owner and first <= owner <= last:
        steps += [k for k, step in script.steps.items() if step[2].split(".")[-1] == name.split(".")[-1] and k not in steps]
    cites = [key for n, key in script.cites if first <= n <= last]
    ranged = len(steps) > 4 or any(len([1 for m, _ in script.marks if m == n]) > 1 for n in range(first, last + 1))
    for k in sorted(steps):
        row, text, where = script.steps[k]
        cited = [key for n, key in script.cites if n == row]
        cites += [] if ranged or name in ("main", "docstring") else cited
        also = " ".join(f'<a href="equations.html#{anchor(*key)}">{key[1]}</a>' for key in cited)
        link = "" if where in ("main", name) else f' <a href="#{where}"><code>{where}</code></a>'
        out.append(f'<p class="step"><a href="#step-{k}">{k}</a> {esc(text)} {also}{link}</p>')
        height += 2.2
    if name in ("Args", "docstring"):
        cites = []
    for key in dict.fromkeys(cites):
        out.append(card(key))
        height += 6 + 5 * ("ours" in EQUATIONS[key])
    words = set(re.findall(r"\w+", "\n".join(script.lines[first - 1 : last])))
    known = [s for s in SYMBOLS if words & set(s["names"])] if cites or steps or name == "Args" else []
    if known and name != "docstring" and (first == script.start[name] or len(known) < 4):
        rows = "".join(f"<li>{math(s['latex'])} <code>{next(x for x in s['names'] if x in words)}</code> "
                       f"<small>{esc(s['shape'])}</small></li>" for s in known)  # fmt: skip
        out.append(f'<details{" open" if len(known) < 9 else ""}><summary>symbols</summary><ul class="sym">{rows}</ul></details>')
        height += len(known)
    shared = next((names for a, _, names in script.fences if a == first), None)
    if shared:
        links = ", ".join(f'<a href="{other}.html#{name}">{other}</a>' for other in shared if other != script.name)
        out.append(f'<p class="same">the same, byte for byte, in {links}</p>')
    return "".join(out), height


def page(title: str, body: str, name: str) -> str:
    """A whole page around its body."""
    here = lambda key: ' aria-current="page"' if key == name else ""  # noqa: E731
    menu = "".join(f'<a href="{n}.html"{here(n)}>{n}</a>' for n in ["index", *NAMES, "equations", "symbols"])
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{esc(title)}</title>\n<meta name="viewport" '
            f'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">\n<link '
            f'rel="stylesheet" href="style.css"></head><body><a class="skip" href="#top">skip the menu</a><nav '
            f'aria-label="pages">{menu}</nav>\n<main id="top">{body}</main></body></html>\n')  # fmt: skip


def script_page(script: Script) -> str:
    """One script, right, and what belongs to it, left."""
    parts, paper = [], PAPERS[script.paper]
    starts = [*script.blocks, (len(script.lines) + 1, "")]
    for (first, name), (after, _) in zip(starts, starts[1:]):
        if first == after:
            continue
        marked, cuts, begun = sorted({n for n, _ in script.marks if first < n < after}), [first], first
        for n in marked:  # a new row where a step begins, unless the notes before it need the room
            line = n - 1 if script.lines[n - 2].strip().startswith("#") else n
            if line - begun > notes(script, begun, line - 1, name)[1]:
                cuts.append(line)
                begun = line
        for k, (a, b) in enumerate(zip(cuts, [*cuts[1:], after])):
            left, place = notes(script, a, b - 1, name)[0], f' id="{name}"' if name and not k else ""
            if name == "docstring":
                diffs = "".join(f'<li><a href="{x}-{y}.html">{x} / {y}</a>: {esc(what)}</li>' for x, y, what in DIFFS
                                if script.name in (x, y))  # fmt: skip
                used = " ".join(f'<a href="equations.html#{anchor(*key)}">{key[0]} {key[1]}</a>'
                                for key in dict.fromkeys(key for _, key in script.cites))  # fmt: skip
                left = (f'<p>Paper: <a href="https://arxiv.org/abs/{paper["arxiv"]}{paper["version"]}">{esc(paper["title"])}'
                        f'</a>, arXiv {paper["arxiv"]} {paper["version"]}. {esc(paper["note"])}</p><p>Cited here: {used}.</p>'
                        f'<p>A number in the margin is a step of the algorithm; <span class="key">this colour</span> is '
                        f'where the code leaves the paper.</p>' + (f"<p>Diffs:</p><ul>{diffs}</ul>" if diffs else ""))  # fmt: skip
            parts.append(f'<section class="row"{place}><div class="notes">{left}</div>{script.source(a, b - 1)}</section>')
    return page(f"{script.name}.py", f"<h1>{script.name}.py <small>{esc(script.title)}</small></h1>" + "".join(parts), script.name)


def diff_page(x: str, y: str, what: str) -> str:
    """Two scripts side by side: their hunks, each under what it means."""
    left, right = SCRIPTS[x], SCRIPTS[y]
    hunks: list[list] = []
    matcher = difflib.SequenceMatcher(None, left.lines, right.lines, autojunk=False)
    codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    for code in codes:
        if hunks and code[1] - hunks[-1][-1][2] <= 2:
            hunks[-1].append(code)
        else:
            hunks.append([code])
    parts, says = [], SAYS.get("all", {}) | SAYS.get(f"{x}-{y}", {})
    for hunk in hunks:
        changed = "\n".join(line for _, a, b, c, d in hunk for line in (*left.lines[a:b], *right.lines[c:d]))
        found = list(dict.fromkeys(text for key, text in says.items() if key in changed))
        place = right.block(hunk[0][3] + 1) or left.block(hunk[0][1] + 1) or "imports"
        if not found:
            MISSING.append(f"{x}-{y}, {place}: {changed.strip().splitlines()[0].strip()[:80]}")
        text = " ".join(found) or f"In {place}."
        rows, before = [], hunk[0][1]
        for _, a, b, c, d in hunk:
            if before < a:
                rows.append(left.source(before + 1, a, False) + right.source(c - (a - before) + 1, c, False).replace("src", "src again", 1))
            sides = [s.source(i + 1, j, False) if i < j else '<div class="src none"></div>' for s, i, j in ((left, a, b), (right, c, d))]
            rows.append(sides[0].replace("src", "src out", 1) + sides[1].replace("src", "src in", 1))
            before = b
        at = f'<a href="{x}.html#L{hunk[0][1] + 1}">{x}</a> <a href="{y}.html#L{hunk[0][3] + 1}">{y}</a>'
        parts.append(f'<section class="hunk"><h2>{esc(text)} <small><code>{place}</code> {at}</small></h2><div class="two">'
                     + "".join(rows) + "</div></section>")  # fmt: skip
    total = sum(b - a + d - c for _, a, b, c, d in codes)
    head = (f"<h1>{x} / {y} <small>{esc(what)}: {total} changed lines in {len(codes)} hunks; left {x}.py, right {y}.py</small></h1>")
    return page(f"{x} / {y}", head.replace("</h1>", "</h1>", 1) + "".join(parts), f"{x}-{y}").replace("#L", "#L")


def equations_page() -> str:
    """All equations, and every line that cites each."""
    parts = []
    for short, paper in PAPERS.items():
        parts.append(f'<h2>{short}: {esc(paper["title"])} <small><a href="https://arxiv.org/abs/{paper["arxiv"]}{paper["version"]}">'
                     f'arXiv {paper["arxiv"]} {paper["version"]}</a></small></h2><p>{esc(paper["note"])}</p>')  # fmt: skip
        for eq in paper["equation"]:
            key, rows = (short, eq["number"]), []
            for script in SCRIPTS.values():
                where = "".join(f' <a href="{script.name}.html#L{n}">{n} <small>{script.block(n)}</small></a>'
                                for n in dict.fromkeys(n for n, k in script.cites if k == key))  # fmt: skip
                rows += [f"<li>{script.name}: {where}</li>"] if where else []
            cited = f'<ul class="at">{"".join(rows)}</ul>' if rows else "<p>No line cites it yet.</p>"
            parts.append(f'<section class="pair">{card(key, f" id={chr(34)}{anchor(*key)}{chr(34)}")}{cited}</section>')
    return page("Equations", "<h1>Equations <small>and every line that cites them</small></h1>" + "".join(parts), "equations")


def symbols_page() -> str:
    """All symbols, their names in the code, shapes, meaning."""
    rows = "".join(f"<tr><td>{math(s['latex'])}<td><code>{', '.join(s['names'])}</code><td>{esc(s['shape'])}<td>{esc(s['says'])}"
                   for s in SYMBOLS)  # fmt: skip
    head = ("<h1>Symbols <small>B batch, T time, H horizon, N start states, A actions, D deter, S groups, K classes, F = D + S*K, "
            "E embedding, C channels, O sensors; time comes first</small></h1>")  # fmt: skip
    return page("Symbols", f'{head}<table><tr><th>paper<th>code<th>shape<th>meaning{rows}</table>', "symbols")


def tables() -> dict[Path, str]:
    """The pages of docs/ with their equation tables written anew from the equations' files."""
    texts = {}
    for (paper, number), eq in EQUATIONS.items():
        for place, what in eq.get("code", {}).items():
            file, function = place.split()
            path = DOCS / ("ditto.md" if file == "world_model.py" else f"{file[:-3]}.md")
            if path.exists():
                texts.setdefault(path, []).append(f"| {number} | {file} | {function} | {what} |\n")
    old = {path: path.read_text() for path in texts}
    return {path: re.sub(r"(\| equation \| file .*\n\|[-|]+\n)(\| Eq\. .*\n)+", lambda m: m[1] + "".join(texts[path]), old[path], count=1)
            for path in texts}  # fmt: skip


EQUATIONS = {(short, eq["number"]): eq for short, paper in PAPERS.items() for eq in paper["equation"]}
MODEL = {n.name for c in ast.parse((ROOT / "world_model.py").read_text()).body if getattr(c, "name", "") == "WorldModel"
         for n in c.body if isinstance(n, ast.FunctionDef)}  # fmt: skip
SAYS, MISSING = tomllib.loads((DOCS / "diffs.toml").read_text()), []
SCRIPTS = {name: Script(name) for name in NAMES}
for script in SCRIPTS.values():
    script.html = script.colour()
    script.start = {name: n for n, name in reversed(script.blocks)}
README = re.findall(r"^diff (\w+)\.py (\w+)\.py +# (.*)$", (ROOT / "README.md").read_text(), re.M)
DIFFS = [diff for diff in README if diff[0] in NAMES and diff[1] in NAMES]


def main() -> None:
    listed = "".join(f'<li><a href="{s.name}.html">{s.name}.py</a> <small>{len(s.lines)} lines</small> {esc(s.title)}</li>'
                     for s in SCRIPTS.values())  # fmt: skip
    diffs = "".join(f'<li><a href="{x}-{y}.html">{x} / {y}</a> {esc(what)}</li>' for x, y, what in DIFFS)
    start = (DOCS / "read_index.html").read_text().replace("<!-- scripts -->", listed).replace("<!-- diffs -->", diffs)
    pages = {"index": page("Read the code beside the paper", start, "index"), "equations": equations_page(), "symbols": symbols_page()}
    pages |= {s.name: script_page(s) for s in SCRIPTS.values()} | {f"{x}-{y}": diff_page(x, y, what) for x, y, what in DIFFS}
    texts = {DOCS / "read" / f"{name}.html": text for name, text in pages.items()} | tables()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    gone = [path for path in (DOCS / "read").glob("*.html") if path not in texts]
    print("\n".join(f"no sentence in docs/diffs.toml for {place}" for place in MISSING) or "every hunk has its sentence")
    if "--check" in sys.argv:
        names = ", ".join(str(path.relative_to(ROOT)) for path in [*stale, *gone])
        sys.exit(f"older than their source: {names}. Run python docs/read.py." if names else 0)
    for path in gone:
        path.unlink()
    for path in stale:
        path.write_text(texts[path])
    print(f"{len(stale)} of {len(texts)} files written, {sum(len(text.encode()) for text in texts.values()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
