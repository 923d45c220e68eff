"""Write docs/read/: each script beside the equations it computes, static pages that need no JavaScript and no network.

    pip install -r requirements-docs.txt
    python docs/read.py            write the pages, and the equation tables of docs/*.md
    python docs/read.py --check    fail if one of them is older than its source

Sources: the scripts as they are; equations/, a file per paper; diffs.toml, what the hunks mean; read_index.html, the
student's path. A script of ORDER, a diff of the README or an equation that is added is picked up.
"""

import ast
import difflib
import io
import re
import sys
import tokenize
import tomllib
from bisect import bisect_right
from html import escape
from pathlib import Path

from latex2mathml.converter import convert
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

DOCS = Path(__file__).resolve().parent
ROOT, OUT = DOCS.parent, DOCS / "read"
ORDER = ["world_model", "ditto", "d_gail", "d_bc", "bc_pixels", "aime", "aime_atari", "bco", "cmil"]
NAMES = [name for name in ORDER if (ROOT / f"{name}.py").exists()]
TOML = {path.stem: tomllib.loads(path.read_text()) for path in sorted((DOCS / "equations").glob("*.toml"))}
SYMBOLS, SAYS = TOML.pop("symbols")["symbol"], tomllib.loads((DOCS / "diffs.toml").read_text())
PAPERS = {paper["short"]: paper for paper in sorted(TOML.values(), key=lambda paper: paper["arxiv"])}
EQUATIONS = {(short, eq["number"]): eq for short, paper in PAPERS.items() for eq in paper["equation"]}
README = re.findall(r"^diff (\w+)\.py (\w+)\.py +# (.*)$", (ROOT / "README.md").read_text(), re.M)
DIFFS = [diff for diff in README if diff[0] in NAMES and diff[1] in NAMES]
CITED = re.compile(r"(?:(\w+),? )?(Eq\. |Alg\. |[Aa]lgorithm )(\d+(?:(?:, | and | to )\d+)*)(?: of (\w+))?")
MODEL = re.findall(r"^class WorldModel.*?^# ---", (ROOT / "world_model.py").read_text(), re.M | re.S)[0]
MODEL = {f"WorldModel.{name}" for name in re.findall(r"^    def (\w+)", MODEL, re.M)}
DEPARTS = re.compile(r"[Dd]iffer(?:s|ences) from|our choice")
CSS = {"sd": "d", "nf": "f", "nc": "f", "nd": "f", "nb": "b", "ow": "k", "bp": ""}  # of Pygments' tokens; else a letter


