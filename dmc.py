# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""dm_control's Walker and Cheetah through Gymnasium's API, and recorded data of them: state, or state and pixels.

    python dmc.py --env-id walker-walk                # SAC, 50 minutes on a core: replay buffer and 100 demonstrations
    python dmc.py --env-id walker-stand --target-entropy 0 --noise 0.5    # a buffer that moves while it stands
    python dmc.py --env-id walker-walk --agent random                     # the data set walker-random

Needs the packages of requirements-dmc.txt. Tasks: walker-stand, -walk, -run; cheetah-run, -runb (backward), -flip,
-flipb. Every decision is played twice (action repeat 2): 500 decisions per game, which only the time limit ends.
Walker's rewards and cheetah-run's are dm_control's, summed over the repeats (at most 1000); the three custom ones are
AIME's (arXiv 2312.02019), read once per decision from the velocities of the root joints (at most 500).
Settings: mdp (all sensors), lpomdp (no velocities), visual (64x64 pictures of camera 0, actions and rewards as ever).

Each data set is a folder of 0.npz, 1.npz, ..., AIME's published format: per game of T decisions reward (T+1, 1),
is_first, is_last, is_terminal (T+1, 1), pre_action (T+1, 6), which led to the row (zeros first), every sensor
(T+1, size), and with --pixels image (T+1, 64, 64, 3). Folders of the authors' release are read as they are, and so are
V-D4RL's pictures of 64x64. A mix of data sets is not stored: aime.py takes several folders. The buffer holds whole
games in the order in which SAC played them, with sampled actions, the first 5 at random; the demonstrations are played
afterwards by its mean action.
"""

import contextlib
import ctypes.util
import hashlib
import json
import os
import sys
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Iterable, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro

from world_model import begin, claim, command, progress, read_meta, write


@dataclass
class Args:
    # run
    seed: int = 1
    """seed of the agent and of its games"""
    threads: int = 1
    """CPU threads; 0 leaves PyTorch's choice. SAC's small networks gain nothing from more than one"""
    # data
    env_id: str = "walker-stand"
    """walker-stand, walker-walk, walker-run, cheetah-run, cheetah-runb, cheetah-flip or cheetah-flipb"""
    agent: Literal["sac", "random"] = "sac"
    """sac: <env_id>-buffer and <env_id>-expert; random: <body>-random, uniform actions"""
    data_dir: str = "data/dmc"
    """folder of all data sets"""
    name: str = ""
    """sac: the data sets are <name>-buffer and <name>-expert, for a second agent of a task; default <env_id>"""
    num_episodes: int = 1000
    """games of the replay buffer or of the random data"""
    num_demonstrations: int = 100
    """games of the expert"""
    max_steps: int = 500
    """decisions per game"""
    pixels: bool = False
    """store 64x64 pictures too"""
    # sac
    update_every: int = 3
    """decisions per gradient step; 1 learns in fewer games, but a buffer that soon repeats itself is worse data"""
    batch_size: int = 128
    """transitions per gradient step"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    target_entropy: float = -6.0
    """nats of entropy that SAC's temperature aims at. -6, minus the number of joints, is SAC's own choice; 4.2 are
    uniform actions. Higher: the agent moves more while it does its task, and its buffer knows more motions"""
    noise: float = 0.0
    """standard deviation of Ornstein-Uhlenbeck noise on the buffer's actions, correlated over about 7 decisions"""


SENSORS = {
    "walker": {"orientations": 14, "height": 1, "velocity": 9},
    "cheetah": {"position": 8, "velocity": 9},
}
CUSTOM = {  # index into qvel, sign, speed for the full reward; Cheetah's root joints are rootx, rootz, rooty
    "cheetah-runb": (0, -1, 10.0),
    "cheetah-flip": (2, 1, 5.0),
    "cheetah-flipb": (2, -1, 5.0),
}
TASKS = ["walker-stand", "walker-walk", "walker-run", "cheetah-run", *CUSTOM]
Setting = Literal["mdp", "lpomdp", "visual"]


