# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Is a data set D_body good enough to explain these demonstrations? Minutes instead of a training of AIME or BCO.

    python benchmark/check_body.py --body walker-stand-buffer --demonstrations walker-walk-expert
    python benchmark/check_body.py --body walker-stand-buffer --demonstrations walker-walk-expert --world-model runs/walker/world_model-small-lpomdp-walker-stand-buffer-1/checkpoint.pt

For analysis only: it reads the demonstrations' actions, which no training does. It prints, and writes to --csv,

    part            fifths of each data set, in the order of recording, and the demonstrations
    return          mean return of the part's games
    sensor_change   mean absolute change of a sensor per decision: does the body move as much as the demonstrator?
    inverse_error   squared error of a small inverse dynamics model of all of D_body (BCO's, --updates steps), on its
                    training data and on the demonstrations; action_variance: the error of a constant action
    elbo            with --world-model: evidence of clips of T steps under the recorded actions, those of another clip, and
                    uniform ones. The model knows the motion if the first is far above the others
    agent           with --games: what the agents that made D_body return on the demonstrations' task, by their mean actions:
                    the score to beat, since a perfect stander already has a sixth of the return of walking
"""  # noqa: E501  (a command is one line)

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from aime import clip_evidence, clip_starts, draw_clips
from bco import Actor, gather, inverse_loss, window_rows
from dmc import DMC, Trajectories, observed, rollouts
from world_model import load_world_model


@dataclass
class Args:
    body: str = "walker-stand-buffer"
    """data sets of D_body, separated by commas"""
    demonstrations: str = "walker-walk-expert"
    """data set of the demonstrations; its actions are needed"""
    setting: Literal["lpomdp", "mdp", "visual"] = "lpomdp"
    """what is observed: lpomdp or mdp"""
    data_dir: str = "data/dmc"
    """folder of all data sets"""
    world_model: str = ""
    """checkpoint of aime.py's phase 1"""
    updates: int = 4000
    """gradient steps of the inverse model"""
    clips: int = 64
    """clips of which the evidence is measured"""
    batch_length: int = 32
    """T, steps per clip"""
    games: int = 0
    """games of each agent of D_body on the demonstrations' task (needs requirements-dmc.txt); 0: none"""
    seed: int = 0
    """of the inverse model and the clips"""
    csv: str = ""
    """file to append the rows to"""


def motion(data: Trajectories, first: int, last: int) -> dict[str, float]:
    """Mean return, mean absolute change of the sensors per decision, mean squared action of games first .. last - 1."""
    games = list(zip(data.starts[first:last], data.starts[first + 1 : last + 1]))
    changes = torch.cat([data.obs[a:b].diff(dim=0).abs().mean(-1) for a, b in games])
    actions = torch.cat([data.prev_action[a + 1 : b].square().mean(-1) for a, b in games])
    return {"return": float(np.mean(data.returns[first:last])), "sensor_change": changes.mean().item(),
            "squared_action": actions.mean().item()}  # fmt: skip


def pairs(data: Trajectories, stack: int) -> tuple[Tensor, Tensor]:
    """Rows t of all windows (windows,), and the actions taken there (N, A)."""
    pieces = [range(int(a), int(b)) for a, b in zip(data.starts, data.starts[1:])]
    return window_rows(pieces, stack), torch.cat([data.prev_action[1:], data.prev_action[:1]])


def inverse_errors(body: Trajectories, demos: Trajectories, keys: dict, updates: int, seed: int) -> dict[str, float]:
    """Squared errors of an inverse model of D_body on both data sets, and variance of the demonstrations' actions."""
    torch.manual_seed(seed)
    stack, rows = 5, {name: pairs(data, 5) for name, data in (("body", body), ("demonstrations", demos))}
    inverse = Actor(keys, stack + 1, body.prev_action.shape[-1], 128)
    optimizer = torch.optim.Adam(inverse.parameters(), lr=1e-3)
    windows, action = rows["body"]
    for _ in range(updates):
        row = windows[torch.randint(len(windows), (256,))]
        optimizer.zero_grad()
        inverse_loss(inverse, gather(body.obs, row, stack, True), action[row]).backward()
        optimizer.step()
    found = {}
    with torch.no_grad():
        for name, data in (("body", body), ("demonstrations", demos)):
            windows, action = rows[name]
            row = windows[torch.randperm(len(windows))[:20_000]]
            found[name] = inverse_loss(inverse, gather(data.obs, row, stack, True), action[row]).item()
    windows, action = rows["demonstrations"]
    return found | {"action_variance": action[windows].var(0).mean().item()}


@torch.no_grad()
def evidence(model, data: Trajectories, args: Args) -> list[dict]:
    """ELBO and weighted KL, in nats per clip, under the recorded actions, those of another clip, and uniform ones."""
    rows = draw_clips(clip_starts(data, args.batch_length), args.clips, args.batch_length,
                      torch.Generator().manual_seed(args.seed))  # fmt: skip
    torch.manual_seed(args.seed)
    obs, action = data.obs[rows], data.prev_action[rows]  # (T, B, ...)
    kinds = {"recorded": action, "of another clip": action.roll(1, 1), "uniform": torch.rand_like(action) * 2 - 1}
    found = []
    for name, taken in kinds.items():
        _, kl, elbo, _ = clip_evidence(model, obs, taken)
        found.append({"actions": name, "elbo": elbo.item(), "kl": kl.item()})
    return found


def agent_returns(folder: str, env_id: str, games: int) -> list[float]:
    """Returns of a data set's SAC agent on the task env_id, from the states at which the policies are evaluated."""
    if not (Path(folder) / "agent.zip").exists():
        sys.exit(f"{folder} has no agent.zip: leave --games out, or make the data set with dmc.py.")
    try:
        from stable_baselines3 import SAC
    except ImportError as error:
        sys.exit(f"stable-baselines3 cannot be imported ({error}): pip install -r requirements-dmc.txt.")
    agent = SAC.load(Path(folder) / "agent.zip", device="cpu")
    return rollouts(DMC(env_id), lambda obs: agent.predict(obs, deterministic=True)[0], list(range(1000, 1000 + games)))


def main(args: Args) -> list[dict]:
    """Measure, print, and append to the CSV; the rows."""
    keys = observed(args.demonstrations.rpartition("-")[0], args.setting)
    if args.setting == "visual":
        sys.exit("Pictures are not checked: use --setting lpomdp or mdp, whose sensors every data set has as well.")
    folders = [str(Path(args.data_dir) / name) for name in args.body.split(",")]
    demos = Trajectories([str(Path(args.data_dir) / args.demonstrations)], keys)
    body = Trajectories(folders, keys)
    model = load_world_model(args.world_model) if args.world_model else None
    if model is not None and model.config.get("keys") != keys:
        sys.exit(f"{args.world_model} is no model of {', '.join(keys)}: name another with --world-model.")
    task = args.demonstrations.rpartition("-")[0]
    agents = {folder: agent_returns(folder, task, args.games) for folder in folders if args.games}
    rows = []
    for folder in folders:
        data = Trajectories([folder], keys)
        edges = np.linspace(0, len(data.starts) - 1, 6).round().astype(int)
        rows += [{"data": Path(folder).name, "part": f"games {a}..{b - 1}"} | motion(data, a, b)
                 for a, b in zip(edges, edges[1:]) if b > a]  # fmt: skip
    for folder, returns in agents.items():
        error = float(np.std(returns) / max(len(returns) - 1, 1) ** 0.5)
        rows.append({"data": Path(folder).name, "part": f"agent on {task}", "return": float(np.mean(returns)),
                     "standard_error": error})  # fmt: skip
    rows.append({"data": args.demonstrations, "part": "all"} | motion(demos, 0, len(demos.starts) - 1))
    errors = inverse_errors(body, demos, keys, args.updates, args.seed)
    variance = errors.pop("action_variance")
    rows.append({"data": args.body, "part": "inverse model", "inverse_error": errors["body"]})
    rows.append({"data": args.demonstrations, "part": "inverse model", "inverse_error": errors["demonstrations"],
                 "action_variance": variance})  # fmt: skip
    if model is not None:
        for name, data in ((args.body, body), (args.demonstrations, demos)):
            rows += [{"data": name, "part": "evidence"} | row for row in evidence(model, data, args)]
    for row in rows:
        shown = (f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items())
        print("  ".join(shown))
    if args.csv:
        names = ("body", "data", "part", "return", "standard_error", "sensor_change", "squared_action", "inverse_error",
                 "action_variance", "actions", "elbo", "kl", "world_model", "seed")  # fmt: skip
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        with open(args.csv, "a", newline="") as out:
            table = csv.DictWriter(out, names, lineterminator="\n")
            if not out.tell():
                table.writeheader()
            origin = {"body": args.body, "world_model": args.world_model, "seed": args.seed}
            table.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in (row | origin).items()}
                            for row in rows)  # fmt: skip
    return rows


if __name__ == "__main__":
    main(tyro.cli(Args))
