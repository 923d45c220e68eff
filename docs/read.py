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
from itertools import groupby
from pathlib import Path

from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

DOCS = Path(__file__).resolve().parent
ROOT, OUT = DOCS.parent, DOCS / "read"
ORDER = ["world_model", "ditto", "d_gail", "d_bc", "bc_pixels", "aime", "aime_atari", "bco", "cmil"]  # the model first
NAMES = [name for name in ORDER if (ROOT / f"{name}.py").exists()]
TOML = {path.stem: tomllib.loads(path.read_text()) for path in sorted((DOCS / "equations").glob("*.toml"))}
SYMBOLS, SAYS = TOML.pop("symbols"), tomllib.loads((DOCS / "diffs.toml").read_text())
PAPERS = {paper["short"]: paper for paper in sorted(TOML.values(), key=lambda paper: paper["arxiv"])}
EQUATIONS = {f"{of['short']} {eq['number']}": eq | {"of": of} for of in PAPERS.values() for eq in of["equation"]}
README = re.findall(r"^diff (\w+)\.py (\w+)\.py +# (.*)$", (ROOT / "README.md").read_text(), re.M)
DIFFS = {f"{x}-{y}": (x, y, what) for x, y, what in README if x in NAMES and y in NAMES}
COLOURED = ("c", "k", "ow", "s", "m", "nf", "nc", "nb")  # Pygments' comments, keywords, strings, numbers, definitions
CITED = re.compile(r"(Eq\. |Alg\. |[Aa]lgorithm )(?:\d+(?:, | and | to ))*\d+(?= of (\w+)|)")
STEP = re.compile(r"  \((\d+)\) (.*?)(?: +(?:Eq|Alg)\..*| {2,}.*)`([\w.]+)`$")
SCRIPTS: dict[str, "Script"] = {}


def link(where: str, text: str) -> str:
    return f'<a href="{where}">{text}</a>'


def cited(key: str, text: str) -> str:
    """Link to an equation on the page of all."""
    return link(f"equations.html#{key.lower().replace('. ', '-').replace(' ', '-')}", text)


def math(latex: str, display: str = "inline") -> str:
    """MathML of a formula."""
    text = convert(latex, display=display).replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")
    return text.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # a relation, with its space


def card(key: str, brief: bool = False) -> str:
    """An equation: number, formulas, a line of meaning, and what the code computes if that is something else."""
    eq = EQUATIONS[key]
    shown, ours = ("".join(f"<div>{math(line, 'block')}</div>" for line in eq.get(k, [])) for k in ("latex", "ours"))
    version = eq.get("version", eq["of"]["version"]) + (f" [{eq['old']}]" if "old" in eq else "")
    text = f'<div class="ms">{shown}</div><h3>{cited(key, key)} <small>{version}</small></h3>'
    text += "" if brief else f"<p>{eq['says']}</p>"
    if ours:
        more = "" if brief else f"<p><em>differs:</em> {eq['ours_says']}</p>"
        text += f'<div class="ours"><div class="ms">{ours}</div>{more}</div>'
    return f'<div class="eq">{text}</div>'


def about(paper: dict) -> str:
    """Title and number of a paper, and what its equations were checked against."""
    version = f"{paper['arxiv']} {paper['version']}".strip()
    name = link(f"https://arxiv.org/abs/{version.replace(' ', '')}", f"arXiv {version}")
    return f"<p><em>{paper['title']}</em>, {name}. {paper['note']} {paper['checked']}</p>"


def page(name: str, title: str, more: str, body: str) -> str:
    """A whole page around its body."""
    menu = "".join(link(f"{n}.html", n) for n in ["index", *NAMES, "equations"])
    menu = menu.replace(f'href="{name}.html"', f'href="{name}.html" aria-current="page"')
    return (DOCS / "read_page.html").read_text().format(title=title, menu=menu, more=more, body=body)