def observed(env_id: str, setting: Setting) -> dict[str, int]:
    """Names and sizes of what a setting shows, in the order of the observation vector (visual: image and channels)."""
    if env_id not in TASKS:
        sys.exit(f"--env-id {env_id} is unknown: choose {', '.join(TASKS)}.")
    sensors = SENSORS[env_id.split("-")[0]]
    if setting == "visual":
        return {"image": 3}
    return {name: size for name, size in sensors.items() if setting == "mdp" or name != "velocity"}


def choose_renderer() -> None:
    """Let MuJoCo draw without a screen, if it can: by itself it would choose GLFW, and fail at the first picture."""
    if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ and sys.platform == "linux":
        found = [name for name in ("EGL", "OSMesa") if ctypes.util.find_library(name)]
        os.environ["MUJOCO_GL"] = found[0].lower() if found else "off"


class DMC(gym.Env):
    """A task of dm_control: a flat float32 vector, or a picture (64, 64, 3) uint8; actions (6,) in [-1, 1].

    info holds every sensor, and the picture if the setting or `pixels` asks for it.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, env_id: str, setting: Setting = "mdp", pixels: bool = False, max_steps: int = 500):
        self.keys = observed(env_id, setting)
        self.env_id, self.pixels, self.max_steps = env_id, pixels or setting == "visual", max_steps
        self.sensors, self.render_mode = SENSORS[env_id.split("-")[0]], "rgb_array"
        choose_renderer()
        body, task = env_id.split("-")
        try:
            from dm_control import suite

            self.task = suite.load(body, "run" if env_id in CUSTOM else task, task_kwargs={"random": 0})
        except Exception as error:  # it is missing, or does not fit its MuJoCo
            sys.exit(f"dm_control cannot make {env_id} ({error}): pip install -r requirements-dmc.txt.")
        # dm_control's 2048 take 1.7 times as long on a CPU; the pictures differ by 0.01 grey levels on average
        self.task.physics.model.vis.quality.shadowsize = 512
        if setting == "visual":
            self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        else:
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (sum(self.keys.values()),), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, self.task.action_spec().shape, np.float32)

    def observe(self, sensors: dict) -> tuple[np.ndarray, dict]:
        """Observation and info of a time-step."""
        info = {name: np.atleast_1d(sensors[name]).astype(np.float32) for name in self.sensors}
        if self.pixels:
            info["image"] = self.render()
        parts = [info[name] for name in self.keys]
        return (parts[0] if "image" in self.keys else np.concatenate(parts)), info

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.task.task.random.seed(seed % 2**32)  # dm_control's own generator places the body
        self.steps = 0
        return self.observe(self.task.reset().observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        action, reward = np.clip(action, -1.0, 1.0).astype(np.float32).astype(np.float64), 0.0  # as it is recorded
        for _ in range(2):
            step = self.task.step(action)
            reward += step.reward
        if self.env_id in CUSTOM:
            reward = self.custom_reward(self.task.physics.velocity())
        self.steps += 1
        obs, info = self.observe(step.observation)
        return obs, float(reward), False, self.steps >= self.max_steps, info

    def custom_reward(self, velocity: np.ndarray) -> float:
        """AIME's rewards of running backward and flipping, from qvel (9,)."""
        joint, sign, full = CUSTOM[self.env_id]
        return float(np.clip(sign * velocity[joint] / full, 0.0, 1.0))

    def render(self, side: int = 64) -> np.ndarray:
        """Picture (side, side, 3) uint8 of camera 0."""
        try:
            return self.task.physics.render(side, side, camera_id=0)
        except Exception as error:  # each renderer has exceptions of its own
            sys.exit(f"No picture can be rendered ({error}): install libegl1 and libgl1, or libosmesa6.")

    def draw(self, obs: torch.Tensor, side: int = 64) -> torch.Tensor:
        """Pictures (T, side, side, 3) of sensors obs (T, O), which hold every angle; the body stays where it is."""
        pictures, ends = [], np.cumsum([self.keys[name] for name in self.keys])
        for row in obs.cpu().numpy():
            sensors, qpos = dict(zip(self.keys, np.split(row, ends))), self.task.physics.data.qpos
            if "position" in sensors:  # Cheetah
                qpos[1:] = sensors["position"]
            else:  # cosine and sine of torso, then thigh, leg and foot, right and left; joints turn against them
                angle = np.arctan2(sensors["orientations"][1::2], sensors["orientations"][::2])
                qpos[:] = [sensors["height"][0] - 1.3, 0, angle[0], *(angle[[0, 1, 2, 0, 4, 5]] - angle[1:])]
            self.task.physics.forward()
            pictures.append(self.render(side))
        return torch.from_numpy(np.stack(pictures)).float()


