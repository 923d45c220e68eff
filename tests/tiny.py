"""A tiny environment seen as pixels, its expert, and episodes written by hand, for the tests."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np

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


def write_episode(path: Path, observations: np.ndarray, actions: np.ndarray) -> None:
    """One file in the format of collect_data.py, its last step terminal."""
    T = len(actions)
    path.parent.mkdir(parents=True, exist_ok=True)
    end = np.arange(T) == T - 1
    np.savez_compressed(path, observations=observations, actions=actions, rewards=np.zeros(T, np.float32),
                        terminations=end, truncations=np.zeros(T, bool), forced=np.zeros(T, bool),
                        lives=np.zeros(T + 1, int), seed=0)  # fmt: skip


def counting_episodes(folder: Path, lengths: tuple[int, ...] = (5, 9, 3, 7), num_actions: int = 3) -> Path:
    """Episode k of T steps: frame t is grey 20 * k + t all over, action t is (k + t) % num_actions; one more held out."""
    for k, T in enumerate((*lengths, 6)):
        frames = np.broadcast_to((20 * k + np.arange(T + 1, dtype=np.uint8))[:, None, None, None], (T + 1, 64, 64, 1))
        name = f"train_{k:05d}.npz" if k < len(lengths) else "val_00000.npz"
        write_episode(folder / name, frames, (k + np.arange(T)) % num_actions)
    meta = {"env_id": "Blocks-v0", "num_actions": num_actions, "random_returns": [0.0], "grayscale": True, "max_steps": 16,
            "episodes": [{"return": 1.0}]}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder
