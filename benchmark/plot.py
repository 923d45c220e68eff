"""Draw the figures and the table from the CSV files of benchmark/run_grid.py.

    python benchmark/plot.py --figure log --csv runs/PongNoFrameskip-v4/ditto-small-30-1 --out pong_metrics.csv
    python benchmark/plot.py --figure training --num-expert-episodes 30 --out docs/training.png
    python benchmark/plot.py --figure episodes --out docs/episodes.png
    python benchmark/plot.py --figure horizon --out docs/horizon.png
    python benchmark/plot.py --figure variants --variants default l2 cosine --out docs/reward.png
    python benchmark/plot.py --figure model --csv benchmark/results/gpu_breakout_world_model_metrics.csv
    python benchmark/plot.py --figure lengths --csv benchmark/results/aime_long.csv --variants m15 m100
    python benchmark/plot.py --figure cells --csv benchmark/results/aime_cells.csv --variants stand walk run
    python benchmark/plot.py --figure table

    log        the scalars in the event files of a run's folder as CSV: step, seconds, name, value
    training   the paper's Figure 2: return, latent distance and action agreement (AIME: action error) through training,
               and how each metric correlates with the return over all validations
    episodes   Figure 3: final return against the number of expert episodes
    horizon    Figure 4, right: score against the horizon H
    variants   score of named settings
    lengths    AIME: return and action error against the updates of phase 2, a line per length of the phases (variants
               ...m<thousands of updates>, without it 15, and u<...> if phase 2 is not the grid's usual one), and at its
               end against the updates of phase 1
    cells      AIME: percent of the expert by cell, D_body -> D_demo (variants <body>[1000][m<length>][_mdp]), and
               the paper's beside it (benchmark/results/aime_paper.csv; its error bars are deviations over games)
    interaction  CMIL: return, disagreement and discriminator gap against steps in the environment, a line per variant
    table      score, interquartile mean and its bootstrap interval, in Markdown

Lines and points are means over seeds, bands and bars one standard error over seeds (none with a single seed). Figures
are as wide as half a page per environment. First: pip install -r requirements-benchmark.txt.
"""

import contextlib
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from run_grid import KEY, read_log, read_rows

try:
    import matplotlib
    from matplotlib.figure import Figure
    from scipy import stats
except ModuleNotFoundError as error:
    if __name__ == "__main__":
        sys.exit(f"{error}; figures and table need it: pip install -r requirements-benchmark.txt.")
    raise


@dataclass
class Args:
    figure: Literal[
        "log", "training", "episodes", "horizon", "variants", "model", "lengths", "cells", "interaction", "table"
    ] = "training"  # fmt: skip
    """what to draw or write"""
    csv: str = "benchmark/results/grid.csv"
    """grid.csv of a grid, its _metrics.csv and _episodes.csv beside it; for log: a run's folder"""
    out: str = ""
    """picture to write, or the table; default docs/<figure>.png, table and log to the terminal only"""
    # which cells
    env_ids: list[str] = field(default_factory=list)
    """environments; empty: all in the file"""
    scripts: list[str] = field(default_factory=list)
    """scripts, without .py; empty: all in the file"""
    size: str = ""
    """size; needed if the file holds several"""
    num_expert_episodes: int = 0
    """N^E of training, horizon and variants; 0: the only one in the file"""
    variants: list[str] = field(default_factory=list)
    """named settings; empty: default, for horizon also those named h<number>, for variants all"""
    # bootstrap
    draws: int = 2000
    """bootstrap samples"""


# Okabe and Ito's colours, which colour-blind readers can tell apart; each script has one, and its own marker
STYLE = {"ditto": ("DITTO", "#0072B2", "o"), "d_gail": ("D-GAIL", "#D55E00", "s"), "d_bc": ("D-BC", "#009E73", "^"),
         "bc_pixels": ("BC", "#CC79A7", "D"), "aime": ("AIME", "#E69F00", "v"), "aime_atari": ("AIME", "#E69F00", "v"),
         "bco": ("BCO(0)", "#56B4E9", "P")}  # fmt: skip
FURTHER = [("#F0E442", "X"), ("#000000", "*")]
WIDTH = 3.4  # inches, half a page


# statistics


def standard_error(values) -> float:
    """Standard error of the mean of independent values; not a number for a single one."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def correlation(x, y) -> tuple[float, float]:
    """Pearson's and Spearman's correlation; not a number below three points or if one side is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    return float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic)


def interquartile_mean(values) -> np.ndarray:
    """Mean over the last axis without the lowest and the highest quarter (each rounded down to whole values)."""
    return stats.trim_mean(values, 0.25, axis=-1)


def bootstrap(strata: list[list[np.ndarray]], statistic: Callable, draws: int, seed: int = 0) -> tuple[float, float]:
    """95% interval of a statistic of all games, stratified: a draw has as many seeds of each environment as the data.

    `strata` holds per environment, per seed, the games' scores. In each environment seeds are drawn with replacement,
    then games within each drawn seed, because games of one seed share a policy. With one seed only the games vary.
    """
    rng, longest = np.random.default_rng(seed), max(len(games) for seeds in strata for games in seeds)

    def of_games(*drawn: np.ndarray, axis: int) -> np.ndarray:
        """The statistic (draws,) of games drawn in the drawn seeds, (draws, seeds) of each environment."""
        samples = []
        for draw in zip(*drawn):
            chosen = [seeds[int(k)] for seeds, numbers in zip(strata, draw) for k in numbers[: len(seeds)]]
            samples.append(np.concatenate([rng.choice(games, longest) for games in chosen]))
        return statistic(np.stack(samples))

    numbers = [np.arange(max(len(seeds), 2)) % len(seeds) for seeds in strata]  # scipy refuses a sample of one seed
    interval = stats.bootstrap(numbers, of_games, n_resamples=draws, method="percentile", rng=rng).confidence_interval
    return float(interval.low), float(interval.high)


# reading


def read(path: Path) -> list[dict]:
    """Rows of a CSV of benchmark/run_grid.py, numbers as numbers; missing ones are not a number."""
    if not path.exists():
        sys.exit(f"There is no {path}: run benchmark/run_grid.py first (benchmark/figures.sh has its commands).")
    rows = read_rows(path)
    if rows and not set(KEY) <= set(rows[0]):
        sys.exit(f"{path} is not a file of benchmark/run_grid.py: its columns lack {', '.join(KEY)}.")
    text = {*KEY, "hardware", "torch", "commit", "command", "threads", "name"} - {"num_expert_episodes", "seed"}
    return [{k: v if k in text else float(v or "nan") for k, v in row.items()} for row in rows]


def select(rows: list[dict], args: Args, variants: Callable[[str], bool]) -> list[dict]:
    """Rows of the cells asked for; end with one sentence if there are none or a size must be chosen."""
    rows = [row for row in rows if row["env_id"] in (args.env_ids or [row["env_id"]])
            and row["script"] in (args.scripts or [row["script"]]) and row["size"] in (args.size or row["size"],)
            and (row["variant"] in args.variants if args.variants else variants(row["variant"]))]  # fmt: skip
    if not rows:
        sys.exit(
            f"{args.csv} has no row of these environments, scripts, sizes and variants: run the grid for them first."
        )
    if len(sizes := sorted({row["size"] for row in rows})) > 1:
        sys.exit(f"{args.csv} holds the sizes {', '.join(sizes)}: choose one with --size.")
    for cell, seeds in grouped(rows, *KEY[:-1]).items():
        if len({row["updates"] for row in seeds if row["script"] != "bco"}) > 1:  # which stops by itself
            print(f"warning: the seeds of {' '.join(map(str, cell))} had different --updates", file=sys.stderr)
    return rows


def one_count(rows: list[dict], args: Args) -> list[dict]:
    """Rows of one N^E."""
    counts = sorted({int(row["num_expert_episodes"]) for row in rows})
    if not args.num_expert_episodes and len(counts) > 1:
        sys.exit(f"{args.csv} holds N^E = {', '.join(map(str, counts))}: choose one with --num-expert-episodes.")
    rows = [row for row in rows if row["num_expert_episodes"] == (args.num_expert_episodes or counts[0])]
    return rows or sys.exit(f"No run with N^E = {args.num_expert_episodes}, only {', '.join(map(str, counts))}.")


