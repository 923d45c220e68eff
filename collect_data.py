# /// script
# requires-python = ">=3.10"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""Collect demonstrations: let an expert play, and store its games as 64x64 frames, actions and rewards.

    python collect_data.py --env-id BreakoutNoFrameskip-v4                              # expert data, 30 + 6 games
    python collect_data.py --env-id BreakoutNoFrameskip-v4 --name world --epsilon 0.03  # wider data for the world model
"""

import functools
import itertools
import json
import os
import re
import time
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Optional

import ale_py
import gymnasium as gym
import numpy as np
import tyro
from ale_py.vector_env import AtariVectorEnv

gym.register_envs(ale_py)


@dataclass
class Args:
    # run
    seed: int = 1
    """seed of the data set; every game is a function of this seed, the data set's name and the game's number"""

    # data
    env_id: str = "BreakoutNoFrameskip-v4"
    """an Atari `...NoFrameskip-v4` id, or any Gymnasium id with image observations or `rgb_array` rendering"""
    expert: str = "auto"
    """auto | embedded | random | a Hub id sb3/... | a .zip of Stable-Baselines3 | a .pt | module:function"""
    name: str = "expert"
    """name of the data set: it is stored in data_dir/env_id/name"""
    data_dir: str = "data"
    """folder of all data sets"""
    num_episodes: int = 30
    """games to learn from"""
    num_val_episodes: int = 6
    """held-out games"""
    epsilon: float = 0.0
    """probability per step that a burst of 1 to 8 random actions begins (0: the expert alone)"""
    max_steps: Optional[int] = None
    """agent steps after which a game is cut off; default 27000 (Atari's own limit), 2000 for the embedded Breakout"""
    grayscale: bool = True
    """store grey frames (64, 64, 1), not RGB (64, 64, 3); Atari is always grey"""
    num_envs: int = 8
    """games played at the same time"""


# --- same in: collect_data, ditto ---
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
    rgb = rgb.astype(np.int32)
    return ((9798 * rgb[..., 0] + 19235 * rgb[..., 1] + 3735 * rgb[..., 2] + 16384) >> 15).astype(np.uint8)


class Games:
    """`num_envs` copies of one environment, stepped together; a finished game restarts by itself.

    Atari (`...NoFrameskip-v4`): FIRE and up to 28 no-ops at the start, frame skip 4 with a maximum over the last two
    frames, no sticky actions, unclipped rewards, whole games. When a life is lost in a game that has FIRE, the next
    three actions are forced to no-op, FIRE, action 2 (without them a policy that never fires would wait for ever).
    Everything else: the environment's own steps, seen through `render()`, or through its observation if that is an image.
    The n-th game begun has seed `seed + n`, so the first n games are a fair sample: none is left out for being long.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, max_steps: int = 27000, grayscale: bool = True):
        self.num_envs, self.max_steps, self.coming = num_envs, max_steps, itertools.count(seed)
        self.atari = env_id.endswith("NoFrameskip-v4") and env_id in gym.registry
        self.channels = 1 if grayscale or self.atari else 3
        if self.atari:
            self.envs = AtariVectorEnv(gym.spec(env_id).kwargs["game"], num_envs, stack_num=1, reward_clipping=False,
                                       max_num_frames_per_episode=4 * max_steps + 400, autoreset_mode="SameStep")  # fmt: skip
            self.action_space = self.envs.single_action_space
            self.has_fire = ale_py.Action.FIRE in self.envs.ale.get_action_set()
        else:
            self.envs = [make_env(env_id) for _ in range(num_envs)]
            self.action_space = self.envs[0].action_space

    def reset(self) -> np.ndarray:
        """Start every game anew; first frames (N, 64, 64, C) uint8."""
        N = self.num_envs
        self.seeds, self.steps, self.lives, self.forced = (np.zeros(N, np.int64) for _ in range(4))
        self.frames, self.obs = np.zeros((N, 64, 64, self.channels), np.uint8), [None] * N
        self.restart(np.ones(N, bool))
        return self.frames.copy()

    def restart(self, which: np.ndarray) -> None:
        """Begin a new game, with the next seed, in the slots where `which` (N,) is true."""
        self.seeds[which] = list(itertools.islice(self.coming, int(which.sum())))
        self.steps[which] = self.forced[which] = 0  # `forced` counts the forced actions still to come
        if self.atari:
            obs, info = self.envs.reset(seed=self.seeds[which], options={"reset_mask": which})
            self.frames84, self.lives = obs[:, -1], np.array(info["lives"])  # (N, 84, 84): what the Zoo's experts see
            self.frame_number = np.array(info["episode_frame_number"])
            self.frames = resize(self.frames84)[..., None]
        else:
            for i in np.flatnonzero(which):
                self.obs[i] = self.envs[i].reset(seed=int(self.seeds[i]))[0]
                self.frames[i] = self.picture(i)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one action each: frames (N, 64, 64, C), reward (N,), terminated (N,), truncated (N,), info.

        `info` holds what was really played: action, forced (N,), lives (N,) after the step, and final_frame
        (N, 64, 64, C), the last frame of the game where it ended (the frames returned already show the next game).
        """
        forced = self.forced > 0
        self.steps += 1
        if self.atari:
            action = np.where(forced, 3 - self.forced, action)  # 0 no-op, 1 FIRE, 2
            obs, reward, terminated, truncated, raw = self.envs.step(action)
            lives = np.where(terminated, 0, raw["lives"])
            frames84 = obs[:, -1].copy()
            if terminated.any():  # its row of `obs` shows a new game already, with a seed we did not choose
                frames84[terminated] = raw["final_obs"][terminated, -1]
            self.frames84, self.frames = frames84, resize(frames84)[..., None]
            self.forced = np.where((lives < self.lives) & self.has_fire, 3, np.maximum(self.forced - 1, 0))
            self.lives = lives
        else:
            if not hasattr(self.action_space, "n"):
                action = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
            results = [env.step(a) for env, a in zip(self.envs, action)]
            self.obs, reward, terminated, truncated, _ = (list(part) for part in zip(*results))
            terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
            self.frames = np.stack([self.picture(i) for i in range(self.num_envs)])
        truncated |= ~terminated & (self.steps >= self.max_steps)
        self.played = action
        info = {"action": action, "forced": forced, "lives": self.lives.copy(), "final_frame": self.frames.copy()}
        if (terminated | truncated).any():
            self.restart(terminated | truncated)
        return self.frames.copy(), np.array(reward, np.float32), terminated, truncated, info

    def picture(self, i: int) -> np.ndarray:
        """What slot i shows now: (64, 64, C) uint8."""
        picture = self.obs[i] if is_image(self.envs[i].observation_space) else self.envs[i].render()
        picture = picture.reshape(*picture.shape[:2], -1)
        if picture.shape[-1] == 3 and self.channels == 1:
            picture = to_gray(picture)[..., None]
        small = np.moveaxis(resize(np.moveaxis(picture, -1, 0)), 0, -1)
        return np.broadcast_to(small, (64, 64, self.channels))


def is_image(space: gym.Space) -> bool:
    """Whether observations are pictures: uint8 (height, width) or (height, width, 1 or 3)."""
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,)) and min(shape[:2]) >= 8


