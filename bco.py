# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""BCO(0): behavioural cloning from observation. Learn which action joins two observations, label the expert's, clone.

Paper: arXiv 1805.01954; here as the baseline of AIME (arXiv 2312.02019 v1), whose settings and data it shares. No world
model and no latent state: the networks see the last few observations. --method chooses between BCO(0), cloning with the
expert's true actions (oracle: what labels without error would give), and IIDM, which instead of labels learns a forward
model and trains the policy through it.

  (1) windows of D_body, `stack` observations, the action that followed, the next observation   `window_rows`
  (2) split into training and validation trajectories, no row in both                           `split_rows`
  (3) inverse model: a_t from o_{t-4..t}, o_{t+1}; squared error                                `inverse_loss`
  (4) windows of the demonstrations, observations only; label them with the frozen model        `label`
  (5) policy: the labels from o_{t-4..t}; squared error                                         `cloning_loss`
  (6) play its action                                                                           `evaluate`

    python bco.py --env-id walker-walk --body walker-stand-buffer        (makes whatever is missing; needs dm_control)
    python bco.py --env-id walker-walk --body walker-stand-buffer --method oracle
    python bco.py --env-id walker-walk --body walker-stand-buffer --eval-only

Differences from the authors' code (AIME's): the split is by trajectory, not by window, so that overlapping windows do
not leak; a single trajectory is cut in time. The rule for stopping is theirs; the small size has 10 to 20 epochs.
"""

import copy
import csv
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dmc import DMC, observed, random_returns
from world_model import Log, Trajectories, clock, load, parse_args, save


@dataclass
class Args:
    # run
    env_id: str = "walker-walk"
    """task of the demonstrations and of the test: walker-stand, -walk, -run, cheetah-run, -runb, -flip or -flipb"""
    size: str = "auto"
    """auto, paper, small or debug: which column of SIZES gives the defaults (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<setting>-<body>-<N^E>-<seed>. The same
    command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    cuda: bool = True
    """use a GPU if there is one"""
    # data
    body: str = ""
    """D_body, data sets separated by commas (several: a mix); default <body>-stand-buffer or <body>-run-buffer"""
    num_expert_episodes: int = 100
    """N^E, demonstrations to imitate, the first ones in numeric order"""
    data_dir: str = ""
    """folder of all data sets; default data/dmc (visual: data/dmc-visual)"""
    setting: Literal["lpomdp", "mdp", "visual"] = "lpomdp"
    """what is observed: lpomdp (sensors without velocities), mdp (all sensors), visual (64x64 pictures)"""
    # actor and critic
    batch_size: int = 50
    """windows per update"""
    units: int = 128
    """width of the policy's two hidden layers"""
    learning_rate: float = 1e-3
    """Adam's step size"""
    # evaluation
    eval_episodes: int = 100
    """games of the final evaluation"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    # runtime
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""
    # bco
    method: Literal["bco", "oracle", "iidm"] = "bco"
    """bco: BCO(0); oracle: cloning with the expert's true actions; iidm: policy trained through a forward model"""
    stack: int = 0
    """observations that the networks see; 0: 5, in mdp 1 (authors' code)"""
    patience: int = 3
    """epochs without a better validation loss after which a stage stops, once it has had the two next ones"""
    min_epochs: int = 50
    """epochs that every stage has at least"""
    min_updates: int = 5000
    """updates that every stage has at least"""
    max_epochs: int = 0
    """epochs after which a stage stops in any case; 0: no limit (authors' code)"""
    validation_share: float = 0.3
    """share of the trajectories that are held out for the validation loss"""


SMALL = dict(min_epochs=10, max_epochs=20, eval_episodes=50, threads=1)
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(units=16, min_epochs=2, min_updates=10, patience=1, max_epochs=12, eval_episodes=2,
                          num_expert_episodes=2),
}  # fmt: skip