def recordings(folder: str | Path) -> list[Path]:
    """Files of a data set, in the order of recording: 0.npz, 1.npz, ... or V-D4RL's <time>-<id>-<rows>.npz."""
    return sorted(Path(folder).glob("*.npz"), key=lambda f: (int(f.stem) if f.stem.isdigit() else -1, f.name))


def recorded_actions(file: Path) -> np.ndarray:
    """Actions (T + 1, A) of a file, each the one that led to its row: AIME's key is pre_action, V-D4RL's action."""
    with np.load(file, allow_pickle=False) as npz:
        key = "action" if "action" in npz.files and "pre_action" not in npz.files else "pre_action"
        return npz[key].astype(np.float32)


class Trajectories:
    """Recorded trajectories in AIME's published format (`0.npz, 1.npz, ...`) or V-D4RL's of 64x64, end to end.

    obs (N, O) float32, the sensors in `keys` side by side, or (N, 64, 64, C) uint8; prev_action (N, A), the action that
    led to the row. With actions=False the files' actions are not read and prev_action is None.
    """

    def __init__(self, folders: list[str], keys: dict[str, int], limit: int = 0, actions: bool = True, device="cpu"):
        obs, prev_action, self.starts, self.returns, self.meta = [], [], [0], [], {}
        for folder in map(Path, folders):
            if not (files := recordings(folder)):
                sys.exit(f"No trajectories in {folder}: make them with dmc.py, or name another folder.")
            for file in files[: limit or None]:
                try:
                    with np.load(file, allow_pickle=False) as npz:  # reads only the keys that are asked for
                        parts = [npz[name] for name in keys]
                        prev_action += [recorded_actions(file)] if actions else []
                        self.returns.append(float(npz["reward"].sum(dtype=float)))
                    sizes = [part.shape[-1] if part.ndim > 1 else 1 for part in parts]
                    if sizes != list(keys.values()) or len({len(part) for part in parts}) > 1:
                        raise ValueError(f"it has {dict(zip(keys, sizes))}, not {keys}")
                    if "image" in keys and parts[0].shape[1:3] != (64, 64):
                        raise ValueError("its pictures are not 64x64")
                    for part in [*parts, *prev_action[len(self.returns) - 1 :]]:
                        if len(bad := np.argwhere(~np.isfinite(part))):
                            raise ValueError(f"row {bad[0][0]} is not finite")
                    if "image" in keys:
                        obs.append(parts[0])
                    else:
                        obs.append(np.concatenate([p.reshape(len(p), -1) for p in parts], -1).astype(np.float32))
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    sys.exit(f"{file} is not a trajectory of this kind ({error}): delete it or name another folder.")
                self.starts.append(self.starts[-1] + len(obs[-1]))
            self.meta = self.meta or read_meta(folder)
        self.obs = torch.from_numpy(np.concatenate(obs)).to(device)
        self.prev_action = torch.from_numpy(np.concatenate(prev_action)).to(device) if actions else None
        self.starts = torch.tensor(self.starts)  # (trajectories + 1,)

    def rows(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """Observations and prev_action at row numbers `index` (T, B), and no is_first: a clip crosses no end."""
        index = index.to(self.obs.device)
        return self.obs[index], None if self.prev_action is None else self.prev_action[index], None

    def digest(self) -> str:
        """A number that tells whether two runs had the same trajectories; of pictures a few rows are compared."""
        parts = self.starts, self.obs[:: 101 if self.obs.ndim > 2 else 1], self.prev_action
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts if part is not None)).hexdigest()