def make_env(env_id: str) -> gym.Env:
    """Make a Gymnasium environment that can be seen."""
    env = gym.make(env_id)
    if is_image(env.observation_space):
        return env
    env.close()
    return gym.make(env_id, render_mode="rgb_array")


# --- end ---


# ---- experts -----------------------------------------------------------------------------------------------------


class Emulator:
    """A second copy of the Atari game in one slot of `Games`, whose memory can be read and whose state can be copied.

    Called before every action, `follow` repeats what the slot has played since (exactly: the emulator is
    deterministic without sticky actions), so that a look-ahead expert can try actions here first.
    """

    def __init__(self, games: Games, slot: int, env_id: str):
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(gym.spec(env_id).kwargs["game"]))
        self.actions = self.ale.getMinimalActionSet()
        self.ale.reset_game()
        if ale_py.Action.FIRE in self.actions:
            self.ale.act(ale_py.Action.FIRE)
        while self.ale.getEpisodeFrameNumber() < games.frame_number[slot]:
            self.ale.act(ale_py.Action.NOOP)

    def step(self, action: int) -> float:
        """Play one agent step, four frames; sum of rewards."""
        return sum(self.ale.act(self.actions[action]) for _ in range(4))


class Aim:
    """Rule for Breakout and Pong: meet the ball where it will cross the paddle's line, `offset` units off centre."""

    def __init__(self, game: str, offset: int, dead: int):
        self.offset, self.dead, self.breakout = offset, dead, game == "breakout"

    def __call__(self, ram: np.ndarray, last: np.ndarray | None, last_action: int) -> int:
        """Action from this memory, the one of an agent step ago, and the action in between."""
        if not self.breakout:
            return self.pong(ram, last, last_action)
        ball_x, ball_y, paddle = int(ram[99]), int(ram[101]), int(ram[72])
        if ball_y == 0:
            return 1  # no ball in play: FIRE
        if last is None or last[101] == 0 or ball_y <= last[101]:
            return 0
        steps_left = max((178 - ball_y) / (ball_y - int(last[101])), 0)
        target = fold(ball_x + (ball_x - int(last[99])) * steps_left, 57, 202)
        slide = {2: 10 if paddle < 180 else 0, 3: -10 if paddle > 66 else 0}.get(last_action, 0)
        error = target - (paddle + slide + 9 + self.offset)
        return 2 if error > self.dead else 3 if error < -self.dead else 0

    def pong(self, ram: np.ndarray, last: np.ndarray | None, last_action: int) -> int:
        return 0


