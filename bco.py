# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
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
  (6) play its action                                                                           `stacked`

    python bco.py --env-id walker-walk                     (walk -> walk; makes whatever is missing; needs dm_control)
    python bco.py --env-id walker-walk --method oracle
    python bco.py --env-id walker-walk --eval-only

Differences from the authors' code (AIME's): the split is by trajectory, not by window, so that overlapping windows do
not leak; a single trajectory is cut in time. The rule for stopping is theirs; the small size has 10 to 20 epochs.
"""

import copy
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dmc import DMC, Trajectories, observed, random_returns
from world_model import Games, Run, command, make, parse_args, run_folder, start


@dataclass
class Args:
    # run
    env_id: str = "walker-walk"
    """task of the demonstrations and of the test: walker-stand, -walk, -run, cheetah-run, -runb, -flip or -flipb"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<setting>-<data>-<N^E>-<seed>. The same
    command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    body: str = ""
    """D_body, data sets separated by commas (several: a mix); default <env_id>-buffer, the task's own"""
    demo: str = ""
    """D_demo, data set of the demonstrations; default <env_id>-expert"""
    num_expert_episodes: int = 100
    """N^E, demonstrations to imitate, the first ones in numeric order"""
    data_dir: str = ""
    """folder of all data sets; default data/dmc (visual: data/dmc-visual)"""
    setting: Literal["lpomdp", "mdp", "visual"] = "lpomdp"
    """what is observed: lpomdp (sensors without velocities), mdp (all sensors), visual (64x64 pictures)"""
    # actor and critic
    depth: int = 32
    """visual: channels of the first convolution; each further one doubles them"""
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
    """epochs without a better validation loss after which a stage stops, once past min_epochs and min_updates"""
    min_epochs: int = 50
    """epochs that every stage has at least"""
    min_updates: int = 5000
    """updates that every stage has at least"""
    max_epochs: int = 0
    """epochs after which a stage stops in any case; 0: no limit (authors' code)"""
    validation_share: float = 0.3
    """share of the trajectories that are held out for the validation loss"""


SMALL = dict(depth=8, min_epochs=10, max_epochs=20, eval_episodes=50, threads=1)
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(units=16, min_epochs=2, min_updates=10, patience=1, max_epochs=12, eval_episodes=2,
                          num_expert_episodes=2),
}  # fmt: skip


class Encoder(nn.Module):
    """Sensors (..., O) as they are; pictures (..., 64, 64, C) uint8 through AIME's convolutions to (..., 32 depth)."""

    def __init__(self, keys: dict[str, int], depth: int = 32):
        super().__init__()
        self.image = "image" in keys
        self.size = 32 * depth if self.image else sum(keys.values())
        if self.image:
            widths, convs = [keys["image"], depth, 2 * depth, 4 * depth, 8 * depth], []
            for i, o in zip(widths, widths[1:]):
                convs += [nn.Conv2d(i, o, 4, stride=2), nn.ReLU()]
            self.net = nn.Sequential(*convs[:-1], nn.Flatten())

    def forward(self, obs: Tensor) -> Tensor:
        if not self.image:
            return obs
        return self.net(obs.flatten(0, -4).movedim(-1, -3).float() / 255).unflatten(0, obs.shape[:-3])


def mlp(inputs: int, outputs: int, units: int) -> nn.Sequential:
    """ELU network with two hidden layers (authors' code), PyTorch's default initialisation."""
    hidden = [nn.Linear(inputs, units), nn.ELU(inplace=True), nn.Linear(units, units), nn.ELU(inplace=True)]
    return nn.Sequential(*hidden, nn.Linear(units, outputs))


class Actor(nn.Module):
    """tanh(network) of a stack of observations (B, K, ...) -> action (B, A); deterministic. Also the inverse model."""

    def __init__(self, keys: dict[str, int], stack: int, action_size: int, units: int, depth: int = 32):
        super().__init__()
        self.encoder = Encoder(keys, depth)
        self.net = mlp(stack * self.encoder.size, action_size, units)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(self.encoder(obs).flatten(1)))