def default(variant: str) -> bool:
    """Whether a variant is the script as it is."""
    return variant == "default"


def in_order(values) -> list[str]:
    """Scripts or variants without repetition: scripts in the order of STYLE, `default` first, the rest by name."""
    known = ["default", *STYLE]
    return sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), v))


def grouped(rows: list[dict], *names: str) -> dict:
    """Rows by the values of some columns, in ascending order."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]].append(row)
    return dict(sorted(groups.items()))


def column(rows: list[dict], name: str) -> np.ndarray:
    """One column as numbers."""
    return np.array([row[name] for row in rows], float)


def short(env_id: str) -> str:
    """Name of an environment without its version."""
    return re.sub(r"(NoFrameskip)?-v\d+$", "", env_id)


def caption(env_id: str, rows: list[dict]) -> str:
    """Title of a panel: environment, N^E if all cells share it, size, number of seeds."""
    counts = sorted({len(cell) for cell in grouped(rows, *KEY[:-1]).values()})
    seeds = f"{counts[0]} seed{'s' * (counts[0] > 1)}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    episodes = {int(row["num_expert_episodes"]) for row in rows}
    episodes = f"$N^E$ = {episodes.pop()}, " if len(episodes) == 1 else ""
    return f"{short(env_id)}, {episodes}{rows[0]['size']} size, {seeds}"


# drawing


def style(script: str) -> tuple[str, str, str]:
    """Label, colour and marker of a script; one that is not known here gets the same ones everywhere too."""
    return STYLE.get(script) or (script, *FURTHER[sum(map(ord, script)) % len(FURTHER)])


def new_figure(rows: int, columns: int, height: float, **options):
    """A figure of rows x columns panels, each column half a page wide, in small type."""
    matplotlib.rcParams.update({"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "lines.linewidth": 1.4,
                                "lines.markersize": 4, "axes.spines.top": False, "axes.spines.right": False,
                                "axes.grid": True, "grid.alpha": 0.25, "grid.linewidth": 0.6})  # fmt: skip
    figure = Figure(figsize=(WIDTH * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def reference_lines(axis, rows: list[dict] = ()) -> None:
    """Expert's and random policy's mean return, without rows their scores; where cells used different demonstrations
    the returns differ a little."""
    given = [float(np.nanmean(column(rows, f"{name}_return"))) for name in ("expert", "random") if rows]
    expert, random = given or (1, 0)
    axis.axhline(expert, color="black", linestyle="--", linewidth=1, label="expert", zorder=1)
    axis.axhline(random, color="gray", linestyle=":", linewidth=1, label="random", zorder=1)


def finish(figure, axes, path: str) -> None:
    """Put one legend below the panels, scripts first, and write the picture."""
    handles = {text: line for axis in axes[0] for line, text in zip(*axis.get_legend_handles_labels())}
    texts = sorted(handles, key=lambda text: text in ("expert", "random"))
    lines = [handles[text] for text in texts]
    figure.legend(lines, texts, loc="outside lower center", ncols=min(len(texts), 3), frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    print(f"wrote {path}")


def write_log(args: Args) -> dict:
    """One run's log as CSV."""
    rows = read_log(Path(args.csv)) or sys.exit(f"There is no log in {args.csv}: name a run's folder with --csv.")
    with open(args.out, "w", newline="") if args.out else contextlib.nullcontext(sys.stdout) as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return {"rows": len(rows)}


PANELS = (("eval/return_mean", "return"), ("expert/latent_distance", "latent distance $L_d$"),
          ("expert/action_agreement", "action agreement"), ("imitate/action_error", "action error"))  # fmt: skip