def fold(x: float, low: float, high: float) -> float:
    """Where a ball that would be at x is after bouncing between two walls."""
    period = 2 * (high - low)
    x = (x - low) % period
    return low + min(x, period - x)


class LookAhead:
    """Breakout and Pong: of ten aiming rules, follow the first that wins points in the emulator's next 70 steps."""

    def __init__(self, games: Games, slot: int, env_id: str, rng: np.random.Generator):
        self.games, self.slot, self.rng, self.copy = games, slot, rng, Emulator(games, slot, env_id)
        game = gym.spec(env_id).kwargs["game"]
        self.rules = [Aim(game, offset, dead) for offset in (-8, -4, 0, 4, 8) for dead in (4, 11)]
        self.rule, self.last, self.think_at = self.rules[0], None, 0

    def act(self) -> int:
        """Choose an action for the state that the slot is in now."""
        step, ale, action = int(self.games.steps[self.slot]), self.copy.ale, 0
        if step:
            self.last, action = np.array(ale.getRAM()), int(self.games.played[self.slot])
            self.copy.step(action)
        if step and action != self.wanted:
            self.think_at = step  # something else than the plan was played: think again
        if step >= self.think_at:
            self.choose(action)
            self.think_at = step + 20
        self.wanted = self.rule(ale.getRAM(), self.last, action)
        return int(self.rng.integers(len(self.copy.actions))) if self.rng.random() < 0.01 else self.wanted

    def choose(self, action: int) -> None:
        """Keep the current rule if it earns something, else the first other rule that does, else the best."""
        others = [rule for rule in self.rules if rule is not self.rule]
        best = -np.inf
        for rule in [self.rule, *(others[i] for i in self.rng.permutation(len(others)))]:
            value = self.roll_out(rule, action)
            if value > best:
                best, self.rule = value, rule
            if value > 0:
                return

    def roll_out(self, rule: Aim, action: int) -> float:
        """Discounted reward of following a rule for 70 steps from here, in the emulator."""
        ale, state, last, value = self.copy.ale, self.copy.ale.cloneState(), self.last, 0.0
        lives = ale.lives()
        for t in range(70):
            ram = np.array(ale.getRAM())
            action = rule(ram, last, action)
            value += 0.995**t * self.copy.step(action)
            last = ram
            if ale.lives() < lives:
                value -= 20
                break
        ale.restoreState(state)
        return value


class RandomExpert:
    """Uniformly random actions."""

    name, max_steps = "random", 27000

    def act(self, games: Games, rngs: list[np.random.Generator]) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        return random_actions(games, rngs)


class EachExpert:
    """An expert that keeps a player of its own for every game."""

    def __init__(self, name: str, max_steps: int, make_player):
        self.name, self.max_steps, self.make_player, self.players = name, max_steps, make_player, {}

    def act(self, games: Games, rngs: list[np.random.Generator]) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        for i in np.flatnonzero(games.steps == 0):
            self.players[i] = self.make_player(games, i, rngs[i])
        return np.stack([self.players[i].act() for i in range(games.num_envs)])