def draw(run, model, data: Trajectories, args) -> dict:
    """`Run.draw` of a body, its sensors as pictures too, if there is a renderer; nothing else to log."""
    with contextlib.suppress(SystemExit):
        run.draw(model, data, None if args.setting == "visual" else DMC(args.env_id, args.setting).draw)
    return {}


class Recorder(gym.Wrapper):
    """Writes the first `count` finished games into a folder, and shows how far it is."""

    def __init__(self, env: DMC, folder: Path, count: int):
        super().__init__(env)
        self.folder, self.returns = folder, []
        if list(folder.glob("*.npz")) and not any((folder / name).exists() for name in ("unfinished", "dataset.json")):
            sys.exit(f"{folder} holds trajectories that dmc.py did not make: give another --data-dir.")
        claim(folder)
        (folder / "unfinished").touch()  # `main` takes it away
        for file in folder.glob("*.npz"):
            file.unlink()  # games of an earlier agent
        self.bar = progress(count, "{n}/{total} games  {desc}  {remaining} left")

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        self.rows = [info | {"reward": np.zeros(1, np.float32), "pre_action": np.zeros_like(self.action_space.low)}]
        return obs, info

    def step(self, action: np.ndarray):
        obs, reward, terminated, truncated, info = self.env.step(action)
        played = np.clip(action, -1, 1).astype(np.float32)
        self.rows.append(info | {"reward": np.float32([reward]), "pre_action": played})
        if (terminated or truncated) and self.bar.n < self.bar.total:
            game = {name: np.stack([row[name] for row in self.rows]) for name in self.rows[0]}
            last = (t := np.arange(len(self.rows))[:, None]) == len(self.rows) - 1  # (T + 1, 1)
            game |= {"is_first": t == 0, "is_last": last, "is_terminal": last & terminated}
            write(self.folder / f"{self.bar.n}.npz", lambda file: np.savez_compressed(file, **game))
            self.returns.append(float(game["reward"].sum(dtype=float)))
            text = f"{self.folder.name}, mean return of the last ten {np.mean(self.returns[-10:]):.0f}"
            self.bar.set_description_str(text, refresh=False), self.bar.update()
            self.bar.n < self.bar.total or self.bar.close()
        return obs, reward, terminated, truncated, info

def rollouts(env: gym.Env, act, seeds: Iterable[int]) -> list[float]:
    """Play one game per seed with action = act(observation); their returns."""
    returns = []
    for seed in seeds:
        obs, ended, total = env.reset(seed=seed)[0], False, 0.0
        while not ended:
            obs, reward, _, ended, _ = env.step(act(obs))
            total += reward
        returns.append(total)
    return returns


def random_returns(env_id: str, games: int = 20, seed: int = 30_000, max_steps: int = 500) -> list[float]:
    """Returns of uniformly random actions."""
    rng = np.random.default_rng(seed)
    act = lambda obs: rng.uniform(-1.0, 1.0, 6)  # noqa: E731
    return rollouts(DMC(env_id, max_steps=max_steps), act, range(seed, seed + games))


def train_sac(args: Args, folder: Path) -> list[float]:
    """Train SAC for as many games as the buffer shall hold; their returns. Games are written as they end."""
    try:
        from stable_baselines3 import SAC
        from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise
    except ImportError as error:
        sys.exit(f"stable-baselines3 cannot be imported ({error}): pip install -r requirements-dmc.txt.")
    env = Recorder(DMC(args.env_id, pixels=args.pixels, max_steps=args.max_steps), folder, args.num_episodes)
    total, theta = args.num_episodes * args.max_steps, 0.15  # the noise's deviation is sigma / sqrt(2 theta)
    sigma = np.full(6, args.noise * (2 * theta) ** 0.5)
    noise = OrnsteinUhlenbeckActionNoise(np.zeros(6), sigma, theta, dt=1.0) if args.noise else None
    agent = SAC("MlpPolicy", env, learning_rate=args.learning_rate, buffer_size=total, batch_size=args.batch_size,
                learning_starts=min(5, args.num_episodes) * args.max_steps, train_freq=args.update_every,
                gradient_steps=1, seed=args.seed, device="cpu",
                target_entropy=args.target_entropy, action_noise=noise)  # fmt: skip
    agent.learn(total)
    write(folder / "agent.zip", agent.save)
    return env.returns


