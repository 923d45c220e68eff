# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Continuous control for cmil.py: environments seen as pictures or vectors, demonstrations, what is played in them.

Environments: the tasks of dmc.py (walker-stand, ...), any Gymnasium id with continuous actions, and Franka Kitchen. Its
demonstrations are made by playing recorded actions again until enough games finish their sub-tasks:

    python control.py --source kitchen_demos --num-episodes 10        (needs requirements-kitchen.txt)

data/FrankaKitchen-v1/expert then has dataset.json and train_*.npz with actions (T, 9), rewards (T,), seed () and, drawn
as cmil.py draws, image (T + 1, 64, 64, 3).
"""

import atexit
import hashlib
import json
import sys
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor

from dmc import DMC, TASKS, choose_renderer
from world_model import home, is_image, make, make_env, resize, write

Seen = Literal["pixels", "state", "anything"]
KITCHEN, SUB_TASKS = "FrankaKitchen-v1", ["microwave", "kettle", "light switch", "slide cabinet"]
CAMERA = {"distance": 1.86, "lookat": np.array([-0.3, 0.5, 2.0]), "azimuth": 90.0, "elevation": -60.0}  # the authors'


@dataclass
class Args:
    seed: int = 1
    """seed of the first game; the others follow"""
    source: str = ""
    """folder of the authors' kitchen files, or others with an `action` (T + 1, 9) each, the first one zeros"""
    data_dir: str = "data"
    """the games go to <data_dir>/FrankaKitchen-v1/expert"""
    num_episodes: int = 10
    """games to keep, at most a third of them from one file"""
    sub_tasks: int = 4
    """sub-tasks that a game must finish to be kept"""
    max_steps: int = 280
    """steps within which it must"""


def make_game(env_id: str, obs: Seen, max_steps: int = 0) -> gym.Env:
    """The environment with actions in [-1, 1], seen as uint8 (64, 64, 3) or float32 (O,); 0: no limit of ours.

    As `anything`, where nobody looks, nothing is drawn.
    """
    if env_id in TASKS:
        return DMC(env_id, "visual" if obs == "pixels" else "mdp", max_steps=max_steps or 500)
    if env_id == KITCHEN:
        return Kitchen(obs, max_steps or 280)
    env = make_env(env_id)
    if hasattr(env.action_space, "n"):
        sys.exit(f"--env-id {env_id} has discrete actions, cmil.py needs continuous ones: try ditto.py.")
    space, low, high = env.observation_space, env.action_space.low, env.action_space.high
    unit = gym.spaces.Box(-1, 1, low.shape, np.float32)
    # not RescaleAction: its rounding is enough to let a balanced pendulum fall when an expert's game is played again
    env = gym.wrappers.TransformAction(env, lambda action: (low + high) / 2 + (high - low) / 2 * action, unit)
    if obs == "pixels":
        env = env if is_image(space) else gym.wrappers.AddRenderObservation(env)
        shrink = lambda picture: np.moveaxis(resize(np.moveaxis(picture, -1, 0)), 0, -1)  # noqa: E731
        env = gym.wrappers.TransformObservation(env, shrink, gym.spaces.Box(0, 255, (64, 64, 3), np.uint8))
    elif obs == "anything":
        pass
    elif is_image(space) or len(space.shape or ()) != 1:
        sys.exit(f"--env-id {env_id} observes no vector: leave out --obs state.")
    else:
        vector = gym.spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        env = gym.wrappers.TransformObservation(env, np.float32, vector)
    return gym.wrappers.TimeLimit(env, max_steps) if max_steps else env