class Script:
    """A script: its lines as HTML, the block that each is in, steps, citations, departures from the paper."""

    def __init__(self, name: str):
        self.name, text = name, (ROOT / f"{name}.py").read_text()
        self.lines, tree = ["", *text.splitlines()], ast.parse(text)  # counted from 1
        self.title = ast.get_docstring(tree).splitlines()[0]
        self.paper = min(PAPERS, key=lambda short: text.find(PAPERS[short]["arxiv"]) % len(text))  # the first named
        self.block, self.where = defaultdict(str, dict.fromkeys(range(1, tree.body[0].end_lineno + 1), "docstring")), {}
        for top in tree.body:
            if isinstance(top, ast.ImportFrom) and top.module in NAMES:
                self.where |= {alias.name: f"{top.module}.html#{alias.name}" for alias in top.names}
            for node in [top, *getattr(top, "body", [])]:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "__init__":
                    block = node.name if node is top else f"{top.name}.{node.name}"
                    first = min(part.lineno for part in [node, *node.decorator_list])
                    self.block |= dict.fromkeys(range(first, node.end_lineno + 1), block)
                    self.where[block] = f"{name}.html#{block}"
        self.own = defaultdict(set)  # parameters and variables, which mean no function of the same name
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                parts = [part for part in ast.walk(node) if isinstance(getattr(part, "ctx", part), ast.Store | ast.arg)]
                for n in range(node.lineno, node.end_lineno + 1):
                    self.own[n] |= {getattr(part, "arg", getattr(part, "id", "")) for part in parts}
        self.steps = {int(m[1]): (n, m[2], m[3]) for n, line in enumerate(self.lines) if (m := STEP.match(line))}
        self.marks, self.cites, self.departs = defaultdict(list), [], {}
        for n, line in enumerate(self.lines):
            for a, b in re.findall(r"\((\d+)\)(?: to \((\d+)\))?", line.partition("# ")[2]):
                self.marks[n] += [k for k in self.steps if int(a) <= k <= int(b or a)]
        for k, (_, _, place) in self.steps.items():  # a step that no comment marks begins with its function
            if not any(k in marks and f"{self.block[n]}.".startswith(f"{place}.") for n, marks in self.marks.items()):
                self.marks[next((n for n in sorted(self.block) if self.block[n] == place), 0)] += [k]
        self.first = {k: min(n for n in self.marks if k in self.marks[n]) for k in self.steps}
        models = SCRIPTS.get("world_model", self).where | self.where  # a Model of the script's own adds to WorldModel
        self.names = {re.sub(r"^(World)?Model\.", "model.", x): y for x, y in models.items()} | self.where
        html = highlight(text, PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True)).split("\n")
        token = r'<span class="(\w+)">(.*?)</span>'
        self.html = [re.sub(token, lambda m, n=n: self.token(n, m), line) for n, line in enumerate(["", *html])]

    def token(self, n: int, match: re.Match) -> str:
        """A token of line n in its colour, or linked to where its name is defined."""
        kind, text = match.groups()
        if kind in ("c1", "sd"):
            text = self.prose(n, text)
        elif kind == "n":
            owner = re.search(r'(\w*)(?:</span>)?<span class="o">\.</span>$', match.string[: match.start()])
            name = f"{owner[1]}.{text}" if owner else text
            name = re.sub(r"^(World)?Model\.", "model.", re.sub(r"^self(?=\.)", self.block[n].split(".")[0], name))
            own = not owner and (text in self.own[n] or match.string[match.end() :].startswith('<span class="o">='))
            return link(self.names[name], text) if name in self.names and not own else text
        return f'<span class="{kind}">{text}</span>' if kind.startswith(COLOURED) else text

    def prose(self, n: int, text: str) -> str:
        """Docstring or comment with its equations, steps and names linked; note whether it is a departure."""
        inside = self.block[n] == "docstring"

        def cite(match: re.Match) -> str:  # of the paper that is named beside it, or of the script's
            named = [match[2], *re.findall(r"\w+", match.string[: match.start()])[-1:], self.paper]
            start = f"{next(x for x in named if x in PAPERS)} {'Eq.' if match[1] == 'Eq. ' else 'Alg.'} "
            keys = {number: start + number.split()[-1] for number in re.findall(r"(?:\b[A-Z].*?)?\d+", match[0])}
            self.cites += [(n, key) for key in keys.values() if key in EQUATIONS]
            if lost := [key for key in keys.values() if key not in EQUATIONS and " Eq. " in key]:
                sys.exit(f"{self.name}.py, line {n}: {lost[0]} is not in docs/equations.")
            links = {number: cited(key, number) for number, key in keys.items() if key in EQUATIONS}
            return re.sub(r"(?:\b[A-Z].*?)?\d+", lambda m: links.get(m[0], m[0]), match[0])

        going = self.departs.get(n - 1) == "on" and re.search(r"\w", text)
        if going or re.search(r"[Dd]iffer(s|ences) from|our choice", text):
            alone = text[0] != "#" or self.lines[n + 1 : n + 2] and self.lines[n + 1].lstrip().startswith("#")
            ends = not inside and (re.search(r"[.:;](&quot;)*$", text) or not alone)  # the head: a paragraph
            self.departs[n] = "end" if ends else "on"
        places = {f"({k})": f"{self.name}.html#" + (f"L{self.first[k]}" if inside else f"step-{k}") for k in self.steps}
        places |= {f"`{name}`": place for name, place in self.where.items()}
        files = lambda m: link(f"../../{m[0]}", m[0]) if (ROOT / m[0]).exists() else m[0]  # noqa: E731
        known = lambda m: link(places[m[0]], m[0]) if m[0] in places else m[0]  # noqa: E731
        text = re.sub(r"\(\d+\)|`[\w.]+`", known, CITED.sub(cite, text))
        return re.sub(r"\b(docs/\w+\.md|(control|dmc|collect_data)\.py)\b", files, text)

    def source(self, first: int, last: int, kind: str = "") -> str:
        """Lines first to last as HTML, on their own page or, if they are of a kind, elsewhere."""
        rows = ""
        for n in range(first, last + 1):
            mark = "".join(f'<b id="step-{k}">{k}</b>' for k, step in self.steps.items() if step[0] == n)
            mark += f"<b>{self.marks[n][0] if len(self.marks[n]) == 1 else '⋮'}</b>" if self.marks[n] else ""
            head = f'class="ln{" differs" * (n in self.departs)}" data-n="{n}"' + f' id="L{n}"' * (not kind)
            indent = len(self.lines[n]) - len(self.lines[n].lstrip()) + 2  # where a long line goes on
            rows += f'<div {head} style="--i:{indent}">{mark * (not kind)}{self.html[n] or "<br>"}</div>'
        return f'<div class="src {kind}">{rows}</div>'

    def notes(self, first: int, last: int, shown: set) -> str:
        """What stands left of the lines first to last of a block; what was shown before is shown without its text."""
        name, lines, out = self.block[first], range(first, last + 1), ""
        steps = sorted({k for n in lines for k in self.marks[n]})
        rows = {self.steps[k][0] for k in steps if k not in shown or len(steps) == 1}
        keys = dict.fromkeys(key for n, key in self.cites if (n in lines or n in rows) and name != "Args")
        for k in steps:
            _, text, place = self.steps[k]
            text += f" <code>{link(self.where[place], place)}</code>" * (place not in ("main", name))
            out += f'<p class="step">{link(f"#step-{k}", str(k))} {text}</p>' * (k not in shown)
        again = "".join(link(f"#step-{k}", str(k)) for k in steps if k in shown)
        out += f'<p class="step">{again}</p>' * bool(again)
        out += "".join(card(key, key in shown) for key in keys)
        code = re.sub(r'"""(.|\n)*?"""|"[^"\n]*"|#.*', "", "\n".join(self.lines[first : last + 1]))
        words = set(re.findall(r"(?:\b(?:args|game)\.)?\b\w+\b(?!=[^=])", code)) if out or name == "Args" else set()
        rows = ""
        for s in SYMBOLS["symbol"]:
            args = s.get("args", [])
            known = args if name == "Args" else [*s["names"], *(f"args.{x}" for x in args)]
            code = next((x for x in known if x in words and self.name in s.get("only", NAMES)), "")
            if code and (name, s["latex"]) not in shown:
                rows += f"<li>{math(s['latex'])} <code>{code}</code> <small>{s['shape']}</small></li>"
                shown.add((name, s["latex"]))
        shown |= {*steps, *keys}
        return out + (f'<ul class="sym" aria-label="symbols">{rows}</ul>' if rows else "")

    def page(self) -> str:
        """The script, right, and what belongs to it, left."""
        diffs = [f"<li>{link(f'{p}.html', p)}: {what}</li>" for p, (x, y, what) in DIFFS.items() if self.name in (x, y)]
        more = link(f"../{self.name}.md", f"docs/{self.name}.md: usage, details, results")
        top = f"{about(PAPERS[self.paper])}<p>{more}</p>{SYMBOLS['key']}<ul>{''.join(diffs)}</ul>"
        body, shown, places = "", set(), {""}
        for name, group in groupby(range(1, len(self.lines)), self.block.__getitem__):
            lines, text = list(group), ""
            cuts = [n for n in lines if n == lines[0] or self.marks[n]]
            for begin, end in zip(cuts, [*cuts[1:], lines[-1] + 1]):
                left = top if name == "docstring" else self.notes(begin, end - 1, shown)
                text += f'<div class="notes">{left}</div>' * bool(left) + self.source(begin, end - 1)
            body += f"<section{f' id={chr(34)}{name}{chr(34)}' * (name not in places)}>{text}</section>"
            places.add(name)
        return page(self.name, f"{self.name}.py", self.title, f'<div class="script">{body}</div>')