class Encoder(nn.Module):
    """Sensors (..., O) as they are; pictures (..., 64, 64, C) uint8 through AIME's convolutions to (..., 1024)."""

    def __init__(self, keys: dict[str, int]):
        super().__init__()
        self.image = "image" in keys
        self.size = 1024 if self.image else sum(keys.values())
        if self.image:
            widths, convs = [keys["image"], 32, 64, 128, 256], []
            for i, o in zip(widths, widths[1:]):
                convs += [nn.Conv2d(i, o, 4, stride=2), nn.ReLU()]
            self.net = nn.Sequential(*convs[:-1], nn.Flatten())

    def forward(self, obs: Tensor) -> Tensor:
        if not self.image:
            return obs
        return self.net(obs.flatten(0, -4).movedim(-1, -3).float() / 255).unflatten(0, obs.shape[:-3])


def mlp(inputs: int, outputs: int, units: int) -> nn.Sequential:
    """ELU network with two hidden layers."""
    return nn.Sequential(nn.Linear(inputs, units), nn.ELU(), nn.Linear(units, units), nn.ELU(),
                         nn.Linear(units, outputs))  # fmt: skip


class Actor(nn.Module):
    """tanh(network) of a stack of observations (B, K, ...) -> action (B, A); deterministic. Also the inverse model."""

    def __init__(self, keys: dict[str, int], stack: int, action_size: int, units: int):
        super().__init__()
        self.encoder = Encoder(keys)
        self.net = mlp(stack * self.encoder.size, action_size, units)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(self.encoder(obs).flatten(1)))