class Kitchen(gym.Env):
    """Franka Kitchen (gymnasium-robotics): nine joint velocities; each of four sub-tasks pays 1 when it is done first.

    Drawn without shadows and reflections, which is thirty times faster in software; since the lamp over the stove would
    then always shine, it is switched by hand.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(self, obs: Seen, max_steps: int):
        choose_renderer()
        try:
            import gymnasium_robotics
            import mujoco

            gym.register_envs(gymnasium_robotics)
            self.env = gym.make(KITCHEN, tasks_to_complete=SUB_TASKS, terminate_on_tasks_completed=False, width=64,
                                height=64, render_mode="rgb_array", default_camera_config=CAMERA,
                                disable_env_checker=True, max_episode_steps=max_steps)  # fmt: skip
        except (ImportError, AssertionError) as error:  # the second is MuJoCo 3.12 and later
            text = str(error).strip().splitlines()[0]
            sys.exit(f"{KITCHEN} cannot be made ({text}): pip install -r requirements-kitchen.txt.")
        self.flags = [mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION]
        self.obs, self.viewer, self.render_mode = obs, None, "rgb_array"
        self.action_space = gym.spaces.Box(-1.0, 1.0, (9,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (59,), np.float32)
        if obs == "pixels":
            self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def observe(self, seen: dict) -> np.ndarray:
        return self.render() if self.obs == "pixels" else seen["observation"].astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        return self.observe(self.env.reset(seed=seed)[0]), {}

    def step(self, action: np.ndarray):
        seen, reward, terminated, truncated, info = self.env.step(action)
        return self.observe(seen), float(reward), terminated, truncated, {"done": [*info["episode_task_completions"]]}

    def render(self) -> np.ndarray:
        """Picture (64, 64, 3) uint8."""
        kitchen = self.env.unwrapped
        switch, goal = kitchen.data.qpos[[17, 18]], (-0.69, -0.05)  # done within 0.3, as the environment has it
        kitchen.model.light_active[kitchen.model.light("ovenlight").id] = np.linalg.norm(switch - goal) < 0.3
        if self.viewer is None:
            kitchen.model.vis.quality.offsamples = 0
            try:
                self.env.render()
                self.viewer = kitchen.robot_env.mujoco_renderer._get_viewer("rgb_array")
            except Exception as error:  # each renderer has exceptions of its own
                sys.exit(f"No picture can be rendered ({error}): install libegl1 and libgl1, or libosmesa6.")
            env = weakref.ref(self.env)  # closed at the exit before MuJoCo takes the renderer apart
            atexit.register(lambda: env() and env().close())
            for flag in self.flags:
                self.viewer.scn.flags[flag] = False
        self.viewer.make_context_current()  # or the pictures of all kitchens but the last one made are black
        return np.ascontiguousarray(self.env.render())


def replayed(env: gym.Env, seed: int, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Play recorded actions (T, A) again in the game of this seed: observations (T + 1, ...) and rewards (T,)."""
    obs, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        seen, reward, terminated, truncated, _ = env.step(action)
        obs.append(seen), rewards.append(float(reward))
        if terminated or truncated:
            break
    return np.stack(obs), np.array(rewards)


def read_episode(file: Path) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    """A recorded game: actions (T, A), rewards (T,), seed (-1: not said), and its pictures in colour, if it has any.

    Formats: collect_data.py's (actions, rewards, seed), dmc.py's (pre_action, reward) and Dreamer's (action, reward,
    image), the last two with a row of zeros first.
    """
    try:
        with np.load(file, allow_pickle=False) as npz:
            key = next(key for key in ("actions", "pre_action", "action") if key in npz)
            action, image = npz[key].astype(np.float32), npz["image"] if "image" in npz else None
            reward, seed = npz["rewards" if key == "actions" else "reward"], int(npz["seed"]) if "seed" in npz else -1
    except (OSError, ValueError, KeyError, EOFError, StopIteration, zipfile.BadZipFile, zlib.error) as error:
        sys.exit(f"{file} is not a readable game ({type(error).__name__}): delete it, or name another folder.")
    if key != "actions":
        action, reward = action[1:], reward[1:]
    shape = (len(action) + 1, 64, 64, 3)
    if action.ndim != 2 or image is not None and (image.shape != shape or image.dtype != np.uint8):
        sys.exit(f"{file} does not hold one vector of actions for each 64x64 picture: name another folder.")
    return action, reward.flatten().astype(float), seed, image


def expert_dataset(args) -> Path:
    """The folder of recorded games; it is made if it is missing."""
    task, root = args.env_id in TASKS, "data/debug" if args.size == "debug" else "data"
    usual = Path(root, "dmc", f"{args.env_id}-expert") if task else home(root, args.env_id) / "expert"
    folder = Path(args.data_dir or usual)
    if args.data_dir or len(list(folder.glob("*.npz"))) >= args.num_expert_episodes:
        return folder
    if args.env_id == KITCHEN:
        sys.exit(f"{folder} has too few games: python control.py --source <folder of the authors' files> makes them.")
    where = ["--env-id", args.env_id, "--data-dir", str(folder.parents[0 if task else 1])]
    few = ["--max-steps", "60"] if args.size == "debug" else []
    if task:
        few += ["--num-episodes", "3", "--num-demonstrations", "3"] if few else []
        make(["dmc.py", *where, *few], not args.eval_only)
    else:
        few += ["--num-val-episodes", "1"] if few else []
        make(["collect_data.py", *where, "--num-episodes", str(args.num_expert_episodes), *few], not args.eval_only)
    return folder


def demonstrations(args, env: gym.Env) -> tuple[list[tuple[Tensor, Tensor]], dict, Path]:
    """N^E episodes obs (T + 1, ...), action (T + 1, A), zeros first; mean returns of expert and random, and the folder.

    Recorded actions are played again in `env`, so that demonstrations and play are drawn by one renderer: the
    discriminator would learn to tell two apart. Pictures of a Dreamer-style file are taken as they are.
    """
    if args.horizon < 2 or args.batch_length < 4:
        sys.exit("--horizon must be 2 or more and --batch-length 4 or more: the critics' targets need so many steps.")
    folder, episodes, returns = expert_dataset(args), [], []
    meta_file = folder / "dataset.json"
    meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
    files = [file for file in folder.glob("*.npz") if not file.name.startswith("val_")]
    files = sorted(files, key=lambda f: (int(f.stem) if f.stem.isdigit() else 0, f.name))[: args.num_expert_episodes]
    if len(files) < args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(files)} episodes: lower --num-expert-episodes or record more.")
    low, high = np.float32(meta.get("low", -1)), np.float32(meta.get("high", 1))
    for k, file in enumerate(files):
        action, recorded, seed, obs = read_episode(file)
        if action.shape[1:] != env.action_space.shape:
            sys.exit(f"{file} has actions {action.shape[1:]}, {args.env_id} takes {env.action_space.shape}.")
        action = np.clip((action - (low + high) / 2) / ((high - low) / 2), -1, 1)
        action, recorded = (part[: args.max_steps or None] for part in (action, recorded))
        if obs is None or args.obs == "state" and seed >= 0:
            seed = seed if seed >= 0 else 50_000_000 + meta.get("seed", 1) * 100_000 + k  # dmc.py's demonstrations
            for _ in range(10):  # Box2D's contacts come in no fixed order: the same game may go in two ways
                obs, again = replayed(env, seed, action)
                if same := abs(again.sum() - recorded.sum()) <= 0.01 * max(1, abs(recorded.sum())):
                    break
            if not same:
                found = f"returned {recorded.sum():.1f}, played again {again.sum():.1f}"
                sys.exit(f"{file} {found}: collect it with the versions and the renderer that are installed.")
        elif args.obs != "pixels":
            sys.exit(f"{file} holds pictures, not states: leave out --obs state.")
        returns.append(recorded.sum())
        obs, action = obs[: len(action) + 1], np.concatenate([np.zeros_like(action[:1]), action[: len(obs) - 1]])
        episodes.append((torch.from_numpy(obs), torch.from_numpy(action)))
    print(f"expert: {len(files)} games of {folder}, {sum(len(action) - 1 for _, action in episodes)} steps")
    random = random_return(make_game(args.env_id, "anything", args.max_steps))
    return episodes, {"expert": float(np.mean(returns)), "random": random}, folder


def digest(episodes: list[tuple[Tensor, Tensor]]) -> str:
    """A number that tells whether two runs had the same episodes."""
    return hashlib.sha256(b"".join(part.numpy().tobytes() for episode in episodes for part in episode)).hexdigest()[:16]


def random_return(env: gym.Env, games: int = 10, seed: int = 30_000) -> float:
    """Mean return of uniformly random actions."""
    rng, returns = np.random.default_rng(seed), []
    for k in range(games):
        env.reset(seed=seed + k)
        total, ended = 0.0, False
        while not ended:
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            _, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


class Replay:
    """Episodes to draw slices from: demonstrations first, then what was played, each a file in `folder`.

    A checkpoint holds only how many were played. What a killed run wrote after its checkpoint is written again.
    """

    def __init__(self, folder: Path, demos: list[tuple[Tensor, Tensor]], length: int):
        self.folder, self.length, self.played, self.short = folder, length, 0, 0
        self.demos = [demo for demo in demos if len(demo[1]) >= length]
        if not self.demos:
            longest = max(len(action) for _, action in demos)
            sys.exit(f"No demonstration has {length} rows, the longest {longest}: lower --batch-length.")
        self.episodes = list(self.demos)

    def add(self, obs: Tensor, action: Tensor) -> None:
        """Store a finished episode obs (T + 1, ...), action (T + 1, A). One shorter than a slice is not learnt from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {"obs": obs.numpy(), "action": action.numpy()}
        write(self.folder / f"{self.played:06d}.npz", lambda file: np.savez(file, **arrays))
        self.keep(obs, action)

    def keep(self, obs: Tensor, action: Tensor) -> None:
        self.played += 1
        self.short += len(action) < self.length
        self.episodes += [(obs, action)] if len(action) >= self.length else []

    def draw(self, count: int, rng: torch.Generator, demos: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Slices obs (T, B, ...), action (T, B, A), is_first (T, B): episodes uniformly, then a start in it (code)."""
        episodes, pick = self.demos if demos else self.episodes, lambda n: int(torch.randint(n, (), generator=rng))
        parts = []
        for _ in range(count):
            obs, action = episodes[pick(len(episodes))]
            begin = pick(len(action) - self.length + 1)
            parts.append((obs[begin : begin + self.length], action[begin : begin + self.length]))
        obs, action = (torch.stack(part, 1) for part in zip(*parts))
        is_first = torch.zeros(action.shape[:2], dtype=torch.bool)
        is_first[0] = True  # every slice begins in a zero state, whatever was before it
        return obs, action, is_first

    def state_dict(self) -> dict:
        return {"played": self.played}

    def load_state_dict(self, saved: dict) -> None:
        for k in range(saved["played"]):
            file = self.folder / f"{k:06d}.npz"
            try:
                with np.load(file, allow_pickle=False) as npz:
                    self.keep(torch.from_numpy(npz["obs"]), torch.from_numpy(npz["action"]))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
                sys.exit(f"{file} is missing or damaged, so the run cannot go on: begin it anew in another --run-dir.")


class Interaction:
    """The real environment, played one step at a time by act(feat (1, F)) -> (1, A) through the model's filter.

    A checkpoint holds the game that is being played as its actions; when it is read they are played again.
    """

    def __init__(self, env: gym.Env, model, act, replay: Replay, seed: int):
        self.env, self.model, self.act, self.replay, self.seed = env, model, act, replay, seed
        self.steps, self.returns = 0, []
        self.begin()

    def begin(self) -> None:
        """Begin the next game; it depends on the run's seed and on its number only."""
        seen, _ = self.env.reset(seed=100_000_000 + 100_000 * self.seed + self.replay.played)
        self.obs, self.action = [seen], [np.zeros(self.env.action_space.shape, np.float32)]
        self.state, self.total = self.model.initial(1), 0.0

    @torch.no_grad()
    def step(self) -> None:
        """Filter what is seen, play one action; a game that ends goes into the replay."""
        device, first = self.model.pixel_mean.device, torch.tensor([len(self.obs) == 1])
        seen, last = (torch.from_numpy(np.stack(part[-1:])).to(device) for part in (self.obs, self.action))
        self.state = self.model.filter_step(self.state, seen, last, first.to(device))
        if self.advance(self.act(torch.cat(self.state, -1))[0].cpu().numpy()):
            self.replay.add(*(torch.from_numpy(np.stack(part)) for part in (self.obs, self.action)))
            self.returns.append(self.total)
            self.begin()

    def advance(self, action: np.ndarray) -> bool:
        """Play an action (A,); whether the game has ended."""
        seen, reward, terminated, truncated, _ = self.env.step(action)
        self.obs.append(seen), self.action.append(action)
        self.total, self.steps = self.total + float(reward), self.steps + 1
        return terminated or truncated

    def state_dict(self) -> dict:
        played = torch.from_numpy(np.stack(self.action))
        state = {"steps": self.steps, "action": played, "state": list(self.state), "returns": self.returns}
        return state | {"seen": torch.from_numpy(np.stack(self.obs[-1:]))}

    def load_state_dict(self, saved: dict) -> None:
        for _ in range(10):
            self.begin()  # the replay was read before: this is the game that was being played
            for action in saved["action"].cpu().numpy()[1:]:
                self.advance(action)
            if same := np.array_equal(self.obs[-1], saved["seen"][0].cpu().numpy()):
                break
        if not same:
            print("The game that was being played does not repeat itself and begins anew: the resume is not exact.")
            self.begin()
            saved = saved | {"state": self.state}
        self.steps, self.state, self.returns = saved["steps"], tuple(saved["state"]), saved["returns"]


@torch.no_grad()
def foresight(run, model, probe: list[Tensor], horizon: int) -> dict[str, float]:
    """The members' mean disagreement over H steps under the expert's actions, in slices (obs, action, is_first) of
    demonstrations (the authors' also counts the start, as 0); of pictures also `Run.draw`. The torch random state is
    restored."""
    obs, action, is_first = probe
    with torch.random.fork_rng([obs.device] * (obs.device.type != "cpu"), device_type=obs.device.type):
        deter, stoch, _, _ = model.encode(obs, action, is_first)
        feat, n = torch.cat([deter, stoch], -1), max(1, len(obs) - horizon)  # (T, B, F), starts
        act = lambda _, t: action[t + 1 : t + 1 + n].flatten(0, 1)  # noqa: E731
        _, _, spread = model.dream(act, feat[:n].flatten(0, 1), min(horizon, len(obs) - 1))
    if not model.sensors:
        rows = lambda index: (obs[index, 0], action[index, 0], is_first[index, 0])  # noqa: E731
        run.draw(model, SimpleNamespace(starts=[0, len(obs)], rows=rows))
    return {"expert/disagreement": spread.mean().item()}


def main(args: Args) -> dict:
    """Record kitchen demonstrations; their mean return."""
    sources = sorted(Path(args.source).glob("*.npz")) if args.source else []
    if not sources:
        sys.exit("--source must name a folder with .npz files that hold an `action` each.")
    folder = Path(args.data_dir) / KITCHEN / "expert"
    if folder.exists():
        sys.exit(f"{folder} exists already: delete it, or name another --data-dir.")
    env, kept, tried, games = Kitchen("state", args.max_steps), [], 0, []
    limit = max(1, -(-args.num_episodes // 3))
    while len(games) < args.num_episodes and tried < 20 * len(sources):
        file, seed = sources[tried % len(sources)], args.seed + tried
        tried += 1
        action = read_episode(file)[0][: args.max_steps]
        rewards = replayed(env, seed, action)[1] if kept.count(file) < limit else np.zeros(1)
        if rewards.sum() >= args.sub_tasks:
            kept.append(file)
            games.append({"actions": action, "rewards": rewards, "seed": seed})
        print(f"\r{tried} games played, {len(games)} of {args.num_episodes} kept   ", end="", flush=True)
    print()
    if len(games) < args.num_episodes:
        sys.exit(f"Only {len(games)} games of these files finish {args.sub_tasks} sub-tasks: lower --sub-tasks.")
    folder.mkdir(parents=True)
    env = Kitchen("pixels", args.max_steps)
    for k, game in enumerate(games):
        game["image"] = replayed(env, game["seed"], game["actions"])[0]
        print(f"\rdrawing game {k + 1} of {len(games)}   ", end="", flush=True)
        write(folder / f"train_{k:05d}.npz", lambda file: np.savez_compressed(file, **game))
    print()
    meta = {"env_id": KITCHEN, "max_steps": args.max_steps, "sources": [file.name for file in kept], "tried": tried}
    write(folder / "dataset.json", lambda file: file.write(json.dumps(meta, indent=1).encode()))
    return {"expert_return": float(np.mean([game["rewards"].sum() for game in games]))}


if __name__ == "__main__":
    try:
        print(main(tyro.cli(Args)))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command starts anew.")