def diff_page(pair: str) -> str:
    """Two scripts side by side: their hunks, each under the sentence that says what it means."""
    (x, y, what), body, count = DIFFS[pair], "", 0
    left, right = SCRIPTS[x], SCRIPTS[y]
    hunks = list(difflib.SequenceMatcher(None, left.lines, right.lines, autojunk=False).get_grouped_opcodes(1))
    for hunk in hunks:
        cells, changed = "", []
        for tag, a, b, c, d in hunk:
            kinds = ("both", "again") if tag == "equal" else ("out", "in")
            cells += left.source(a, b - 1, kinds[0]) + right.source(c, d - 1, kinds[1])
            changed += [(s, n) for s, m, k in ((right, c, d), (left, a, b)) for n in range(m, k) if tag != "equal"]
        text, keys = "\n".join(s.lines[n] for s, n in changed), SAYS.get(pair, {})
        says = " ".join(keys[key] for key in keys if key in text)
        blocks = [s.block[n] for key in [*keys, ""] for s, n in changed if key in s.lines[n]]  # of a sentence, of any
        a, c = next((a, c) for tag, a, _, c, _ in hunk if tag != "equal")
        place, count = blocks[0] or "the module", count + len(changed)
        if not says:
            print(f"docs/diffs.toml has no sentence for {pair}, {place}: {text.strip()[:80]}")
        at = f"<code>{place}</code> {link(f'{x}.html#L{a}', x)} {link(f'{y}.html#L{c}', y)}"
        head = f"<h2>{says or f'In {place}.'} <small>{at}</small></h2>"
        body += f'<section class="hunk">{head}<div class="two">{cells}</div></section>'
    more = f"{what}: {count} changed lines in {len(hunks)} places; left {x}.py, right {y}.py"
    return page(pair, f"{x} / {y}", more, body)


