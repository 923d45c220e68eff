# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""World model: the world as the model sees it, and the model, a recurrent state-space model (RSSM) of recordings.

Paper: DITTO, arXiv 2302.03086 v2, appendix B; the model is DreamerV2's (arXiv 2010.02193 v4).
It learns to predict what the screen will show after an action, in a latent space: h_t remembers, z_t holds what h_t
could not foresee. Imitation then happens inside this model, without the environment.

  (1) take B streams of L consecutive frames x_t with the action a_{t-1} that led to each        `Streams`
  (2) h_t = f(h_{t-1}, z_{t-1}, a_{t-1})                                           Eq. 10        `WorldModel.recur`
  (3) posterior q(z_t | h_t, x_t), prior p(z_t | h_t), sample z_t ~ q              Eq. 10        `WorldModel.filter`
  (4) decode x_t from s_t = (h_t, z_t), squared error                              Eq. 11        `WorldModel.evidence`
  (5) KL between posterior and prior, balanced so that the prior moves faster      Eq. 12        `kl_balanced`
  (6) Adam step on image_weight (4) + beta (5); carry (h, z) on                    Eq. 11        `main`

    python collect_data.py --env-id BreakoutNoFrameskip-v4 --name world --num-episodes 1000
    python world_model.py --env-id BreakoutNoFrameskip-v4
    torchrun --nproc-per-node 4 world_model.py --env-id BreakoutNoFrameskip-v4      (several GPUs)

Symbols (paper: code, shape), with B batch, T time, D deter, S groups, K classes, F = D + S*K, E embedding, A actions
(pictures are of 64 x 64, or, once `shrink` has shown them, of 32 x 32):
  x_t: image (T, B, 64, 64, C) uint8    a_{t-1}: prev_action (T, B, A), one-hot if discrete; it led to image[t]
  h_t: deter (T, B, D)    z_t: stoch (T, B, S*K)    s_t: feat (T, B, F)    is_first (T, B) bool, true on a first frame

