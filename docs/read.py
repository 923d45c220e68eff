"""Write docs/read/: each script beside the equations it computes, static pages that need no JavaScript and no network.

    pip install -r requirements-docs.txt
    python docs/read.py            write the pages, and the equation tables of docs/*.md
    python docs/read.py --check    fail if one of them is older than its source

Sources: the scripts as they are; equations/, a file per paper; diffs.toml, what the hunks mean; read_index.html, the
student's path; read_page.html and read.css, the look. A script of ORDER, a diff of the README or an equation that is
added is picked up.
"""

import ast
import difflib
import re
import sys
import tomllib
from collections import defaultdict
from html import escape
from itertools import groupby
from pathlib import Path

from latex2mathml.converter import convert
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES, Comment, Keyword, Name, Number, Operator, String

DOCS = Path(__file__).resolve().parent
ROOT, OUT = DOCS.parent, DOCS / "read"
ORDER = ["world_model", "ditto", "d_gail", "d_bc", "bc_pixels", "aime", "aime_atari", "bco", "cmil"]  # the model first
NAMES = [name for name in ORDER if (ROOT / f"{name}.py").exists()]
TOML = {path.stem: tomllib.loads(path.read_text()) for path in sorted((DOCS / "equations").glob("*.toml"))}
SYMBOLS, SAYS = TOML.pop("symbols"), tomllib.loads((DOCS / "diffs.toml").read_text())
PAPERS = {paper["short"]: paper for paper in sorted(TOML.values(), key=lambda paper: paper["arxiv"])}
EQUATIONS = {(short, eq["number"]): eq for short, paper in PAPERS.items() for eq in paper["equation"]}
README = re.findall(r"^diff (\w+)\.py (\w+)\.py +# (.*)$", (ROOT / "README.md").read_text(), re.M)
DIFFS = {f"{x}-{y}": (x, y, what) for x, y, what in README if x in NAMES and y in NAMES}
COLOURED = [Comment, Keyword, Operator.Word, String.Doc, String, Number, Name.Function, Name.Class, Name.Builtin]
CITED = re.compile(r"(Eq\. |Alg\. |[Aa]lgorithm )(?:\d+(?:, | and | to ))*\d+(?= of (\w+)|)")
STEP = re.compile(r"  \((\d+)\) (.*?)(?: +(?:Eq|Alg)\..*| {2,}.*)`([\w.]+)`$")
MARK = re.compile(r"\((\d+)\)(?:(?= to \((\d+)\))|)")
SCRIPTS: dict[str, "Script"] = {}


def link(where: str, text: str) -> str:
    return f'<a href="{where}">{text}</a>'


def anchor(key: tuple[str, str]) -> str:
    return "-".join(key).lower().replace(". ", "-")