def correlations(rows: list[dict]) -> dict[str, tuple[float, float, int]]:
    """Pearson's and Spearman's correlation of each metric with the return, and the number of validations."""
    table = defaultdict(dict)
    for row in rows:
        table[tuple(row[name] for name in (*KEY, "step"))][row["name"]] = row["value"]
    result = {}
    for name, _ in PANELS[1:]:
        pairs = [(v[name], v["eval/return_mean"]) for v in table.values() if name in v and "eval/return_mean" in v]
        x, y = np.array(pairs, float).reshape(-1, 2).T
        result[name] = *correlation(x, y), len(pairs)
    return result


def draw_training(args: Args) -> dict:
    """Figure 2: a column per environment; return, latent distance and action agreement below each other."""
    file = Path(args.csv)
    cells = one_count(select(read(file), args, default), args)
    chosen = {tuple(row[name] for name in KEY) for row in cells}
    rows = [row for row in read(file.with_name(f"{file.stem}_metrics.csv")) if tuple(row[k] for k in KEY) in chosen]
    by_env, found = grouped(cells, "env_id"), {}
    panels = [panel for panel in PANELS if any(row["name"] == panel[0] for row in rows)]
    figure, axes = new_figure(len(panels), len(by_env), 1.65, sharex="col")
    for c, (env_id, env_cells) in enumerate(by_env.items()):
        env_rows = [row for row in rows if row["env_id"] == env_id]
        found[env_id] = correlations(env_rows)
        for axis, (name, label) in zip(axes[:, c], panels):
            for script in in_order(row["script"] for row in env_cells):
                mine = [row for row in env_rows if row["script"] == script and row["name"] == name]
                if not mine:  # BC from pixels has no latents
                    continue
                title, colour, marker = style(script)
                steps, mean, error = means(mine, "step", "value")
                error = np.nan_to_num(error)
                axis.plot(steps, mean, color=colour, marker=marker, label=title)
                axis.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
            axis.set(ylabel=label)
            if name in found[env_id]:
                r, rho, count = found[env_id][name]
                text = "with return: " + (f"r = {r:+.2f}, ρ = {rho:+.2f}, n = {count}" if r == r else "too few points")
                axis.set_title(text, loc="right", fontsize=7, pad=3)
        reference_lines(axes[0, c], env_cells)
        axes[0, c].set_title(caption(env_id, env_cells))
        axes[-1, c].set(xlabel="gradient updates")
    finish(figure, axes, args.out or "docs/training.png")
    # Across scripts a metric may follow the return although within each it does not, and the reverse: print both.
    for env_id, values in found.items():
        scripts = in_order(row["script"] for row in by_env[env_id])
        mine = {script: [r for r in rows if (r["env_id"], r["script"]) == (env_id, script)] for script in scripts}
        for part, each in {"all scripts": values, **{style(s)[0]: correlations(mine[s]) for s in scripts}}.items():
            for name, (r, rho, count) in each.items():
                numbers = f"Pearson {r:+.2f}, Spearman {rho:+.2f}" if r == r else "too few points"
                print(f"{short(env_id)}, {part}: {name} with return, {count} validations: {numbers}")
    return {"correlations": found}