class Forward(nn.Module):
    """One step ahead: a stack of observations (B, K, ...) and an action (B, A) -> the next observation, flat (B, O)."""

    def __init__(self, keys: dict[str, int], stack: int, action_size: int, units: int, depth: int = 32):
        super().__init__()
        self.encoder = Encoder(keys, depth)
        inputs = stack * self.encoder.size + action_size
        if "image" in keys:
            self.decoder = nn.Sequential(
                nn.Linear(inputs, 32 * depth), nn.Unflatten(-1, (32 * depth, 1, 1)),
                nn.ConvTranspose2d(32 * depth, 4 * depth, 5, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(4 * depth, 2 * depth, 5, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(2 * depth, depth, 6, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(depth, keys["image"], 6, stride=2), nn.Sigmoid(), nn.Flatten(),
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
def datasets(args) -> tuple[list[str], str]:
    """Folders of D_body and of the demonstrations; those that dmc.py can make are made if they are missing."""
    debug, visual = args.size == "debug", args.setting == "visual"
    root = Path(args.data_dir or ("data/debug" if debug else "data") + ("/dmc-visual" if visual else "/dmc"))
    names = (args.body or f"{args.env_id}-buffer").split(",")
    demo = args.demo or f"{args.env_id}-expert"
    few = ["--num-episodes", "3", "--num-demonstrations", "3", "--max-steps", "40"] if debug else []
    for name in [*names, demo]:
        task, _, kind = name.rpartition("-")
        missing = not (root / name).exists() or (root / name / "unfinished").exists()
        if missing and kind in ("buffer", "expert", "random") and not args.data_dir and not args.eval_only:
            agent = ["--env-id", f"{task}-run", "--agent", "random"] if kind == "random" else ["--env-id", task]
            make(["dmc.py", *agent, "--data-dir", str(root), *(["--pixels"] if visual else []), *few])
    return [str(root / name) for name in names], str(root / demo)


def read_demonstrations(args, folder: str, keys: dict[str, int], device, actions: bool) -> tuple[Trajectories, dict]:
    """N^E demonstrations, and mean returns of the expert and of random actions."""
    demos = Trajectories([folder], keys, args.num_expert_episodes, actions=actions, device=device)
    if len(demos.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(demos.starts) - 1} games: lower --num-expert-episodes or record more.")
    random = demos.meta.get("random_returns") or random_returns(args.env_id)
    return demos, {"expert": float(np.mean(demos.returns)), "random": float(np.mean(random))}


def games_of(args, max_steps: int):
    """A function that makes so many games side by side, observed as --setting says."""
    make_one = lambda: DMC(args.env_id, args.setting, max_steps=max_steps)  # noqa: E731
    return lambda count: Games(args.env_id, min(count, 25), max_steps, make=make_one)


# --- end ---


def stacked(policy: Actor, stack: int, device):
    """For `play`: the policy on the last observations; before there are enough, the first one is repeated."""
    seen = []

    @torch.no_grad()
    def act(games: Games) -> np.ndarray:
        obs = torch.from_numpy(games.seen)
        seen[:] = [*seen[1 - stack :], obs] if seen and games.steps.any() else [obs] * stack
        return policy(torch.stack(seen[-stack:], 1).to(device)).cpu().numpy()

    return act


class Stopping:
    """Early stopping of a stage: its best weights, their validation loss, epochs since, and whether it has ended."""

    def __init__(self, net: nn.Module):
        self.best, self.loss = copy.deepcopy(net.state_dict()), math.inf
        self.stale, self.epoch, self.ended = 0, 0, False

    def state_dict(self) -> dict:
        return vars(self)

    def load_state_dict(self, saved: dict) -> None:
        vars(self).update(saved)


def stage(args: Args, name: str, net: nn.Module) -> dict:
    """What a checkpoint holds of a stage: network, optimiser, early stopping, random numbers."""
    optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate)
    rng = torch.Generator().manual_seed(args.seed)
    return {name: net, f"{name}_optimizer": optimizer, f"{name}_stopping": Stopping(net), f"{name}_rng": rng}


def fit(run: Run, name: str, loss, train: Tensor, held: Tensor) -> nn.Module:
    """Epochs of Adam on loss(rows) until the validation loss stops falling; the network with its best weights."""
    net, optimizer, stop, rng = (run.parts[name + end] for end in ("", "_optimizer", "_stopping", "_rng"))
    args, device = run.args, next(net.parameters()).device
    needed = max(args.min_epochs, math.ceil(args.min_updates / math.ceil(len(train) / args.batch_size)))
    limit = args.max_epochs or math.inf
    run.bar = tqdm(total=needed, initial=stop.epoch, unit=" epochs", disable=None)  # at least so many
    while not stop.ended:
        total = torch.zeros((), device=device)
        for rows in train[torch.randperm(len(train), generator=rng)].split(args.batch_size):
            value = loss(rows.to(device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.detach() * len(rows)
            run.step += 1
        with torch.no_grad():
            errors = [loss(rows.to(device)).item() * len(rows) for rows in held.split(1000)]
        error, stop.epoch, stop.stale = sum(errors) / len(held), stop.epoch + 1, stop.stale + 1
        if error < stop.loss:
            stop.best, stop.loss, stop.stale = copy.deepcopy(net.state_dict()), error, 0
        stop.ended = stop.epoch >= limit or (stop.epoch >= needed and stop.stale >= args.patience)
        metrics = {f"losses/{name}": total / len(train), f"losses/{name}_validation": error}
        run.log(metrics, *metrics)
        run.bar.update()
        if stop.ended or stop.epoch % max(1, needed // 10) == 0:  # writing one may take longer than an epoch
            run.save()
    run.bar.close()
    print(f"{name}: {stop.epoch} epochs, best validation loss {stop.loss:.5f}")
    net.load_state_dict(stop.best)
    return net


def main(args: Args) -> dict:
    device, script = start(args), args.method
    keys, stack = observed(args.env_id, args.setting), args.stack or (1 if args.setting == "mdp" else 5)
    folders, demonstrations = datasets(args)
    kind = f"{args.size}-{args.setting}-{'+'.join(Path(folder).name for folder in folders)}"
    run_dir = run_folder(args, f"{script}-{kind}-{args.num_expert_episodes}-{args.seed}")
    oracle = args.method == "oracle"  # without it the demonstrations' actions are not read
    demos, marks = read_demonstrations(args, demonstrations, keys, device, actions=oracle)
    data = demos if oracle else Trajectories(folders, keys, device=device)
    policy = Actor(keys, stack, 6, args.units, args.depth).to(device)
    rng, parts = torch.Generator().manual_seed(args.seed), {}
    if not oracle:
        inverse = args.method == "bco"
        name, make_model, rule = ("inverse", Actor, inverse_loss) if inverse else ("forward", Forward, forward_loss)
        model = make_model(keys, stack + inverse, 6, args.units, args.depth).to(device)
        parts = stage(args, name, model)
    parts |= stage(args, "policy", policy)
    run = Run(run_dir, args, parts, {"dataset": data.digest() + demos.digest()}, marks, free={"body", "demo"})
    games = games_of(args, demos.meta.get("max_steps", 500))
    if args.eval_only and not parts["policy_stopping"].ended:
        sys.exit(f"{run.file} is not finished: the same command without --eval-only goes on with it.")
    if not oracle:
        # (1) and (2) windows of D_body; the inverse (3) or the forward model
        following = torch.cat([data.prev_action[1:], data.prev_action[:1]])  # following[t] was taken at row t
        train, held = (window_rows(pieces, stack) for pieces in split_rows(data.starts, args.validation_share, rng))
        fit(run, name, lambda row: rule(model, gather(data.obs, row, stack, True), following[row]), train, held)
        model.requires_grad_(False)
        if parts["policy_stopping"].epoch == 0:
            policy.encoder.load_state_dict(model.encoder.state_dict())
    # (4) windows of the demonstrations, and what the policy shall do there
    train, held = (window_rows(pieces, stack) for pieces in split_rows(demos.starts, args.validation_share, rng))
    if args.method == "bco":
        target = label(model, demos.obs, torch.cat([train, held]).to(device), stack)
    elif oracle:
        target = torch.cat([demos.prev_action[1:], demos.prev_action[:1]])

    def loss(row: Tensor) -> Tensor:
        obs = gather(demos.obs, row, stack, args.method == "iidm")
        if args.method == "iidm":
            return forward_loss(model, obs, policy(obs[:, :-1]))
        return cloning_loss(policy, obs, target[row])  # (5)

    fit(run, "policy", loss, train, held)
    sources = {"data": folders, "demonstrations": demonstrations, "method": args.method, "size": args.size}
    # (6) play
    return run.finish(games, lambda: stacked(policy, stack, device), sources)


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