def equations_page() -> str:
    """All equations of the papers that are cited, and every line that cites each."""
    body, short = "", ""
    for key, eq in EQUATIONS.items():
        body += f"<h2>{eq['of']['short']}</h2>{about(eq['of'])}" if eq["of"]["short"] != short else ""
        short, rows = eq["of"]["short"], ""
        for script in SCRIPTS.values():
            lines = dict.fromkeys(n for n, cite in script.cites if cite == key)
            at = [link(f"{script.name}.html#L{n}", f"{n} <small>{script.block[n]}</small>") for n in lines]
            rows += f"<li>{script.name}: {' '.join(at)}</li>" if at else ""
        rows = f'<ul class="at">{rows or "<li>Background: no line computes it.</li>"}</ul>'
        place = re.search('#(.*?)"', cited(key, ""))[1]
        body += f'<section class="pair" id="{place}">{card(key)}{rows}</section>'
    return page("equations", "Equations", "and every line that cites them", body)


def index_page() -> str:
    """The student's path, with the lists of scripts, diffs and symbols in it."""
    lists = {"scripts": [f"<li>{link(f'{s.name}.html', f'{s.name}.py')} {s.title}</li>" for s in SCRIPTS.values()]}
    lists["diffs"] = [f"<li>{link(f'{pair}.html', pair)} {what}</li>" for pair, (_, _, what) in DIFFS.items()]
    known = [s for s in SYMBOLS["symbol"] if set(s.get("only", NAMES)) & set(NAMES)]
    names = [", ".join(dict.fromkeys(s["names"] + s.get("args", []))) for s in known]
    lists["symbols"] = [f"<tr><td>{math(s['latex'])}<td><code>{code}</code><td>{s['shape']}<td>{s['says']}"
                        for s, code in zip(known, names)]  # fmt: skip
    fill = lambda match: "".join(lists[match[1]])  # noqa: E731
    text = re.sub(r"<!-- (scripts|diffs|symbols) -->", fill, (DOCS / "read_index.html").read_text())
    return page("index", "Read the code beside the paper", "", text)