def random_actions(games: Games, rngs: list[np.random.Generator]) -> np.ndarray:
    """One uniformly random action per slot, (N,) or (N, A)."""
    space = games.action_space
    if hasattr(space, "n"):
        return np.array([rng.integers(space.n) for rng in rngs])
    return np.array([rng.uniform(space.low, space.high) for rng in rngs], np.float32)


def load_expert(args: Args):
    """Build the expert that `--expert` names."""
    if args.expert == "random":
        return RandomExpert()
    return EachExpert("embedded:breakout-lookahead", 2000, lambda g, i, rng: LookAhead(g, i, args.env_id, rng))


# ---- storage and main --------------------------------------------------------------------------------------------


def write(path: Path, save) -> None:
    """Write a file under a temporary name and rename it, so that a crash leaves nothing half-written."""
    temporary = path.with_name(f"{path.name}.tmp")
    with open(temporary, "wb") as file:
        save(file)
    os.replace(temporary, path)


def play(games: Games, expert, seeds: list[int], epsilon: float = 0.0):
    """Play one game per seed and yield each as a dict of arrays as soon as it ends."""
    N, left = games.num_envs, len(seeds)
    games.coming = itertools.chain(seeds, itertools.count(seeds[0]))  # fillers at the end, thrown away
    frames, wanted, rngs, burst, game = games.reset(), set(seeds), [None] * N, np.zeros(N, int), [None] * N
    while left:
        for i in np.flatnonzero(games.steps == 0):
            rngs[i] = np.random.default_rng(int(games.seeds[i]))
            burst[i] = 0
            fields = ("actions", "rewards", "terminations", "truncations", "forced")
            game[i] = {"observations": [frames[i]], "lives": [games.lives[i]], **{field: [] for field in fields}}
        action = expert.act(games, rngs)
        if epsilon:
            for i, rng in enumerate(rngs):
                if not burst[i] and rng.random() < epsilon:
                    burst[i] = rng.integers(1, 9)
            action[burst > 0] = random_actions(games, rngs)[burst > 0]
            burst = np.maximum(burst - 1, 0)
        seeds_now = games.seeds.copy()
        frames, reward, terminated, truncated, info = games.step(action)
        for i in range(N):
            values = (info["action"][i], reward[i], terminated[i], truncated[i], info["forced"][i])
            for field, value in zip(fields, values):
                game[i][field].append(value)
            game[i]["observations"].append(info["final_frame"][i])
            game[i]["lives"].append(info["lives"][i])
            if (terminated[i] or truncated[i]) and seeds_now[i] in wanted:
                wanted.remove(seeds_now[i])
                left -= 1
                yield {**{key: np.array(value) for key, value in game[i].items()}, "seed": np.array(seeds_now[i])}


def main(args: Args) -> dict:
    """Collect the data set; return its summary."""
    expert = load_expert(args)
    max_steps = args.max_steps or expert.max_steps
    folder = Path(args.data_dir) / args.env_id / args.name
    folder.mkdir(parents=True, exist_ok=True)
    todo, meta = [], {"env_id": args.env_id, "expert": expert.name, "epsilon": args.epsilon, "max_steps": max_steps,
                      "grayscale": args.grayscale, "seed": args.seed, "episodes": []}  # fmt: skip
    for split, count in (("train", args.num_episodes), ("val", args.num_val_episodes)):
        words = np.random.SeedSequence([args.seed, zlib.crc32(f"{args.name}/{split}".encode())]).generate_state(count)
        todo += [(f"{split}_{k:05d}.npz", int(word >> 1)) for k, word in enumerate(words)]
    files = {seed: file for file, seed in todo}
    games = Games(args.env_id, min(args.num_envs, len(files)), 0, max_steps, args.grayscale)
    start = time.time()
    for episode in play(games, expert, list(files), args.epsilon):
        seed, length = int(episode["seed"]), len(episode["actions"])
        write(folder / files[seed], lambda file: np.savez_compressed(file, **episode))
        meta["episodes"].append({"file": files[seed], "return": float(episode["rewards"].sum()), "length": length, "seed": seed})  # fmt: skip
        meta["versions"] = {name: version(name) for name in ("ale-py", "gymnasium", "numpy")}
        write(folder / "dataset.json", lambda file: file.write(json.dumps(meta, indent=1).encode()))
        print(meta["episodes"][-1], f"{time.time() - start:.0f} s", flush=True)
    return meta


if __name__ == "__main__":
    main(tyro.cli(Args))
