"""For the tests: a tiny environment seen as pixels, its expert and exact model, episodes by hand, small helpers."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import world_model

CELLS, STEPS = 8, 16  # columns of 8 pixels, steps per episode


class Blocks(gym.Env):
    """Move the upper block (0 left, 1 stay, 2 right) over the lower one; reward 1 for every step spent there."""

    metadata = {"render_modes": []}
    observation_space = gym.spaces.Box(0, 255, (64, 64, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def picture(self) -> np.ndarray:
        """Both blocks, 8 wide and 16 high (64, 64, 1)."""
        picture = np.full((64, 64, 1), 20, np.uint8)
        picture[8:24, 8 * self.place : 8 * self.place + 8] = 250
        picture[40:56, 8 * self.goal : 8 * self.goal + 8] = 250
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = (int(x) for x in self.np_random.integers(CELLS, size=2))
        self.steps = 0
        return self.picture(), {}

    def step(self, action):
        self.place = min(max(self.place + int(action) - 1, 0), CELLS - 1)
        self.steps += 1
        return self.picture(), float(self.place == self.goal), False, self.steps == STEPS, {}


gym.register("Blocks-v0", Blocks)


def expert(observation: np.ndarray, env: gym.Env) -> int:
    """Go to the lower block and stay."""
    return 1 + int(np.sign(env.unwrapped.goal - env.unwrapped.place))


class Slide(Blocks):
    """The same with one continuous action: below 0 left, above 1.5 right."""

    action_space = gym.spaces.Box(-1.0, 3.0, (1,), np.float32)

    def step(self, action):
        return super().step(0 if action[0] < 0 else 2 if action[0] > 1.5 else 1)


gym.register("Slide-v0", Slide)


class Drawn(gym.Env):
    """Observes a vector (3,) and is seen as pixels through `render()` only; a continuous action in [-2, 2]."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.angle = 0.0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.angle += float(action[0])
        return np.zeros(3, np.float32), -abs(self.angle), False, False, {}

    def render(self) -> np.ndarray:
        return np.full((100, 160, 3), (255, 100, 10 + 10 * self.angle), np.uint8)


gym.register("Drawn-v0", Drawn)


class ExactModel(nn.Module):
    """A perfect world model of Blocks: deter is place and goal, one-hot (B, 16); stoch is one zero."""

    config = {"deter": 2 * CELLS, "channels": 1, "action_size": 3}
    deter_size, feat_size = 2 * CELLS, 2 * CELLS + 1
    imagine, encode_episodes = world_model.WorldModel.imagine, world_model.WorldModel.encode_episodes

    def __init__(self):
        super().__init__()
        self.register_buffer("pixel_mean", torch.zeros(1))

    def digest(self) -> str:
        return "exact"

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 2 * CELLS), torch.zeros(batch, 1)

    def encode(self, image: Tensor, prev_action: Tensor, is_first: Tensor, state=None):
        deter = torch.cat([image[..., row, ::8, 0] > 200 for row in (8, 40)], -1).float()
        stoch = deter.new_zeros(*deter.shape[:-1], 1)
        return deter, stoch, stoch, (deter[-1], stoch[-1])

    def filter_step(self, state, image: Tensor, prev_action: Tensor, is_first: Tensor):
        return self.encode(image[None], prev_action[None], is_first[None], state)[-1]

    def preprocess(self, image: Tensor) -> Tensor:
        return image.movedim(-1, -3).float()

    def decode(self, feat: Tensor) -> Tensor:
        """Both blocks as `Blocks.picture` draws them, (..., 1, 64, 64)."""
        columns = feat[..., : 2 * CELLS].unflatten(-1, (2, CELLS)).repeat_interleave(8, -1)  # (..., 2, 64)
        return 20 + 230 * columns.repeat_interleave(32, -2)[..., None, :, :]

    def to_pixels(self, pictures: Tensor) -> Tensor:
        return pictures.movedim(-3, -1)

    def imagine_step(self, state, action: Tensor) -> tuple[Tensor, Tensor]:
        deter, stoch = state
        place = (deter[:, :CELLS].argmax(-1) + action.argmax(-1) - 1).clamp(0, CELLS - 1)
        return torch.cat([F.one_hot(place, CELLS).float(), deter[:, CELLS:]], -1), stoch


def write_episode(path: Path, observations: np.ndarray, actions: np.ndarray) -> None:
    """One file in the format of collect_data.py, its last step terminal."""
    T = len(actions)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = np.arange(T) == T - 1
    np.savez_compressed(path, observations=observations, actions=actions, rewards=np.zeros(T, np.float32),
                        terminations=end, truncations=np.zeros(T, bool), forced=np.zeros(T, bool),
                        lives=np.zeros(T + 1, int), seed=0)  # fmt: skip


def counting_episodes(folder: Path, lengths: tuple[int, ...] = (5, 9, 3, 7), num_actions: int = 3) -> Path:
    """Episode k: frame t is grey 20 * k + t all over, action t is (k + t) % num_actions; one more is held out."""
    for k, T in enumerate((*lengths, 6)):
        frames = np.broadcast_to((20 * k + np.arange(T + 1, dtype=np.uint8))[:, None, None, None], (T + 1, 64, 64, 1))
        name = f"train_{k:05d}.npz" if k < len(lengths) else "val_00000.npz"
        write_episode(folder / name, frames, (k + np.arange(T)) % num_actions)
    meta = {"env_id": "Blocks-v0", "num_actions": num_actions, "random_returns": [0.0], "grayscale": True,
            "max_steps": 16, "episodes": [{"return": 1.0}]}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


def debug_args(module, **changes):
    """Args of a script for --size debug on the CPU."""
    fixed = {"env_id": "Blocks-v0", "size": "debug", "device": "cpu"}
    return module.Args(**module.SIZES["debug"] | fixed | changes)


def exact_args(module, **changes):
    """Arguments of a short run with the exact model (fixture `exact_model`): no world_model file is read."""
    fixed = {"world_model": "exact", "num_expert_episodes": 80, "batch_size": 64, "horizon": 5, "layers": 1}
    fixed |= {"units": 64, "learning_rate": 3e-3, "anneal": False, "eval_every": 10_000}
    return debug_args(module, **fixed | changes)


def read_log(run_dir: Path) -> dict[tuple[int, str], float]:
    """Scalars of a run's event files by step and name."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    return {(e.step, name): e.value for name in events.Tags()["scalars"] for e in events.Scalars(name)}


def interrupt(monkeypatch, step: int) -> None:
    """Let a run break off when it logs this step, as if it had been killed."""
    log = world_model.Run.log

    def log_or_break(self, *rest):
        if self.step == step:
            raise KeyboardInterrupt
        log(self, *rest)

    monkeypatch.setattr(world_model.Run, "log", log_or_break)


def same_tensors(left, right) -> bool:
    """Whether two nested dicts hold bit-identical tensors and equal numbers."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_tensors(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same_tensors, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def assert_one_sentence(stop: pytest.ExceptionInfo) -> None:
    """An error a person can act on: text, one line, and an exit status other than 0."""
    text = stop.value.code
    assert isinstance(text, str) and "\n" not in text.strip() and text.endswith("."), text
