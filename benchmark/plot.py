"""Draw one run's return in the real game, reward in the dream and latent distance from its metrics.csv.

    python benchmark/plot.py --csv benchmark/results/ditto_MsPacman_small_metrics.csv --expert 764.2 --random 249.0

Needs matplotlib (`pip install matplotlib`), which nothing else here does.
"""

import csv
from collections import defaultdict
from dataclasses import dataclass

import tyro


@dataclass
class Args:
    csv: str
    """metrics.csv of a run"""
    expert: float
    """expert's mean return"""
    random: float
    """random policy's mean return"""
    out: str = "docs/ditto_MsPacman.png"
    """picture to write"""


def main(args: Args) -> dict:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    series = defaultdict(dict)  # name -> step -> value
    with open(args.csv) as file:
        for row in csv.DictReader(file):
            series[row["name"]][int(row["step"])] = float(row["value"])
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    returns = {s: v for s, v in series["eval/return_mean"].items() if s % 500 == 0}
    axes[0].plot(list(returns), list(returns.values()), "o-", label="DITTO, 8 games")
    axes[0].axhline(args.expert, color="green", label="expert")
    axes[0].axhline(args.random, color="gray", label="random")
    axes[1].plot(list(series["imagine/reward"]), list(series["imagine/reward"].values()))
    for name, label in (("", "agent"), ("_expert_actions", "expert's own actions")):
        points = series[f"expert/latent_distance{name}"]
        axes[2].plot(list(points), list(points.values()), label=label)
    for axis, title in zip(axes, ("return, real game", "reward per imagined step", "latent distance L_d, held out")):
        axis.set(title=title, xlabel="gradient updates")
    axes[0].legend(), axes[2].legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=80)
    return {"points": len(returns)}


if __name__ == "__main__":
    main(tyro.cli(Args))
