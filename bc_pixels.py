# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""BC from pixels: behaviour cloning with a convolutional network, the baseline without a world model.

Paper: DITTO, arXiv 2302.03086 v2 (equation numbers are v2's), its plain cloning baseline.
A network that mirrors the world model's encoder and DITTO's actor sees the last four frames and learns to choose the
expert's action. Nothing else is used: no model, no data but the expert's. Comparing it with D-BC shows what the latent
space adds, with DITTO what imagination adds. This file imports nothing of the project
(only `collect_data.py` is run, if data is missing).

  (1) stack each expert frame with the three before it                             section 4    `ExpertFrames`
  (2) draw B expert frames and the actions taken in them                           section 4    `ExpertFrames`
  (3) policy: log-likelihood of the expert's actions, plus entropy                 Eq. 9        `cloning_loss`

    python bc_pixels.py --env-id BreakoutNoFrameskip-v4 --num-expert-episodes 30   (makes the expert's dataset)
    python bc_pixels.py --env-id BreakoutNoFrameskip-v4 --eval-only

Shapes: image (N, 64, 64, C) uint8, stack (N, 64, 64, 4 * C), newest last, E embedding. action[t] is taken in stack[t].
Differences from the paper: none known; optimiser and batch are our choice (paper silent).
"""

import csv
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from PIL import Image
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

gym.register_envs(ale_py)


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari ...NoFrameskip-v4, or any Gymnasium id with image observations or rgb_array rendering"""
    size: str = "auto"
    """auto, paper, small or debug: which column of SIZES gives the defaults (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<N^E>-<seed>. The same command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    cuda: bool = True
    """use a GPU if there is one"""
    # data
    num_expert_episodes: int = 30
    """N^E, expert episodes to imitate"""
    data_dir: str = ""
    """expert dataset; default data/<env_id>/expert, else pretrained/<env_id>/expert, else collected now"""
    pretrained: bool = True
    """may use the demonstrations and the small world model that come with the repository"""
    # world model
    depth: int = 48
    """channels of the first convolution; the others have 2, 4 and 8 times as many"""
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
    """hidden layers of actor and critic (authors' code)"""
    units: int = 256
    """width of each"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    entropy: float = 0.1
    """eta_BC of Eq. 9"""
    # evaluation
    eval_episodes: int = 20
    """games of the final evaluation"""
    eval_every: int = 2500
    """updates between validations in the real game (quick_episodes games) and checkpoints"""
    quick_episodes: int = 8
    """games of those validations"""
    eval_consecutive: int = 1
    """final evaluation after each of so many consecutive gradient steps (paper, v2: 10)"""
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


# --- same in: collect_data, bc_pixels, world_model ---
@functools.cache
def area_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) of an area-averaging resize along one axis; equal to OpenCV's INTER_AREA."""
    edges = np.arange(size_out + 1) * size_in / size_out
    pixel = np.arange(size_in)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * size_out / size_in).astype(np.float32)


def resize(frames: np.ndarray, size: int = 64) -> np.ndarray:
    """Area-average uint8 frames (..., height, width) to (..., size, size)."""
    rows, cols = area_matrix(frames.shape[-2], size), area_matrix(frames.shape[-1], size)
    return np.rint(rows @ frames.astype(np.float32) @ cols.T).astype(np.uint8)


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Grey levels (height, width) of an RGB picture (height, width, 3), with OpenCV's weights."""
    weights = np.array([9798, 19235, 3735], np.float32) / 32768  # exact in float32, so rounding is that of integers
    return (rgb.astype(np.float32) @ weights + 0.5).astype(np.uint8)


def is_image(space: gym.Space) -> bool:
    """Whether observations are pictures: uint8 (height, width) or (height, width, 1 or 3)."""
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


def make_env(env_id: str) -> gym.Env:
    """Make a Gymnasium environment that can be seen; end with one sentence if there is none."""
    try:
        env = gym.make(env_id)
        space, render = env.action_space, not is_image(env.observation_space)
        if isinstance(env.unwrapped, ale_py.AtariEnv):
            problem = "has other Atari rules than the paper, use its NoFrameskip-v4 id"
        elif render and "rgb_array" not in env.metadata.get("render_modes", []):
            problem = "neither observes images nor renders rgb_array"
        elif not hasattr(space, "n") and not (space.dtype.kind == "f" and len(space.shape) == 1 and space.is_bounded()):
            problem = f"has actions {space}, only Discrete and a flat, bounded float Box are supported"
        else:
            env.close()
            env = gym.make(env_id, **({"render_mode": "rgb_array"} if render else {}))
            if render:  # a renderer that is not installed shows only now
                env.reset(), env.render()
            return env
        env.close()
    except (gym.error.Error, ImportError) as error:
        problem = f"cannot be made ({str(error).strip().splitlines()[0]})"
        if env_id in gym.registry:  # known, but something is not installed
            raise SystemExit(f"--env-id {env_id} {problem}.") from None
    known = [key for key, spec in gym.registry.items() if "NoFrameskip-v4" in key or "game" not in spec.kwargs]
    close = ", ".join(difflib.get_close_matches(env_id, known, cutoff=0.3))
    raise SystemExit(f"--env-id {env_id} {problem}; the closest names: {close or 'none'}.")


class Games:
    """`num_envs` copies of one environment, stepped together; a finished game restarts by itself.

    Atari (`...NoFrameskip-v4`): FIRE and up to 28 no-ops at the start, frame skip 4 with a maximum over the last two
    frames, no sticky actions, unclipped rewards, whole games. When a life is lost in a game that has FIRE, the next
    three actions are forced to no-op, FIRE, action 2 (without them a policy that never fires would wait for ever).
    Everything else: the environment's own steps, seen through its observation if that is an image, or `render()`.
    Slot i begins with seed `seed + i` and goes on with its own random generator. If `coming` is an iterator, every game
    begun takes its seed from there (Atari loads the game anew for that: 0.1 s). A fair sample are the first n games
    begun, not the first n to end, among which long games are rare.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, max_steps: int = 27000, grayscale: bool = True):
        self.num_envs, self.max_steps, self.seed, self.coming = num_envs, max_steps, seed, None
        self.atari = env_id.endswith("NoFrameskip-v4") and env_id in gym.registry
        self.channels = 1 if grayscale or self.atari else 3
        if self.atari:
            limit = 4 * max_steps + 400  # frames, the start included: `max_steps` itself is counted below
            self.envs = AtariVectorEnv(gym.spec(env_id).kwargs["game"], num_envs, stack_num=1, reward_clipping=False,
                                       max_num_frames_per_episode=limit, autoreset_mode="SameStep")  # fmt: skip
            self.action_space = self.envs.single_action_space
            self.has_fire = ale_py.Action.FIRE in self.envs.ale.get_action_set()
        else:
            self.envs = [make_env(env_id) for _ in range(num_envs)]
            self.action_space = self.envs[0].action_space

    def reset(self) -> np.ndarray:
        """Start every game anew; first frames (N, 64, 64, C) uint8."""
        N = self.num_envs
        self.seeds, self.steps, self.lives, self.forced = (np.zeros(N, np.int64) for _ in range(4))
        self.obs, self.frames, self.fresh = [None] * N, np.zeros((N, 64, 64, self.channels), np.uint8), np.ones(N, bool)
        self.restart(np.ones(N, bool), self.coming or itertools.count(self.seed))
        return self.frames.copy()

    def restart(self, which: np.ndarray, coming) -> None:
        """Begin a new game in the slots where `which` (N,) is true, seeded while `coming` has seeds."""
        self.seeds[which] = [next(coming, -1) for _ in range(which.sum())]
        self.steps[which] = self.forced[which] = 0  # `forced` counts the forced actions still to come
        self.fresh[which] = True  # a player who stacks frames must empty the stack: a game or a life has just begun
        if self.atari:
            obs, info = self.envs.reset(seed=self.seeds[which], options={"reset_mask": which})  # -1: do not seed
            self.frames84, self.lives = obs[:, -1], info["lives"].astype(np.int64)  # (N, 84, 84): what Zoo agents see
            self.frames, self.frame_number = resize(self.frames84)[..., None], info["episode_frame_number"]
        for i in () if self.atari else np.flatnonzero(which):
            self.obs[i] = self.envs[i].reset(seed=int(self.seeds[i]) if self.seeds[i] >= 0 else None)[0]
            self.frames[i] = self.picture(i)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one action each: frames (N, 64, 64, C), reward (N,), terminated (N,), truncated (N,), info.

        `info` holds what was really played: action, forced (N,), lives (N,) after the step, and final_frame
        (N, 64, 64, C), the last frame of the game where it ended (the frames returned already show the next game).
        """
        forced, before = self.forced > 0, self.lives
        self.steps += 1
        if self.atari:
            action = np.where(forced, 3 - self.forced, action)  # 0 no-op, 1 FIRE, 2
            obs, reward, terminated, truncated, raw = self.envs.step(action)
            self.frames84, self.lives = obs[:, -1].copy(), np.where(terminated, 0, raw["lives"])
            if terminated.any():  # these rows of `obs` show a new game already, with a seed that we did not choose
                self.frames84[terminated] = raw["final_obs"][terminated, -1]
            self.frames = resize(self.frames84)[..., None]
            self.forced = np.where((self.lives < before) & self.has_fire, 3, np.maximum(self.forced - 1, 0))
        else:
            if hasattr(self.action_space, "n"):
                played = action + self.action_space.start
            else:
                played = action = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
            self.obs, reward, *ends = ([*x] for x in zip(*(env.step(a) for env, a in zip(self.envs, played))))
            terminated, truncated = np.array(ends[0], bool), np.array(ends[1], bool)
            self.frames = np.stack([self.picture(i) for i in range(self.num_envs)])
        self.fresh = forced | (self.lives < before)
        truncated |= ~terminated & (self.steps >= self.max_steps)
        info = {"action": action, "forced": forced, "lives": self.lives, "final_frame": self.frames.copy()}
        self.played = action
        if (terminated | truncated).any():
            self.restart(terminated | truncated, self.coming or iter(()))
        return self.frames.copy(), np.array(reward, np.float32), terminated, truncated, info

    def picture(self, i: int) -> np.ndarray:
        """What slot i shows now: (64, 64, C) uint8."""
        picture = self.obs[i] if is_image(self.envs[i].observation_space) else self.envs[i].render()
        picture = picture.reshape(*picture.shape[:2], -1)
        picture = to_gray(picture)[..., None] if picture.shape[-1] == 3 and self.channels == 1 else picture
        return np.broadcast_to(np.moveaxis(resize(np.moveaxis(picture, -1, 0)), 0, -1), (64, 64, self.channels))


# --- end ---


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
            draw = (probs / torch.empty_like(probs).exponential_().clamp_min(1e-20)).argmax(-1)
            return F.one_hot(draw, self.action_size).to(feat.dtype)
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
    """Eq. 9: minus the mean log-likelihood of the expert's actions, minus `weight` times the entropy; both (H, N)."""
    return -(log_prob + weight * entropy).mean()


# --- end ---


# --- same in: bc_pixels, world_model ---
class Episodes:
    """Recorded episodes, end to end in one array: image (N, 64, 64, C) uint8, prev_action (N, A), is_first (N,).

    Reads the folders of collect_data.py and folders of Dreamer-style .npz files (keys image, action), whose
    action is already the one that led to the image of its row. Held-out files start with val_; elsewhere every tenth.
    With actions=False the files' actions are not read: prev_action has no columns, (N, 0).
    """

    def __init__(self, folders: list[str], split: str, limit: int = 0, device="cpu", actions: bool = True):
        images, prev_actions, self.starts, self.meta = [], [], [0], {}
        for folder in map(Path, folders):
            files = sorted(folder.glob("*.npz"))
            meta_file = folder / "dataset.json"
            try:
                meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
            except ValueError:
                sys.exit(f"{meta_file} is damaged: delete {folder} and collect its episodes anew.")
            if any(f.name.startswith("val_") for f in files):
                files = [f for f in files if f.name.startswith("val_") == (split == "val")]
            else:
                held = {i for i in range(len(files)) if i % 10 == 9 or len(files) < 10 and i == len(files) - 1}
                files = [f for i, f in enumerate(files) if (i in held) == (split == "val")]
            if not files:
                sys.exit(f"No {split} episodes in {folder}: make them with collect_data.py, or name another folder.")
            for file in files[: limit or None]:
                image, prev_action = self.read(file, meta.get("num_actions"), actions)
                images.append(image), prev_actions.append(prev_action), self.starts.append(self.starts[-1] + len(image))
                if image.shape[1:] != images[0].shape[1:] or prev_action.shape[1:] != prev_actions[0].shape[1:]:
                    sys.exit(f"{file} has other image or action shapes than {files[0]}: use one environment.")
            self.meta = self.meta or meta
        self.image = torch.from_numpy(np.concatenate(images)).to(device)
        self.prev_action = torch.from_numpy(np.concatenate(prev_actions)).to(device)
        self.starts = torch.tensor(self.starts)  # (episodes + 1,): episode i is rows starts[i] to starts[i + 1]
        self.is_first = torch.zeros(len(self.image), dtype=torch.bool, device=device)
        self.is_first[self.starts[:-1].to(device)] = True
        # a Dreamer-style folder does not say so: actions that are all zeros or one-hot are discrete
        onehot = bool(
            ((self.prev_action == 0) | (self.prev_action == 1)).all() and (self.prev_action.sum(-1) <= 1).all()
        )
        self.discrete = "num_actions" in self.meta if self.meta else onehot

    def read(self, file: Path, num_actions: int | None, actions: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """One file as image (T+1, 64, 64, C) and prev_action (T+1, A), zeros first, one-hot if discrete."""
        try:
            with np.load(file, allow_pickle=False) as npz:
                if not actions:
                    image = npz["image" if "image" in npz else "observations"]
                    prev_action = np.zeros((len(image), 0), np.float32)
                elif "image" in npz:
                    image, prev_action = npz["image"], npz["action"].astype(np.float32)
                else:
                    image, action = npz["observations"], npz["actions"]
                    if num_actions is not None:
                        action = np.eye(num_actions, dtype=np.float32)[action]
                    prev_action = np.concatenate([np.zeros_like(action[:1]), action]).astype(np.float32)
        except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
            sys.exit(f"{file} is not a readable episode ({error}): delete it and run the collection again.")
        if image.dtype != np.uint8 or image.shape[1:3] != (64, 64) or len(image) != len(prev_action):
            sys.exit(
                f"{file} does not hold 64x64 uint8 pictures with one action each: it has {image.shape} {image.dtype}."
            )
        if prev_action.ndim != 2:
            sys.exit(f"{file} has actions {prev_action.shape[1:]}, not one flat vector each: dataset.json is missing.")
        return image, prev_action

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch (image, prev_action, is_first) at row numbers `index` (T, B), gathered where the data lives."""
        index = index.to(self.image.device)
        return self.image[index], self.prev_action[index], self.is_first[index]

    def digest(self) -> str:
        """A number that tells whether two runs had the same episodes."""
        parts = self.starts, self.prev_action, self.image[::101]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


# --- end ---


class FrameEncoder(nn.Module):
    """Mirrors the world model's encoder, on four frames at once; `filter_step` keeps the frames while playing."""

    def __init__(self, channels: int, depth: int, dilation: int, mean: Tensor, std: Tensor):
        """`mean` and `std`, the pixel statistics: (C, 1, 1) or (C, 64, 64), in grey levels."""
        super().__init__()
        self.channels, self.dilation = channels, dilation
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)
        convs, last = [], 4 * channels
        for width in (depth, 2 * depth, 4 * depth, 8 * depth):  # 64 -> 31 -> 14 -> 6 -> 2
            convs += [nn.Conv2d(last, width, 4, stride=2), nn.ELU()]
            last = width
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
        pixels = stack.flatten(0, -4).movedim(-1, -3).float()
        if (half := self.dilation // 2) > 0:
            # a moving maximum along one axis, then the other: much faster on a CPU than max_pool2d, same numbers
            for axis in (-1, -2):
                padded = F.pad(pixels, (half, half, 0, 0) if axis == -1 else (0, 0, half, half))  # grey levels are >= 0
                pixels = functools.reduce(torch.maximum, (padded.narrow(axis, k, 64) for k in range(2 * half + 1)))
        pixels = (pixels - self.pixel_mean.repeat(4, 1, 1)) / self.pixel_std.repeat(4, 1, 1)
        return self.net(pixels.contiguous(memory_format=torch.channels_last)).unflatten(0, stack.shape[:-3])


class ExpertFrames:
    """Expert episodes; `draw` gives rows in which an action was taken, `stack` the frames up to there."""

    def __init__(self, data: Episodes):
        self.data, row = data, torch.arange(len(data.image))
        episode = torch.searchsorted(data.starts, row, right=True)
        self.first = data.starts[episode - 1]  # (rows,): first row of the row's episode
        self.allowed = row[row + 1 < data.starts[episode]]  # a last frame is followed by no action

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Row numbers (count,)."""
        return self.allowed[torch.randint(len(self.allowed), (count,), generator=rng, device=rng.device).cpu()]

    def stack(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Stacks (N, 64, 64, 4 * C), newest frame last, and the actions (N, A) taken in them."""
        index = torch.maximum(rows[:, None] - torch.arange(3, -1, -1), self.first[rows][:, None])  # (N, 4)
        image = self.data.image[index.to(self.data.image.device)]  # (N, 4, 64, 64, C)
        return image.movedim(1, -2).flatten(-2), self.data.prev_action[(rows + 1).to(image.device)]


@torch.no_grad()
def agreement(actor: Actor, frames: ExpertFrames, rng: torch.Generator, count: int = 4096) -> dict[str, float]:
    """Share of held-out expert frames where the likeliest action is the expert's (continuous: see docs)."""
    same = []
    for rows in frames.draw(count, rng).split(512):
        stack, taken = frames.stack(rows)
        mode = actor.mode(stack)  # (N, A)
        same.append(
            (mode * taken).sum(-1) if actor.discrete else 1 - ((mode - taken).abs() / (2 * actor.scale)).mean(-1)
        )
    return {"expert/action_agreement": torch.cat(same).mean().item()}


# --- same in: bc_pixels, world_model ---
def save(path: Path, content: dict) -> None:
    """Write a checkpoint under a temporary name, then rename: a crash leaves the old one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load(path: Path, device: torch.device) -> dict:
    """Read what `save` wrote; end with one sentence if the file is something else."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        return dict(content)
    except Exception as error:  # the reader fails in many ways
        sys.exit(f"{path} is not a checkpoint ({type(error).__name__}): delete it, or name another.")


# --- end ---


# --- same in: bc_pixels, world_model ---
def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def parse_args(cls, sizes: dict, argv: list[str] | None = None):
    """Command line to Args: --size picks the defaults (a column of `sizes`), every other flag overrides them."""
    argv = sys.argv[1:] if argv is None else argv
    size = dict(zip(argv, argv[1:])).get("--size", next((a[7:] for a in argv if a.startswith("--size=")), "auto"))
    if size == "auto":
        size = "paper" if torch.cuda.is_available() and "--no-cuda" not in argv else "small"
        print(f"--size auto: {size} size ({'CUDA' if size == 'paper' else 'CPU; --size paper needs a GPU, or months'})")
    if size not in sizes:
        sys.exit(f"--size {size} is unknown: choose auto, {', '.join(sizes)}.")
    args = tyro.cli(cls, args=argv, default=cls(**{**sizes[size], "size": size}))
    for name, value in vars(args).items():
        least = 0 if name in ("seed", "updates", "layers") or not getattr(cls, name, 1) else 1
        if type(value) is int and value < least:
            sys.exit(f"--{name.replace('_', '-')} {value}: it must be {least} or more.")
    return dataclasses.replace(args, size=size)


# --- end ---


# --- same in: bc_pixels, world_model ---
class Log:
    """A run's metrics.csv (long format: step, seconds, name, value) and the same in TensorBoard."""

    def __init__(self, run_dir: Path, step: int, args):
        """Go on from update `step`: what an interrupted run wrote after its last checkpoint is taken out."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.file = run_dir / "metrics.csv"
        for file in (self.file, run_dir / "episodes.csv"):
            if file.exists():
                head, *rows = file.read_bytes().splitlines(keepends=True) or [b""]
                file.write_bytes(head + b"".join(row for row in rows if int(row.split(b",")[0]) <= step))
        self.writer = SummaryWriter(run_dir, purge_step=step + 1)
        self.writer.add_text("hyperparameters", "\n".join(f"- {k}: {v}" for k, v in vars(args).items()))

    def __call__(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        with open(self.file, "a") as out:
            out.write("" if out.tell() else "step,seconds,name,value\n")
            for name, value in metrics.items():
                out.write(f"{step},{seconds:.1f},{name},{value:.6g}\n")
                self.writer.add_scalar(name, value, step)


# --- end ---


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
@torch.no_grad()
def evaluate(model, act, games: Games, episodes: int, action_size: int, seed: int) -> tuple[list[dict], np.ndarray]:
    """Play whole games in the real environment with action = act(feat): rows of return and length, frames of one game.

    The torch random state is restored afterwards, so evaluating more often does not change the training.
    """
    device, N, discrete = model.pixel_mean.device, games.num_envs, hasattr(games.action_space, "n")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        games.coming = itertools.count(seed)
        frames, state = games.reset(), model.initial(N)
        prev_action, is_first = torch.zeros(N, action_size), torch.ones(N, dtype=torch.bool)
        total, rows, clip = np.zeros(N), [], []
        while len(rows) < episodes:
            clip += [frames[0]] if len(clip) < 2000 and not any(row["seed"] == seed for row in rows) else []
            image = torch.from_numpy(frames).to(device)
            state = model.filter_step(state, image, prev_action.to(device), is_first.to(device))
            action = act(torch.cat(state, -1)).cpu()  # (N, A)
            playing, steps = games.seeds.copy(), games.steps + 1
            chosen = action.argmax(-1).numpy() if discrete else action.numpy()
            frames, reward, terminated, truncated, info = games.step(chosen)
            total, ended = total + reward, terminated | truncated
            for i in np.flatnonzero(ended):
                if playing[i] < seed + episodes:  # the first games begun, whichever ends first
                    rows.append({"seed": int(playing[i]), "return": float(total[i]), "length": int(steps[i])})
            played = torch.as_tensor(info["action"])
            prev_action = F.one_hot(played.long(), action_size).float() if discrete else played.float()
            total[ended], is_first = 0, torch.from_numpy(ended)
    return sorted(rows, key=lambda row: row["seed"]), np.stack(clip)


def ensure(args, command: list[str]) -> None:
    """Run a missing stage as the command a user would type."""
    if args.eval_only:
        sys.exit(f"--eval-only makes nothing that is missing; first: python {' '.join(command)}.")
    print("$ python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        sys.exit(f"The stage above failed; repair it, then run this again: python {' '.join(command)}.")


def has(dataset: Path, episodes: int) -> bool:
    """Whether a folder holds so many training episodes."""
    return len(list(dataset.glob("train_*.npz"))) >= episodes


def collect(args, *options: str) -> list[str]:
    """The command that collects a dataset; debug data is kept apart."""
    debug = ["--num-envs", "2", "--num-val-episodes", "1", "--max-steps", "60"] if args.size == "debug" else []
    root = "data/debug" if args.size == "debug" else "data"
    return ["collect_data.py", "--env-id", args.env_id, "--data-dir", root, *debug, *options]


def expert_dataset(args) -> Path:
    """Find the folder of expert episodes, collecting it if there is none."""
    shipped, root = Path(f"pretrained/{args.env_id}/expert"), "data/debug" if args.size == "debug" else "data"
    folder = Path(args.data_dir or f"{root}/{args.env_id}/expert")
    if args.data_dir or has(folder, args.num_expert_episodes):
        return folder
    if args.pretrained and args.size == "small" and not folder.exists() and has(shipped, args.num_expert_episodes):
        return shipped
    ensure(args, collect(args, "--num-episodes", str(args.num_expert_episodes)))
    return folder


def scores(meta: dict) -> tuple[float, float, float]:
    """Mean return of the expert, a random policy, and the expert's actions shuffled, as dataset.json has them."""
    expert = [episode["return"] for episode in meta.get("episodes", [])]
    returns = expert, meta.get("random_returns"), meta.get("shuffled_returns")
    return tuple(float(np.mean(values)) if values else float("nan") for values in returns)


def typed(name: str, value) -> str:
    """A setting as it is typed on the command line."""
    flag = name.replace("_", "-")
    return f"--{flag}" if value is True else f"--no-{flag}" if value is False else f"--{flag} {value}"


def save_clip(path: Path, frames: np.ndarray) -> None:
    """Frames (t, 64, 64, C) as an animated GIF at three times the size."""
    pictures = [Image.fromarray(frame.squeeze()).resize((192, 192), 0) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=66, loop=0)


# --- end ---


def main(args: Args) -> dict:
    if args.dilation > 1 and args.dilation % 2 == 0:
        sys.exit("--dilation must be odd: it is the width of a window around each pixel.")
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # CPU arithmetic on denormal numbers (tiny probabilities) is many times slower
    torch.manual_seed(args.seed)
    rng = torch.Generator(device).manual_seed(args.seed)  # for the windows; the global one drives dreams and actions
    script = Path(__file__).stem
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/{script}-{args.size}-{args.num_expert_episodes}-{args.seed}")
    if args.eval_only and not (run_dir / "checkpoint.pt").exists():
        sys.exit(f"No checkpoint at {run_dir / 'checkpoint.pt'}: train first, or name its folder with --run-dir.")
    folder = expert_dataset(args)
    print(f"expert: {folder}")
    data, held_out = Episodes([folder], "train", args.num_expert_episodes, device), Episodes([folder], "val", 6, device)
    action_size, channels = data.prev_action.shape[-1], data.image.shape[-1]
    if data.meta.get("env_id", args.env_id) != args.env_id:
        sys.exit(f"{folder} is of {data.meta['env_id']}, not of {args.env_id}: name another --data-dir or --env-id.")
    if len(data.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(data.starts) - 1} episodes: lower --num-expert-episodes or collect more.")
    made_on = {"dataset": data.digest()}
    expert_return, random_return, shuffled_return = scores(data.meta)
    # (1) frames to stack, and their pixel statistics
    frames, held_frames = ExpertFrames(data), ExpertFrames(held_out)
    sample = data.image[torch.linspace(0, len(data.image) - 1, min(len(data.image), 4000)).long().to(device)]
    sample = F.max_pool2d(sample.movedim(-1, 1).float(), args.dilation, 1, args.dilation // 2)  # (n, C, 64, 64)
    dim, shape = (0, (channels, 64, 64)) if args.pixel_stats == "pixel" else ((0, 1, 2, 3), (1, 1, 1))
    mean, std = sample.mean(dim).view(shape), sample.std(dim).clamp_min(args.pixel_std_floor).view(shape)
    encoder = FrameEncoder(channels, args.depth, args.dilation, mean.expand(channels, -1, -1).clone(),
                           std.expand(channels, -1, -1).clone())  # fmt: skip
    bounds = (data.meta.get("low", -1.0), data.meta.get("high", 1.0))
    actor = Actor(32 * args.depth, action_size, data.discrete, args.layers, args.units, *bounds)
    actor.net = nn.Sequential(encoder, actor.net)  # its feat is a stack of frames
    actor.to(device)
    optimizer = torch.optim.Adam(actor.parameters(), lr=args.learning_rate, fused=True)
    parts = {"actor": actor, "optimizer": optimizer}
    step, seconds, best, file = 0, 0.0, float("-inf"), run_dir / "checkpoint.pt"
    if file.exists():
        saved = load(file, device)
        free = ("updates", "cuda", "threads", "pretrained", "data_dir", "run_dir", "quick_episodes", "log_every")
        old = {k: v for k, v in saved.get("args", {}).items() if k not in free and "eval" not in k}
        other = [typed(k, v) for k, v in old.items() if k in vars(args) and getattr(args, k) != v]
        other += [saved["script"] + ".py"] if saved.get("script", script) != script else []
        other += [f"another {k.replace('_', ' ')}" for k, v in made_on.items() if saved.get(k) != v]
        if other:
            sys.exit(f"{file} was made with {', '.join(other)}: give --run-dir for a new run, or repeat its settings.")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step, seconds, best = saved["step"], saved["seconds"], saved.get("best", best)
        if ("cuda_rng" in saved) == (device.type == "cuda"):  # from another device, random numbers start anew
            rng.set_state(saved["rng"].cpu()), torch.set_rng_state(saved["torch_rng"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu())
        print(f"resuming {file} at update {step}")
    log = Log(run_dir, step, args)
    games = functools.partial(Games, args.env_id, seed=0, max_steps=data.meta.get("max_steps", 27000),
                              grayscale=data.image.shape[-1] == 1)  # fmt: skip
    games(num_envs=1)  # an environment that cannot be made or drawn is named now, not after the training

    def update(rows: Tensor) -> dict[str, Tensor]:
        stack, action = frames.stack(rows)  # (2) (B, 64, 64, 4 * C), (B, A)
        log_prob, entropy = actor.log_prob(stack, action)
        policy_loss = cloning_loss(log_prob, entropy, args.entropy)  # (3)
        optimizer.zero_grad()
        policy_loss.backward()
        optimizer.step()
        return {"losses/policy": policy_loss.detach(), "losses/entropy": entropy.mean().detach()}

    def compare() -> dict[str, float]:
        """Measure on held-out expert episodes."""
        return agreement(actor, held_frames, torch.Generator(device).manual_seed(0))

    def test(episodes: int, seed: int, at: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Play after update `at`, write one row per game to the file `name`: returns (episodes,), frames of a game."""
        rows, clip = evaluate(encoder, actor.sample, games(num_envs=episodes), episodes, action_size, seed)
        with open(run_dir / name, "a", newline="") as out:
            out.write("" if out.tell() else "update,seed,return,length\n")
            csv.writer(out).writerows([at, row["seed"], row["return"], row["length"]] for row in rows)
        return np.array([row["return"] for row in rows]), clip

    def summary(returns: np.ndarray) -> dict[str, float]:
        """Mean, standard deviation and score (0 random, 1 expert) of returns."""
        score = (returns.mean() - random_return) / ((expert_return - random_return) or 1.0)
        values = {"return_mean": returns.mean(), "return_std": returns.std(), "return_vs_expert": score}
        return {f"eval/{name}": float(value) for name, value in values.items()}

    began, step_before, report = time.time(), step, {}
    extra = 0 if args.eval_only else args.updates - step
    for _ in range(extra):
        if args.anneal:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * (1 - 0.9 * step / args.updates)
        metrics = update(frames.draw(args.batch_size, rng))
        step += 1
        fresh = {}  # what this row of the log will hold
        if step % args.eval_every == 0 or step == args.updates:
            fresh = compare()
            if step < args.updates:  # the last policy plays the final evaluation
                fresh |= summary(test(args.quick_episodes, 20_000, step, "episodes.csv")[0])
                best = max(best, fresh["eval/return_mean"])
            elapsed = seconds + time.time() - began
            save(file, {name: part.state_dict() for name, part in parts.items()}
                 | {"step": step, "seconds": elapsed, "best": best, "script": script, "rng": rng.get_state(),
                        "torch_rng": torch.get_rng_state(), "args": vars(args),
                        "versions": {"torch": str(torch.__version__), "numpy": str(np.__version__)}}
                 | made_on | ({"cuda_rng": torch.cuda.get_rng_state()} if device.type == "cuda" else {}))  # fmt: skip
        if step % args.log_every == 0 or step % args.eval_every == 0 or step == args.updates:
            speed = (step - step_before) / (time.time() - began)
            fresh |= {name: value.item() for name, value in metrics.items()} | {"charts/SPS": speed}
            log(step, seconds + time.time() - began, fresh)
            report |= fresh
            print(f"\rupdate {step}/{args.updates} ({step / args.updates:.0%})  loss {report['losses/policy']:.4f}"
                  f"  entropy {report['losses/entropy']:.3f}  return {report.get('eval/return_mean', float('nan')):.1f}"
                  f"  {speed:.1f} updates/s  {clock((args.updates - step) / speed)} left",
                  end="", flush=True)  # fmt: skip
            if step % args.eval_every == 0 or step == args.updates:
                print(f"  agreement {report['expert/action_agreement']:.3f}")
    # final evaluation: whole games, sampled actions; with --eval-consecutive K after each of K more gradient steps
    returns, kind = np.zeros((args.eval_consecutive, args.eval_episodes)), "eval_only" if args.eval_only else "final"
    (run_dir / f"{kind}_episodes.csv").unlink(missing_ok=True)
    for k in range(args.eval_consecutive):
        if k:
            update(frames.draw(args.batch_size, rng))
        returns[k], clip = test(args.eval_episodes, 1000, step + k, f"{kind}_episodes.csv")
    report |= {} if "expert/action_agreement" in report else compare()  # nothing was left to train
    report |= summary(returns)
    standard_error = returns.mean(0).std() / max(args.eval_episodes - 1, 1) ** 0.5  # over games, each K times the same
    if not args.eval_only:
        log(step, seconds + time.time() - began, {k: v for k, v in report.items() if "eval/" in k})
    report |= {"expert_return": expert_return, "random_return": random_return, "shuffled_return": shuffled_return}
    report |= {"best_validation": best if np.isfinite(best) else None, "step": step}
    save_clip(run_dir / "agent.gif", clip)
    everything = report | {"data": str(folder), "size": args.size, "args": vars(args)}
    everything["returns"] = returns.flatten().tolist()
    strict = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in everything.items()}  # no NaN
    (run_dir / ("eval_only.json" if args.eval_only else "result.json")).write_text(json.dumps(strict, indent=1))
    print(f"\n{args.env_id}, {returns.size} games, {args.size} size, {step} updates\n"
          f"  {script:10s}{report['eval/return_mean']:8.1f} +- {standard_error:.1f} (standard error)\n"
          f"  expert    {expert_return:8.1f}\n  random    {random_return:8.1f}\n"
          f"  shuffled  {shuffled_return:8.1f}  (the expert's actions in random order)\n"
          f"  score     {report['eval/return_vs_expert']:8.2f}  (0 random, 1 expert)")  # fmt: skip
    if best > random_return and report["eval/return_mean"] - random_return < 0.5 * (best - random_return):
        print(f"  collapsed: {best:.1f} was reached in a validation before, twice as far above random or more")
    log.writer.close()
    return report


if __name__ == "__main__":
    try:
        main(parse_args(Args, SIZES))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from the last checkpoint.")