def complete(folder: Path, games: int, args: Args) -> bool:
    """Whether a folder holds so many games and was finished; end with one sentence if other settings made them."""
    if not folder.exists() or (folder / "unfinished").exists() or len(list(folder.glob("*.npz"))) < games:
        return False
    made = read_meta(folder).get("args", {})  # a data set of others has none
    fixed = ("seed", "max_steps", "pixels", "target_entropy", "noise")
    wrong = [k for k in fixed if made.get(k, getattr(args, k)) != getattr(args, k)]
    if wrong:
        flags = ", ".join(f"--{k.replace('_', '-')}" for k in wrong)
        sys.exit(f"{folder} was made with another {flags}: give another --data-dir or --name, or delete the folder.")
    print(f"{folder}: complete, {len(list(folder.glob('*.npz')))} games")
    return True


def main(args: Args) -> dict:
    """Make what is missing; return the mean returns."""
    observed(args.env_id, "mdp")
    begin(args)
    if args.max_steps > 500:
        sys.exit(f"--max-steps {args.max_steps}: a game has 500 steps at most.")
    if args.threads:
        torch.set_num_threads(args.threads)
    root, body = Path(args.data_dir), args.env_id.split("-")[0]
    result = {}

    def finish(folder: Path, returns: list[float]) -> None:
        random = random_returns(args.env_id, max_steps=args.max_steps)
        packages = ("dm_control", "mujoco", "gymnasium", "numpy", "torch", "stable_baselines3")
        meta = {name: getattr(args, name) for name in ("env_id", "agent", "seed", "max_steps")}
        meta |= {"expert_returns": returns, "random_returns": random, "args": vars(args)}
        meta |= {"versions": {name: version(name) for name in packages if name in sys.modules}}
        write(folder / "dataset.json", lambda file: file.write(json.dumps(meta, indent=1).encode()))
        (folder / "unfinished").unlink(missing_ok=True)
        result[folder.name] = float(np.mean(returns))
        print(f"{folder}: {len(returns)} games, mean return {np.mean(returns):.1f}, random {np.mean(random):.1f}")

    def record(folder: Path, count: int, act, first: int) -> None:
        env = Recorder(DMC(args.env_id, pixels=args.pixels, max_steps=args.max_steps), folder, count)
        finish(folder, rollouts(env, act, range(first, first + count)))

    if args.agent == "random":
        folder = root / f"{body}-random"
        if not complete(folder, args.num_episodes, args):
            rng = np.random.default_rng(args.seed)
            record(folder, args.num_episodes, lambda obs: rng.uniform(-1.0, 1.0, 6), args.seed * 100_000)
        return result

    # an interrupted training begins anew and overwrites its games: SAC cannot be resumed exactly
    name = args.name or args.env_id
    buffer, demonstrations = root / f"{name}-buffer", root / f"{name}-expert"
    if not complete(buffer, args.num_episodes, args) or not (buffer / "agent.zip").exists():
        if demonstrations.exists():
            (demonstrations / "unfinished").touch()  # they are an earlier agent's
        finish(buffer, train_sac(args, buffer))
    if not complete(demonstrations, args.num_demonstrations, args):
        from stable_baselines3 import SAC

        agent = SAC.load(buffer / "agent.zip", device="cpu")
        act = lambda obs: agent.predict(obs, deterministic=True)[0]  # noqa: E731
        record(demonstrations, args.num_demonstrations, act, 50_000_000 + args.seed * 100_000)
    return result


if __name__ == "__main__":
    command(main, lambda: tyro.cli(Args), "starts this data set again")