Four sections, each readable alone: the game, recorded games, the model, training. aime.py (arXiv 2312.02019 v1) uses
the same class with Gaussian latents, and sensors instead of pictures.
Differences from the paper: the image term weighs 2 (authors' code). Eq. 12 as printed puts delta on the wrong term;
prose, DreamerV2 and the authors' code agree on ours. The small sizes leave the paper in more (see SIZES).
"""

import copy
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Iterable, Iterator, Literal

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

gym.register_envs(ale_py)


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """environment id; data of another environment are refused"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of the run; default runs/<env_id>/world_model-<size>, with -<seed> if not 1. The same command resumes"""
    seed: int = 1
    """seed of weights, sampling and noise; same versions, device and thread count give identical losses"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    data_dir: str = ""
    """dataset folders, separated by commas; default data/<env_id>/world,data/<env_id>/expert as far as they exist"""
    batch_size: int = 50
    """B, streams per update (over all processes together)"""
    batch_length: int = 50
    """L, consecutive frames per stream and update"""
    # world model
    depth: int = 48
    """channels of the first convolution; each further one doubles them"""
    deter: int = 1024
    """D, width of the recurrent state h"""
    stoch: int = 32
    """S, number of categorical variables in z"""
    classes: int = 32
    """K, classes of each"""
    hidden: int = 1000
    """width of the hidden layers around the GRU (authors' code)"""
    pixel_stats: Literal["global", "pixel"] = "global"
    """normalise grey levels by one mean and standard deviation (global, as the authors do) or per pixel (pixel)"""
    pixel_std_floor: float = 1.0
    """smallest standard deviation used for the normalisation, in grey levels"""
    picture: int = 64
    """side of the pictures that the model sees: 64, or 32, every second pixel after the moving maximum"""
    dilation: int = 1
    """odd size of a moving maximum over the picture (1: off); makes a one-pixel ball large enough for a small model"""
    image_weight: float = 2.0
    """weight of 0.5 * squared error summed over pixels (authors' code)"""
    beta: float = 0.1
    """weight of the KL, Eq. 11"""
    kl_balance: float = 0.8
    """delta of Eq. 12: share of the KL that trains the prior"""
    # optimiser
    updates: int = 300_000
    """gradient steps (the authors' checkpoints: 0.3 to 1.1 million)"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    grad_clip: float = 200.0
    """largest gradient norm (authors' code: 200 too, but of gradients times the loss scale)"""
    # evaluation
    eval_every: int = 5000
    """updates between validations, pictures and checkpoints"""
    log_every: int = 100
    """updates between log rows"""
    # runtime
    bf16: bool = True
    """on CUDA, convolutions and matrix products in bfloat16 (losses, KL and sampling stay in float32)"""
    cudagraphs: bool = True
    """on one GPU, record an update as a CUDA graph and replay it"""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""


SMALL = dict(depth=8, deter=256, stoch=16, classes=16, hidden=256, batch_size=32, batch_length=32, picture=32,
             pixel_stats="pixel", pixel_std_floor=16.0, dilation=5, image_weight=1.0, beta=1.0, updates=6000,
             learning_rate=1e-3, anneal=True, bf16=False, eval_every=250, log_every=50)  # fmt: skip
SIZES = {
    "paper": {}, "small": SMALL,
    "debug": SMALL | dict(depth=4, deter=32, stoch=4, classes=4, hidden=32, batch_size=4, batch_length=8, updates=20,
                          eval_every=10, log_every=5, threads=1),
}  # fmt: skip


# --- the game: what is played, and as what it is seen ---


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
        elif not (isinstance(space, gym.spaces.Discrete) or isinstance(space, gym.spaces.Box) and space.is_bounded()
                  and space.dtype.kind == "f" and len(space.shape) == 1):  # fmt: skip
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
    raise SystemExit(f"--env-id {env_id} {problem}.")


class Games:
    """N copies of one environment, the slots, stepped together; a finished game is followed by another in its slot.

    Atari (`...NoFrameskip-v4`): FIRE and up to 28 no-ops at the start, frame skip 4 with a maximum over the last two
    frames, no sticky actions, unclipped rewards, whole games. When a life is lost in a game that has FIRE, the next
    three actions are forced to no-op, FIRE, action 2 (without them a policy that never fires would wait for ever).
    Everything else: the environment's own steps, seen through its observation if that is an image, or `render()`.
    With `make`, a function that makes the environment, it is not drawn, and `seen` is its observation.

    For a policy to look at: seen (N, 64, 64, C) uint8, frames84 (N, 84, 84) on Atari, obs (N raw observations, not on
    Atari), action (what was really played last), steps (N,) since the game began, seeds, lives, forced (steps that are
    still forced), fresh (a game or a life has just begun: a player who stacks frames must empty the stack).
    """

    def __init__(self, env_id: str, num_envs: int, max_steps: int = 27000, grayscale: bool = True, make=None):
        self.num_envs, self.max_steps, self.drawn = num_envs, max_steps, make is None
        self.atari = self.drawn and env_id.endswith("NoFrameskip-v4") and env_id in gym.registry
        self.channels = 1 if grayscale or self.atari else 3
        if self.atari:
            limit = 4 * max_steps + 400  # frames, the start included: `max_steps` itself is counted below
            self.envs = AtariVectorEnv(gym.spec(env_id).kwargs["game"], num_envs, stack_num=1, reward_clipping=False,
                                       max_num_frames_per_episode=limit, autoreset_mode="SameStep")  # fmt: skip
            self.has_fire = ale_py.Action.FIRE in self.envs.ale.get_action_set()
        else:
            make = make or functools.partial(make_env, env_id)
            self.envs = gym.vector.SyncVectorEnv([make] * num_envs, autoreset_mode=gym.vector.AutoresetMode.DISABLED)
        self.action_space = self.envs.single_action_space
        self.discrete = isinstance(self.action_space, gym.spaces.Discrete)
        self.action_size = int(self.action_space.n if self.discrete else self.action_space.shape[0])

    def reset(self, seeds: Iterable[int]) -> None:
        """Begin a game in every slot. Every game takes its seed from `seeds`; when they are used up, slots play on, for
        nothing. A fair sample are the first n games begun: among the first n to end long games are rare."""
        N = self.num_envs
        self.coming, self.seen = iter(seeds), np.zeros((N, 64, 64, self.channels), np.uint8)
        self.seeds, self.steps, self.lives, self.forced = (np.zeros(N, np.int64) for _ in range(4))
        self.action, self.fresh = np.zeros((N, *self.action_space.shape), self.action_space.dtype), np.ones(N, bool)
        self.begin(np.ones(N, bool))

    def begin(self, which: np.ndarray) -> None:
        """Begin a new game in the slots where `which` (N,) is true."""
        self.seeds[which] = [next(self.coming, -1) for _ in range(which.sum())]
        self.steps[which] = self.forced[which] = 0
        self.fresh[which] = True
        if self.atari:
            obs, info = self.envs.reset(seed=self.seeds[which], options={"reset_mask": which})  # -1: do not seed
            self.frames84, self.lives = obs[:, -1], info["lives"].astype(np.int64)
            self.seen, self.frame_number = resize(self.frames84)[..., None], info["episode_frame_number"]
        else:
            seeds = [int(seed) if seed >= 0 else None for seed in self.seeds]
            self.look(self.envs.reset(seed=seeds, options={"reset_mask": which})[0], which)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one action each, (N,) or (N, A): reward (N,), terminated (N,), truncated (N,), info.

        `info` tells of this step what the slots may have forgotten, since a new game begins where one ended: action
        and forced (N,), what was really played; lives (N,) after it; seen (N, 64, 64, C), the game's last frame.
        """
        forced, before = self.forced > 0, self.lives
        self.steps += 1
        if self.atari:
            action = np.where(forced, 3 - self.forced, action)  # 0 no-op, 1 FIRE, 2
            obs, reward, terminated, truncated, raw = self.envs.step(action)
            self.frames84, self.lives = obs[:, -1].copy(), np.where(terminated, 0, raw["lives"])
            if terminated.any():  # these rows of `obs` show a new game already, with a seed that we did not choose
                self.frames84[terminated] = raw["final_obs"][terminated, -1]
            self.seen = resize(self.frames84)[..., None]
            self.forced = np.where((self.lives < before) & self.has_fire, 3, np.maximum(self.forced - 1, 0))
        else:
            if self.discrete:
                played = action + self.action_space.start
            else:
                played = action = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
            obs, reward, terminated, truncated, _ = self.envs.step(played)
            self.look(obs, np.ones(self.num_envs, bool))
        self.fresh, self.action = forced | (self.lives < before), action
        terminated, truncated = terminated.copy(), truncated | ~terminated & (self.steps >= self.max_steps)
        info = {"action": action, "forced": forced, "lives": self.lives, "seen": self.seen}
        if (terminated | truncated).any():
            self.seen = copy.copy(self.seen)
            self.begin(terminated | truncated)
        return np.array(reward, np.float32), terminated, truncated, info

    def look(self, obs, which: np.ndarray) -> None:
        """Set what is seen in the slots where `which` (N,) is true."""
        self.obs = list(gym.vector.utils.iterate(self.envs.observation_space, obs))
        if not self.drawn:
            self.seen = obs
        for i in np.flatnonzero(which & self.drawn):
            env = self.envs.envs[i]
            picture = self.obs[i] if is_image(env.observation_space) else env.render()
            picture = picture.reshape(*picture.shape[:2], -1)
            picture = to_gray(picture)[..., None] if picture.shape[-1] == 3 and self.channels == 1 else picture
            self.seen[i] = np.moveaxis(resize(np.moveaxis(picture, -1, 0)), 0, -1)


def play(games: Games, act, seeds: Iterable[int], keep=()) -> Iterator[dict]:
    """Play one whole game per seed with action = act(games), (N,) or (N, A); yield each as it ends.

    The same function records the expert and scores every policy. A game has seed, return and length; if `keep` contains
    its seed also, of its T steps, observations (T+1, 64, 64, C), lives (T+1,), actions, rewards, terminations,
    truncations and forced (T,).
    """
    games.reset(seeds := list(seeds))
    left, total, record = set(seeds), np.zeros(games.num_envs), [{} for _ in range(games.num_envs)]
    fields = ("actions", "rewards", "terminations", "truncations", "forced")
    while left:
        for i in np.flatnonzero(games.steps == 0):
            total[i], record[i] = 0, {}
            if games.seeds[i] in keep:
                record[i] = {"observations": [games.seen[i].copy()], "lives": [games.lives[i]]}
                record[i] |= {field: [] for field in fields}
        seed, length = games.seeds.copy(), games.steps + 1
        reward, terminated, truncated, info = games.step(act(games))
        values = dict(zip(fields, (info["action"], reward, terminated, truncated, info["forced"])))
        values |= {"observations": info["seen"], "lives": info["lives"]}
        total += reward
        for i in range(games.num_envs):
            for field, column in record[i].items():
                column.append(np.copy(values[field][i]))
            if (terminated[i] or truncated[i]) and seed[i] in left:
                left.remove(int(seed[i]))
                game = {"seed": int(seed[i]), "return": float(total[i]), "length": int(length[i])}
                yield game | {field: np.stack(column) for field, column in record[i].items()}


def player(model, act):
    """A policy for `play` that sees through the model: filter what is seen, then act(feat (N, F)) -> (N, A)."""
    state = None

    @torch.no_grad()
    def choose(games: Games) -> np.ndarray:
        nonlocal state
        device = model.pixel_mean.device
        state = model.initial(games.num_envs) if state is None else state
        action, first = torch.as_tensor(games.action), torch.from_numpy(games.steps == 0)
        action = F.one_hot(action.long(), games.action_size).float() if games.discrete else action.float()
        seen = torch.from_numpy(games.seen).to(device)
        state = model.filter_step(state, seen, action.to(device), first.to(device))
        action = act(torch.cat(state, -1)).cpu()  # (N, A)
        return action.argmax(-1).numpy() if games.discrete else action.numpy()

    return choose


# --- recorded games: episodes in files, and streams through them ---


def read_meta(folder: str | Path) -> dict:
    """What dataset.json in a folder says, {} if there is none; end with one sentence if it is damaged."""
    file = Path(folder) / "dataset.json"
    try:
        meta = json.loads(file.read_text()) if file.exists() else {}
        bounds = np.array([meta.get("low", 0.0), meta.get("high", 0.0)], float)
        if type(meta.get("num_actions", 1)) is not int or not np.isfinite(bounds).all():
            raise ValueError
    except (OSError, ValueError, TypeError, AttributeError):
        sys.exit(f"{file} is damaged: delete {folder} and collect its episodes anew.")
    return meta


def collected(folder: Path, episodes: int) -> bool:
    """Whether a data set was collected to its end, and with so many episodes to learn from."""
    meta, files = read_meta(folder), list(folder.glob("train_*.npz"))
    return len(files) >= episodes and meta.get("complete", bool(meta.get("shuffled_returns")))  # older ones: the latter


class Episodes:
    """Recorded episodes, end to end in one array: image (N, 64, 64, C) uint8, prev_action (N, A), is_first (N,).

    Reads the folders of collect_data.py and folders of Dreamer-style .npz files (keys image, action), whose
    action is already the one that led to the image of its row. Held-out files start with val_; elsewhere every tenth.
    With actions=False the files' actions are not read: prev_action has no columns, (N, 0). `shown`, a function of
    pictures (T, 64, 64, C), is what is kept of each file's. Pictures that need more than half of a GPU's free memory
    stay on the host. Data sets of another environment than `env_id`, and those that are not complete, are refused.
    """

    def __init__(self, folders, split: str, limit=0, device="cpu", actions: bool = True, shown=None, env_id: str = ""):
        images, prev_actions, self.meta, begun = [], [], {}, None
        for folder in map(Path, folders):
            files, meta = sorted(folder.glob("*.npz")), read_meta(folder)
            if env_id and meta.get("env_id", env_id) != env_id:
                sys.exit(f"{folder} is of {meta['env_id']}, not of {env_id}: name another --data-dir or --env-id.")
            if not meta.get("complete", True):
                sys.exit(f"{folder} is not complete: first repeat the command that collects it.")
            held = {f for i, f in enumerate(files) if i % 10 == 9 or len(files) < 10 and i == len(files) - 1}
            held = {f for f in files if f.name.startswith("val_")} or held
            files = [f for f in files if (f in held) == (split == "val")]
            if not files:
                sys.exit(f"{folder} has no {split} episode (every tenth, or the last one, is held out): collect more, "
                         "let import_data.py divide one, or name another folder.")  # fmt: skip
            for file in files[: limit or None]:
                image, prev_action = self.read(file, meta, actions)
                images.append(image if shown is None else shown(torch.from_numpy(image)).contiguous().numpy())
                prev_actions.append(prev_action)
                begun = begun or file
                if images[-1].shape[1:] != images[0].shape[1:] or prev_action.shape[1:] != prev_actions[0].shape[1:]:
                    sys.exit(f"{file} has other image or action shapes than {begun}: use one environment.")
            self.meta = self.meta or meta
        self.prev_action = torch.from_numpy(np.concatenate(prev_actions)).to(device)
        self.starts = torch.tensor([0, *np.cumsum([len(image) for image in images])])  # (episodes + 1,): episode i is
        self.is_first = torch.zeros(self.starts[-1], dtype=torch.bool, device=device)  # rows starts[i] to starts[i + 1]
        size = sum(image.nbytes for image in images)
        room = torch.cuda.mem_get_info(device)[0] // 2 if self.is_first.is_cuda else size
        self.image = torch.empty(len(self.is_first), *images[0].shape[1:], dtype=torch.uint8,
                                 device=device if size <= room else "cpu")  # fmt: skip
        for a, b in zip(self.starts, self.starts[1:]):
            self.image[a:b] = torch.from_numpy(images.pop(0))  # each let go as it is copied: never held twice
        self.is_first[self.starts[:-1].to(device)] = True
        # a Dreamer-style folder does not say so: actions that are all zeros or one-hot are discrete
        onehot = ((self.prev_action == 0) | (self.prev_action == 1)).all() and (self.prev_action.sum(-1) <= 1).all()
        self.discrete = "num_actions" in self.meta if self.meta else bool(onehot)

    def read(self, file: Path, meta: dict, actions: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """One file as image (T+1, 64, 64, C) and prev_action (T+1, A), zeros first, one-hot if discrete."""
        count = meta.get("num_actions")
        bounds = {"low": -1e30, "high": 1e30} | (meta if actions else {})
        low, high = (0, count - 1) if count else (np.array(bounds[name]) for name in ("low", "high"))
        try:
            with np.load(file, allow_pickle=False) as npz:
                dreamer = "image" in npz
                image = npz["image" if dreamer else "observations"]
                if "is_first" in npz and npz["is_first"][1:].any():
                    row = npz["is_first"][1:].argmax() + 1
                    raise ValueError(f"another begins in row {row}, let import_data.py divide them")
                prev_action = npz["action" if dreamer else "actions"] if actions else np.zeros((len(image), 0))
                possible = (prev_action >= low - 1e-3) & (prev_action <= high + 1e-3)  # not a number: neither
                if not possible.all():
                    row = np.argwhere(~possible)[0][0]
                    raise ValueError(f"action {prev_action[row]} in row {row} is impossible")
                if actions and not dreamer:
                    prev_action = prev_action if count is None else np.eye(count)[prev_action]
                    prev_action = np.concatenate([np.zeros_like(prev_action[:1]), prev_action])
            if prev_action.ndim != 2:
                raise ValueError(f"its actions are {prev_action.shape[1:]}, not flat vectors: dataset.json is missing")
            if image.dtype != np.uint8 or image.shape[1:3] != (64, 64) or not 1 < len(image) == len(prev_action):
                wanted = "64x64 uint8 pictures, two or more, and as many actions"
                raise ValueError(f"its pictures are {image.shape} {image.dtype}, not {wanted}")
        except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            sys.exit(f"{file} is not an episode of this format ({error}): correct it, or delete it and make it again.")
        return image, prev_action.astype(np.float32)

    def pictures(self, index: Tensor) -> Tensor:
        """The pictures at row numbers `index` (...): (..., 64, 64, C) uint8, on the device."""
        image = self.image[index.to(self.image.device)]
        if image.device == self.is_first.device:
            return image
        return image.pin_memory().to(self.is_first.device, non_blocking=True)  # copied while the last update computes

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch (image, prev_action, is_first) at row numbers `index` (T, B)."""
        row = index.to(self.is_first.device)
        return self.pictures(index), self.prev_action[row], self.is_first[row]

    def digest(self) -> str:
        """A number that tells whether two runs had the same episodes."""
        parts = self.starts, self.prev_action, self.image[::101]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


def window_starts(starts: Tensor, length: int) -> Tensor:
    """Rows at which a window of `length` rows begins that crosses no episode's end (`starts` as in `Episodes`)."""
    return torch.cat([torch.arange(a, max(a, b - length + 1)) for a, b in itertools.pairwise(starts.tolist())])


class Streams:
    """B streams that walk through whole episodes, each to its episode's end, then through another one.

    `data` has starts and rows(index), as `Episodes`; `state` is the recurrent state carried along, if there is one.
    """

    state = None

    def __init__(self, data: Episodes, batch: int, length: int, seed: int):
        device = data.image.device  # where batches are gathered: row numbers never leave it
        self.data, self.length, self.rng = data, length, torch.Generator(device).manual_seed(seed)
        self.starts = data.starts.to(device)
        self.most = 1 + -(-length // int(data.starts.diff().min()))  # episodes that a stream can see in L frames
        # the row that each stream saw last; the first chunk starts anywhere, from a zero state
        self.row = torch.randint(int(data.starts[-1]), (batch,), generator=self.rng, device=device) - 1
        self.fresh = True

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch: image (L, B, 64, 64, C), prev_action (L, B, A), is_first (L, B)."""
        starts, device, shape = self.starts, self.starts.device, (self.most - 1, len(self.row))
        drawn = torch.randint(len(starts) - 1, shape, generator=self.rng, device=device)  # episodes that may follow
        ends = starts[torch.searchsorted(starts, self.row, right=True)]
        first = torch.cat([self.row[None] + 1, starts[drawn]])  # (most, B)
        over = torch.cat([ends[None], starts[drawn + 1]]).sub(first).cumsum(0)  # frames until each of them is over
        t = torch.arange(self.length, device=device)[:, None]
        which = (t[:, None] >= over).sum(1)  # (L, B): the episode that frame t is from
        index = first.gather(0, which) + t - F.pad(over, (0, 0, 1, 0)).gather(0, which)  # (L, B)
        self.row = index[-1]
        image, prev_action, is_first = self.data.rows(index)
        is_first[0] |= self.fresh
        self.fresh = False
        return image, prev_action, is_first

    def state_dict(self) -> dict:
        return {"rng": self.rng.get_state(), "row": self.row, "fresh": self.fresh, "state": self.state}

    def load_state_dict(self, saved: dict) -> None:
        if len(saved["rng"]) == len(self.rng.get_state()):  # from another device, random numbers start anew
            self.rng.set_state(saved["rng"].cpu())
        self.row, self.fresh, self.state = saved["row"].to(self.row.device), saved["fresh"], saved["state"]


# --- the model: one RSSM, its latent and its observation are parameters ---


def kl_categorical(left_logits: Tensor, right_logits: Tensor) -> Tensor:
    """KL divergence, in nats, from `left` to `right` of S independent categoricals; logits (..., S, K) -> (...)."""
    left, right = F.log_softmax(left_logits.float(), -1), F.log_softmax(right_logits.float(), -1)
    return (left.exp() * (left - right)).sum((-2, -1))


def kl_gaussian(left: Tensor, right: Tensor) -> Tensor:
    """KL divergence, in nats, per latent: mean and standard deviation side by side (..., 2Z) -> (..., Z)."""
    (left_mean, left_std), (right_mean, right_std) = left.float().chunk(2, -1), right.float().chunk(2, -1)
    distance = (left_std.square() + (left_mean - right_mean).square()) / (2 * right_std.square())
    return (right_std / left_std).log() + distance - 0.5


class CategoricalLatent:
    """S one-hot variables with K classes; parameters are logits (..., S*K)."""

    def __init__(self, stoch: int, classes: int):
        self.stoch, self.classes = stoch, classes
        self.size = self.outputs = stoch * classes  # width of a sample, and of the layer that parameterises it

    def params(self, output: Tensor) -> Tensor:
        """Parameters from the last layer's output, (..., S*K) both."""
        return output

    def sample(self, params: Tensor) -> Tensor:
        """Straight-through one-hot sample (..., S*K) from logits (..., S*K) (DreamerV2, algorithm 1)."""
        probs = params.float().unflatten(-1, (self.stoch, self.classes)).softmax(-1)
        # dividing by exponential noise and taking the largest is a categorical draw, without a host synchronisation
        noise = torch.empty_like(probs).exponential_().clamp_min(1e-20)
        index = (probs.detach() / noise).argmax(-1, keepdim=True)
        onehot = torch.zeros_like(probs).scatter_(-1, index, 1.0)  # F.one_hot checks its range, which a CPU pays for
        return (onehot + probs - probs.detach()).flatten(-2)

    def kl(self, post: Tensor, prior: Tensor) -> Tensor:
        """KL (...) of two parameters (..., S*K)."""
        return kl_categorical(*(params.unflatten(-1, (self.stoch, self.classes)) for params in (post, prior)))


class GaussianLatent:
    """Z independent Gaussians; parameters are mean and standard deviation side by side (..., 2Z)."""

    def __init__(self, stoch: int):
        self.size, self.outputs = stoch, 2 * stoch

    def params(self, output: Tensor) -> Tensor:
        """Parameters from the last layer's output, (..., 2Z) both: a softplus keeps the deviation positive."""
        mean, raw = output.float().chunk(2, -1)
        return torch.cat([mean, F.softplus(raw) + 1e-6], -1)

    def sample(self, params: Tensor) -> Tensor:
        """Reparameterised sample (..., Z)."""
        mean, std = params.chunk(2, -1)
        return mean + std * torch.randn_like(std)

    def kl(self, post: Tensor, prior: Tensor) -> Tensor:
        """KL (...) of two parameters (..., 2Z)."""
        return kl_gaussian(post, prior).sum(-1)


def kl_balanced(latent, post: Tensor, prior: Tensor, alpha: float | None, free_nats: float = 0.0) -> Tensor:
    """Balanced KL, Eq. 12: alpha trains the prior towards the posterior, 1 - alpha the posterior towards the prior.

    Parameters (..., .) -> (...). The value is the plain KL; only the gradients are weighted, and vanish below
    `free_nats`. alpha None: the plain KL's gradients.
    differs from Eq. 12 as printed: alpha weighs KL(sg(q) || p), as the prose, DreamerV2 and the authors' code have it.
    """
    if alpha is None:
        kl = latent.kl(post, prior)
    else:
        kl = alpha * latent.kl(post.detach(), prior) + (1 - alpha) * latent.kl(post, prior.detach())
    if free_nats <= 0:
        return kl
    clamped = kl.clamp_min(free_nats)
    return clamped + (kl - clamped).detach()


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density (...) of each element, constants included (AIME authors' code)."""
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)


def beta_nll(log_prob: Tensor, std: Tensor, kl: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (T, B) and KL (T, B) of log_prob, std (T, B, O), reweighted by the deviation: the
    beta-NLL with beta = 0.5 (AIME authors' code), for Eq. 8 of AIME.

    Each log-probability is multiplied by its own standard deviation, and the KL of a step by the mean of them. Neither
    factor gets a gradient: as a part of the loss, sigma could be lowered to make any error cheap.
    """
    return -(log_prob * std.detach()).sum(-1), kl * std.detach().mean(-1)


def shrink(image: Tensor, dilation: int, picture: int) -> Tensor:
    """What is shown of frames (..., 64, 64, C) uint8: a moving maximum, of pictures of 32 every second pixel."""
    if (half := dilation // 2) > 0:
        # along one axis, then the other: ten times faster on a CPU than max_pool2d, same numbers
        for axis, pad in ((-3, (0, 0, 0, 0, half, half)), (-2, (0, 0, half, half))):  # grey levels are >= 0
            shifted = (F.pad(image, pad).narrow(axis, k, 64) for k in range(2 * half + 1))
            image = functools.reduce(torch.maximum, shifted)
    return image[..., :: 64 // picture, :: 64 // picture, :]


def encoder_of(depth: int, channels: int, picture: int) -> nn.Sequential:
    """Convolutions (B, C, 64, 64) -> (B, 32 * depth), sides 64 -> 31 -> 14 -> 6 -> 2; of 32: 16 * depth."""
    widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth][: 5 if picture == 64 else 4]
    layers = [layer for i, o in zip(widths, widths[1:]) for layer in (nn.Conv2d(i, o, 4, stride=2), nn.ELU())]
    return nn.Sequential(*layers, nn.Flatten())


def decoder_of(depth: int, channels: int, picture: int) -> tuple[int, nn.Sequential]:
    """Width of the layer before it, and transposed convolutions to (B, C, 64, 64), sides 5 -> 13 -> 30 -> 64."""
    width, side, kernels = (4 * depth, 5, (5, 6, 6)) if picture == 64 else (2 * depth, 6, (4, 6))  # 6 -> 14 -> 32
    layers, last = [nn.Unflatten(-1, (width, side, side))], width
    for k, kernel in enumerate(kernels):
        out = width // 2 ** (k + 1) if k + 1 < len(kernels) else channels
        layers += [nn.ELU()] * (k > 0) + [nn.ConvTranspose2d(last, out, kernel, stride=2)]
        last = out
    return width * side * side, nn.Sequential(*layers)


class WorldModel(nn.Module):
    """Encoder, RSSM and decoder. A state is the pair (deter (B, D), stoch (B, S*K)); feat is both, concatenated."""

    # what a config may leave out. classes 0: a Gaussian latent of size stoch. sensors O: observations are vectors (O,),
    # not pictures. deviation learned: the decoder predicts its own. layers: hidden ones of prior and posterior
    defaults = {"classes": 0, "sensors": 0, "deviation": "fixed", "layers": 1, "ensemble": 1, "picture": 64,
                "depth": 0, "channels": 1, "pixel_stats": "global", "dilation": 1, "image_weight": 1.0, "beta": 1.0,
                "kl_balance": None}  # fmt: skip

    def __init__(self, config: dict):
        super().__init__()
        self.config, c = config, self.defaults | config
        depth, hidden, channels, deter, picture = (c[k] for k in ("depth", "hidden", "channels", "deter", "picture"))
        self.sensors, self.picture, self.dilation, self.learned = (
            c["sensors"], picture, c["dilation"], c["deviation"] == "learned")  # fmt: skip
        self.image_weight, self.beta, self.kl_balance = c["image_weight"], c["beta"], c["kl_balance"]
        self.latent = CategoricalLatent(c["stoch"], c["classes"]) if c["classes"] else GaussianLatent(c["stoch"])
        self.deter_size, self.feat_size = deter, deter + self.latent.size
        # statistics of the pictures, set by the training script (`measure`)
        pixels = (channels, picture, picture) if c["pixel_stats"] == "pixel" else (1, 1, 1)
        self.register_buffer("pixel_mean", torch.zeros(pixels))
        self.register_buffer("pixel_std", torch.ones(pixels))
        self.encoder = nn.Identity() if self.sensors else encoder_of(depth, channels, picture)
        self.embed_size = embed = self.sensors or 4 * (8 if picture == 64 else 4) * depth  # E
        # recurrent step: W_z z + W_a a -> LayerNorm -> ELU -> GRU (authors' code)
        self.stoch_in = nn.Linear(self.latent.size, hidden)
        self.action_in = nn.Linear(c["action_size"], hidden, bias=False)
        self.norm_in = nn.LayerNorm(hidden, eps=1e-3)
        self.gru = nn.GRUCell(hidden, deter)
        elu = functools.partial(nn.ELU, inplace=True)  # its gradient comes from its result: no further exponential
        norm = lambda: (nn.LayerNorm(hidden, eps=1e-3), elu())  # noqa: E731
        more = lambda: [m for _ in range(c["layers"] - 1) for m in (nn.Linear(hidden, hidden), *norm())]  # noqa: E731
        last = lambda: (*norm(), *more(), nn.Linear(hidden, self.latent.outputs))  # noqa: E731
        self.priors = nn.ModuleList(nn.Sequential(nn.Linear(deter, hidden), *last()) for _ in range(c["ensemble"]))
        self.post_deter = nn.Linear(deter, hidden)
        self.post_embed = nn.Linear(embed, hidden, bias=False)
        self.post_out = nn.Sequential(*last())
        if self.sensors:
            layers = nn.Linear(self.feat_size, hidden), elu(), nn.Linear(hidden, hidden), elu()
            self.decoder_in, self.decoder = nn.Sequential(*layers), nn.Linear(hidden, self.sensors * (1 + self.learned))
        else:
            # the first transposed convolution sees a 1x1 picture: as a matrix product it is nine times faster on a CPU
            width, decoder = decoder_of(depth, channels, picture)
            self.decoder_in = nn.Sequential(nn.Linear(self.feat_size, embed), nn.Linear(embed, width), nn.ELU())
            self.decoder = decoder
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                (nn.init.orthogonal_ if name == "gru.weight_hh" else nn.init.xavier_uniform_)(weight)
            elif "bias" in name:
                nn.init.zeros_(weight)
        self.to(memory_format=torch.channels_last)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zero state for `batch` episodes: deter (B, D), stoch (B, S*K)."""
        zeros = self.pixel_mean.new_zeros
        return zeros(batch, self.deter_size), zeros(batch, self.latent.size)

    def digest(self) -> str:
        """Hash of the weights, the same on every device: tells whether a checkpoint was made with this model."""
        weights = (weight.cpu().numpy().tobytes() for weight in self.state_dict().values())
        return hashlib.sha256(b"".join(weights)).hexdigest()[:16]

    @torch.no_grad()
    def measure(self, image: Tensor, floor: float) -> None:
        """Take mean and standard deviation, at least `floor` grey levels, of frames (n, 64, 64, C) for `preprocess`."""
        self.pixel_mean.fill_(0), self.pixel_std.fill_(1)
        pixels = self.preprocess(image)  # (n, C, 64, 64)
        dim = 0 if self.pixel_mean.numel() > 1 else (0, 1, 2, 3)
        self.pixel_mean.copy_(pixels.mean(dim)), self.pixel_std.copy_(pixels.std(dim).clamp_min(floor))

    def preprocess(self, image: Tensor) -> Tensor:
        """Frames (..., 64, 64, C) uint8 to normalised float pictures (..., C, 64, 64); sensors (..., O) as they are."""
        if self.sensors:
            return image
        shown = shrink(image, self.dilation, self.picture) if image.shape[-2] == 64 else image  # of 32: when read
        return (shown.movedim(-1, -3).float() - self.pixel_mean) / self.pixel_std

    def embed(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (..., C, 64, 64) or sensors (..., O) -> embeddings (..., E)."""
        if self.sensors:
            return pixels
        flat = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        return self.encoder(flat).unflatten(0, pixels.shape[:-3])

    def recur(self, state: tuple[Tensor, Tensor], action_in: Tensor) -> Tensor:
        """h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), Eq. 10; `action_in` (B, hidden), the projected action -> deter (B, D)."""
        deter, stoch = state
        return self.gru(F.elu_(self.norm_in(self.stoch_in(stoch) + action_in)), deter).float()

    def prior(self, deter: Tensor, member: int = 0) -> Tensor:
        """Parameters of p(z_t | h_t), Eq. 10, by one head of the ensemble: (..., D) -> (..., S*K)."""
        return self.latent.params(self.priors[member](deter))

    def encode(self, image: Tensor, act, is_first: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """Filter a batch of sequences: image (T, B, 64, 64, C) uint8, act (T, B, A), is_first (T, B).

        Returns deter (T, B, D), stoch (T, B, S*K), posterior parameters (T, B, S*K) and the state to carry on with.
        act[t] led to image[t]; instead of recorded actions it can be a policy, act(feat (B, F), t) -> (B, A), asked in
        the state before. Where is_first, state and action are zeroed, so a window may run over episode ends.
        """
        return self.filter(self.embed(self.preprocess(image)), act, is_first, state)

    def filter(self, embed: Tensor, act, is_first: Tensor | None = None, state=None):
        """The recurrent part of `encode`, from embeddings (T, B, E), Eq. 10. Without is_first, no frame is a first."""
        keep = None if is_first is None else (~is_first).float().unsqueeze(-1)  # (T, B, 1)
        kept = lambda value, t: value if keep is None else value * keep[t]  # noqa: E731
        # all time-steps at once, outside the loop; unbind, as the gradient of an index [t] is as large as the whole
        embed_in = self.post_embed(embed).unbind()  # T x (B, hidden)
        action_in = None if callable(act) else self.action_in(kept(act, slice(None))).unbind()  # T x (B, hidden)
        deter, stoch = self.initial(embed.shape[1]) if state is None else state
        deters, stochs, posts = [], [], []
        for t in range(len(embed)):
            if callable(act):
                step_in = self.action_in(kept(act(torch.cat([deter, stoch], -1), t), t))
            deter = self.recur((kept(deter, t), kept(stoch, t)), step_in if callable(act) else action_in[t])  # (B, D)
            post = self.latent.params(self.post_out(self.post_deter(deter) + embed_in[t]))  # (B, S*K)
            stoch = self.latent.sample(post)  # (B, S*K)
            deters.append(deter), stochs.append(stoch), posts.append(post)
        return torch.stack(deters), torch.stack(stochs), torch.stack(posts), (deter, stoch)

    def filter_step(self, state: tuple[Tensor, Tensor], image: Tensor, prev_action: Tensor, is_first: Tensor):
        """One step of `encode` while playing: image (B, 64, 64, C), prev_action (B, A), is_first (B) -> new state."""
        return self.encode(image[None], prev_action[None], is_first[None], state)[-1]

    @torch.no_grad()
    def encode_episodes(self, data: Episodes, chunk: int = 100) -> Tensor:
        """Posterior features (rows, F) of every frame in `data`: each episode filtered from its start, side by side."""
        feat = torch.empty(int(data.starts[-1]), self.feat_size, device=self.pixel_mean.device)
        starts, lengths = data.starts[:-1], data.starts.diff()
        chunk = min(chunk, max(1, 20_000 // len(starts)))  # frames at once: a bound on the encoder's memory
        state = self.initial(len(starts))
        for t in range(0, int(lengths.max()), chunk):
            time_index = torch.arange(t, min(t + chunk, int(lengths.max())))[:, None]  # (chunk, 1)
            alive = time_index < lengths  # (chunk, episodes)
            rows = starts + torch.minimum(time_index, lengths - 1)
            deter, stoch, _, state = self.encode(*data.rows(rows), state)
            feat[rows[alive].to(feat.device)] = torch.cat([deter, stoch], -1)[alive.to(feat.device)]
        return feat

    def imagine_step(self, state: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """s_{t+1} after action (B, A) in s_t, its stochastic half drawn from the prior (Eq. 10)."""
        deter = self.recur(state, self.action_in(action))
        return deter, self.latent.sample(self.prior(deter))

    @torch.no_grad()
    def imagine(self, act, feat: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
        """Dream (Eq. 10) from feat (N, F) by action = act(feat, t): features (H + 1, N, F), actions (H, N, A)."""
        state, feats, actions = (feat[:, : self.deter_size], feat[:, self.deter_size :]), [feat], []
        for t in range(horizon):
            actions.append(act(feats[-1], t))
            state = self.imagine_step(state, actions[-1])
            feats.append(torch.cat(state, -1))
        return torch.stack(feats), torch.stack(actions)

    def predict(self, feat: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is observed in feat (..., F): its mean, as `preprocess` gives observations, and deviation if learned."""
        outputs = self.decoder(self.decoder_in(feat.flatten(0, -2))).float().unflatten(0, feat.shape[:-1])
        if not self.learned:
            return outputs, None
        mean, raw = outputs.chunk(2, -1)
        return mean, F.softplus(raw) + 1e-6

    def decode(self, feat: Tensor) -> Tensor:
        """Normalised pictures (..., C, 64, 64), or sensors (..., O), from feat (..., F)."""
        return self.predict(feat)[0]

    def to_pixels(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (..., C, 64, 64) to grey levels (..., 64, 64, C), clipped to 0..255."""
        return (pictures * self.pixel_std + self.pixel_mean).clamp(0, 255).movedim(-3, -1)

    def evidence(self, pixels: Tensor, deter: Tensor, stoch: Tensor, post: Tensor, alpha=None, free_nats=0.0):
        """Negative log-likelihood of the preprocessed observation and KL, (T, B) each: Eq. 11 for every frame, as the
        model weighs them, without image_weight and beta; and the log-evidence (T, B), not weighted, without gradient.

        A fixed deviation is 1 and its constants are left out; a learned one reweights both terms (`beta_nll`).
        """
        kl = kl_balanced(self.latent, post, self.prior(deter), alpha, free_nats)  # of all steps at once, after the loop
        mean, std = self.predict(torch.cat([deter, stoch], -1))
        if std is None:
            nll = 0.5 * (mean - pixels).square().sum(tuple(range(2, mean.ndim)))
            return nll, kl, (-nll - kl).detach()
        log_prob = gaussian_log_prob(pixels, mean, std)
        return *beta_nll(log_prob, std, kl), (log_prob.sum(-1) - kl).detach()

    def loss(self, image, prev_action, is_first, state=None) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Eq. 11 on a batch (shapes of `encode`), averaged over frames: loss (), metrics, state to carry on with."""
        pixels = self.preprocess(image)  # (T, B, C, 64, 64)
        deter, stoch, post, state = self.filter(self.embed(pixels), prev_action, is_first, state)
        nll, kl, _ = self.evidence(pixels, deter, stoch, post, self.kl_balance)
        nll, kl = nll.mean(), kl.mean()
        loss = self.image_weight * nll + self.beta * kl  # differs from Eq. 11: image_weight, paper size 2 (code)
        metrics = {"losses/world_model": loss.detach(), "losses/image_nll": nll.detach(), "losses/kl": kl.detach()}
        return loss, metrics, tuple(part.detach() for part in state)

    forward = loss  # DistributedDataParallel calls forward


# --- training: what every training needs, once ---

LIMITS = {name: ends for names, *ends in (  # what numbers can be, ends included
    ("gamma lam epsilon kl_balance", 0, 1), ("balance", -1, 1), ("validation_share", 0.01, 0.99), ("picture", 32, 64),
    ("learning_rate lr", 1e-9, 1), ("clip grad_clip", 1e-6, 1e9), ("pixel_std_floor", 0.01, 255),
    ("entropy entropy_start image_weight beta model_kl imitation_kl noise alpha sigma action_noise obs_weight", 0, 1e6),
    ("target_entropy", -1e6, 1e6), ("entropy_end free_nats", -1, 1e6), ("eval_episodes num_val_episodes", 0, 1e6),
    ("updates env_steps pretrain seed_steps", 0, 1e8), ("max_steps total_steps model_updates", 1, 1e8),
    ("num_processes num_envs", 1, 4096), ("threads layers", 0, 1024), ("seed", 0, 10**9), ("dilation", 1, 63),
) for name in names.split()}  # fmt: skip


def parse_args(cls, sizes: dict, argv: list[str] | None = None):
    """Command line to Args: --size picks the defaults (a column of `sizes`), every other flag overrides them."""
    argv = sys.argv[1:] if argv is None else argv
    given = dict(zip(argv, argv[1:])) | dict(word.split("=", 1) for word in argv if "=" in word)
    if (size := given.get("--size", "auto")) == "auto":
        size = "paper" if find_device(given.get("--device", "auto")).type == "cuda" else "small"
        print(f"--size auto: {size} size ({'CUDA' if size == 'paper' else 'no CUDA: --size paper takes months'})")
    if size not in sizes:
        sys.exit(f"--size {size} is unknown: choose auto, {', '.join(sizes)}.")
    return dataclasses.replace(tyro.cli(cls, args=argv, default=cls(**{**sizes[size], "size": size})), size=size)


def begin(args) -> None:
    """What every command does first: refuse impossible numbers; as a stage or a worker, end when its maker is gone."""
    for name, value in vars(args).items():
        low, high = LIMITS.get(name, (1 if getattr(type(args), name, 1) else 0, 10**6))  # a count
        if type(value) in (int, float) and not low <= value <= high and value != getattr(type(args), name, None):
            sys.exit(f"--{name.replace('_', '-')} {value}: it must lie between {low:.10g} and {high:.10g}.")
        if name == "dilation" and value % 2 == 0 or name == "picture" and value % 32:
            sys.exit(f"--{name} {value}: it must be {'odd' if name == 'dilation' else '32 or 64'}.")

    def watch(maker: int) -> None:
        while os.getppid() == maker:  # a kill -9 tells nobody (on Windows this neither)
            time.sleep(0.5)
        os._exit(1)

    if os.name == "posix" and (maker := int(os.environ.get("MAKER", 0))):  # it may be gone already
        threading.Thread(target=watch, args=[maker], daemon=True).start()


CLAIMED: dict[Path, FileLock] = {}  # folders that this process has taken


def claim(folder: str | Path, make: bool = True, room: int = 10**6) -> None:
    """Take a folder for this process until it ends, be it by kill -9; end with one sentence if that cannot be.

    make False: look whether it could be, and take it only if it exists, so that what is refused later leaves no folder.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    problems = {"is a file": not there.is_dir(), "cannot be written to": not os.access(there, os.W_OK),
                f"has no room for {room / 1e6:.0f} MB": shutil.disk_usage(there).free < room}  # fmt: skip
    for problem in (text for text, true in problems.items() if true):
        sys.exit(f"{folder} cannot be used, because {there} {problem}: name another folder.")
    if not (make or there == folder) or os.environ.get("RANK", "0") != "0":
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = CLAIMED.setdefault(folder, FileLock(folder / ".lock"))
    try:
        lock.is_locked or lock.acquire(timeout=0)
    except Timeout:
        sys.exit(f"{folder} is in use by another process: wait until it has ended, or name another folder.")


def home(root: str, env_id: str) -> Path:
    """Folder of an environment in `root`, spelt as every file system takes it."""
    return Path(root) / re.sub(r"[^\w.-]", "_", env_id)


def run_folder(args, name: str) -> Path:
    """The folder of a run, --run-dir or runs/<env_id>/<name>; end with one sentence if it is of no use."""
    folder = Path(args.run_dir) if args.run_dir else home("runs", args.env_id) / name
    if getattr(args, "eval_only", False) and not (folder / "checkpoint.pt").exists():
        sys.exit(f"No checkpoint at {folder / 'checkpoint.pt'}: train first, or name its folder with --run-dir.")
    claim(folder, make=False)
    return folder


def write(path: Path, save) -> None:
    """Let save(file) write a file under a temporary name and rename it: a kill leaves the old one whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            save(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def command(main, read, again: str = "goes on from the last checkpoint") -> None:
    """Run main(read()) as a command: an interruption, and what cannot be written, end with one sentence."""
    try:
        args, flag = read(), "PYTORCH_ENABLE_MPS_FALLBACK"  # what MPS lacks is then computed on the CPU
        if getattr(args, "device", "") == "mps" and torch.backends.mps.is_available() and flag not in os.environ:
            os.execve(sys.executable, sys.orig_argv, os.environ | {flag: "1"})  # torch reads it while it is imported
        main(args)
    except KeyboardInterrupt:
        sys.exit(f"\nInterrupted: the same command {again}.")
    except OSError as error:  # a full disk, most of all
        sys.exit(f"{error}: make room, or name another folder; the same command {again}.")


def progress(total: int, form: str, **options) -> tqdm:
    """A progress bar of the form `form`; a log file gets a line now and then instead."""
    screen = sys.stdout.isatty()
    lines = SimpleNamespace(write=lambda text: text.strip() and print(text.strip(), flush=True), flush=lambda: None)
    return tqdm(total=total, bar_format=form, file=sys.stdout if screen else lines, position=0,
                mininterval=0.5 if screen else 30, **options)  # fmt: skip


def find_device(name: str) -> torch.device:
    """The device that --device names; end with one sentence if PyTorch finds no such one."""
    cuda = [f"cuda:{k}" for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # torchrun: a GPU for each process
    found = {"auto": own if cuda else "cpu", "cuda": own}.get(name, name)
    if found not in (there := ["cpu", *cuda, *["mps"] * torch.backends.mps.is_available()]):
        sys.exit(f"--device {name}: PyTorch finds only {', '.join(there)} here; name one of these, or auto.")
    return torch.device(found)


def start(args) -> torch.device:
    """The device, after setting CPU threads and the seed of the global random numbers."""
    begin(args)
    cuda = (device := find_device(args.device)).type == "cuda"
    if hasattr(args, "cudagraphs"):
        args.cudagraphs &= cuda and "RANK" not in os.environ  # gradients of several processes are not recorded
    args.threads and torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # CPU arithmetic on denormal numbers (tiny probabilities) is many times slower
    torch.manual_seed(args.seed)
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TensorFloat-32
    return device


def make(command: list[str], allowed: bool = True) -> None:
    """Run a missing stage, a script beside this one, as the command a user would type in their folder."""
    script = Path(__file__).parent / command[0]
    text = " ".join(command := [command[0] if script.parent == Path.cwd() else str(script), *command[1:]])
    if not allowed:
        sys.exit(f"--eval-only makes nothing that is missing; first: python {text}.")
    if not script.exists():
        sys.exit(f"{script} is missing: copy it too, or make by hand what it makes (python {text}).")
    print(f"$ python {text}", flush=True)
    if subprocess.run([sys.executable, *command], env=os.environ | {"MAKER": str(os.getpid())}).returncode:
        sys.exit(f"The stage above failed; repair it, then run this again: python {text}.")


def load(path: Path, device: str | torch.device = "cpu") -> dict:
    """Read a checkpoint; end with one sentence if the file is something else."""
    try:
        return dict(torch.load(path, map_location=device, weights_only=True))
    except Exception as error:  # the reader fails in many ways
        sys.exit(f"{path} is not a checkpoint ({type(error).__name__}): delete it, or name another.")


class Run:
    """A training's folder: checkpoint with random states, TensorBoard log, progress with time left, games, result.

    `parts`, whatever has a state_dict and torch.Generators, are what a checkpoint holds; `facts` are what it must have
    been made with; `marks` are returns to compare with, expert and random at least. The same command goes on where the
    last checkpoint was; what an interrupted run wrote after it is taken out.
    """

    free = {"updates", "device", "threads", "pretrained", "data_dir", "world_model", "run_dir", "cudagraphs", "bf16",
            "log_every", "quick_episodes"}  # fmt: skip

    def __init__(self, folder, args, parts: dict, facts: dict | None = None, marks: dict | None = None, free=()):
        self.folder, self.args, self.parts, self.facts = Path(folder), args, parts, facts or {}
        self.script = Path(sys.modules[type(args).__module__].__file__).stem
        self.marks, self.free = marks, self.free | {*free}
        self.file, self.step, self.saved, self.best, self.report = self.folder / "checkpoint.pt", 0, 0, -np.inf, {}
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device, self.began, self.total = find_device(args.device), time.time(), getattr(args, "updates", 0)
        self.rng_names = [f"{self.device.type}_rng"] * (self.device.type != "cpu")  # random states besides the CPU's
        size = sum(w.nbytes for part in parts.values() if isinstance(part, nn.Module) for w in part.parameters())
        claim(self.folder, room=4 * size + 10**6)  # a checkpoint: weights and Adam's two means
        self.file.exists() and self.restore()
        self.set_rate()
        self.first, self.resumed, self.bar = self.step, time.time(), tqdm(disable=True)
        if self.rank == 0:
            if (file := self.folder / "episodes.csv").exists():  # what a power failure leaves is no row
                rows = re.findall(rb"^(\d+)(,\d+,[-+.e\d]+,\d+\r?\n)", file.read_bytes(), re.M)
                kept = b"".join(step + rest for step, rest in rows if int(step) <= self.step)
                write(file, lambda out: out.write(b"update,seed,return,length\n" + kept))
            self.writer = SummaryWriter(self.folder, purge_step=self.step + 1)
            self.writer.add_text("hyperparameters", "\n".join(f"- {k}: {v}" for k, v in vars(args).items()))

    def restore(self) -> None:
        """Go on from the checkpoint; end with one sentence if other settings made it."""
        saved = load(self.file, self.device)
        kept = {k: v for k, v in saved.get("args", {}).items() if k not in self.free and "eval" not in k}
        wrong = [k for k, v in kept.items() if getattr(self.args, k, v) != v]
        flag = lambda k: f"--{'no-' * (kept[k] is False)}{k.replace('_', '-')}"  # noqa: E731
        other = [flag(k) + f" {kept[k]}" * (type(kept[k]) is not bool) for k in wrong]
        other += [f"{saved.get('script', 'an older version')}.py"] if saved.get("script") != self.script else []
        other += [f"another {k.replace('_', ' ')}" for k, v in self.facts.items() if saved.get(k) != v]
        other += ["another number of processes"] if len(saved.get("ranks", ())) != self.world else []
        if other:
            wrong = f"{self.file} was made with {', '.join(other)}"
            sys.exit(f"{wrong}: give --run-dir for a new run, or repeat its settings.")
        own = saved["ranks"][self.rank]
        same_device = [k for k in ("cuda_rng", "mps_rng") if k in own] == self.rng_names  # else they start anew
        for name, part in self.parts.items():
            if not isinstance(part, torch.Generator):
                part.load_state_dict((own if name in own else saved)[name])
            elif same_device:
                part.set_state(own[name].cpu())
        if same_device:
            torch.set_rng_state(own["torch_rng"].cpu())
            for name in self.rng_names:
                torch.get_device_module(self.device).set_rng_state(own[name].cpu(), self.device)
        self.step, self.best, self.began = saved["step"], saved["best"], time.time() - saved["seconds"]
        self.report, self.saved = saved.get("report", {}), self.step  # report: the log's last row
        print(f"resuming {self.file} at update {self.step}")

    def save(self) -> None:
        """Write the checkpoint."""
        same, own = {}, {"torch_rng": torch.get_rng_state()}
        own |= {name: torch.get_device_module(self.device).get_rng_state(self.device) for name in self.rng_names}
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                own[name] = part.get_state()
            else:
                (same if isinstance(part, (nn.Module, torch.optim.Optimizer)) else own)[name] = part.state_dict()
        ranks = [own] * self.world
        if self.world > 1:
            dist.all_gather_object(ranks, own)
        for part in same.values():
            self.check({name: value.sum().item() for name, value in part.items() if torch.is_tensor(value)})
        if self.rank == 0:
            self.writer.flush()
            content = same | self.facts | {"ranks": ranks, "step": self.step, "seconds": time.time() - self.began}
            content |= {"best": self.best, "report": self.report, "script": self.script, "args": vars(self.args)}
            content |= {"versions": {"torch": str(torch.__version__), "numpy": str(np.__version__)}}
            write(self.file, lambda file: torch.save(content, file))
        self.saved = self.step  # the update of the last checkpoint

    def steps(self, updates: int) -> Iterator[int]:
        """Count the updates that are left, with a progress bar."""
        self.total = updates or self.total
        form = "{n}/{total} ({percentage:.0f}%)  {desc}  {rate_fmt}  {remaining} left"
        self.bar = progress(updates, form, initial=self.step, unit=" updates", disable=self.rank > 0 or not updates)
        while self.step < updates:
            self.set_rate()
            self.step += 1
            yield self.step
            self.bar.update()
        self.bar.close()

    def set_rate(self) -> None:
        """Adam's step size of the next update: with --anneal it falls linearly to a tenth; a tensor for CUDA graphs."""
        rate, graphs = self.args.learning_rate, getattr(self.args, "cudagraphs", False)
        rate *= 1 - 0.9 * self.step / self.total if getattr(self.args, "anneal", False) and self.total else 1
        optimizers = (part for part in self.parts.values() if isinstance(part, torch.optim.Optimizer))
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            if graphs and torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = torch.tensor(rate, device=group["params"][0].device) if graphs else rate
            group["capturable"] = graphs

    def due(self, every: int) -> bool:
        """Whether something done every so many updates, and after the last one, is done now."""
        return self.step % every == 0 or self.step == self.total

    def check(self, numbers: dict[str, float]) -> None:
        """End a training that has gone wrong; its last checkpoint is kept."""
        for name in (name for name, value in numbers.items() if not np.isfinite(value)):
            kept = f"{self.file} of update {self.saved} is kept" if self.saved else "there is no checkpoint yet"
            sys.exit(f"{name} is not finite at update {self.step}: lower --learning-rate or look for odd data; {kept}.")

    def log(self, metrics: dict, *shown: str) -> None:
        """Write metrics (numbers or tensors ()) to TensorBoard, and those named in `shown` beside the progress bar."""
        if self.rank > 0:
            return
        now = time.time()
        metrics = metrics | {"charts/seconds": now - self.began}
        metrics |= {"charts/SPS": (self.step - self.first) / (now - self.resumed)} if self.step > self.first else {}
        self.report |= {name: float(value) for name, value in metrics.items()}
        self.check({k: v for k, v in self.report.items() if k in metrics and k.startswith(("losses/", "imagine/"))})
        for name in metrics:
            self.writer.add_scalar(name, self.report[name], self.step)
        texts = (f"{name.split('/')[1]} {self.report[name]:.4g}" for name in shown if name in self.report)
        self.bar.set_description_str("  ".join(texts), refresh=False)

    def play(self, games: Games, act, episodes: int, seed: int, name: str, step: int) -> tuple[np.ndarray, dict]:
        """Play games after update `step`, a row each in the file `name`: returns (n,), and the first game. The torch
        random state is restored: playing more often does not change the training."""
        bar = progress(episodes, "{n}/{total} games, {remaining} left", disable=name == "episodes.csv")
        with self.keep_random_state():
            torch.manual_seed(seed)
            played = [(game, bar.update())[0] for game in play(games, act, range(seed, seed + episodes), (seed,))]
        bar.close()
        played.sort(key=lambda game: game["seed"])
        with open(self.folder / name, "a", newline="") as out:
            out.write("" if out.tell() else "update,seed,return,length\n")
            out.writelines(f"{step},{game['seed']},{game['return']},{game['length']}\n" for game in played)
        return np.array([game["return"] for game in played]), played[0]

    def keep_random_state(self):
        """A context after which the torch random state is as it was before, so that the training goes on the same."""
        return torch.random.fork_rng([self.device] * len(self.rng_names), device_type=self.device.type)

    @torch.no_grad()
    def draw(self, model, data, to_pixels=None) -> None:
        """Log what the model foresees of data's first game (`starts`, `rows` as in `Episodes`) after 100 frames, and
        write it to dream.png: rows truth, posterior, open loop, error; columns 0, 3, 6, ... steps ahead."""
        game = torch.arange(min(116, int(data.starts[1])))[:, None]
        with self.keep_random_state():
            image, prev_action, is_first = data.rows(game)  # (T, 1, ...)
            deter, stoch, *_ = model.encode(image, prev_action, is_first)
            feat, image, ahead = torch.cat([deter, stoch], -1)[-16:], image[-16:], prev_action[-15:]  # (16, 1, F)
            dream, _ = model.imagine(lambda _, t: ahead[t], feat[0], len(feat) - 1)  # (16, 1, F)
        drawn = model.preprocess(image), model.decode(feat), model.decode(dream)
        truth, posterior, drawn = map(to_pixels or model.to_pixels, (part[::3, 0] for part in drawn))
        panel = torch.stack([truth, posterior, drawn, (drawn - truth).abs()])  # (4, steps, 64, 64, C)
        panel = panel.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2).byte().cpu().numpy()
        self.writer.add_image("world_model/truth_posterior_dream_error", panel, self.step, dataformats="HWC")
        picture, scale = Image.fromarray(panel.squeeze()), 512 // len(panel)
        picture.resize((scale * picture.width, scale * picture.height), 0).save(self.folder / "dream.png")

    def film(self, games: Games, game: dict) -> None:
        """Write a game that was played to agent.gif: what was seen, or, of sensors, the same game again and drawn."""
        frames = game["observations"][:2000]
        try:
            if frames.dtype != np.uint8:
                (env := games.envs.envs[0]).reset(seed=game["seed"])
                frames = [env.render(), *((env.step(action), env.render())[1] for action in game["actions"])]
            pictures = [Image.fromarray(frame.squeeze()).resize((192, 192), Image.Resampling.BOX) for frame in frames]
        except (Exception, SystemExit) as reason:  # each renderer has exceptions of its own
            return print(f"no agent.gif: {str(reason) or type(reason).__name__}")
        pictures[0].save(self.folder / "agent.gif", save_all=True, append_images=pictures[1:], duration=66, loop=0)

    def validate(self, games, act) -> dict[str, float]:
        """Play --quick-episodes games, and remember the best mean return: what is logged of them. Offline: nothing."""
        if not self.args.eval_episodes:
            return {}
        returns, _ = self.play(games(n := self.args.quick_episodes), act, n, 20_000, "episodes.csv", self.step)
        self.best = max(self.best, float(returns.mean()))
        return self.score(returns)

    def score(self, returns: np.ndarray) -> dict[str, float]:
        """What is logged of returns: mean, standard deviation and, if known, score, 0 random, 1 expert."""
        mean, expert, random = float(returns.mean()), self.marks["expert"], self.marks["random"]
        score = (mean - random) / ((expert - random) or 1.0)
        known = {"eval/return_vs_expert": score} if np.isfinite(score) else {}
        return {"eval/return_mean": mean, "eval/return_std": float(returns.std())} | known

    def finish(self, games, policy, sources: dict, another=None) -> dict:
        """Final evaluation by policy() in games(), whole games, printed and stored with `sources`; the report.

        With --eval-consecutive K it plays again after each of K - 1 further updates, another(). Without --eval-episodes
        nothing is played.
        """
        only, n, result = self.args.eval_only, self.args.eval_episodes, self.folder / "result.json"
        returns, kind = np.zeros((getattr(self.args, "eval_consecutive", 1), n)), "eval_only" if only else "final"
        (self.folder / f"{kind}_episodes.csv").unlink(missing_ok=True)
        print(f"final evaluation: {returns.size} whole games, played by the policy of update {self.step}", flush=True)
        for k in range(len(returns) if n else 0):
            if k:
                another()
            returns[k], game = self.play(games(n), policy(), n, 1000, f"{kind}_episodes.csv", self.step + k)
        if n and not only and not (result.exists() and f'"step": {self.step},' in result.read_text()):  # only once
            self.writer.close(), [row.unlink() for row in self.folder.glob(f"events.*.final{self.step}")]  # of a kill
            self.writer = SummaryWriter(self.folder, filename_suffix=f".final{self.step}")
            self.log(self.score(returns))
        self.writer.close()
        self.report |= {f"{who}_return": value for who, value in self.marks.items()}
        self.report |= {"step": self.step, "best_validation": self.best if np.isfinite(self.best) else None}
        if n:
            self.report |= self.score(returns)
            self.report |= {"percent_of_expert": 100 * returns.mean() / (self.marks["expert"] or 1.0)}
        everything = self.report | sources | {"args": vars(self.args), "returns": returns.flatten().tolist()}
        strict = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in everything.items()}
        result = self.folder / "eval_only.json" if only else result
        write(result, lambda file: file.write(json.dumps(strict, indent=1).encode()))  # JSON has no NaN
        n and self.film(games(1), game)
        print(f"\n{self.args.env_id}, {returns.size} games, {self.args.size} size, {self.step} updates")
        if n:
            error = returns.mean(0).std() / max(n - 1, 1) ** 0.5  # over games, each K times the same
            print(f"  {sources.get('method', self.script):10s}{returns.mean():8.1f} +- {error:.1f} (standard error)")
        for who, value in ((who, value) for who, value in self.marks.items() if np.isfinite(value)):
            print(f"  {who:10s}{value:8.1f}" + "  (the expert's actions in random order)" * (who == "shuffled"))
        for name, text in (("eval/return_vs_expert", "score     {:8.2f}  (0 random, 1 expert)"),
                           ("expert/latent_distance", "L_d       {:8.2f}  (0: dreams like the expert's games)"),
                           ("expert/action_agreement", "agreement {:8.2f}  (1: the expert's actions)")):  # fmt: skip
            if name in self.report:
                print("  " + text.format(self.report[name]))
        if n and "demonstrations" in sources:
            print(f"  percent   {self.report['percent_of_expert']:8.1f}  (of the expert's return, as the paper counts)")
        if n and self.best > (random := self.marks["random"]) and returns.mean() - random < 0.5 * (self.best - random):
            print(f"  collapsed: {self.best:.1f} was reached in a validation before, twice as far above random or more")
        return self.report


def graphed(update, *example: Tensor, optimizer: torch.optim.Optimizer):
    """Record `update(*tensors)` as a CUDA graph; the returned function copies its inputs in and replays it.

    Recording runs the update three times; afterwards the optimiser and its weights are put back as they were.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    before = [(weight, weight.detach().clone(), copy.deepcopy(dict(optimizer.state[weight]))) for weight in weights]
    rng, static = torch.cuda.get_rng_state(), [value.clone() for value in example]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up: lets libraries choose kernels and optimisers allocate their state
        for _ in range(3):
            update(*static)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = update(*static)
    with torch.no_grad():  # in place: the graph reads and writes these very tensors
        for weight, value, state in before:
            weight.copy_(value)
            for name, part in optimizer.state[weight].items():
                part.copy_(state[name]) if name in state else part.zero_()
    torch.cuda.set_rng_state(rng)

    def replay(*values: Tensor):
        for target, value in zip(static, values, strict=True):
            target.copy_(value)
        graph.replay()
        return result

    return replay


def finished(checkpoint: Path) -> bool:
    """Whether a world model was trained to its last update; an interrupted one is resumed by its command."""
    saved = load(checkpoint) if checkpoint.exists() else {}
    return bool(saved) and saved.get("step", 0) >= saved.get("args", {}).get("updates", 0)


def load_world_model(path: str | Path, device: str | torch.device = "cpu", env_id: str = "") -> WorldModel:
    """The frozen model in a checkpoint of this script (full, or the small one that is shipped), of env_id if given."""
    if not Path(path).exists():
        sys.exit(f"No world model at {path}: train one with world_model.py, or name another with --world-model.")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = WorldModel(content["config"])
        model.load_state_dict({re.sub(r"^prior\.", "priors.0.", k): v.float() for k, v in content["model"].items()})
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise ArithmeticError
    except Exception as error:
        sys.exit(f"{path} is not a world model of this project ({type(error).__name__}): train it again.")
    if env_id and content.get("env_id", env_id) != env_id:
        sys.exit(f"{path} is of {content['env_id']}, not of {env_id}: name another with --world-model.")
    return model.to(device).requires_grad_(False).eval()


def model_config(args: Args, channels: int, action_size: int) -> dict:
    """What a checkpoint must remember to rebuild its model."""
    names = "depth deter stoch classes hidden pixel_stats picture dilation image_weight beta kl_balance".split()
    return {name: getattr(args, name) for name in names} | {"channels": channels, "action_size": action_size}


@torch.no_grad()
def validate(model: WorldModel, data: Episodes, horizon: int = 15, episodes: int = 2, count: int = 128):
    """Errors on held-out episodes, open loop with the true actions from `count` states.

    Moving error, 1, 5, 10 and 15 steps ahead: squared error where things move (pixels that leave the median picture of
    the 21 frames around the target at any of them), as a share of that median picture's own: 0 perfect, 1 what moves is
    not drawn, 2 it is drawn elsewhere. The others are shares of the error of 0 (--pixel-stats pixel:
    the mean picture): the posterior's in the first and last 100 frames, the whole dream's, repeating the last frame.
    """
    starts = data.starts[: episodes + 1]
    feat = model.encode_episodes(SimpleNamespace(starts=starts, rows=data.rows))
    horizon = min(horizon, int(starts.diff().max()) - 1)
    picture = lambda row: model.preprocess(data.pictures(row))  # noqa: E731
    error = lambda left, right: (left - right).square().sum((-3, -2, -1)).mean().item()  # noqa: E731
    share = lambda drawn, row: error(drawn, picture(row)) / max(error(picture(row), 0), 1e-3)  # noqa: E731
    edges = {"start": [(a, min(a + 100, b)) for a, b in zip(starts, starts[1:])],
             "end": [(max(a, b - 100), b) for a, b in zip(starts, starts[1:])]}  # fmt: skip
    rows = {name: torch.cat([torch.arange(a, b) for a, b in pairs]) for name, pairs in edges.items()}
    metrics = {f"posterior_error_{name}": share(model.decode(feat[row]), row) for name, row in rows.items()}
    first = window_starts(starts, horizon + 1)
    first = first[torch.linspace(0, len(first) - 1, count).long()]  # (count,)
    game = torch.searchsorted(starts, first, right=True)
    begin, last = starts[game - 1], starts[game] - 1  # of the game that each start is in
    dream, _ = model.imagine(lambda _, t: data.prev_action[first + t + 1], feat[first], horizon)  # (H + 1, count, F)
    for step in (1, 5, 10, 15):
        target = first + min(step, horizon)
        middle = torch.minimum(torch.maximum(target, begin + 10), last - 10)
        around = torch.minimum(torch.maximum(middle + torch.arange(-10, 11)[:, None], begin), last)
        window = picture(around)  # (21, count, C, 64, 64)
        still, truth, drawn = window.median(0).values, picture(target), model.decode(dream[min(step, horizon)])
        moves = ((window - still).abs() > 0.5).any(0)  # half a standard deviation; (count, C, 64, 64)
        background = ((truth - still).square() * moves).sum().clamp_min(1e-8)
        metrics[f"moving_error_{step}"] = (((drawn - truth).square() * moves).sum() / background).item()
        if step in (1, 15):
            metrics[f"open_loop_error_{step}"] = share(drawn, target)
    metrics["copy_error_15"] = share(picture(first), first + horizon)
    return {f"world_model/{name}": value for name, value in metrics.items()}


def main(args: Args) -> dict:
    device, world = start(args), int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_size % world or world > 1 and ":" in args.device:
        sys.exit("torchrun needs a --batch-size that is a multiple of its processes, and --device cuda, cpu or auto.")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, batch = int(os.environ.get("RANK", 0)), args.batch_size // world
    run_dir = run_folder(args, f"world_model-{args.size}" + f"-{args.seed}" * (args.seed != 1))
    folders = [home("data", args.env_id) / name for name in ("world", "expert")]
    folders = args.data_dir.split(",") if args.data_dir else [folder for folder in folders if folder.exists()]
    if not folders:
        sys.exit(f"No dataset: run python collect_data.py --env-id {args.env_id} --name world, or give --data-dir.")

    # (1) data, and a stream of batches per process
    shown = functools.partial(shrink, dilation=args.dilation, picture=32) if args.picture == 32 else None  # once
    data, held_out = (Episodes(folders, split, 0, device, True, shown, args.env_id) for split in ("train", "val"))
    streams = Streams(data, batch, args.batch_length, args.seed + rank)
    model = WorldModel(model_config(args, data.image.shape[-1], data.prev_action.shape[-1])).to(device)
    pick = torch.linspace(0, len(data.image) - 1, min(len(data.image), 4000)).long()
    model.measure(data.pictures(pick), args.pixel_std_floor)
    streams.state = model.initial(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    torch.manual_seed(args.seed + rank)  # same weights in every process, different noise
    run = Run(run_dir, args, {"model": model, "optimizer": optimizer, "streams": streams},
              {"config": model.config, "env_id": args.env_id, "dataset": data.digest()})  # fmt: skip
    parallel = DistributedDataParallel(model) if world > 1 else model

    def update(image, prev_action, is_first, deter, stoch):
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16 and device.type == "cuda"):
            loss, metrics, state = parallel(image, prev_action, is_first, (deter, stoch))  # (2) to (5)
        optimizer.zero_grad(set_to_none=not args.cudagraphs)
        loss.backward()
        metrics["losses/grad_norm"] = nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip, foreach=True)
        optimizer.step()  # (6)
        return metrics, state

    if args.cudagraphs:
        position = streams.state_dict()
        update = graphed(update, *streams.next(), *streams.state, optimizer=optimizer)
        streams.load_state_dict(position)
    if rank == 0:
        count = sum(p.numel() for p in model.parameters())
        print(f"model: {count / 1e6:.2f} M weights, {len(data.image)} frames, {len(data.starts) - 1} games, {device}")
    for step in run.steps(args.updates):
        metrics, streams.state = update(*streams.next(), *streams.state)
        if run.due(args.eval_every) and rank == 0:
            with run.keep_random_state():
                errors = validate(model, held_out)  # must not change the training noise
            run.draw(model, held_out)
            metrics = metrics | errors
            run.bar.write("  ".join(f"{name.split('/')[1]} {value:.3f}" for name, value in errors.items()))
        if run.due(args.eval_every) or run.due(args.log_every):
            frames = (step - run.first) * args.batch_size * args.batch_length
            metrics = metrics | {"charts/frames_per_second": frames / (time.time() - run.resumed)}
            run.log(metrics, "losses/world_model", "losses/image_nll", "losses/kl", "charts/frames_per_second")
        if run.due(args.eval_every):
            run.save()
    if rank == 0:
        run.writer.close()
        print(f"world model of {args.env_id}: {run.file} after {run.step} updates")
    if world > 1:
        dist.destroy_process_group()
    return {"step": run.step, "checkpoint": str(run.file)} | run.report


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
