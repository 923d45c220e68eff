# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Collect demonstrations: an expert plays, and its games are stored as 64x64 frames, actions and rewards.

  (1) choose the expert, and the settings that all games of a data set share
  (2) find the games that it lacks: a game depends on --seed, --name and its number only
  (3) score random actions by the same protocol
  (4) play and store the missing games; with --epsilon, bursts of random actions lead off the expert's path   `Policy`
  (5) score the expert's own actions in random order

    python collect_data.py --env-id BreakoutNoFrameskip-v4                              # 30 expert games + 6 held out
    python collect_data.py --env-id BreakoutNoFrameskip-v4 --name world --epsilon 0.03  # wider data, for a world model
    python collect_data.py --env-id BipedalWalker-v3 --expert ppo/BipedalWalker-v3.zip  # an SB3 agent of your own
    python collect_data.py --env-id my_package:MyEnv-v0 --expert my_module:policy       # (observation, env) -> action

The protocol, `Games` of world_model.py, is the paper's on Atari: up to 28 no-ops, frame skip 4 with a maximum over two
frames, grey, no sticky actions, rewards not clipped, whole games (a lost life is recorded and does not end the
episode), FIRE where needed.

Each data set is a folder `data/<env_id>/<name>`: dataset.json, and per game of T steps a compressed train_*.npz, or
val_*.npz if held out, with observations (T+1, 64, 64, C) uint8; actions (T,) int64 or (T, A) float32, what was really
played: actions[t] leads from observations[t] to observations[t + 1]; rewards, terminations, truncations and forced
(T,), the last where the rules above chose the action; lives (T+1,); seed (). The same command on the same versions
gives the same data, and after a break adds what is missing.
"""

import functools
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
from types import SimpleNamespace
from typing import Iterator

import numpy as np
import torch
import tyro

from expert_policies import PlayerExpert, RandomExpert, choose_expert, load_expert
from world_model import Games, begin, claim, command, home, make_env, play, progress, read_meta, write


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
    """auto (the data set's own, else the Zoo's PPO agent if the Hub answers, else embedded), embedded, embedded:name,
    random, a Hub id such as sb3/ppo-BreakoutNoFrameskip-v4, a Stable-Baselines3 .zip, a .pt of train_expert.py, or
    module:function"""
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
    """probability per step that a burst of 1 to 8 random actions begins, half of which repeat the one before"""
    max_steps: int | None = None
    """agent steps after which a game is cut off; None: as in the data set, else 27000 (2000 with Breakout's embedded
    players)"""
    grayscale: bool = True
    """store grey frames (64, 64, 1) instead of RGB (64, 64, 3); Atari is always grey"""


FIELDS = ("observations", "lives", "actions", "rewards", "terminations", "truncations", "forced", "seed")
PROTOCOL = """whole games, unclipped rewards; Atari: FIRE and 0 to 28 no-ops at the start, frame skip 4 with a maximum
of two frames, no sticky actions, no-op, FIRE, action 2 after a lost life; 84x84 frames reduced to 64x64 by area"""


class Policy:
    """An expert as a policy for `play`: a random generator for each game, and bursts of random actions."""

    def __init__(self, games: Games, expert, epsilon: float = 0.0):
        N = games.num_envs
        self.expert, self.epsilon, self.rngs, self.burst = expert, epsilon, [None] * N, np.zeros(N, int)
        self.noise = np.zeros((N, *games.action_space.shape), games.action_space.dtype)

    def __call__(self, games: Games) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        burst, noise = self.burst, self.noise  # (N,) random actions still to play, and which
        for i in np.flatnonzero(games.steps == 0):
            self.rngs[i], burst[i] = np.random.default_rng(abs(int(games.seeds[i]))), 0
        if self.epsilon:  # bursts, because single random actions hardly leave the expert's path
            burst[:] = np.maximum(burst - 1, 0)
            for i, (rng, anything) in enumerate(zip(self.rngs, RandomExpert().act(games, self.rngs))):
                begins = burst[i] == 0 and rng.random() < self.epsilon
                burst[i] = rng.integers(1, 9) if begins else burst[i]
                noise[i] = anything if begins or rng.random() < 0.5 else noise[i]
        wanted = self.expert.act(games, self.rngs, (burst == 0) & (games.forced == 0))
        return np.where((burst > 0).reshape(-1, *[1] * (noise.ndim - 1)), noise, wanted)


def summary(path: Path, episode: dict) -> dict:
    """What dataset.json says about an episode."""
    total, length = float(episode["rewards"].sum(dtype=float)), len(episode["rewards"])
    return {"file": path.name, "return": total, "length": length, "seed": int(episode["seed"])}


def collect(args: Args, folder: Path, jobs: list[tuple[str, int]]) -> Iterator[dict]:
    """Play and store the games (file name, seed), and yield the summary of each as it ends."""
    games = Games(args.env_id, min(args.num_envs, len(jobs)), args.max_steps, args.grayscale)
    expert, names = load_expert(args.expert, args.env_id, games, args.deterministic_expert), {s: f for f, s in jobs}
    for game in play(games, Policy(games, expert, args.epsilon), names, keep=names):
        path, episode = folder / names[game["seed"]], {field: np.asarray(game[field]) for field in FIELDS}
        write(path, lambda file: np.savez_compressed(file, **episode))
        yield summary(path, episode)


def collect_one(args: Args, folder: Path, job: tuple[str, int]) -> dict:
    """Do the same for one game, in a process of its own."""
    torch.set_num_threads(1)
    return next(collect(args, folder, [job]))


def collect_in_processes(args: Args, folder: Path, jobs: list[tuple[str, int]], workers: int) -> Iterator[dict]:
    """Do the same in several processes, which do not wait for each other."""
    os.environ["MAKER"] = str(os.getpid())  # so that the workers end when this process does
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin, initargs=[args])
    try:
        yield from (game.result() for game in as_completed([pool.submit(collect_one, args, folder, x) for x in jobs]))
    except BaseException:  # after an error or Ctrl-C nobody plays on
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        del os.environ["MAKER"]  # what is begun later has another maker
        pool.shutdown(wait=False, cancel_futures=True)


def score(make, expert, seeds: list[int]) -> list[float]:
    """Play one game per seed in the Games of make(slots); their returns. One by one but on Atari: see `main`, (4)."""
    groups = [seeds] if make(1).atari else [[seed] for seed in seeds]
    made = ((make(min(8, len(group))), group) for group in groups)
    return [game["return"] for games, group in made for game in play(games, Policy(games, expert), group)]


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
    begin(args)

    # (1) who plays what
    folder = home(args.data_dir, args.env_id) / args.name
    meta_path = folder / "dataset.json"
    claim(folder, make=False)
    if "imported" in (old := read_meta(folder)):
        count = len(list(folder.glob("train_*.npz")))
        raise SystemExit(f"{folder} holds {count} imported games to learn from, and no expert can add to them: lower "
                         "--num-expert-episodes, or give another --name.")  # fmt: skip
    # nobody looks at these games, so outside Atari, where the picture is there anyway, nothing is rendered
    unseen = None if args.env_id.endswith("NoFrameskip-v4") else functools.partial(make_env, args.env_id)
    blind = lambda slots: Games(args.env_id, slots, args.max_steps or 27000, args.grayscale, unseen)  # noqa: E731
    games = blind(args.num_envs)
    recorded = old.get("expert_option", old.get("expert"))
    args = replace(args, expert=choose_expert(args.expert, args.env_id, recorded))
    expert = load_expert(args.expert, args.env_id, games, args.deterministic_expert)
    args.max_steps = games.max_steps = args.max_steps or old.get("max_steps") or expert.max_steps
    space = games.action_space
    bounds = {} if games.discrete else {"low": space.low.tolist(), "high": space.high.tolist()}
    actions = bounds or {"num_actions": games.action_size}
    settings = {"env_id": args.env_id, "expert": expert.name, "epsilon": args.epsilon, "max_steps": args.max_steps,
                "grayscale": games.channels == 1, "seed": args.seed, "protocol": PROTOCOL, **actions}  # fmt: skip

    def seeds(split: str, count: int) -> list[int]:
        words = np.random.SeedSequence([args.seed, zlib.crc32(f"{args.name}/{split}".encode())]).generate_state(count)
        return [int(word >> 1) for word in words]

    # (2) what is missing
    counts = {"train": args.num_episodes, "val": args.num_val_episodes}
    seed_of = {f"{split}_{k:05d}.npz": seed for split in counts for k, seed in enumerate(seeds(split, 100_000))}
    wanted = [f"{split}_{k:05d}.npz" for split in counts for k in range(counts[split])]
    meta = {**settings, "expert_option": args.expert, "episodes": read_episodes(folder, old, settings, seed_of)}
    old = old if meta["episodes"] else {}  # a data set without a game may have had other settings
    done = {episode["file"] for episode in meta["episodes"]}
    jobs = [(file, seed_of[file]) for file in wanted if file not in done]
    print(f"{args.env_id}, {expert.name}: {len(done)} games in {folder}, {len(jobs)} to play.", flush=True)

    # (3) a random policy's score by the same protocol
    meta["random_returns"] = old.get("random_returns") or score(blind, RandomExpert(), seeds("random", 20))

    # (4) play
    def store() -> None:
        meta["episodes"].sort(key=lambda episode: episode["file"])
        meta["expert_returns"] = [episode["return"] for episode in meta["episodes"]]
        meta["versions"] = {name: version(name) for name in ("ale-py", "gymnasium", "numpy", "torch")}
        write(meta_path, lambda file: file.write(json.dumps(meta, indent=1).encode()))

    claim(folder)
    meta["complete"] = not jobs and old.get("complete", bool(old.get("shuffled_returns")))
    store()
    together = games.atari and not isinstance(expert, PlayerExpert)
    workers = 1 if together else min(args.num_processes, len(jobs))
    if workers > 1:
        played = collect_in_processes(args, folder, jobs, workers)
    else:
        # one by one, each game in a new environment: Box2D's physics remember how many games it has played
        played = collect(args, folder, jobs) if together and jobs else (next(collect(args, folder, [j])) for j in jobs)
    began, steps, speed = time.time(), 0, 0.0
    bar = progress(len(jobs), "{n}/{total} games{desc}, {remaining} left", smoothing=0, disable=not jobs)
    for episode in played:
        meta["episodes"].append(episode)
        store()
        steps += episode["length"]
        speed = steps / (time.time() - began)
        bar.set_description_str(f", {speed:.0f} steps/s", refresh=False)
        bar.update()
    bar.close()

    # (5) the expert's own actions in random order: a game in which they score well says little about an imitator
    meta["shuffled_returns"] = [] if jobs else old.get("shuffled_returns")
    if not meta["shuffled_returns"]:
        taken = np.concatenate([np.load(folder / episode["file"])["actions"] for episode in meta["episodes"]])
        shuffled = SimpleNamespace(act=lambda games, rngs, free: taken[[rng.integers(len(taken)) for rng in rngs]])
        meta["shuffled_returns"] = score(blind, shuffled, seeds("random", 20))
    meta["complete"] = True
    store()

    result = {"episodes": len(meta["episodes"]), "steps_per_second": speed}
    for who in ("expert", "random", "shuffled"):
        returns = meta[f"{who}_returns"]
        result |= {f"{who}_return_mean": np.mean(returns), f"{who}_return_std": np.std(returns)}
    print(", ".join(f"{key} {value:.4g}" for key, value in result.items()))
    return {key: float(value) for key, value in result.items()}


if __name__ == "__main__":
    command(main, lambda: tyro.cli(Args), "goes on with the games that are missing")
