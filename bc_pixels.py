# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""BC from pixels: behaviour cloning with a convolutional network, the baseline without a world model.

Paper: DITTO, arXiv 2302.03086 v2 (equation numbers are v2's), its plain cloning baseline.
A network that mirrors the world model's encoder and DITTO's actor sees the last four frames and learns to choose the
expert's action. Nothing else is used: no model, no data but the expert's. Comparing it with D-BC shows what the latent
space adds, with DITTO what imagination adds.

  (1) draw B expert frames in which an action was taken                            section 4    `ExpertFrames.draw`
  (2) stack each with the three before it, and take that action                    section 4    `ExpertFrames.stack`
  (3) policy: log-likelihood of the expert's actions, plus entropy                 Eq. 9        `cloning_loss`

    python bc_pixels.py --env-id BreakoutNoFrameskip-v4 --num-expert-episodes 30   (makes the expert's dataset)
    python bc_pixels.py --env-id BreakoutNoFrameskip-v4 --eval-only

Shapes: image (N, 64, 64, C) uint8, stack (N, 64, 64, 4 * C), newest last, E embedding. action[t] is taken in stack[t].
Differences from the paper: optimiser and batch are our choice (paper silent). The small size leaves the paper in
layers, width, batch and step size (annealed); its frames are scaled and thickened as for the small world model, but
stay 64x64 (SIZES).
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model import (Episodes, Games, Run, WorldModel, collected, command, home, make, parse_args, player,
                         read_meta, run_folder, start, window_starts)  # fmt: skip


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari ...NoFrameskip-v4, or any Gymnasium id with image observations or rgb_array rendering"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<N^E>-<seed>. The same command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    num_expert_episodes: int = 30
    """N^E, expert episodes to imitate"""
    data_dir: str = ""
    """one data set; default data/<env_id>/expert, else (small size) pretrained/<env_id>/expert, else collected now"""
    pretrained: bool = True
    """may use the demonstrations and the small world model that come with the repository"""
    # world model
    depth: int = 48
    """channels of the first convolution; each further one doubles them"""
    pixel_stats: Literal["global", "pixel"] = "global"
    """normalise grey levels by one mean and standard deviation (global, as the authors do) or per pixel (pixel)"""
    pixel_std_floor: float = 1.0
    """smallest standard deviation used for the normalisation, in grey levels"""
    dilation: int = 1
    """odd size of a moving maximum over the picture (1: off); makes a one-pixel ball large enough for a small model"""
    # actor and critic
    updates: int = 50_000
    """gradient steps"""
    batch_size: int = 512
    """B, expert frames per update"""
    layers: int = 8
    """hidden layers of each network of the agent (authors' code)"""
    units: int = 256
    """width of each"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    entropy: float = 0.1
    """eta_BC of Eq. 9, weight of the entropy"""
    # evaluation
    eval_episodes: int = 20
    """games of the final evaluation"""
    eval_every: int = 2500
    """updates between validations in the real game (quick_episodes games) and checkpoints"""
    quick_episodes: int = 8
    """games of those validations"""
    eval_consecutive: int = 1
    """final evaluation after each of so many consecutive gradient steps (differs from the paper's v2: 10)"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    log_every: int = 50
    """updates between log rows"""
    # runtime
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""


SMALL = dict(depth=8, pixel_stats="pixel", pixel_std_floor=16.0, dilation=5, layers=2, units=128, batch_size=256,
             updates=6000, learning_rate=1e-3, anneal=True, eval_every=500)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(layers=1, units=32, updates=20, batch_size=16, depth=4, eval_every=10, log_every=5,
                          eval_episodes=2, quick_episodes=2, num_expert_episodes=2, threads=1),
}  # fmt: skip


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
def mlp(inputs: int, outputs: int, layers: int, units: int) -> nn.Sequential:
    """ReLU network with `layers` hidden layers (authors' code: 8 x 256, no normalisation)."""
    sizes = [inputs] + [units] * layers
    hidden = [part for i, o in zip(sizes, sizes[1:]) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


class Actor(nn.Module):
    """pi(a | s): categorical (actions are one-hot), or a tanh-squashed Gaussian between low and high."""

    def __init__(self, feat_size: int, action_size: int, discrete: bool, layers: int, units: int, low=-1.0, high=1.0):
        super().__init__()
        self.discrete, self.action_size = discrete, action_size
        self.net = mlp(feat_size, action_size if discrete else 2 * action_size, layers, units)
        self.register_buffer("center", (torch.as_tensor(high) + torch.as_tensor(low)).float() / 2)
        self.register_buffer("scale", (torch.as_tensor(high) - torch.as_tensor(low)).float() / 2)

    def gaussian(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before squashing, (..., A) each."""
        mean, raw = self.net(feat).chunk(2, -1)
        return 5 * torch.tanh(mean / 5), F.softplus(raw) + 0.05  # our choice: both bounds keep log-probabilities finite

    def sample(self, feat: Tensor) -> Tensor:
        """Actions (..., A) drawn in states feat (..., F)."""
        if self.discrete:
            probs = self.net(feat).softmax(-1)
            draw = (probs / torch.empty_like(probs).exponential_().clamp_min(1e-20)).argmax(-1, keepdim=True)
            return torch.zeros_like(probs).scatter_(-1, draw, 1.0)  # F.one_hot checks its range first
        mean, std = self.gaussian(feat)
        return self.center + self.scale * torch.tanh(mean + std * torch.randn_like(std))

    def mode(self, feat: Tensor) -> Tensor:
        """The likeliest action (..., A), if continuous the median (for the agreement with the expert)."""
        if self.discrete:
            return F.one_hot(self.net(feat).argmax(-1), self.action_size).to(feat.dtype)
        return self.center + self.scale * torch.tanh(self.gaussian(feat)[0])

    def log_prob(self, feat: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(action | feat) (...) and the entropy (...) (if continuous: estimated from one draw)."""
        if self.discrete:
            logits = F.log_softmax(self.net(feat), -1)
            return (logits * action).sum(-1), -(logits.exp() * logits).sum(-1)
        mean, std = self.gaussian(feat)
        squashed = ((action - self.center) / self.scale).clamp(-1 + 1e-5, 1 - 1e-5)
        density = -0.5 * ((torch.atanh(squashed) - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)
        log_prob = (density - torch.log1p(-squashed.square()) - self.scale.log()).sum(-1)
        drawn = mean + std * torch.randn_like(std)
        log_slope = 2 * (np.log(2) - drawn - F.softplus(-2 * drawn)) + self.scale.log()  # log |d action / d drawn|
        return log_prob, (std.log() + 0.5 * np.log(2 * np.pi * np.e) + log_slope).sum(-1)


# --- end ---


# --- same in: bc_pixels, d_bc ---
def cloning_loss(log_prob: Tensor, entropy: Tensor, weight: float) -> Tensor:
    """Eq. 9: minus the mean log-likelihood of the expert's actions, minus `weight` times the entropy; both (...)."""
    return -(log_prob + weight * entropy).mean()


# --- end ---


class FrameEncoder(nn.Module):
    """Mirrors the world model's encoder, on four frames at once; `filter_step` keeps the frames while playing."""

    # frames are dilated, measured and normalised as the world model's are
    sensors, picture, measure, preprocess = 0, 64, WorldModel.measure, WorldModel.preprocess

    def __init__(self, channels: int, depth: int, pixel_stats: str, dilation: int):
        super().__init__()
        self.channels, self.dilation = channels, dilation
        pixels = (channels, 64, 64) if pixel_stats == "pixel" else (1, 1, 1)
        self.register_buffer("pixel_mean", torch.zeros(pixels))
        self.register_buffer("pixel_std", torch.ones(pixels))
        widths = [4 * channels, depth, 2 * depth, 4 * depth, 8 * depth]  # 64 -> 31 -> 14 -> 6 -> 2
        convs = [part for i, o in zip(widths, widths[1:]) for part in (nn.Conv2d(i, o, 4, stride=2), nn.ELU())]
        self.net = nn.Sequential(*convs, nn.Flatten())
        self.to(memory_format=torch.channels_last)

    def initial(self, batch: int) -> tuple[Tensor]:
        """No frames yet: a stack (B, 64, 64, 4 * C)."""
        return (torch.zeros(batch, 64, 64, 4 * self.channels, dtype=torch.uint8, device=self.pixel_mean.device),)

    def filter_step(self, state: tuple[Tensor], image: Tensor, prev_action: Tensor, is_first: Tensor) -> tuple[Tensor]:
        """Push image (B, 64, 64, C) onto the stack; a first frame fills it."""
        pushed = torch.cat([state[0][..., self.channels :], image], -1)
        return (torch.where(is_first.view(-1, 1, 1, 1), image.repeat(1, 1, 1, 4), pushed),)

    def forward(self, stack: Tensor) -> Tensor:
        """Stacks (..., 64, 64, 4 * C) uint8 -> embeddings (..., E = 32 * depth)."""
        frames = stack.flatten(0, -4).unflatten(-1, (4, self.channels)).movedim(-2, 1)  # (N, 4, 64, 64, C)
        pixels = self.preprocess(frames).flatten(1, 2)  # (N, 4 * C, 64, 64)
        return self.net(pixels.contiguous(memory_format=torch.channels_last)).unflatten(0, stack.shape[:-3])


class ExpertFrames:
    """Expert episodes; `draw` gives rows in which an action was taken, `stack` the frames up to there."""

    def __init__(self, data: Episodes):
        self.data, self.allowed = data, window_starts(data.starts, 2)  # a last frame is followed by no action
        self.first = torch.repeat_interleave(data.starts[:-1], data.starts.diff())  # (rows,): of the row's episode

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Row numbers (count,)."""
        return self.allowed[torch.randint(len(self.allowed), (count,), generator=rng, device=rng.device).cpu()]

    def stack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks (N, 64, 64, 4 * C), newest frame last, and the actions (N, A) taken in them."""
        index = torch.maximum(rows[:, None] - torch.arange(3, -1, -1), self.first[rows][:, None])  # (N, 4)
        image = self.data.pictures(index)  # (N, 4, 64, 64, C)
        return image.movedim(1, -2).flatten(-2), self.data.prev_action[(rows + 1).to(image.device)]


@torch.no_grad()
def agreement(actor: Actor, frames: ExpertFrames, count: int = 4096) -> dict[str, float]:
    """Share of held-out expert frames where the likeliest action is the expert's (continuous: see docs)."""
    device, same = frames.data.is_first.device, []
    for rows in frames.draw(count, torch.Generator(device).manual_seed(0)).split(512):
        stack, taken = frames.stack(rows)
        mode = actor.mode(stack)  # (N, A)
        near = (mode * taken).sum(-1) if actor.discrete else 1 - ((mode - taken).abs() / (2 * actor.scale)).mean(-1)
        same.append(near)
    return {"expert/action_agreement": torch.cat(same).mean().item()}


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
def collect(args, *options: str) -> None:
    """Collect a data set as a user would; debug data is kept apart."""
    debug = ["--num-envs", "2", "--num-val-episodes", "1", "--max-steps", "60"] if args.size == "debug" else []
    root = "data/debug" if args.size == "debug" else "data"
    make(["collect_data.py", "--env-id", args.env_id, "--data-dir", root, *debug, *options], not args.eval_only)


def expert_dataset(args) -> Path:
    """Find the folder of expert episodes, collecting it if there is none."""
    shipped = home("pretrained", args.env_id) / "expert"
    folder = Path(args.data_dir or home("data/debug" if args.size == "debug" else "data", args.env_id) / "expert")
    count = args.num_expert_episodes
    if args.data_dir and not list(folder.glob("*.npz")):
        sys.exit(f"{folder} has no episodes: name another --data-dir.")
    if args.data_dir or collected(folder, count) or "imported" in read_meta(folder):
        return folder
    if args.pretrained and args.size == "small" and not folder.exists() and collected(shipped, count):
        return shipped
    collect(args, "--num-episodes", str(count))
    return folder


def read_dataset(args, folder: Path, device: torch.device, actions: bool = True) -> tuple[Episodes, Episodes, dict]:
    """N^E expert episodes, held-out ones, and mean returns: expert, random, the expert's actions shuffled."""
    data = Episodes([folder], "train", args.num_expert_episodes, device, actions, env_id=args.env_id)
    if len(data.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(data.starts) - 1} episodes: lower --num-expert-episodes or collect more.")
    returns = {"expert": [episode["return"] for episode in data.meta.get("episodes", [])]}
    returns |= {who: data.meta.get(f"{who}_returns") for who in ("random", "shuffled")}
    marks = {who: float(np.mean(values)) if values else float("nan") for who, values in returns.items()}
    return data, Episodes([folder], "val", 6, device), marks


# --- end ---


def main(args: Args) -> dict:
    device, script = start(args), Path(__file__).stem
    rng = torch.Generator(device).manual_seed(args.seed)  # for the frames that are drawn
    run_dir = run_folder(args, f"{script}-{args.size}-{args.num_expert_episodes}-{args.seed}")
    folder = expert_dataset(args)
    print(f"expert: {folder}")
    data, held_out, marks = read_dataset(args, folder, device)
    action_size, channels = held_out.prev_action.shape[-1], data.image.shape[-1]
    games = functools.partial(Games, args.env_id, max_steps=data.meta.get("max_steps", 27000), grayscale=channels == 1)
    args.eval_episodes and games(num_envs=1)  # what cannot be made or drawn is named now, not after the training
    # frames to draw from, and their pixel statistics
    frames, held_frames = ExpertFrames(data), ExpertFrames(held_out)
    encoder = FrameEncoder(channels, args.depth, args.pixel_stats, args.dilation)
    pick = torch.linspace(0, len(data.image) - 1, min(len(data.image), 4000)).long()
    encoder.to(device).measure(data.pictures(pick), args.pixel_std_floor)
    bounds = (data.meta.get("low", -1.0), data.meta.get("high", 1.0))
    actor = Actor(32 * args.depth, action_size, held_out.discrete, args.layers, args.units, *bounds).to(device)
    actor.net = nn.Sequential(encoder, actor.net)  # its feat is a stack of frames
    optimizer = torch.optim.Adam(actor.parameters(), lr=args.learning_rate, fused=True)
    parts = {"actor": actor, "optimizer": optimizer, "rng": rng}
    run = Run(run_dir, args, parts, {"dataset": data.digest()}, marks)

    def update(rows: Tensor) -> dict[str, Tensor]:
        stack, action = frames.stack(rows)  # (2) (B, 64, 64, 4 * C), (B, A)
        log_prob, entropy = actor.log_prob(stack, action)
        loss = cloning_loss(log_prob, entropy, args.entropy)  # (3)
        metrics = {"losses/policy": loss.detach(), "losses/entropy": entropy.mean().detach()}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return metrics

    for step in run.steps(0 if args.eval_only else args.updates):
        metrics = update(frames.draw(args.batch_size, rng))  # (1); (2), (3)
        if run.due(args.eval_every):
            metrics = metrics | agreement(actor, held_frames)
            if step < args.updates:  # the last policy plays the final evaluation
                metrics |= run.validate(games, player(encoder, actor.sample))
        if run.due(args.eval_every) or run.due(args.log_every):
            run.log(metrics, "losses/policy", "losses/entropy", "expert/action_agreement", "eval/return_mean")
        if run.due(args.eval_every):
            run.save()
    if "expert/action_agreement" not in run.report:  # nothing was left to train
        run.report |= agreement(actor, held_frames)
    sources = {"data": str(folder), "size": args.size}
    return run.finish(games, lambda: player(encoder, actor.sample), sources,
                      lambda: update(frames.draw(args.batch_size, rng)))  # fmt: skip


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