def math(latex: str, display: str = "inline") -> str:
    """MathML of a formula."""
    text = convert(latex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return text.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation, with its space


def card(key: tuple[str, str], brief: bool = False) -> str:
    """An equation: number, formulas, a line of meaning, and what the code computes if that is something else."""
    eq, parts = EQUATIONS[key], {}
    for part in ("latex", "ours"):
        parts[part] = "".join(f"<div>{math(line, 'block')}</div>" for line in eq.get(part, []))
    version = eq.get("version", PAPERS[key[0]]["version"]) + (f" [{eq['old']}]" if "old" in eq else "")
    name = link(f"equations.html#{anchor(key)}", " ".join(key))
    text = f'<div class="ms">{parts["latex"]}</div><h3>{name} <small>{version}</small></h3>'
    if not brief:
        text += f"<p>{eq['says']}</p>"
        ours = f'<div class="ms">{parts["ours"]}</div><p><em>differs:</em> {eq.get("ours_says")}</p>'
        text += f'<div class="ours">{ours}</div>' if "ours" in eq else ""
    return f'<div class="eq">{text}</div>'


def about(paper: dict) -> str:
    """Title and number of a paper, and what its equations were checked against."""
    where = f"https://arxiv.org/abs/{paper['arxiv']}{paper['version']}"
    name = link(where, f"arXiv {paper['arxiv']} {paper['version']}".strip())
    return f"<p><em>{paper['title']}</em>, {name}. {paper['note']} {paper['checked']}</p>"


def page(name: str, title: str, more: str, body: str) -> str:
    """A whole page around its body."""
    menu = "".join(link(f"{n}.html", n) for n in ["index", *NAMES, "equations"])
    menu = menu.replace(f'href="{name}.html"', f'href="{name}.html" aria-current="page"')
    return (DOCS / "read_page.html").read_text().format(title=title, menu=menu, more=more, body=body)


class Script:
    """A script: the block that each line is in, steps, citations, departures, and its lines as HTML."""

    def __init__(self, name: str):
        self.name, self.text = name, (ROOT / f"{name}.py").read_text()
        self.lines, tree = ["", *self.text.splitlines()], ast.parse(self.text)  # counted from 1
        self.title = ast.get_docstring(tree).splitlines()[0]
        named = {self.text.find(paper["arxiv"]): short for short, paper in PAPERS.items()}
        self.paper = named[min(named.keys() - {-1})]  # the first that the docstring names
        docstring = range(tree.body[0].lineno, tree.body[0].end_lineno + 1)
        self.block, self.where = defaultdict(str, dict.fromkeys(docstring, "docstring")), {}
        for top in tree.body:
            if isinstance(top, ast.ImportFrom) and top.module in NAMES:
                self.where |= {alias.name: f"{top.module}.html#{alias.name}" for alias in top.names}
            for node in [top, *(top.body if isinstance(top, ast.ClassDef) else [])]:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "__init__":
                    block = node.name if node is top else f"{top.name}.{node.name}"
                    first = min(part.lineno for part in [node, *node.decorator_list])
                    while self.lines[first - 1].startswith("#"):
                        first -= 1
                    self.block |= dict.fromkeys(range(first, node.end_lineno + 1), block)
                    self.where[block] = f"{name}.html#{block}"
        self.steps, self.marks, self.first, self.shared, others = {}, defaultdict(list), {}, {}, []
        for n, line in enumerate(self.lines):
            others = line[15:-4].split(", ") if line.startswith("# --- same in: ") else others
            self.shared[n] = others = [] if line == "# --- end ---" else others
            if self.block[n] == "docstring":
                self.steps |= {int(step[1]): (n, step[2], step[3]) for step in STEP.finditer(line)}
            for mark in MARK.finditer(line.partition("# ")[2]):
                self.marks[n] += [k for k in self.steps if int(mark[1]) <= k <= int(mark[2] or mark[1])]
            if len(self.marks[n]) < 4:  # else all steps meet in a line
                self.first = dict.fromkeys(self.marks[n], n) | self.first
        self.html, self.words, self.cites, self.departs = defaultdict(str), defaultdict(set), [], {}
        self.colour()

    def colour(self) -> None:
        """HTML of every line, in Pygments' classes, with links."""
        model = SCRIPTS.get("world_model", self).where.items()
        places = {x.replace("WorldModel", who): y for x, y in model for who in ("model", "self")} | self.where
        n, before = 1, ["", ""]
        for kind, text in PythonLexer(stripnl=False, ensurenl=False).get_tokens(self.text):
            css = next((STANDARD_TYPES[group] for group in COLOURED if kind in group), "")
            for k, part in enumerate(text.split("\n")):
                n, html = n + (k > 0), escape(part, quote=False)
                if kind in Comment or kind in String.Doc:
                    html = self.prose(n, html)
                elif kind in Name:
                    self.words[n].add(part)
                    meant = f"{before[0]}.{part}" if before[1] == "." else part
                    html = link(places[meant], html) if kind is Name and meant in places else html
                self.html[n] += f'<span class="{css}">{html}</span>' if css and part else html
            before = [before[1], text] if text.strip() else before

    def prose(self, n: int, text: str) -> str:
        """A line of a docstring or comment, its equations, steps and names linked; note whether it is a departure."""
        inside = self.block[n] == "docstring"

        def cite(match: re.Match) -> str:  # of the paper that is named; in a block of ditto.py's DITTO; the script's
            named = [match[2], *re.findall(r"\w+", match.string[: match.start()])[-1:]]
            usual = "DITTO" if "ditto" in self.shared[n] else self.paper
            paper, parts = next((x for x in named if x in PAPERS), usual), re.split("(, | and | to )", match[0])
            for i in range(0, len(parts), 2):
                key = paper, f"{'Eq' if match[1] == 'Eq. ' else 'Alg'}. {parts[i].split()[-1]}"
                if key in EQUATIONS:
                    self.cites.append((n, key))
                    parts[i] = link(f"equations.html#{anchor(key)}", parts[i])
                elif match[1] == "Eq. ":
                    sys.exit(f"{self.name}.py, line {n}: {' '.join(key)} is not in docs/equations.")
            return "".join(parts)

        starts, going = re.search(r"[Dd]iffer(s|ences) from|our choice", text), self.departs.get(n - 1) == "on"
        if starts or going and text.strip(' "'):  # to the end of the sentence, in the docstring of the paragraph
            self.departs[n] = "end" if not inside and re.search(r'[.:;]"*$', text) else "on"
        places = {f"({k})": f"{self.name}.html#step-{k}" for k in self.steps}
        if inside:
            places |= {f"({k})": self.where[step[2]] for k, step in self.steps.items()}
            places |= {f"({k})": f"{self.name}.html#L{first}" for k, first in self.first.items()}
        places |= {f"`{name}`": place for name, place in self.where.items()}
        pattern = r"\(\d+\)|`[\w.]+`"
        return re.sub(pattern, lambda m: link(places[m[0]], m[0]) if m[0] in places else m[0], CITED.sub(cite, text))

    def source(self, first: int, last: int, kind: str = "") -> str:
        """Lines first to last as HTML, on their own page or, if they are of a kind, elsewhere."""
        rows = []
        for n in range(first, last + 1):
            mark = "".join(f'<b id="step-{k}">{k}</b>' for k, step in self.steps.items() if step[0] == n)
            mark += f"<b>{self.marks[n][0] if len(self.marks[n]) == 1 else '⋮'}</b>" if self.marks[n] else ""
            head = f'class="ln{" differs" * (n in self.departs)}" data-n="{n}"' + f' id="L{n}"' * (not kind)
            indent = len(self.lines[n]) - len(self.lines[n].lstrip()) + 2  # where a long line goes on
            rows.append(f'<div {head} style="--i:{indent}">{mark * (not kind)}{self.html[n] or "<br>"}</div>')
        return f'<div class="src {kind}">{"".join(rows)}</div>'

    def notes(self, first: int, last: int, shown: set) -> str:
        """What stands left of the lines first to last of a block; what was shown before is shown without its text."""
        name, lines, out = self.block[first], range(first, last + 1), []
        steps = {k for n in lines for k in self.marks[n]}
        marked = {k for k, n in self.first.items() if self.block[n] == name}
        steps |= {k for k, step in self.steps.items() if step[2] == name and k not in marked and name not in shown}
        keys = [key for n, key in self.cites if n in lines and name != "Args"]
        for k in sorted(steps):
            row, text, where = self.steps[k]
            pill, at = link(f"#step-{k}", str(k)), f" <code>{link(self.where[where], where)}</code>"
            keys += [key for n, key in self.cites if n == row and len(steps) < 4]
            out.append(f'<p class="step">{pill} {escape(text)}{at * (where not in ("main", name))}</p>')
        if len(steps) > 3:  # a line where most steps meet
            out = [f'<p class="step">{"".join(link(f"#step-{k}", str(k)) for k in sorted(steps))}</p>']
        out += [card(key, key in shown) for key in dict.fromkeys(keys)]
        words = set().union(*(self.words[n] for n in lines)) if out or name == "Args" else set()
        called = "args" if name == "Args" else "names"
        known = [s for s in SYMBOLS["symbol"] if self.name in s.get("only", NAMES) and words & set(s.get(called, []))]
        known = [s for s in known if (name, s["latex"]) not in shown]
        shown |= {name, *keys, *((name, s["latex"]) for s in known)}
        rows = [(math(s["latex"]), next(x for x in s[called] if x in words), s["shape"]) for s in known]
        items = "".join(f"<li>{x} <code>{code}</code> <small>{shape}</small></li>" for x, code, shape in rows)
        out += [f'<ul class="sym" aria-label="symbols">{items}</ul>'] if items else []
        return "".join(out)

    def page(self) -> str:
        """The script, right, and what belongs to it, left."""
        pairs = [(link(f"{pair}.html", pair), what) for pair, (x, y, what) in DIFFS.items() if self.name in (x, y)]
        diffs = "".join(f"<li>{pair}: {what}</li>" for pair, what in pairs)
        top = f"{about(PAPERS[self.paper])}{SYMBOLS['key']}<ul>{diffs}</ul>"
        parts, shown, places = [], set(), {""}
        for name, group in groupby(range(1, len(self.lines)), self.block.__getitem__):
            lines, rows = list(group), []
            cuts = [n for n in lines if n == lines[0] or self.marks[n]]
            for begin, end in zip(cuts, [*cuts[1:], lines[-1] + 1]):
                left = top if name == "docstring" else self.notes(begin, end - 1, shown)
                rows.append(f'<div class="notes">{left}</div>' * bool(left) + self.source(begin, end - 1))
            place = "" if name in places else f' id="{name}"'
            parts.append(f"<section{place}>{''.join(rows)}</section>")
            places.add(name)
        return page(self.name, f"{self.name}.py", self.title, f'<div class="script">{"".join(parts)}</div>')


def diff_page(pair: str) -> str:
    """Two scripts side by side: their hunks, each under the sentence that says what it means."""
    (x, y, what), parts, count = DIFFS[pair], [], 0
    left, right = SCRIPTS[x], SCRIPTS[y]
    for hunk in difflib.SequenceMatcher(None, left.lines, right.lines, autojunk=False).get_grouped_opcodes(1):
        cells, changed = "", []
        for tag, a, b, c, d in hunk:
            kinds = ("both", "again") if tag == "equal" else ("out", "in")
            cells += left.source(a, b - 1, kinds[0]) + right.source(c, d - 1, kinds[1])
            changed += left.lines[a:b] + right.lines[c:d] if tag != "equal" else []
        says = " ".join(text for key, text in SAYS.get(pair, {}).items() if key in "\n".join(changed))
        a, c = next((a, c) for tag, a, _, c, _ in hunk if tag != "equal")
        place, count = right.block[c] or left.block[a] or "imports", count + len(changed)
        if not says:
            print(f"docs/diffs.toml has no sentence for {pair}, {place}: {' '.join(changed).strip()[:80]}")
        at = link(f"{x}.html#L{a}", x) + " " + link(f"{y}.html#L{c}", y)
        head = f"<h2>{says or f'In {place}.'} <small><code>{place}</code> {at}</small></h2>"
        parts.append(f'<section class="hunk">{head}<div class="two">{cells}</div></section>')
    more = f"{what}: {count} changed lines in {len(parts)} places; left {x}.py, right {y}.py"
    return page(pair, f"{x} / {y}", more, "".join(parts))


def equations_page() -> str:
    """All equations of the papers that are cited, and every line that cites each."""
    cites, parts = {key: defaultdict(dict) for key in EQUATIONS}, []
    for script in SCRIPTS.values():
        for n, key in script.cites:
            cites[key][script.name][n] = link(f"{script.name}.html#L{n}", f"{n} <small>{script.block[n]}</small>")
    for (short, number), lines in cites.items():
        if number == PAPERS[short]["equation"][0]["number"]:
            parts.append(f"<h2>{short}</h2>{about(PAPERS[short])}")
        rows = "".join(f"<li>{name}: {' '.join(at.values())}</li>" for name, at in lines.items())
        rows = f'<ul class="at">{rows or "<li>Background: no line computes it.</li>"}</ul>'
        key = short, number
        parts.append(f'<section class="pair" id="{anchor(key)}">{card(key)}{rows}</section>')
    return page("equations", "Equations", "and every line that cites them", "".join(parts))


def index_page() -> str:
    """The student's path, with the lists of scripts, diffs and symbols in it."""
    text = (DOCS / "read_index.html").read_text()
    rows = [f"<li>{link(f'{s.name}.html', f'{s.name}.py')} {s.title}</li>" for s in SCRIPTS.values()]
    text = text.replace("<!-- scripts -->", "".join(rows))
    rows = [f"<li>{link(f'{pair}.html', pair)} {what}</li>" for pair, (_, _, what) in DIFFS.items()]
    text = text.replace("<!-- diffs -->", "".join(rows))
    known = [s for s in SYMBOLS["symbol"] if set(s.get("only", NAMES)) & set(NAMES)]
    names = [", ".join(dict.fromkeys(s["names"] + s.get("args", []))) for s in known]
    rows = [(math(s["latex"]), f"<code>{code}</code>", s["shape"], s["says"]) for s, code in zip(known, names)]
    text = text.replace("<!-- symbols -->", "".join(f"<tr><td>{'<td>'.join(row)}" for row in rows))
    return page("index", "Read the code beside the paper", "", text)


def tables() -> dict[Path, str]:
    """The pages of docs/ with their equation tables written anew."""
    rows = defaultdict(str)
    for (_, number), eq in EQUATIONS.items():
        for place, what in eq.get("code", {}).items():
            file, function = place.split()
            path = DOCS / file.replace("world_model.py", "ditto.py").replace(".py", ".md")
            rows[path] += f"| {number} | {file} | {function} | {what} |\n"
    pattern = r"(?<=\|---\|---\|---\|---\|\n)(\| Eq\. .*\n)+"
    return {path: re.sub(pattern, lambda _: rows[path], path.read_text(), count=1) for path in rows if path.exists()}


def main() -> None:
    for name in NAMES:
        SCRIPTS[name] = Script(name)
    pages = {"index": index_page(), "equations": equations_page()}
    pages |= {name: script.page() for name, script in SCRIPTS.items()} | {pair: diff_page(pair) for pair in DIFFS}
    texts = {OUT / f"{name}.html": text for name, text in pages.items()} | tables()
    styles = [HtmlFormatter(style=name).get_token_style_defs(".src") for name in ("xcode", "native")]
    colours = [*styles[0], "@media screen and (prefers-color-scheme: dark) {", *styles[1], "}\n"]
    texts[OUT / "style.css"] = (DOCS / "read.css").read_text() + "\n".join(colours)
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    gone = [path for path in OUT.glob("*.html") if path not in texts]
    if "--check" in sys.argv and stale + gone:
        sys.exit(f"older than their source: {', '.join(path.name for path in stale + gone)}. Run python docs/read.py.")
    for path in stale + gone:
        path.write_text(texts[path]) if path in texts else path.unlink()
    print(f"{len(texts)} files, {sum(map(len, texts.values())) / 1e6:.2f} MB, {len(stale + gone)} changed")


if __name__ == "__main__":
    main()