def math(latex: str, display: str = "inline") -> str:
    """MathML of a formula."""
    text = convert(latex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return text.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation, with its space


def formulas(lines: list[str]) -> str:
    """Formulas side by side, as many as fit."""
    return '<div class="ms">' + "".join(f"<div>{math(line, 'block')}</div>" for line in lines) + "</div>"


def anchor(key: tuple[str, str]) -> str:
    """Place of an equation on the page of all."""
    return "-".join(key).lower().replace(". ", "-")


def link(where: str, text: str) -> str:
    """A link."""
    return f'<a href="{where}">{text}</a>'


def eq_link(key: tuple[str, str], text: str = "") -> str:
    """A link to an equation."""
    return link(f"equations.html#{anchor(key)}", text or " ".join(key))


def arxiv(paper: dict) -> str:
    """A link to a paper."""
    number, version = paper["arxiv"], paper["version"]
    return link(f"https://arxiv.org/abs/{number}{version}", f"arXiv {number} {version}".strip())


def card(key: tuple[str, str], place: str = "") -> str:
    """An equation: number, formula, a line of meaning, and what the code computes if that is something else."""
    eq = EQUATIONS[key]
    version = eq.get("version", PAPERS[key[0]]["version"])
    old = f" [{eq['old']}]" if "old" in eq else ""
    ours = f"<em>differs</em>{formulas(eq['ours'])}<p>{eq['ours_says']}</p>" if "ours" in eq else ""
    ours = ours and f'<div class="ours">{ours}</div>'
    head = f'<div class="eq"{place}><h3>{eq_link(key)} <small>{version}{old}</small></h3>'
    return f"{head}{formulas(eq['latex'])}<p>{eq['says']}</p>{ours}</div>"


class Script:
    """A script: its blocks, the steps of its docstring, citations, departures, coloured lines."""

    def __init__(self, name: str):
        self.name, self.text = name, (ROOT / f"{name}.py").read_text()
        self.lines, self.tree = self.text.splitlines(), ast.parse(self.text)
        self.title = ast.get_docstring(self.tree).splitlines()[0]
        self.doc = self.tree.body[0].lineno, self.tree.body[0].end_lineno
        named = {self.text.find(paper["arxiv"]): short for short, paper in PAPERS.items()}
        self.paper = named[min(named.keys() - {-1})]  # the first that the docstring names
        numbered = list(enumerate(self.lines, 1))
        begins = [(n, line[15:-4].split(", ")) for n, line in numbered if line.startswith("# --- same in: ")]
        ends = [n for n, line in numbered if line == "# --- end ---"]
        self.fences = [(a, b, names) for (a, names), b in zip(begins, ends, strict=True)]  # what several scripts share
        # blocks: every function, method and class, and what stands between them
        starts, self.defs = {1: "", self.doc[0]: "docstring", self.doc[1] + 1: ""}, {}
        for node in self.tree.body:
            parts = [p for p in getattr(node, "body", []) if isinstance(node, ast.ClassDef)]
            for part in [node, *(p for p in parts if isinstance(p, ast.FunctionDef) and p.name != "__init__")]:
                first = min([part.lineno, *(d.lineno for d in getattr(part, "decorator_list", []))])
                while part is node and self.lines[first - 2].startswith("#"):
                    first -= 1
                if hasattr(part, "name"):
                    starts[first] = part.name if part is node else f"{node.name}.{part.name}"
                    self.defs[starts[first]] = part.lineno
                elif ast.unparse(part).startswith(("SMALL", "if __")):
                    starts[first] = ""
        self.blocks = sorted(starts.items())
        self.find()

    def block(self, n: int) -> str:
        """Name of the block that line n is in."""
        return self.blocks[bisect_right(self.blocks, (n, "\uffff")) - 1][1]

    def find(self):
        """Steps, marks of steps, citations, departures and links: (first column, last, where) by line."""
        self.links, self.words, prose = {n: [] for n in range(1, len(self.lines) + 1)}, set(), {}
        self.steps, self.marks, self.cites, self.departures = {}, [], [], set()
        nodes = [node for node in self.tree.body if isinstance(node, ast.ImportFrom)]
        imported = {name.name: node.module for node in nodes for name in node.names if node.module in NAMES}
        inside, last, listed = 0, ["", ""], {n for node in nodes for n in range(node.lineno, node.end_lineno + 1)}
        for kind, text, (row, col), (end, stop), line in tokenize.generate_tokens(io.StringIO(self.text).readline):
            name = tokenize.tok_name[kind]  # Python 3.12 looks into f-strings, 3.11 does not
            inside += (name == "FSTRING_START") - (name == "FSTRING_END")
            if name == "COMMENT" or name == "STRING" and text.startswith('"""'):
                prose |= {n: (col * (n == row), name == "COMMENT") for n in range(row, end + 1)}
            elif name == "NAME" and not inside:
                self.words.add((row, text))
                method = f"{self.block(row).split('.')[0] if last[0] == 'self' else 'WorldModel'}.{text}"
                meant = text[0].isupper() or self.lines[row - 1][stop : stop + 1] == "(" or row in listed
                if last[1] == "." and last[0] in ("self", "model") and (method in self.defs or method in MODEL):
                    self.links[row].append((col, stop, f"{'' if method in self.defs else 'world_model.html'}#{method}"))
                elif last[1] not in (".", "def", "class") and meant and text in self.defs | imported and text != "main":
                    where = f"{imported[text]}.html" if text in imported else ""
                    self.links[row].append((col, stop, f"{where}#{text}"))
            last = [last[1], text] if text.strip() else last
        for n in range(*self.doc):
            if step := re.match(r"  \((\d+)\) (.*?) {2,}.*`([\w.]+)`$", self.lines[n - 1]):
                self.steps[int(step[1])] = n, re.sub(r" +(Eq|Alg)\..*", "", step[2]), step[3]
                self.links[n].append((*step.span(3), f"#{step[3]}"))
        going = False
        for n, (col, comment) in prose.items():
            line, in_doc = self.lines[n - 1], self.doc[0] <= n <= self.doc[1]
            for cite in CITED.finditer(line, col):
                for number in re.finditer(r"\d+", cite[3]):
                    if key := self.resolve(cite, number[0], n):
                        self.cites.append((n, key))
                        first = cite.start(3) + number.start() if number.start() else cite.start(2)
                        self.links[n].append((first, cite.start(3) + number.end(), f"equations.html#{anchor(key)}"))
            for mark in re.finditer(r"\((\d+)\)", line[col:]):
                if (k := int(mark[1])) in self.steps and (comment or in_doc):
                    to = re.match(r" to \((\d+)\)", line[col + mark.end() :])
                    self.marks += [(n, j) for j in range(k, int(to[1]) if to else k + 1)] if comment else []
                    self.links[n].append((col + mark.start(), col + mark.end(), f"#{'step' if comment else 'at'}-{k}"))
            going = bool(DEPARTS.search(line, col)) or going and bool(line.strip(' "')) and n - 1 in prose
            self.departures |= {n} if going else set()
            going = going and (in_doc or not re.search(r'[.:;]"*$', line))  # in the docstring to the paragraph's end
        self.first = {k: n for n, k in reversed(self.marks)}

    def resolve(self, cite: re.Match, number: str, n: int) -> tuple[str, str] | None:
        """The equation meant: of the paper that is named, in a block of ditto.py's DITTO, else the script's."""
        shared = any(a <= n <= b and "ditto" in names for a, b, names in self.fences)
        named = next((name for name in (cite[4], cite[1]) if name in PAPERS), "DITTO" if shared else self.paper)
        key = named, f"{'Eq' if cite[2] == 'Eq. ' else 'Alg'}. {number}"
        if key not in EQUATIONS and key[1][:2] == "Eq":
            sys.exit(f"{self.name}.py, line {n}: {' '.join(key)} is not in docs/equations.")
        return key if key in EQUATIONS else None

    def colour(self) -> list[str]:
        """HTML of every line: Pygments' colours and the links."""
        out, row, col = [[] for _ in self.lines], 0, 0
        for kind, value in PythonLexer(stripnl=False, ensurenl=False).get_tokens(self.text):
            css = STANDARD_TYPES.get(kind, "")
            css = CSS.get(css, css[:1])
            for k, part in enumerate(value.split("\n")):
                row, col = (row + 1, 0) if k else (row, col)
                pieces, at, end = [], col, col + len(part)
                for a, b, where in sorted(self.links.get(row + 1, [])):
                    if at <= a and b <= end:
                        text = [escape(self.lines[row][i:j], False) for i, j in ((at, a), (a, b))]
                        pieces, at = [*pieces, f'{text[0]}<a href="{where}">{text[1]}</a>'], b
                if part:
                    piece = "".join(pieces) + escape(self.lines[row][at:end], False)
                    out[row].append(f'<i class="{css}">{piece}</i>' if css and css in "kscmdfb" else piece)
                col = end
        return ["".join(parts) for parts in out]

    def source(self, first: int, last: int, kind: str = "") -> str:
        """Lines first to last as HTML, on their own page or, if they are of a kind, elsewhere."""
        rows = []
        for n in range(first, last + 1):
            line, mark = self.lines[n - 1], ""
            css = f"l i{min((len(line) - len(line.lstrip())) // 4, 6)}" + " differs" * (n in self.departures)
            if not kind:
                mark = "".join(f'<b id="step-{k}">{k}</b>' for k, step in self.steps.items() if step[0] == n)
                here = [k for m, k in self.marks if m == n]
                mark += "".join(f'<s id="at-{k}"></s>' for k in here if self.first[k] == n)
                mark += f"<b>{here[0] if len(here) == 1 else '⋮'}</b>" if here else ""
            place = "" if kind else f' id="L{n}"'
            rows.append(f'<div class="{css}"{place} data-n="{n}">{mark}{self.html[n - 1] or "<br>"}</div>')
        text = "".join(rows)
        text = text.replace('href="#', f'href="{self.name}.html#') if kind else text
        return f'<div class="src {kind}">{text}</div>'

    def notes(self, first: int, last: int, name: str) -> str:
        """What stands left of the lines first to last of a block."""
        owned = name != "main" and first <= self.defs.get(name, 0) <= last  # main has marks
        steps = {k for n, k in self.marks if first <= n <= last}
        steps |= {k for k, step in self.steps.items() if owned and step[2] == name}
        many = any(sum(m == n for m, _ in self.marks) > 1 for n in range(first, last + 1))  # one line, several steps
        keys = list(dict.fromkeys(key for n, key in self.cites if first <= n <= last and name != "Args"))
        out = []
        for k in sorted(steps):
            row, text, where = self.steps[k]
            cited = [key for n, key in self.cites if n == row]
            also = " ".join(eq_link(key, key[1]) for key in cited)
            also += f' <a href="#{where}"><code>{where}</code></a>' if where not in ("main", name) else ""
            out.append(f'<p class="step"><a href="#step-{k}">{k}</a> {escape(text)} {also}</p>')
            out += [formulas(EQUATIONS[key]["latex"]) for key in cited if not many and key not in keys]
        near = {key for n, key in self.cites if first - 40 < n < first and self.block(n) != "Args"}  # still in sight
        for key in keys:
            out.append(f"<h3>{eq_link(key)}</h3>{formulas(EQUATIONS[key]['latex'])}" if key in near else card(key))
        words = {word for n, word in self.words if first <= n <= last} if steps or keys or name == "Args" else set()
        known = [s for s in SYMBOLS if words & set(s["names"]) and self.name in s.get("only", NAMES)]
        if known:
            rows = [(math(s["latex"]), next(x for x in s["names"] if x in words), s["shape"]) for s in known]
            rows = "".join(f"<li>{x} <code>{code}</code> <small>{shape}</small></li>" for x, code, shape in rows)
            opened = " open" if len(known) < 9 or name == "Args" else ""
            out.append(f'<details{opened}><summary>symbols</summary><ul class="sym">{rows}</ul></details>')
        for others in (names for a, _, names in self.fences if a == first):
            links = ", ".join(f'<a href="{other}.html#{name}">{other}</a>' for other in others if other != self.name)
            out.append(f'<p class="same">the same, byte for byte, in {links}</p>')
        return "".join(out)

    def about(self) -> str:
        """What stands left of the docstring."""
        paper, diffs = PAPERS[self.paper], [diff for diff in DIFFS if self.name in diff[:2]]
        rows = "".join(f"<li>{link(f'{x}-{y}.html', f'{x} / {y}')}: {what}</li>" for x, y, what in diffs)
        used = " ".join(eq_link(key) for key in dict.fromkeys(key for _, key in self.cites))
        key = '<span class="key">This colour</span> is where the code leaves the paper, or where no source decides.'
        head = f"<p><em>{paper['title']}</em>, {arxiv(paper)}. {paper['note']}</p>"
        return (f"{head}<p>Cited here: {used or 'nothing'}.</p>"
                f"<p>A number in the margin is a step of the algorithm. {key}</p><ul>{rows}</ul>")  # fmt: skip

    def page(self) -> str:
        """The script, right, and what belongs to it, left."""
        rows = []
        for (first, name), (after, _) in zip(self.blocks, [*self.blocks[1:], (len(self.lines) + 1, "")]):
            cuts, pending = [first], 0  # a new row where a step begins, if the notes before have room
            for n in sorted({n for n, _ in self.marks if first < n < after}):
                n -= self.lines[n - 2].strip().startswith("#")
                if n - cuts[-1] > 8 + 3 * pending:
                    cuts, pending = [*cuts, n], 0
                pending += 1
            for begin, end in zip(cuts, [*cuts[1:], after]):
                left = self.about() if name == "docstring" else self.notes(begin, end - 1, name)
                place = f' id="{name}"' if name and begin == first else ""
                left = f'<section class="row"{place}><div class="notes">{left}</div>'
                rows.append(f"{left}{self.source(begin, end - 1)}</section>")
        return page(f"{self.name}.py", self.title, "".join(rows), self.name)


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="stylesheet" href="style.css"></head><body><a class="skip" href="#top">skip the menu</a>
<nav aria-label="pages">{menu}</nav>
<main id="top"><h1>{title} <small>{more}</small></h1>{body}</main></body></html>
"""


def page(title: str, more: str, body: str, name: str) -> str:
    """A whole page around its body."""
    menu = "".join(link(f"{n}.html", n) for n in ["index", *NAMES, "equations", "symbols"])
    menu = menu.replace(f'href="{name}.html"', f'href="{name}.html" aria-current="page"')
    return PAGE.format(title=title, menu=menu, more=more, body=body)


def diff_page(x: str, y: str, what: str, missing: list[str]) -> str:
    """Two scripts side by side: their hunks, each under the sentence that says what it means."""
    left, right, hunks, parts = SCRIPTS[x], SCRIPTS[y], [], []
    matcher = difflib.SequenceMatcher(None, left.lines, right.lines, autojunk=False)
    codes = [code[1:] for code in matcher.get_opcodes() if code[0] != "equal"]
    for code in codes:  # two lines between two changes belong to both
        near = hunks and code[0] - hunks[-1][-1][1] <= 2
        hunks = [*hunks[:-1], [*hunks[-1], code]] if near else [*hunks, [code]]
    for hunk in hunks:
        changed = "\n".join(line for a, b, c, d in hunk for line in left.lines[a:b] + right.lines[c:d])
        tables = SAYS.get(f"{x}-{y}", {}), SAYS["all"]
        says = next(filter(None, ([text for key, text in says.items() if key in changed] for says in tables)), [])
        place = right.block(hunk[0][2] + 1) or left.block(hunk[0][0] + 1) or "imports"
        missing += [] if says else [f"{x}-{y}, {place}: {changed.strip().splitlines()[0].strip()[:80]}"]
        cells, before = "", hunk[0][0]
        for a, b, c, d in hunk:
            if before < a:
                cells += left.source(before + 1, a, "both") + right.source(c - a + before + 1, c, "again")
            cells, before = cells + left.source(a + 1, b, "out") + right.source(c + 1, d, "in"), b
        at = link(f"{x}.html#L{hunk[0][0] + 1}", x) + " " + link(f"{y}.html#L{hunk[0][2] + 1}", y)
        head = f"<h2>{' '.join(says) or f'In {place}.'} <small><code>{place}</code> {at}</small></h2>"
        parts.append(f'<section class="hunk">{head}<div class="two">{cells}</div></section>')
    count = f"{sum(b - a + d - c for a, b, c, d in codes)} changed lines in {len(codes)} hunks"
    return page(f"{x} / {y}", f"{what}: {count}; left {x}.py, right {y}.py", "".join(parts), f"{x}-{y}")


def equations_page() -> str:
    """All equations of the papers that are cited, and every line that cites each."""
    parts = []
    for short, paper in PAPERS.items():
        if any(key[0] == short for script in SCRIPTS.values() for _, key in script.cites):
            head = f"<h2>{short} <small><em>{paper['title']}</em>, {arxiv(paper)}</small></h2>"
            parts.append(f"{head}<p>{paper['note']}</p>")
            for key in (key for key in EQUATIONS if key[0] == short):
                rows = ""
                for script in SCRIPTS.values():
                    lines = {n: f"{n} <small>{script.block(n)}</small>" for n, cited in script.cites if cited == key}
                    at = " ".join(link(f"{script.name}.html#L{n}", text) for n, text in lines.items())
                    rows += f"<li>{script.name}: {at}</li>" if at else ""
                cited = f'<ul class="at">{rows}</ul>' if rows else "<p>Background: no line computes it.</p>"
                place = f' id="{anchor(key)}"'
                parts.append(f'<section class="pair">{card(key, place)}{cited}</section>')
    return page("Equations", "and every line that cites them", "".join(parts), "equations")


def symbols_page() -> str:
    """All symbols, their names in the code, shapes, meaning."""
    known = [s for s in SYMBOLS if set(s.get("only", NAMES)) & set(NAMES)]
    rows = [(math(s["latex"]), f"<code>{', '.join(s['names'])}</code>", s["shape"], s["says"]) for s in known]
    rows = "".join(f"<tr><td>{'<td>'.join(row)}" for row in rows)
    sizes = ("B batch, T time, H horizon, N start states, A actions, D deter, S groups, K classes, F = D + S*K, "
             "E embedding, C channels, O sensors; time comes first")  # fmt: skip
    return page("Symbols", sizes, f"<table><tr><th>paper<th>code<th>shape or value<th>meaning{rows}</table>", "symbols")


def tables() -> dict[Path, str]:
    """The pages of docs/ with their equation tables written anew."""
    rows = {}
    for (_, number), eq in EQUATIONS.items():
        for place, what in eq.get("code", {}).items():
            file, function = place.split()
            path = DOCS / file.replace("world_model.py", "ditto.py").replace(".py", ".md")
            rows[path] = rows.get(path, "") + f"| {number} | {file} | {function} | {what} |\n"
    pattern = r"(?<=\|---\|---\|---\|---\|\n)(\| Eq\. .*\n)+"
    return {path: re.sub(pattern, lambda _: rows[path], path.read_text(), count=1) for path in rows if path.exists()}


SCRIPTS = {name: Script(name) for name in NAMES}
for script in SCRIPTS.values():
    script.html = script.colour()


def main() -> None:
    missing: list[str] = []
    rows = [(link(f"{s.name}.html", f"{s.name}.py"), len(s.lines), s.title) for s in SCRIPTS.values()]
    scripts = "".join(f"<li>{where} <small>{count} lines</small> {text}</li>" for where, count, text in rows)
    diffs = "".join(f"<li>{link(f'{x}-{y}.html', f'{x} / {y}')} {what}</li>" for x, y, what in DIFFS)
    start = (DOCS / "read_index.html").read_text().replace("<!-- scripts -->", scripts).replace("<!-- diffs -->", diffs)
    pages = {"index": page("Read the code beside the paper", "", start, "index")}
    pages |= {"equations": equations_page(), "symbols": symbols_page()}
    pages |= {name: script.page() for name, script in SCRIPTS.items()}
    pages |= {f"{x}-{y}": diff_page(x, y, what, missing) for x, y, what in DIFFS}
    texts = {OUT / f"{name}.html": text for name, text in pages.items()} | tables()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    gone = [path for path in OUT.glob("*.html") if path not in texts]
    print("".join(f"docs/diffs.toml has no sentence for {place}\n" for place in missing), end="")
    if "--check" in sys.argv and stale + gone:
        sys.exit(f"older than their source: {', '.join(path.name for path in stale + gone)}. Run python docs/read.py.")
    if "--check" not in sys.argv:
        [path.unlink() for path in gone], [path.write_text(texts[path]) for path in stale]
    print(f"{len(texts)} files, {sum(map(len, texts.values())) / 1e6:.2f} MB, {len(stale + gone)} changed")


if __name__ == "__main__":
    main()
