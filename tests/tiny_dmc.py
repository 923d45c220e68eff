"""For the tests of aime.py and bco.py: a body without physics, and trajectories of it in AIME's published format."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import dmc

STEPS = 12  # decisions per game


class FakeDMC(gym.Env):
    """Stands in for dmc.DMC: every sensor moves by the action's mean; the reward is that of moving up."""

    def __init__(self, env_id: str, setting: str = "mdp", pixels: bool = False, max_steps: int = STEPS):
        self.keys, self.max_steps = dmc.observed(env_id, setting), max_steps
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (sum(self.keys.values()),), np.float32)
        if "image" in self.keys:
            self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

    def render(self) -> np.ndarray:
        return np.full((64, 64, 3), np.clip(128 + 40 * self.place, 0, 255), np.uint8)

    def draw(self, obs: torch.Tensor) -> torch.Tensor:
        return (128 + 40 * obs.mean(-1)).clamp(0, 255)[:, None, None, None].expand(-1, 64, 64, 3)

    def observe(self) -> np.ndarray:
        return self.render() if "image" in self.keys else np.full(sum(self.keys.values()), self.place, np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        self.place, self.steps = np.random.default_rng(seed).uniform(-0.1, 0.1), 0
        return self.observe(), {}

    def step(self, action: np.ndarray):
        assert action.shape == (6,) and np.abs(action).max() <= 1
        self.place, self.steps = self.place + 0.2 * float(action.mean()), self.steps + 1
        return self.observe(), float(action.mean()), False, self.steps >= self.max_steps, {}


def write_trajectories(folder: Path, count: int, seed: int = 0, low: float = -1.0, body: str = "walker") -> Path:
    """Games of uniform actions between low and 1, with every sensor and pictures; dataset.json beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        action = rng.uniform(low, 1.0, (STEPS + 1, 6)).astype(np.float32)
        action[0] = 0
        place = rng.uniform(-0.1, 0.1) + 0.2 * action.mean(-1).cumsum()
        sensors = {name: np.repeat(place[:, None], size, 1) for name, size in dmc.SENSORS[body].items()}
        image = np.broadcast_to(np.clip(128 + 40 * place, 0, 255)[:, None, None, None], (STEPS + 1, 64, 64, 3))
        np.savez(folder / f"{k}.npz", pre_action=action, reward=action.mean(-1, keepdims=True),
                 image=image.astype(np.uint8), is_first=np.arange(STEPS + 1)[:, None] == 0, **sensors)  # fmt: skip
    meta = {"max_steps": STEPS, "random_returns": [0.0, 0.2]}
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


def rewrite(folder: Path, change) -> None:
    """Write every trajectory again with change(arrays)."""
    for file in folder.glob("*.npz"):
        with np.load(file) as npz:
            arrays = change(dict(npz))
        np.savez(file, **arrays)


def write_vd4rl(folder: Path, count: int, seed: int = 0) -> Path:
    """The same games in V-D4RL's layout of 64x64: numbers per row as they are, no sensors, names by time."""
    write_trajectories(folder, count, seed)
    (folder / "dataset.json").unlink()
    for k in range(count):
        with np.load(folder / f"{k}.npz") as npz:
            first, action, reward, image = (npz[key] for key in ("is_first", "pre_action", "reward", "image"))
        (folder / f"{k}.npz").unlink()
        last = np.arange(STEPS + 1) == STEPS
        rows = dict(image=image, action=action, reward=reward[:, 0], discount=np.ones(STEPS + 1, np.float32),
                    is_first=first[:, 0], is_last=last, is_terminal=np.zeros(STEPS + 1, bool))  # fmt: skip
        name = f"20220527T{100000 + 9 * k}-{count - k:032x}-{STEPS + 1}.npz"  # the id is random, the time counts
        np.savez_compressed(folder / name, **rows)
    return folder