def means(rows: list[dict], x: str, y: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, means and standard errors over seeds of y, one for each value of x."""
    groups = grouped(rows, x)
    values = [column(group, y) for group in groups.values()]
    return np.array(list(groups)), np.array([v.mean() for v in values]), np.array([standard_error(v) for v in values])


def draw_episodes(args: Args) -> dict:
    """Figure 3: final return against N^E, a panel per environment."""
    by_env = grouped(select(read(Path(args.csv)), args, default), "env_id")
    figure, axes = new_figure(1, len(by_env), 2.6)
    points = {}
    for axis, (env_id, rows) in zip(axes[0], by_env.items()):
        scripts = in_order(row["script"] for row in rows)
        for i, script in enumerate(scripts):
            title, colour, marker = style(script)
            mine = [row for row in rows if row["script"] == script]
            points[env_id, script] = x, mean, error = means(mine, "num_expert_episodes", "return_mean")
            beside = 1.03 ** (i - (len(scripts) - 1) / 2)  # a little apart, or the bars hide each other
            axis.errorbar(x * beside, mean, np.nan_to_num(error), color=colour, marker=marker, capsize=2, label=title)
        reference_lines(axis, rows)
        counts = sorted({int(row["num_expert_episodes"]) for row in rows})
        axis.set_xscale("log")
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.set(xlabel="expert episodes $N^E$", ylabel="return", title=caption(env_id, rows))
    finish(figure, axes, args.out or "docs/episodes.png")
    return {"points": points}


def draw_horizon(args: Args) -> dict:
    """Figure 4: score against H, a panel per environment."""
    rows = select(read(Path(args.csv)), args, lambda variant: default(variant) or re.fullmatch(r"h\d+", variant))
    rows = [row for row in rows if row["horizon"] == row["horizon"] and row["script"] in (args.scripts or ["ditto"])]
    if not rows:
        sys.exit(f"{args.csv} has no such run with a horizon: run ditto with --variants for several values first.")
    by_env, points = grouped(one_count(rows, args), "env_id"), {}
    figure, axes = new_figure(1, len(by_env), 2.3)
    for axis, (env_id, rows) in zip(axes[0], by_env.items()):
        for script in in_order(row["script"] for row in rows):
            title, colour, marker = style(script)
            mine = [row for row in rows if row["script"] == script]
            points[env_id, script] = x, mean, error = means(mine, "horizon", "score")
            axis.errorbar(x, mean, np.nan_to_num(error), color=colour, marker=marker, capsize=2, label=title)
            axis.plot(column(mine, "horizon"), column(mine, "score"), ".", color=colour, alpha=0.35)
        reference_lines(axis)
        axis.set_xticks(sorted({int(row["horizon"]) for row in rows}))
        axis.set(xlabel="horizon $H$", ylabel="score", title=caption(env_id, rows))
    finish(figure, axes, args.out or "docs/horizon.png")
    return {"points": points}


def draw_variants(args: Args) -> dict:
    """Scores of named settings as bars, a panel per environment; every seed is a dot."""
    rows = one_count(select(read(Path(args.csv)), args, lambda variant: True), args)
    by_env, bars = grouped(rows, "env_id"), {}
    figure, axes = new_figure(1, len(by_env), 2.3)
    for axis, (env_id, rows) in zip(axes[0], by_env.items()):
        names, scripts = in_order(row["variant"] for row in rows), in_order(row["script"] for row in rows)
        names = [name for name in args.variants if name in names] or names
        width = 0.8 / len(scripts)
        for i, script in enumerate(scripts):
            title, colour, _ = style(script)
            for j, name in enumerate(names):
                scores = column([r for r in rows if r["script"] == script and r["variant"] == name], "score")
                if not len(scores):
                    continue
                place = j + (i - (len(scripts) - 1) / 2) * width
                bars[env_id, script, name] = scores.mean(), standard_error(scores)
                error = np.nan_to_num(standard_error(scores)) or None
                axis.bar(place, scores.mean(), 0.9 * width, yerr=error, capsize=2, color=colour, alpha=0.75,
                         label=title if not axis.get_legend_handles_labels()[1].count(title) else None)  # fmt: skip
                axis.plot([place] * len(scores), scores, "o", color="black", markersize=2.5, alpha=0.6)
        reference_lines(axis)
        axis.set_ylim(bottom=min(-0.05, axis.get_ylim()[0]))  # or the axis hides the line of the random policy
        axis.set_xticks(range(len(names)), names)
        axis.grid(axis="x", visible=False)
        axis.set(ylabel="score", title=caption(env_id, rows))
    finish(figure, axes, args.out or "docs/variants.png")
    return {"bars": bars}


def draw_model(args: Args) -> dict:
    """Error where things move against frames trained on, a line per horizon and a panel per run of world_model.py.

    The CSV has columns run, frames, name, value; runs without this error, or not in --variants if given, are left out.
    """
    runs = {}
    for row in read_rows(Path(args.csv)):
        if (name := row.get("name", "")).startswith("world_model/moving_error_"):
            line = runs.setdefault(row["run"], {}).setdefault(int(name.rsplit("_", 1)[1]), [])
            line.append((float(row["frames"]), float(row["value"])))
    runs = {run: runs[run] for run in args.variants or runs if run in runs}
    if not runs:
        sys.exit(f"{args.csv} has no moving errors of these runs (columns run, frames, name, value).")
    figure, axes = new_figure(1, len(runs), 2.3, sharex=True, sharey=True)
    for axis, (run, lines) in zip(axes[0], runs.items()):
        for i, (steps, points) in enumerate(sorted(lines.items())):
            frames, errors = np.array(points).T
            axis.plot(frames, errors, color=matplotlib.colormaps["viridis"](i / 4), marker="o", label=f"{steps} ahead")
        axis.set(xscale="log", xlabel="frames", title=run, ylim=(0, 1.3))
    axes[0, 0].set(ylabel="error where things move")
    finish(figure, axes, args.out or "docs/model.png")
    return {"runs": runs}


def draw_lengths(args: Args) -> dict:
    """AIME's return and action error: left against phase 2's updates, right, where it ended, against phase 1's."""
    of, file = r"(?<![a-z])m(\d+)(?:u\d+)?$", Path(args.csv)
    length = lambda row: 1000 * int((re.search(of, row["variant"]) or ["", 15])[1])  # noqa: E731
    cells = [row for row in select(read(file), args, lambda variant: re.search(of, variant)) if row["script"] == "aime"]
    cells = one_count(cells, args)
    key = lambda row: tuple(row[name] for name in KEY)  # noqa: E731
    lengths = {key(row): (length(row), row["updates"]) for row in cells}
    rows = [row | {"lengths": lengths[key(row)]} for row in read(file.with_name(f"{file.stem}_metrics.csv"))
            if key(row) in lengths]  # fmt: skip
    by_env, curves = grouped(cells, "env_id"), {}
    figure, axes = new_figure(2, 2 * len(by_env), 1.65, sharex="col")
    for c, (env_id, env_cells) in enumerate(by_env.items()):
        for (left, right), (name, label) in zip(axes[:, 2 * c : 2 * c + 2], (PANELS[0], PANELS[3])):
            mine = [row for row in rows if (row["env_id"], row["name"]) == (env_id, name)]
            for k, (phases, group) in enumerate(sorted(grouped(mine, "lengths").items())):
                _, colour, marker = list(STYLE.values())[k % len(STYLE)]
                curves[env_id, name, *phases] = x, mean, error = means(group, "step", "value")
                text = "phases of " + " and ".join(f"{updates / 1000:.3g} k" for updates in phases)
                left.plot(x, mean, color=colour, marker=marker, label=text)
                left.fill_between(x, *(mean + sign * np.nan_to_num(error) for sign in (-1, 1)), color=colour, alpha=0.2)
                right.errorbar(phases[0], mean[-1], np.nan_to_num(error)[-1], color=colour, marker=marker, capsize=2)
            left.set(ylabel=label)
        reference_lines(axes[0, 2 * c], env_cells), reference_lines(axes[0, 2 * c + 1], env_cells)
        axes[0, 2 * c].set_title(caption(env_id, env_cells))
        axes[-1, 2 * c].set(xlabel="updates of phase 2"), axes[-1, 2 * c + 1].set(xlabel="updates of phase 1")
    finish(figure, axes, args.out or "docs/lengths.png")
    return {"curves": curves}


def draw_cells(args: Args) -> dict:
    """AIME's cells: percent of the expert, mean and dots of the seeds, and the paper's bar, pale, beside each."""
    keys, paper = ("body", "env_id", "setting", "script"), {}
    for row in read_rows(Path(__file__).parent / "results" / "aime_paper.csv"):
        paper[tuple(row[key] for key in keys)] = float(row["percent"]), float(row["deviation"])
    form = rf"({'|'.join({key[0] for key in paper})})(?:1000)?(?:m\d+)?(?:_(.*))?"
    parts = lambda variant: re.fullmatch(form, variant) or [None] * 3  # noqa: E731
    place = lambda row: ((p := parts(row["variant"]))[1], row["env_id"], p[2] or "lpomdp")  # noqa: E731
    rows = select(read(Path(args.csv)), args, lambda variant: parts(variant)[1])
    rows = [row for row in rows if (*place(row), row["script"]) in paper]
    rows = one_count(rows, args) if rows else sys.exit(f"{args.csv} has none of the paper's cells: see --help.")
    names, scripts = list(dict.fromkeys(map(place, rows))), in_order(row["script"] for row in rows)
    figure, axes = new_figure(1, 1, 2.4)
    figure.set_figwidth(max(WIDTH, 1.1 * len(names)))
    axis, bars, width = axes[0, 0], {}, 0.8 / (2 * len(scripts))
    for i, script in enumerate(scripts):
        title, colour, _ = style(script)
        for j, cell in enumerate(names):
            left = j + (2 * i + 0.5 - len(scripts)) * width
            mine = [row for row in rows if row["script"] == script and place(row) == cell]
            percent = 100 * column(mine, "return_mean") / column(mine, "expert_return")
            bars[*cell, script] = percent.tolist(), *paper[*cell, script]
            first = {} if title in axis.get_legend_handles_labels()[1] else {"label": title}
            if len(percent):
                axis.bar(left, percent.mean(), 0.9 * width, color=colour, **first)
                axis.plot([left] * len(percent), percent, "o", color="black", markersize=2.5, alpha=0.6)
            first = {"label": f"{title}, paper"} if first else {}
            value, deviation = paper[*cell, script]
            axis.bar(left + width, value, 0.9 * width, yerr=deviation, capsize=2, color=colour, alpha=0.35, **first)
    labels = [f"{body} -> {env_id.split('-')[1]}\n{env_id.split('-')[0]}, {kind}" for body, env_id, kind in names]
    axis.set_xticks(range(len(names)), labels)
    axis.axhline(100, color="black", linestyle="--", linewidth=1, label="expert", zorder=1)
    axis.set(ylabel="percent of the expert", ylim=(0, None))
    axis.grid(axis="x", visible=False)
    finish(figure, axes, args.out or "docs/cells.png")
    return {"bars": bars}


CURVES = [("eval/return_mean", "return"), ("expert/disagreement", "disagreement"),
          ("expert/discriminator_gap", "discriminator gap")]  # fmt: skip


def draw_interaction(args: Args) -> dict:
    """CMIL's curves against environment steps, a column per environment and a line per variant (its methods)."""
    file = Path(args.csv)
    cells = one_count(select(read(file), args, lambda variant: True), args)
    chosen, table = {tuple(row[name] for name in KEY) for row in cells}, defaultdict(dict)
    for row in read(file.with_name(f"{file.stem}_metrics.csv")):
        if (cell := tuple(row[name] for name in KEY)) in chosen:
            table[cell, row["step"]][row["name"]] = row["value"]
    if not any("charts/env_steps" in values for values in table.values()):
        sys.exit(f"{args.csv} has no run of cmil.py: name another with --csv.")
    by_env, curves = grouped(cells, "env_id"), {}
    figure, axes = new_figure(len(CURVES), len(by_env), 1.65, sharex="col")
    for c, (env_id, env_cells) in enumerate(by_env.items()):
        names = in_order(row["variant"] for row in env_cells)
        for k, variant in enumerate(args.variants or names):
            _, colour, marker = list(STYLE.values())[k % len(STYLE)]
            label = "cmil" if variant == "default" else variant.replace("_", "-")
            for axis, (name, text) in zip(axes[:, c], CURVES):
                points = {(cell, values["charts/env_steps"]): values[name] for (cell, _), values in table.items()
                          if cell[0] == env_id and cell[2] == variant and name in values}  # fmt: skip
                if not points:
                    continue
                points = [{"x": x, "y": y} for (_, x), y in points.items()]  # the last of each place: before playing
                x, mean, error = means(points, "x", "y")
                error = np.nan_to_num(error)
                axis.errorbar(x, mean, error, color=colour, marker=marker, label=label) if len(x) == 1 else axis.plot(
                    x, mean, color=colour, marker=marker, label=label)  # fmt: skip
                axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
                axis.set(ylabel=text)
                curves[env_id, variant, name] = x, mean
        reference_lines(axes[0, c], env_cells)
        axes[0, c].set_title(caption(env_id, env_cells))
        axes[-1, c].set(xlabel="steps in the environment")
    finish(figure, axes, args.out or "docs/interaction.png")
    return {"curves": curves}


def table(args: Args) -> dict:
    """Script x N^E per environment, and over all environments if there are several, in Markdown."""
    file = Path(args.csv)
    cells = select(read(file), args, default)
    games = grouped(read(file.with_name(f"{file.stem}_episodes.csv")), *KEY)
    heads = ("environment", "N^E", "script", "variant", "seeds", "games", "return", "expert", "random", "score",
             "standard error over seeds", "interquartile mean", "95% interval")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    scripts, variants = in_order(row["script"] for row in cells), in_order(row["variant"] for row in cells)
    env_ids = sorted({row["env_id"] for row in cells})
    few = False
    for name in [*env_ids, *(["all"] if len(env_ids) > 1 else [])]:
        for count in sorted({row["num_expert_episodes"] for row in cells}):
            for script, variant in ((script, variant) for script in scripts for variant in variants):
                mine = [row for row in cells if name in ("all", row["env_id"]) and row["num_expert_episodes"] == count
                        and row["script"] == script and row["variant"] == variant]  # fmt: skip
                place = f"| {short(name)} | {int(count)} | {style(script)[0]} | {variant} |"
                if len({row["env_id"] for row in mine}) < (len(env_ids) if name == "all" else 1):
                    if name != "all":
                        lines.append(f"{place} not run |" + " |" * 8)
                    continue
                strata = []
                for rows in grouped(mine, "env_id").values():
                    scale = [(row["random_return"], row["expert_return"] - row["random_return"] or 1.0) for row in rows]
                    played = [column(games.get(tuple(row[k] for k in KEY), []), "return") for row in rows]
                    strata.append([(r - low) / high for r, (low, high) in zip(played, scale) if len(r)])
                if not all(strata):
                    sys.exit(f"{file.stem}_episodes.csv has no games of {place.strip('| ')}: run the same grid again.")
                everything = np.concatenate([r for seeds in strata for r in seeds])
                low, high = bootstrap(strata, interquartile_mean, args.draws)
                # standard error of the mean over environments of means over seeds
                groups = [column(rows, "score") for rows in grouped(mine, "env_id").values()]
                score = np.mean([scores.mean() for scores in groups])
                error = sum(standard_error(scores) ** 2 for scores in groups) ** 0.5 / len(groups)
                seeds = min(len(scores) for scores in groups)
                few |= seeds < 3
                returns = " | ".join(f"{column(mine, f'{what}_return').mean():.1f}" for what in ("expert", "random"))
                returns = f"{column(mine, 'return_mean').mean():.1f} | {returns}" if name != "all" else "| |"
                lines.append(f"{place} {seeds}{' *' * (seeds < 3)} | {len(everything)} | {returns} | {score:.2f} | "
                             f"{f'{error:.2f}' if error == error else 'one seed'} | "
                             f"{interquartile_mean(everything):.2f} | {low:.2f} to {high:.2f} |")  # fmt: skip
    notes = ["Score = (return - random) / (expert - random). The interquartile mean is over the games of all seeds; "
             f"its interval is a bootstrap of {args.draws} draws of seeds, then of games within each; environments are "
             "strata."]  # fmt: skip
    if few:
        notes.append("\\* Fewer than three seeds: the interval says how much games of these policies vary, and next to "
                     "nothing about training again.")  # fmt: skip
    text = "\n".join([*lines, "", *notes])
    print(text)
    if args.out:
        Path(args.out).write_text(text + "\n")
    return {"table": text}


def main(args: Args) -> dict:
    draw = {"log": write_log, "training": draw_training, "episodes": draw_episodes,
            "horizon": draw_horizon, "variants": draw_variants, "model": draw_model, "lengths": draw_lengths,
            "cells": draw_cells, "interaction": draw_interaction, "table": table}[args.figure]  # fmt: skip
    return draw(args)


if __name__ == "__main__":
    main(tyro.cli(Args))