def tables() -> dict[Path, str]:
    """The pages of docs/ with their equation tables written anew."""
    rows = defaultdict(str)
    for eq in EQUATIONS.values():
        for place, what in eq.get("code", {}).items():
            file, function = place.split()
            path = DOCS / file.replace("world_model.py", "ditto.py").replace(".py", ".md")
            rows[path] += f"| {eq['number']} | {file} | {function} | {what} |\n"
    pattern = r"(?<=\|---\|---\|---\|---\|\n)(\| Eq\. .*\n)+"
    return {path: re.sub(pattern, lambda _: rows[path], path.read_text(), count=1) for path in rows if path.exists()}


def main() -> None:
    SCRIPTS.update((name, Script(name)) for name in NAMES)
    pages = {"index": index_page(), "equations": equations_page()} | {pair: diff_page(pair) for pair in DIFFS}
    pages |= {name: script.page() for name, script in SCRIPTS.items()}
    texts = {OUT / f"{name}.html": text for name, text in pages.items()} | tables()
    light, dark = ("\n".join(HtmlFormatter(style=name).get_token_style_defs(".src")) for name in ("xcode", "native"))
    dark = f"\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
    texts[OUT / "style.css"] = (DOCS / "read.css").read_text() + light + dark
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    gone = [path for path in OUT.glob("*.html") if path not in texts]
    if "--check" in sys.argv and stale + gone:
        sys.exit(f"older than their source: {', '.join(path.name for path in stale + gone)}. Run python docs/read.py.")
    for path in stale + gone:
        path.write_text(texts[path]) if path in texts else path.unlink()
    print(f"{len(texts)} files, {sum(map(len, texts.values())) / 1e6:.2f} MB, {len(stale + gone)} changed")


if __name__ == "__main__":
    main()