class Forward(nn.Module):
    """One step ahead: a stack of observations (B, K, ...) and an action (B, A) -> the next observation, flat (B, O)."""

    def __init__(self, keys: dict[str, int], stack: int, action_size: int, units: int):
        super().__init__()
        self.encoder = Encoder(keys)
        inputs = stack * self.encoder.size + action_size
        if "image" in keys:
            self.decoder = nn.Sequential(
                nn.Linear(inputs, 1024), nn.Unflatten(-1, (1024, 1, 1)),
                nn.ConvTranspose2d(1024, 128, 5, stride=2), nn.ReLU(), nn.ConvTranspose2d(128, 64, 5, stride=2),
                nn.ReLU(), nn.ConvTranspose2d(64, 32, 6, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(32, keys["image"], 6, stride=2), nn.Sigmoid(), nn.Flatten(),
            )  # fmt: skip
        else:
            self.decoder = nn.ModuleList(mlp(inputs, size, units) for size in keys.values())

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        x = torch.cat([self.encoder(obs).flatten(1), action], -1)
        return self.decoder(x) if isinstance(self.decoder, nn.Sequential) else torch.cat(
            [net(x) for net in self.decoder], -1)  # fmt: skip


def split_rows(starts: Tensor, share: float, rng: torch.Generator) -> tuple[list[range], list[range]]:
    """Pieces of rows to train on and to validate on, from starts (trajectories + 1,): no row is in both.

    Whole trajectories are held out; a single one is cut in time. differs from the authors' code, which draws windows:
    neighbours overlap, so that theirs validates on observations it has trained on.
    """
    pieces = [range(int(a), int(b)) for a, b in zip(starts, starts[1:])]
    if len(pieces) == 1:
        cut = pieces[0].stop - round(share * len(pieces[0]))
        return [range(pieces[0].start, cut)], [range(cut, pieces[0].stop)]
    order = torch.randperm(len(pieces), generator=rng).tolist()
    held = min(max(round(share * len(pieces)), 1), len(pieces) - 1)
    return [pieces[i] for i in order[held:]], [pieces[i] for i in order[:held]]


def window_rows(pieces: list[range], stack: int) -> Tensor:
    """Row t of every window o_{t-stack+1} .. o_{t+1} that lies in one piece, (windows,)."""
    rows = [torch.arange(piece.start + stack - 1, max(piece.stop - 1, piece.start + stack - 1)) for piece in pieces]
    if not sum(map(len, rows)):
        sys.exit(f"No trajectory is left with {stack + 1} observations: record more or longer ones, or lower --stack.")
    return torch.cat(rows)


def gather(obs: Tensor, row: Tensor, stack: int, following: bool) -> Tensor:
    """Observations o_{t-stack+1} .. o_t, and o_{t+1} if `following`, at rows t (B,): (B, stack or stack + 1, ...)."""
    return obs[row[:, None] + torch.arange(1 - stack, 2 if following else 1, device=row.device)]


def pixels(obs: Tensor) -> Tensor:
    """Observations (B, ...) as flat targets (B, O): pictures (B, 64, 64, C) as channels first in [0, 1]."""
    return obs.movedim(-1, 1).flatten(1).float() / 255 if obs.dtype == torch.uint8 else obs


def inverse_loss(inverse: Actor, obs: Tensor, action: Tensor) -> Tensor:
    """Squared error () of the action between the last two of obs (B, stack + 1, ...)."""
    return (inverse(obs) - action).square().mean()


def forward_loss(model: Forward, obs: Tensor, action: Tensor) -> Tensor:
    """Squared error () of the last of obs (B, stack + 1, ...), foreseen from the others and the action (B, A)."""
    return (model(obs[:, :-1], action) - pixels(obs[:, -1])).square().mean()


def cloning_loss(policy: Actor, obs: Tensor, action: Tensor) -> Tensor:
    """Squared error () of the policy's action in obs (B, stack, ...)."""
    return (policy(obs) - action).square().mean()


@torch.no_grad()
def label(inverse: Actor, obs: Tensor, rows: Tensor, stack: int) -> Tensor:
    """The inverse model's actions (N, A) at the rows (windows,), zero elsewhere."""
    found = [inverse(gather(obs, row, stack, True)) for row in rows.split(1000)]
    labels = torch.zeros(len(obs), found[0].shape[-1], device=obs.device)
    labels[rows] = torch.cat(found)
    return labels


# --- same in: aime, bco ---
@torch.no_grad()
def evaluate(args, begin, episodes: int, seed: int, max_steps: int) -> list[dict]:
    """Play whole games with act = begin(games), action = act(obs (N, ...)): rows of seed and return.

    The torch random state is restored afterwards, so evaluating more often does not change the training.
    """
    envs = [DMC(args.env_id, args.setting, max_steps=max_steps) for _ in range(min(episodes, 25))]
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(rows) < episodes:
            wave = envs[: episodes - len(rows)]
            seeds = [seed + len(rows) + i for i in range(len(wave))]
            obs = np.stack([env.reset(seed=number)[0] for env, number in zip(wave, seeds)])
            act, total, ended = begin(len(wave)), np.zeros(len(wave)), False
            while not ended:  # all games are equally long
                action = act(torch.from_numpy(obs)).cpu().numpy()
                steps = [env.step(a) for env, a in zip(wave, action)]
                obs, ended = np.stack([step[0] for step in steps]), steps[0][3]
                total += [step[1] for step in steps]
            rows += [{"seed": number, "return": float(value)} for number, value in zip(seeds, total)]
    return rows


def ensure(command: list[str]) -> None:
    """Run a missing stage as the command a user would type."""
    print("$ python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        sys.exit(f"The stage above failed; repair it, then run this again: python {' '.join(command)}.")


def datasets(args) -> tuple[list[str], str]:
    """Folders of D_body and of the demonstrations; those that dmc.py can make are made if they are missing."""
    debug, visual = args.size == "debug", args.setting == "visual"
    root = Path(args.data_dir or ("data/debug" if debug else "data") + ("/dmc-visual" if visual else "/dmc"))
    body = args.env_id.split("-")[0]
    names = (args.body or f"{body}-{'stand' if body == 'walker' else 'run'}-buffer").split(",")
    few = ["--num-episodes", "3", "--num-demonstrations", "3", "--max-steps", "40"] if debug else []
    for name in [*names, f"{args.env_id}-expert"]:
        task, _, kind = name.rpartition("-")
        missing = not (root / name).exists() or (root / name / "unfinished").exists()
        if missing and kind in ("buffer", "expert", "random") and not args.data_dir and not args.eval_only:
            agent = ["--env-id", f"{task}-run", "--agent", "random"] if kind == "random" else ["--env-id", task]
            ensure(["dmc.py", *agent, "--data-dir", str(root), *(["--pixels"] if visual else []), *few])
    return [str(root / name) for name in names], str(root / f"{args.env_id}-expert")


def same_settings(saved: dict, settings: dict, file: Path) -> None:
    """End with one sentence if a checkpoint was made with other settings."""
    old = saved.get("settings", {})
    wrong = {name: value for name, value in old.items() if settings.get(name, value) != value}
    no_flag = ("world_model", "keys", "action_size", "body")
    other = []
    for name, value in wrong.items():
        flag, shown = name.replace("_", "-"), "" if isinstance(value, bool) else f" {value}"
        told = name in no_flag or value is None
        other.append(f"another {flag}" if told else f"--{'no-' if value is False else ''}{flag}{shown}")
    if other or not old:
        reason = "with " + ", ".join(other) if other else "by another script"
        sys.exit(f"{file} was made {reason}: give --run-dir for a new run, or repeat its settings.")


def score(returns, expert: float, random: float) -> dict[str, float]:
    """What is logged about the returns of some games."""
    mean, share = float(np.mean(returns)), (float(np.mean(returns)) - random) / ((expert - random) or 1.0)
    return {"eval/return_mean": mean, "eval/return_std": float(np.std(returns)), "eval/return_vs_expert": share}


# --- end ---


def player(policy: Actor, stack: int, device):
    """For `evaluate`: the policy on the last observations; before there are enough, the first one is repeated."""

    def begin(games: int):
        seen = []

        def act(obs: Tensor) -> Tensor:
            seen[:] = [*seen[1 - stack :], obs] if seen else [obs] * stack
            return policy(torch.stack(seen[-stack:], 1).to(device))

        return act

    return begin


class Trainer:
    """Trains the stages of a run one after the other, with some ten checkpoints in the least epochs of each."""

    def __init__(self, args: Args, run_dir: Path, settings: dict, device: torch.device):
        self.args, self.run_dir, self.settings, self.device = args, run_dir, settings, device
        self.file, self.report, self.began = run_dir / "checkpoint.pt", {}, time.time()
        self.saved = load(self.file, device) if self.file.exists() else {"done": {}, "seconds": 0.0, "step": 0}
        if self.file.exists():
            same_settings(self.saved, settings, self.file)
            print(f"resuming {self.file} at update {self.saved['step'] + self.saved.get('updates', 0)}")
        self.before = self.saved["seconds"]
        self.log = Log(run_dir, self.saved["step"] + self.saved.get("updates", 0), args)

    def fit(self, name: str, net: nn.Module, loss, train: Tensor, held: Tensor) -> None:
        """Epochs of Adam on loss(rows) until the validation loss stops falling; the best weights."""
        args, saved = self.args, self.saved
        if name in saved["done"]:
            net.load_state_dict(saved["done"][name])
            return
        rng = torch.Generator().manual_seed(args.seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate)
        best, best_loss, stale, epoch, updates = copy.deepcopy(net.state_dict()), math.inf, 0, 0, 0
        if saved.get("stage") == name:
            net.load_state_dict(saved["net"]), optimizer.load_state_dict(saved["optimizer"])
            rng.set_state(saved["rng"].cpu())
            best, best_loss, stale, epoch, updates = (
                saved[k] for k in ("best", "best_loss", "stale", "epoch", "updates")
            )
        needed = max(args.min_epochs, math.ceil(args.min_updates / math.ceil(len(train) / args.batch_size)))
        limit, shown = args.max_epochs or math.inf, 0.0
        while epoch < min(needed, limit) or (stale < args.patience and epoch < limit):
            total = torch.zeros((), device=self.device)
            for rows in train[torch.randperm(len(train), generator=rng)].split(args.batch_size):
                value = loss(rows.to(self.device))
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                total += value.detach() * len(rows)
                updates += 1
            epoch += 1
            with torch.no_grad():
                errors = [loss(rows.to(self.device)).item() * len(rows) for rows in held.split(1000)]
            error, stale = sum(errors) / len(held), stale + 1
            if error < best_loss:
                best, best_loss, stale = copy.deepcopy(net.state_dict()), error, 0
            step, seconds = saved["step"] + updates, self.seconds()
            row = {f"losses/{name}": total.item() / len(train), f"losses/{name}_validation": error,
                   "charts/SPS": step / seconds}  # fmt: skip
            self.log(step, seconds, row)
            self.report |= row
            # ten checkpoints are enough: writing one may take longer than an epoch
            last = epoch >= limit or (epoch >= needed and stale >= args.patience)
            if last or epoch % max(1, needed // 10) == 0:
                state = {"stage": name, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "best": best,
                         "best_loss": best_loss, "stale": stale, "epoch": epoch, "updates": updates,
                         "rng": rng.get_state(), "seconds": seconds}  # fmt: skip
                self.save(saved | state)
            if last or time.time() - shown > 1:
                shown = time.time()
                print(f"\r{name}: epoch {epoch} (at least {needed})  loss {row[f'losses/{name}']:.5f}"
                      f"  validation {error:.5f}  best {best_loss:.5f}  {clock(seconds)}   ",
                      end="\n" if last else "", flush=True)  # fmt: skip
        net.load_state_dict(best)
        self.saved = {"done": saved["done"] | {name: best}, "step": saved["step"] + updates, "seconds": self.seconds()}
        self.save(self.saved)

    def seconds(self) -> float:
        """Time spent, before an interruption too."""
        return self.before + time.time() - self.began

    def save(self, content: dict) -> None:
        """Write the checkpoint."""
        versions = {"torch": str(torch.__version__), "numpy": str(np.__version__)}
        save(self.file, content | {"settings": self.settings, "args": vars(self.args), "versions": versions})


def main(args: Args) -> dict:
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    keys, stack = observed(args.env_id, args.setting), args.stack or (1 if args.setting == "mdp" else 5)
    folders, demonstrations = datasets(args)
    script = Path(__file__).stem if args.method == "bco" else args.method
    kind = f"{args.size}-{args.setting}-{'+'.join(Path(folder).name for folder in folders)}"
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/{script}-{kind}-{args.num_expert_episodes}-{args.seed}")
    oracle = args.method == "oracle"
    # without the oracle the demonstrations' actions are not read
    demos = Trajectories([demonstrations], keys, args.num_expert_episodes, actions=oracle, device=device)
    if len(demos.starts) <= args.num_expert_episodes:
        sys.exit(
            f"{demonstrations} has only {len(demos.starts) - 1} games: lower --num-expert-episodes or record more."
        )
    expert_return = float(np.mean(demos.returns))
    random_return = float(np.mean(demos.meta.get("random_returns") or random_returns(args.env_id)))
    free = ("run_dir", "cuda", "data_dir", "threads")
    settings = {k: v for k, v in vars(args).items() if k not in free and "eval" not in k} | {"body": ",".join(folders)}
    if not 0 < args.validation_share < 1:
        sys.exit(f"--validation-share {args.validation_share} must lie between 0 and 1.")
    if args.eval_only and not (run_dir / "checkpoint.pt").exists():
        sys.exit(f"No checkpoint at {run_dir / 'checkpoint.pt'}: train first, or name its folder with --run-dir.")
    if args.eval_only and "policy" not in load(run_dir / "checkpoint.pt", "cpu").get("done", {}):
        sys.exit(f"{run_dir / 'checkpoint.pt'} is not finished: the same command without --eval-only goes on with it.")
    trainer, rng = Trainer(args, run_dir, settings, device), torch.Generator().manual_seed(args.seed)
    policy = Actor(keys, stack, 6, args.units).to(device)
    # (1) and (2) windows of D_body; the inverse (3) or the forward model
    model = None
    if not oracle:
        data = Trajectories(folders, keys, device=device)
        following = torch.cat([data.prev_action[1:], data.prev_action[:1]])  # following[t] was taken at row t
        train, held = (window_rows(pieces, stack) for pieces in split_rows(data.starts, args.validation_share, rng))
        make, rule = (Actor, inverse_loss) if args.method == "bco" else (Forward, forward_loss)
        model = make(keys, stack + (args.method == "bco"), 6, args.units).to(device)
        name = "inverse" if args.method == "bco" else "forward"

        def model_error(row: Tensor) -> Tensor:
            return rule(model, gather(data.obs, row, stack, True), following[row])

        trainer.fit(name, model, model_error, train, held)
        model.requires_grad_(False)
        policy.encoder.load_state_dict(model.encoder.state_dict())
    # (4) windows of the demonstrations, and what the policy shall do there
    train, held = (window_rows(pieces, stack) for pieces in split_rows(demos.starts, args.validation_share, rng))
    if args.method == "iidm":

        def loss(row: Tensor) -> Tensor:
            obs = gather(demos.obs, row, stack, True)
            return forward_loss(model, obs, policy(obs[:, :-1]))

    else:
        rows = torch.cat([train, held]).to(device)
        if oracle:
            target = torch.cat([demos.prev_action[1:], demos.prev_action[:1]])
        else:
            target = label(model, demos.obs, rows, stack)

        def loss(row: Tensor) -> Tensor:
            return cloning_loss(policy, gather(demos.obs, row, stack, False), target[row])  # (5)

    trainer.fit("policy", policy, loss, train, held)
    # (6) play
    trainer.log.writer.close()
    rows = evaluate(args, player(policy, stack, device), args.eval_episodes, 1000, demos.meta.get("max_steps", 500))
    step, seconds = trainer.saved["step"], trainer.seconds()
    with open(run_dir / ("eval_only_episodes.csv" if args.eval_only else "final_episodes.csv"), "w", newline="") as out:
        out.write("update,seed,return\n")
        csv.writer(out).writerows([step, row["seed"], row["return"]] for row in rows)
    returns = np.array([row["return"] for row in rows])
    report = trainer.report | score(returns, expert_return, random_return)
    finish(args, run_dir, script, step, seconds, report, returns, expert_return, random_return,
           {"data": folders, "demonstrations": demonstrations, "method": args.method})  # fmt: skip
    return report


# --- same in: aime, bco ---
def finish(args, run_dir: Path, script: str, step: int, seconds: float, report: dict, returns: np.ndarray,
           expert_return: float, random_return: float, sources: dict) -> None:  # fmt: skip
    """Log and print the final evaluation, and write result.json (with --eval-only: eval_only.json)."""
    if not args.eval_only:
        log = Log(run_dir, step, args)
        log(step, seconds, {name: value for name, value in report.items() if name.startswith("eval/")})
        log.writer.close()
    report |= {"expert_return": expert_return, "random_return": random_return, "step": step}
    report |= {"percent_of_expert": 100 * report["eval/return_mean"] / (expert_return or 1.0)}
    everything = report | sources | {"size": args.size, "args": vars(args), "returns": returns.tolist()}
    strict = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in everything.items()}  # no NaN
    (run_dir / ("eval_only.json" if args.eval_only else "result.json")).write_text(json.dumps(strict, indent=1))
    standard_error = returns.std() / max(len(returns) - 1, 1) ** 0.5
    print(f"\n{args.env_id}, {args.setting}, {len(returns)} games, {args.size} size, {step} updates\n"
          f"  {script:10s}{report['eval/return_mean']:8.1f} +- {standard_error:.1f} (standard error)\n"
          f"  expert    {expert_return:8.1f}\n  random    {random_return:8.1f}\n"
          f"  score     {report['eval/return_vs_expert']:8.2f}  (0 random, 1 expert)\n"
          f"  percent   {report['percent_of_expert']:8.1f}  (of the expert's return, as the paper counts)")  # fmt: skip


# --- end ---


if __name__ == "__main__":
    try:
        main(parse_args(Args, SIZES))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from the last checkpoint.")
