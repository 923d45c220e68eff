# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""Collect demonstrations: an expert plays, and its games are stored as 64x64 frames, actions and rewards.

    python collect_data.py --env-id BreakoutNoFrameskip-v4                              # 30 expert games + 6 held out
    python collect_data.py --env-id BreakoutNoFrameskip-v4 --name world --epsilon 0.02  # wider data, for a world model
    python collect_data.py --env-id BipedalWalker-v3 --expert ppo/BipedalWalker-v3.zip  # an SB3 agent of your own
    python collect_data.py --env-id my_package:MyEnv-v0 --expert my_module:policy       # (observation, env) -> action

Protocol on Atari, as in the paper: up to 28 no-ops, frame skip 4 with a maximum over two frames, grey, no sticky
actions, rewards not clipped, whole games (a lost life is recorded and does not end the episode), FIRE where needed.

Each data set is a folder `data/<env_id>/<name>`: dataset.json, and per game of T steps a compressed train_*.npz, or
val_*.npz if held out, with observations (T+1, 64, 64, C) uint8; actions (T,) int64 or (T, A) float32, what was really
played: actions[t] leads from observations[t] to observations[t + 1]; rewards, terminations, truncations and forced
(T,), the last where the rules above chose the action; lives (T+1,); seed (). A game depends on --seed, --name and its
number only: the same command on the same versions gives the same data, and after a break adds what is missing.
"""

import difflib
import functools
import itertools
import json
import multiprocessing
import os
import time
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import torch
import tyro
from ale_py.vector_env import AtariVectorEnv

from expert_policies import PlayerExpert, RandomExpert, ShuffledExpert, choose_expert, load_expert, random_actions

gym.register_envs(ale_py)


@dataclass
class Args:
    # run
    seed: int = 1
    """seed of the data set"""
    num_envs: int = 8
    """games played at once by an expert that decides for all of them together (Zoo agent, .pt, random) on Atari"""
    num_processes: int = os.cpu_count() or 1
    """processes for every other expert and environment; each plays one game at a time"""

    # data
    env_id: str = "BreakoutNoFrameskip-v4"
    """an Atari `...NoFrameskip-v4` id, or any Gymnasium id that observes images or renders `rgb_array`"""
    expert: str = "auto"
    """auto (the Zoo's PPO agent if the Hub answers, else embedded), embedded, random, a Hub id such as
    sb3/ppo-BreakoutNoFrameskip-v4, a Stable-Baselines3 .zip, a .pt of train_expert.py, or module:function"""
    deterministic_expert: bool = False
    """let a network play its likeliest (mean) action instead of sampling one"""
    name: str = "expert"
    """name of the data set"""
    data_dir: str = "data"
    """folder of all data sets"""
    num_episodes: int = 30
    """games to learn from"""
    num_val_episodes: int = 6
    """held-out games"""
    epsilon: float = 0.0
    """probability per step that a burst of 1 to 8 random actions begins"""
    max_steps: int | None = None
    """agent steps after which a game is cut off; None: Atari's 27000, or 2000 with the embedded Breakout expert"""
    grayscale: bool = True
    """store grey frames (64, 64, 1) instead of RGB (64, 64, 3); Atari is always grey"""


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


FIELDS = ("observations", "actions", "rewards", "terminations", "truncations", "forced", "lives", "seed")
PROTOCOL = """whole games, unclipped rewards; Atari: FIRE and 0 to 28 no-ops at the start, frame skip 4 with a maximum
of two frames, no sticky actions, no-op, FIRE, action 2 after a lost life; 84x84 frames reduced to 64x64 by area"""


def play(games: Games, expert, seeds: list[int], epsilon: float = 0.0, report=lambda steps: None):
    """Play one game per seed, and yield each as a dict of arrays as soon as it ends."""
    N, left = games.num_envs, set(seeds)
    games.coming = iter(seeds)  # when it is empty, slots play on for nothing
    frames, rngs, game = games.reset(), [None] * N, [None] * N
    burst, noise = np.zeros(N, int), np.zeros((N, *games.action_space.shape), games.action_space.dtype)
    while left:
        for i in np.flatnonzero(games.steps == 0):
            rngs[i], burst[i] = np.random.default_rng(abs(int(games.seeds[i]))), 0
            game[i] = {"observations": [frames[i]], "lives": [games.lives[i]]} | {field: [] for field in FIELDS[1:6]}
        if epsilon:  # bursts, because single random actions hardly leave the expert's path
            burst = np.maximum(burst - 1, 0)
            for i, (rng, anything) in enumerate(zip(rngs, random_actions(games, rngs))):
                begins = burst[i] == 0 and rng.random() < epsilon
                burst[i] = rng.integers(1, 9) if begins else burst[i]
                noise[i] = anything if begins or rng.random() < 0.5 else noise[i]
        wanted = expert.act(games, rngs, (burst == 0) & (games.forced == 0))
        action = np.where((burst > 0).reshape(N, *[1] * (noise.ndim - 1)), noise, wanted)
        seed = games.seeds.copy()
        frames, reward, terminated, truncated, info = games.step(action)
        report(N)
        for i in range(N):
            values = info["action"][i], reward[i], terminated[i], truncated[i], info["forced"][i]
            for field, value in zip(FIELDS[1:6], values):
                game[i][field].append(value)
            game[i]["observations"].append(info["final_frame"][i])
            game[i]["lives"].append(info["lives"][i])
            if (terminated[i] or truncated[i]) and seed[i] in left:
                left.remove(int(seed[i]))
                yield {key: np.array(value) for key, value in game[i].items()} | {"seed": seed[i]}


class Progress:
    """A line with games, steps per second and time left, rewritten once a second."""

    def __init__(self, total: int):
        self.total, self.games, self.steps, self.start, self.shown = total, 0, 0, time.time(), 0.0

    def add(self, steps: int, games: int = 0) -> None:
        """Count steps and finished games."""
        self.steps, self.games, now = self.steps + steps, self.games + games, time.time()
        if games or now - self.shown > 1:
            spent, self.shown = now - self.start, now
            left = f"{spent / self.games * (self.total - self.games):.0f} s left" if self.games else "..."
            print(f"\r{self.games}/{self.total} games, {self.steps / spent:.0f} steps/s, {left}   ", end="", flush=True)


def write(path: Path, save) -> None:
    """Write a file under a temporary name and rename it: a crash never leaves a half-written one."""
    with open(f"{path}.tmp", "wb") as file:
        save(file)
    os.replace(f"{path}.tmp", path)


def summary(path: Path, episode: dict) -> dict:
    """What dataset.json says about an episode."""
    total, length = float(episode["rewards"].sum(dtype=float)), len(episode["rewards"])
    return {"file": path.name, "return": total, "length": length, "seed": int(episode["seed"])}


def collect(args: Args, folder: Path, jobs: list[tuple[str, int]], report=lambda steps: None):
    """Play and store the games (file name, seed), and yield the summary of each as it ends."""
    games = Games(args.env_id, min(args.num_envs, len(jobs)), 0, args.max_steps, args.grayscale)
    expert, names = load_expert(args.expert, args.env_id, games, args.deterministic_expert), {s: f for f, s in jobs}
    for episode in play(games, expert, [seed for _, seed in jobs], args.epsilon, report):
        path = folder / names[int(episode["seed"])]
        write(path, lambda file: np.savez_compressed(file, **episode))
        yield summary(path, episode)


def collect_one(args: Args, folder: Path, job: tuple[str, int]) -> dict:
    """Do the same for one game, in a process of its own."""
    torch.set_num_threads(1)
    return next(collect(args, folder, [job]))


def collect_in_processes(args: Args, folder: Path, jobs: list[tuple[str, int]], workers: int):
    """Do the same in several processes, which do not wait for each other."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield from (game.result() for game in as_completed([pool.submit(collect_one, args, folder, x) for x in jobs]))
    finally:  # after an error or Ctrl-C do not begin the games that are left
        pool.shutdown(wait=False, cancel_futures=True)


def read_episodes(folder: Path, old: dict, settings: dict, seed_of: dict) -> list[dict]:
    """Summaries of the episodes that an earlier run left; refuse another data set's and damaged ones."""
    found = sorted(folder.glob("*.npz"))
    if found and not old:
        raise SystemExit(f"{folder} holds .npz files but no dataset.json, so they are foreign: choose another --name.")
    wrong = [f"{key} {old[key]!r}, not {value!r}" for key, value in settings.items() if old.get(key, value) != value]
    if found and wrong:
        raise SystemExit(f"{folder} was collected with {'; '.join(wrong)}: choose another --name or delete the folder.")
    episodes = []
    for path in found:
        try:
            with np.load(path) as data:
                episode = {field: data[field] for field in FIELDS}
            if len(episode["observations"]) != len(episode["rewards"]) + 1 or episode["seed"] != seed_of[path.name]:
                raise ValueError("it belongs to another data set")
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise SystemExit(f"{path} is damaged or foreign ({error}): delete it and run this again.") from error
        episodes.append(summary(path, episode))
    return episodes


def main(args: Args) -> dict:
    """Collect what the data set lacks; return its mean returns and the speed."""
    if min(args.num_episodes, args.num_envs, args.num_processes, args.max_steps or 1) < 1 or args.num_val_episodes < 0:
        raise SystemExit("--num-episodes, --num-envs, --num-processes and --max-steps must be 1 or more.")
    if not 0 <= args.epsilon <= 1:
        raise SystemExit(f"--epsilon {args.epsilon} is a probability: give a number from 0 to 1.")

    # (1) who plays what
    folder = Path(args.data_dir) / args.env_id / args.name
    meta_path = folder / "dataset.json"
    old = json.loads(meta_path.read_text()) if meta_path.exists() else {}
    games = Games(args.env_id, args.num_envs, 0, args.max_steps or 27000, args.grayscale)
    args = replace(args, expert=choose_expert(args.expert, args.env_id, old.get("expert")))
    expert = load_expert(args.expert, args.env_id, games, args.deterministic_expert)
    args.max_steps = games.max_steps = args.max_steps or expert.max_steps
    space = games.action_space
    box = not hasattr(space, "n")
    actions = {"low": space.low.tolist(), "high": space.high.tolist()} if box else {"num_actions": int(space.n)}
    settings = {"env_id": args.env_id, "expert": expert.name, "epsilon": args.epsilon, "max_steps": args.max_steps,
                "grayscale": games.channels == 1, "seed": args.seed, "protocol": PROTOCOL, **actions}  # fmt: skip

    def seeds(split: str, count: int) -> list[int]:
        words = np.random.SeedSequence([args.seed, zlib.crc32(f"{args.name}/{split}".encode())]).generate_state(count)
        return [int(word >> 1) for word in words]

    # (2) what is missing
    counts = {"train": args.num_episodes, "val": args.num_val_episodes}
    seed_of = {f"{split}_{k:05d}.npz": seed for split in counts for k, seed in enumerate(seeds(split, 100_000))}
    wanted = [f"{split}_{k:05d}.npz" for split in counts for k in range(counts[split])]
    meta = {**settings, "episodes": read_episodes(folder, old, settings, seed_of)}
    done = {episode["file"] for episode in meta["episodes"]}
    jobs = [(file, seed_of[file]) for file in wanted if file not in done]
    print(f"{args.env_id}, {expert.name}: {len(done)} games in {folder}, {len(jobs)} to play.", flush=True)

    # (3) a random policy's score by the same protocol; nobody looks, so nothing is rendered
    games.picture = lambda i: np.zeros((64, 64, games.channels), np.uint8)
    meta["random_returns"] = old.get("random_returns")
    if not meta["random_returns"]:
        meta["random_returns"] = [float(g["rewards"].sum()) for g in play(games, RandomExpert(), seeds("random", 20))]

    # (4) play
    def store() -> None:
        meta["episodes"].sort(key=lambda episode: episode["file"])
        meta["expert_returns"] = [episode["return"] for episode in meta["episodes"]]
        meta["versions"] = {name: version(name) for name in ("ale-py", "gymnasium", "numpy", "torch")}
        write(meta_path, lambda file: file.write(json.dumps(meta, indent=1).encode()))

    folder.mkdir(parents=True, exist_ok=True)
    store()
    progress, together = Progress(len(jobs)), games.atari and not isinstance(expert, PlayerExpert)
    workers = 1 if together else min(args.num_processes, len(jobs))
    if workers > 1:
        played = collect_in_processes(args, folder, jobs, workers)
    else:
        played = collect(args if together else replace(args, num_envs=1), folder, jobs, progress.add) if jobs else ()
    for episode in played:
        meta["episodes"].append(episode)
        progress.add(episode["length"] if workers > 1 else 0, games=1)
        store()

    # (5) the expert's own actions in random order: a game in which they score well says little about an imitator
    meta["shuffled_returns"] = [] if jobs else old.get("shuffled_returns")
    if not meta["shuffled_returns"]:
        taken = np.concatenate([np.load(folder / episode["file"])["actions"] for episode in meta["episodes"]])
        blind = play(games, ShuffledExpert(taken), seeds("random", 20))
        meta["shuffled_returns"] = [float(game["rewards"].sum()) for game in blind]
    store()

    result = {"episodes": len(meta["episodes"]), "steps_per_second": progress.steps / (time.time() - progress.start)}
    for who in ("expert", "random", "shuffled"):
        returns = meta[f"{who}_returns"]
        result |= {f"{who}_return_mean": np.mean(returns), f"{who}_return_std": np.std(returns)}
    print("\n" + ", ".join(f"{key} {value:.4g}" for key, value in result.items()))
    return {key: float(value) for key, value in result.items()}


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted: the same command goes on with the games that are missing.") from None
