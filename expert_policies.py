"""The experts of collect_data.py: policy networks from files or the Hub, a user's function, players without weights.

An expert has a `name`, which the data set records, and `act(games, rngs, free) -> actions (N,) or (N, A)` for the N
slots of `world_model.Games`; rngs holds one random generator per game, so that a game does not depend on the others,
and `free` (N,) is false where another action will be played anyway. `load_expert` at the end turns --expert into one.

Without weights or download (`embedded`): a player of its own for some games (`EMBEDDED`; docs/collect_data.md says what
they do); for any other Atari game a small PPO actor if train_expert.py has left one in experts/<env_id>.pt, else random
plans tried in the emulator (slow: 70 to 100 s of one core per 1000 steps).
"""

import functools
import importlib
import io
import itertools
import pickle
import re
import sys
import zipfile
import zlib
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import torch
from torch import nn


def stack_frames(stack: np.ndarray | None, games, size: int) -> np.ndarray:
    """Add the newest frame to a stack (N, 4, size, size), oldest first; a new game or life empties it before."""
    newest = games.frames84 if size == 84 else games.seen[..., 0]
    stack = np.zeros((games.num_envs, 4, size, size), np.uint8) if stack is None else stack
    stack = np.where(games.fresh[:, None, None, None], np.uint8(0), stack)
    return np.concatenate([stack[:, 1:], newest[:, None]], 1)


class StatisticsUnpickler(pickle.Unpickler):
    """Read the numbers in a VecNormalize pickle; every class in it but NumPy's arrays becomes an empty shell."""

    def find_class(self, module: str, name: str):
        """Resolve only what NumPy needs to rebuild an array: nothing else that the file names is ever called."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return super().find_class("numpy._core.multiarray", name)
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        keep = {"__setstate__": lambda self, state: vars(self).update(state if isinstance(state, dict) else {})}
        return type(name, (dict,), {"__init__": lambda self, *args, **kwargs: None, **keep})


def build_network(weights: dict, keys: list[str], activation: type[nn.Module]) -> nn.Sequential:
    """Rebuild a policy network from its weights, layer by layer; Atari's three convolutions have strides 4, 2, 1."""
    layers, strides = [], iter((4, 2, 1))
    for key in keys:
        weight, bias = weights[f"{key}.weight"].float(), weights[f"{key}.bias"].float()
        if weight.ndim == 4:
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], next(strides))
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layers += [nn.Flatten()]
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


class RandomExpert:
    """Uniformly random actions."""

    name, max_steps = "random", 27000

    def act(self, games, rngs: list[np.random.Generator], free: np.ndarray | None = None) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        space = games.action_space
        if hasattr(space, "n"):
            return np.array([rng.integers(space.n) for rng in rngs])
        return np.array([rng.uniform(space.low, space.high) for rng in rngs], np.float32)


class NetworkExpert:
    """A policy network from a file, read without executing any pickle; it samples its actions."""

    max_steps = 27000

    def __init__(self, path: Path, games, env_id: str, greedy: bool):
        self.name, self.greedy, space = f"{path.name}:{zlib.crc32(path.read_bytes()):08x}", greedy, games.action_space
        self.size, self.stack, self.statistics, self.log_std = 84, None, None, None
        if path.suffix == ".pt":  # train_expert.py's
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["env_id"] != env_id:
                raise ValueError(f"it was trained on {saved['env_id']}")
            self.size, self.network = 64, build_network(saved["actor"], list("02479"), nn.ReLU)
        else:  # Stable-Baselines3's: the archive's other members are pickles and stay closed
            with zipfile.ZipFile(path) as archive:
                weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
                data = archive.read("data") if "data" in archive.namelist() else b""
            if re.search(rb"modules\.activation\.(?!ReLU|Tanh)", data):
                raise ValueError("only ReLU and Tanh are known")
            relu = games.atari or b"activation.ReLU" in data
            prefix = "features_extractor." if games.atari else "mlp_extractor.policy_net."
            keys = [key[:-7] for key in weights if key.startswith(prefix) and key.endswith(".weight")]
            self.network = build_network(weights, [*keys, "action_net"], nn.ReLU if relu else nn.Tanh)
            self.log_std = weights.get("log_std")
            for file in (path.with_name("vecnormalize.pkl"), path.with_name("vec_normalize.pkl")):
                if file.exists() and not games.atari:
                    self.statistics = StatisticsUnpickler(io.BytesIO(file.read_bytes())).load()
                    self.name += f"+{zlib.crc32(file.read_bytes()):08x}"
        self.name += " (greedy)" * greedy
        outputs, wanted = self.network[-1].out_features, space.n if hasattr(space, "n") else space.shape[0]
        if outputs != wanted:
            raise ValueError(f"it has {outputs} outputs, this environment takes {wanted}")
        shape = (4, self.size, self.size) if games.atari else (int(np.prod(games.envs.single_observation_space.shape)),)
        self.network(torch.zeros(1, *shape))  # inputs that do not fit are named now

    def act(self, games, rngs: list[np.random.Generator], free: np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        with torch.inference_mode():
            output = self.network(torch.as_tensor(self.observe(games), dtype=torch.float32)).numpy()
        if hasattr(games.action_space, "n"):  # the largest of logits + Gumbel noise is a sample of their softmax
            noise = 0 if self.greedy else np.stack([rng.gumbel(size=output.shape[1]) for rng in rngs])
            return (output + noise).argmax(1)
        if self.greedy or self.log_std is None or self.log_std.ndim == 2:  # two dimensions: gSDE, made for its mean
            return output
        return output + self.log_std.exp().numpy() * np.stack([rng.normal(size=output.shape[1]) for rng in rngs])

    def observe(self, games) -> np.ndarray:
        """What the network sees: the last four frames in [0, 1] (N, 4, size, size), or the normalised observations."""
        if games.atari:
            self.stack = stack_frames(self.stack, games, self.size)
            return self.stack / np.float32(255)
        obs, stats = np.stack(games.obs).reshape(games.num_envs, -1), self.statistics
        if stats is not None and getattr(stats, "norm_obs", True):
            obs = (obs - stats.obs_rms.mean) / np.sqrt(stats.obs_rms.var + stats.epsilon)
            obs = np.clip(obs, -stats.clip_obs, stats.clip_obs)
        return obs


class PlayerExpert:
    """An expert that makes a new player for every game: `make(games, slot, rng)`, then `act(free)` before each step."""

    def __init__(self, name: str, make, max_steps: int = 27000):
        self.name, self.make, self.max_steps, self.players = name, make, max_steps, {}

    def act(self, games, rngs: list[np.random.Generator], free: np.ndarray) -> np.ndarray:
        """Actions (N,) or (N, A)."""
        for i in np.flatnonzero(games.steps == 0):
            self.players[i] = self.make(games, i, rngs[i])
        actions = [self.players[i].act(bool(free[i])) for i in range(games.num_envs)]
        return np.stack(actions).reshape(games.num_envs, *games.action_space.shape)


class UserPlayer:
    """A user's `(observation, env) -> action`; on Atari they are a stack (4, 84, 84) and an `Emulator` to look into."""

    def __init__(self, policy, games, slot: int, rng: np.random.Generator, env_id: str):
        self.policy, self.games, self.slot, self.stack = policy, games, slot, None
        self.env = Emulator(games, slot, rng, env_id) if games.atari else games.envs.envs[slot]

    def act(self, free: bool):
        """The policy's action for what the slot shows now; end with one sentence if the game has no such action."""
        obs, space = self.games.obs[self.slot] if not self.games.atari else None, self.games.action_space
        if self.games.atari:
            self.env.follow()
            self.stack = stack_frames(self.stack, self.games, 84)
            obs = self.stack[self.slot]
        action = np.asarray(self.policy(obs, self.env)).reshape(-1)
        if self.games.discrete:
            good = action.dtype.kind in "iu" and action.size == 1 and space.contains(int(action[0]))
        else:  # beyond the bounds it is clipped
            good = action.shape == space.shape and np.isfinite(action).all()
        if not good:
            raise SystemExit(f"The expert's action {action} is none of {space}: correct its function.")
        return action[0] - space.start if self.games.discrete else action


class Emulator:
    """A second copy of the Atari game in one slot of `Games`, with readable memory and a state that can be restored.

    It repeats what the slot has played; without sticky actions it stays equal, so a player can try actions in it.
    """

    gamma, penalty, depth = 0.99, 300.0, 25

    def __init__(self, games, slot: int, rng: np.random.Generator, env_id: str):
        self.games, self.slot, self.rng = games, slot, rng
        self.game = gym.spec(env_id).kwargs["game"]
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", 0.0)
        self.ale.loadROM(ale_py.roms.get_rom_path(self.game))
        self.ale.reset_game()
        self.actions, self.last, self.action = self.ale.getMinimalActionSet(), None, 0
        if ale_py.Action.FIRE in self.actions:
            self.ale.act(ale_py.Action.FIRE)
        while self.ale.getEpisodeFrameNumber() < games.frame_number[slot]:
            self.ale.act(ale_py.Action.NOOP)

    def step(self, action: int) -> float:
        """Play one agent step, four frames; sum of rewards. Remember the memory before it, and the action."""
        self.last, self.action = self.ale.getRAM().copy(), action
        return sum(self.ale.act(self.actions[action]) for _ in range(4))

    def follow(self) -> None:
        """Repeat the slot's last action, if it has played one."""
        if self.games.steps[self.slot]:
            self.step(int(self.games.action[self.slot]))

    def value(self, choose) -> float:
        """Discounted reward, less a penalty for a lost life, of playing `choose(t)` for t = 0, 1, ... from here."""
        state, last, action, lives, total = self.ale.cloneState(), self.last, self.action, self.ale.lives(), 0.0
        for t in range(self.depth):
            total += self.gamma**t * self.step(choose(t))
            if self.ale.lives() < lives or self.ale.game_over():  # the end of a game may be its winning point
                total -= self.penalty * (self.ale.lives() < lives)
                break
        self.ale.restoreState(state)
        self.last, self.action = last, action
        return total


class Planner(Emulator):
    """Any Atari game: try twelve random plans in the emulator and play the first action of the best one."""

    plan = None

    def act(self, free: bool) -> int:
        """Action for the slot; `free` is false where another action will be played anyway."""
        self.follow()
        tried = [self.vary(self.plan) for _ in range(8)] + [self.vary(None) for _ in range(4)]
        tried += [] if self.plan is None else [self.plan]
        # Ties are broken at random: preferring one action would let it hide for ever where nothing happens.
        self.plan = max(tried, key=lambda plan: (self.value(plan.__getitem__), self.rng.random()))
        first, self.plan = self.plan[0], np.append(self.plan[1:], self.plan[-1])
        return int(first)

    def vary(self, plan: np.ndarray | None) -> np.ndarray:
        """Replace the end of a plan (depth,) by random actions that mostly persist; all of it if there is none."""
        begin = 0 if plan is None else int(self.rng.integers(self.depth))
        new = np.zeros(self.depth, np.int64) if plan is None else plan.copy()
        for t in range(begin, self.depth):
            new[t] = self.rng.integers(len(self.actions)) if t == begin or self.rng.random() < 0.2 else new[t - 1]
        return new


# Where the memory has the ball along and across the paddle's axis (x, y in Breakout; y, x in Pong) and the paddle;
# the paddle's line, walls and range; its centre, how far it slides after a move, and the actions along the axis.
PADDLE_GAMES = {"breakout": (99, 101, 72, 178, (57, 202), (55, 191), 9, 10, 2, 3),
                "pong": (54, 49, 51, 188, (44, 206), (38, 203), 8, 0, 3, 2)}  # fmt: skip


class LookAhead(Emulator):
    """Breakout and Pong: of ten rules that aim at the ball, follow one that wins points in the emulator."""

    gamma, penalty, depth = 0.995, 20.0, 70
    rules = list(itertools.product((-8, -4, 0, 4, 8), (4, 11)))  # aim off the paddle's centre, error to tolerate
    rule, think_at, wanted = rules[4], 0, None

    def act(self, free: bool) -> int:
        """Action for the slot; `free` is false where another action will be played anyway."""
        self.follow()
        step = int(self.games.steps[self.slot])
        if self.action != self.wanted:
            self.think_at = step  # something else was played than planned
        if free and step >= self.think_at:
            self.choose_rule()
            self.think_at = step + 20
        self.wanted = self.aim(self.rule)
        return int(self.rng.integers(len(self.actions))) if self.rng.random() < 0.01 else self.wanted

    def choose_rule(self) -> None:
        """Keep the rule if it earns something, else the first other that does, else one of the best."""
        others = [rule for rule in self.rules if rule != self.rule]
        tried = {}
        for rule in [self.rule, *(others[k] for k in self.rng.permutation(len(others)))]:
            tried[rule] = self.value(lambda t, rule=rule: self.aim(rule))
            if tried[rule] > 0:
                break
        # Ties are broken at random: a fixed choice can keep a rally going until the game is cut off.
        self.rule = max(tried, key=lambda rule: (tried[rule], self.rng.random()))

    def aim(self, rule: tuple[int, int], away: int | None = None, ahead: float = np.inf) -> int:
        """Meet the ball where it will cross the paddle's line, or be in `ahead` steps if that is sooner.

        While it flies away, wait, or follow it within the tolerance `away`.
        """
        along, across, own, line, (low, high), (first, last), centre, slide, up, down = PADDLE_GAMES[self.game]
        now, (offset, tolerance) = self.ale.getRAM().astype(int), rule
        if now[across] == 0:
            return 1  # no ball: FIRE
        target, falls = now[along], self.last is not None and 0 < self.last[across] < now[across]
        if falls:
            speed, fall = now[along] - int(self.last[along]), now[across] - int(self.last[across])
            steps = min(max((line - now[across]) / fall, 0), ahead)
            target = (now[along] + speed * steps - low) % (2 * (high - low))
            target = low + min(target, 2 * (high - low) - target)  # bounced off the walls
        elif away is None:
            return 0
        else:
            tolerance = away
        drift = {up: slide * (now[own] < last - 11), down: -slide * (now[own] > first + 11)}.get(self.action, 0)
        error = target - (now[own] + drift + centre + offset)
        return up if error > tolerance else down if error < -tolerance else 0


class Follower(LookAhead):
    """Breakout: keep the paddle's middle below where a falling ball will be in two steps; a function of what is seen.

    Looking further ahead scores the same and is far harder to imitate: it multiplies the error of the ball's speed.
    """

    def act(self, free: bool) -> int:
        """Action for the slot, from the ball's last two places, the paddle's place and the last action alone."""
        self.follow()
        # One in fifty is random: without, there are three different games in all, and rallies that never end.
        return int(self.rng.integers(len(self.actions))) if self.rng.random() < 0.02 else self.aim((0, 6), 14, 2)


class Boxer(Emulator):
    """Boxing: walk up to the opponent, stay a little above or below, punch: two steps pressed, two released."""

    reach, tolerance, offset = 10, 6, 8  # in pixels of the 160 x 210 screen, found by random search

    def act(self, free: bool) -> int:
        """Action for the slot, a function of both boxers' places and of the last two actions alone."""
        before, now = self.action, self.games.action[self.slot] if self.games.steps[self.slot] else 0
        self.follow()
        x, y, other_x, other_y = self.ale.getRAM()[[32, 34, 33, 35]].astype(int)
        ahead, below = other_x - x, other_y - y
        side = 1 if ahead >= 0 else -1
        across = 0 if abs(ahead) == self.reach else side if abs(ahead) > self.reach else -side
        error = below - (self.offset if below >= 0 else -self.offset)
        down = 0 if abs(error) <= self.tolerance else int(np.sign(error))
        pressed = ["FIRE" in self.actions[action].name for action in (before, now)]
        punch = not all(pressed) if pressed[1] else not any(pressed)  # the arm must be drawn back before the next punch
        name = ("UP", "", "DOWN")[down + 1] + ("LEFT", "", "RIGHT")[across + 1] + ("FIRE" if punch else "")
        wanted = self.actions.index(ale_py.Action[name or "NOOP"])
        return int(self.rng.integers(len(self.actions))) if self.rng.random() < 0.01 else wanted


class Painter(Emulator):
    """Qbert: to the bottom left cube, along the bottom to the right, then always to the nearest unpainted cube.

    He looks at himself and the cubes' colours, not at his enemies. In the second half of a hop he already holds the
    stick for the next: whoever clones a player that lets go between two hops learns to stand still.
    """

    cubes = [(row, column) for row in range(6) for column in range(row + 1)]
    colour = [21, 52, 54, 83, 85, 87, 98, 100, 102, 104, 1, 3, 5, 7, 9, 32, 34, 36, 38, 40, 42]  # where memory has each
    hops = {5: (1, 0), 3: (1, 1), 2: (-1, 0), 4: (-1, -1)}  # action: rows and columns gained (DOWN, RIGHT, UP, LEFT)
    unpainted, row, goal, hop = None, 0, None, 0

    def act(self, free: bool) -> int:
        """Action for the slot: the hop from the cube where he stands or will land."""
        self.follow()
        memory = self.ale.getRAM().astype(int)
        colours = memory[self.colour]
        if (colours == colours[0]).all():
            self.unpainted = colours[0]  # a round begins
        flight = memory[55]  # 0 on a cube; counts down from 25 in a hop up, from 255 in a hop down
        self.row = (memory[67] - 25) // 28 if flight == 0 else self.row
        row = self.row + (flight > 127) - (0 < flight <= 127)
        goal = row, (memory[35] - 5 + row) // 2
        if goal not in self.cubes:
            self.goal = None
            return 0  # not on the screen, or falling
        if flight > 240 or 12 < flight <= 127:
            return self.hop  # on the way up: a late or an early change of the stick then does no harm
        if goal != self.goal or not self.hop:
            self.goal, self.hop = goal, self.choose(goal, colours)
        return self.hop

    def choose(self, cube: tuple[int, int], colours: np.ndarray) -> int:
        """Hop from `cube`; one in twenty is random, for games that differ."""
        (row, column), queue, first = cube, [cube], {cube: 0}
        todo = [goal for goal, colour in zip(self.cubes, colours) if colour == self.unpainted and goal != cube]
        if self.rng.random() < 0.05:
            return int(self.rng.choice([a for a, (i, j) in self.hops.items() if (row + i, column + j) in self.cubes]))
        if (5, 0) in todo:
            return 4 if row == 5 else 5
        if (5, 5) in todo:
            return 2 if row == 5 else 3
        for here in queue:  # breadth first: the fewest hops
            if here in todo:
                return first[here]
            for action, (i, j) in self.hops.items():
                there = here[0] + i, here[1] + j
                if there in self.cubes and there not in first:
                    first[there] = first[here] or action
                    queue.append(there)
        return 0


class Walker:
    """BipedalWalker-v3: stand on one leg and swing the other, lower it, push off with the first, and swap."""

    speed, straight, lift_hip, lift_knee, stretch, behind = 0.2869, 0.07096, 1.217, -0.7911, 0.03892, 0.09304
    lower_hip, push_knee, push_angle, push_speed, scale = 0.09431, 1.15, 0.9728, 1.055, 0.4793
    hip_gain, hip_damping, knee_gain, knee_damping = 1.12, 0.1633, 4.085, 0.3771
    head_gain, head_damping, vertical_damping = 1.249, 1.758, 15.44

    def __init__(self, games, slot: int, rng: np.random.Generator, env_id: str):
        self.games, self.slot, self.phase, self.swing, self.bend = games, slot, "swing", 0, self.straight

    def act(self, free: bool) -> np.ndarray:
        """Torques (4,) of hip and knee of both legs; the phase of the gait is the player's own memory."""
        obs = self.games.obs[self.slot]
        swing, stand, hip, knee = self.swing, 1 - self.swing, [None, None], [None, None]
        leg = obs[4:9], obs[9:14]  # hip angle and speed, knee angle and speed, ground contact
        if self.phase == "swing":
            hip[swing], knee[swing] = self.lift_hip, self.lift_knee
            self.bend = min(self.bend + self.stretch * (2 if obs[2] > self.speed else 1), self.straight)
            knee[stand] = self.bend
            if leg[stand][0] < self.behind:
                self.phase = "lower"
        if self.phase == "lower":
            hip[swing], knee[swing], knee[stand] = self.lower_hip, self.straight, self.bend
            if leg[swing][4]:
                self.phase, self.bend = "push", min(leg[swing][2], self.straight)
        if self.phase == "push":
            knee[swing], knee[stand] = self.bend, self.push_knee
            if leg[stand][2] > self.push_angle or obs[2] > self.push_speed * self.speed:
                self.phase, self.swing = "swing", stand
        torque = []
        for (hip_angle, hip_speed, knee_angle, knee_speed, _), hip_goal, knee_goal in zip(leg, hip, knee):
            balance = self.head_gain * obs[0] + self.head_damping * obs[1]
            lift = 0 if hip_goal is None else self.hip_gain * (hip_goal - hip_angle) - self.hip_damping * hip_speed
            turn = self.knee_gain * (knee_goal - knee_angle) - self.knee_damping * knee_speed
            torque += [lift + balance, turn - self.vertical_damping * obs[3]]
        return np.clip(self.scale * np.array(torque), -1, 1).astype(np.float32)


def pendulum_swing_up(observation: np.ndarray, env: gym.Env) -> np.ndarray:
    """Pendulum-v1: pump up the energy until it is that of standing, 15 (g = 10, m = l = 1), then balance by PD."""
    cos, sin, speed = observation
    if cos > 0.9:
        torque = -10 * np.arctan2(sin, cos) - 2 * speed
    else:
        torque = (15 - speed**2 / 2 - 15 * cos) * (1 if speed >= 0 else -1)
    return np.clip([torque], -2, 2).astype(np.float32)


def acrobot_pump(observation: np.ndarray, env: gym.Env) -> int:
    """Acrobot-v1: always push the lower joint the way it turns, which adds energy until the tip is high enough."""
    return 2 if observation[5] > 0 else 0  # actions: torque -1, 0, 1; observation[5]: the lower joint's speed


def pong_rally(observation: np.ndarray, env: Emulator) -> int:
    """Pong, `--expert expert_policies:pong_rally`: meet every ball with the middle of the paddle, no plan to win.

    Reads only what two frames show. A paddle that is let go slides on for 1.5 times the way of its last step.
    """
    now = env.ale.getRAM().astype(int)
    before = now if env.last is None else env.last.astype(int)
    (along, across, own), (last_along, last_across, last_own) = now[[54, 49, 51]], before[[54, 49, 51]]
    if env.rng.random() < 0.01:
        return int(env.rng.integers(len(env.actions)))
    if across == 0 or last_across == 0:
        return int(across == 0)  # FIRE where there is no ball
    (low, high), line, goal, tolerance = (44, 206), 188, 118, 12  # while the ball flies away: wait in the middle
    if across > last_across:  # the ball comes: where will it cross the paddle's line, reflected by the walls?
        ahead = max(line - across, 0) / (across - last_across)
        goal = (along + (along - last_along) * ahead - low) % (2 * (high - low))
        goal, tolerance = low + min(goal, 2 * (high - low) - goal), 10
    error = goal - (own + np.clip(1.5 * (own - last_own), -19, 19) + 8)
    return 3 if error > tolerance else 2 if error < -tolerance else 0


def download(repo: str) -> Path:
    """Fetch a Zoo agent, and its normalisation statistics if it has any, from the Hub; its client caches them."""
    from huggingface_hub import hf_hub_download  # optional: pip install huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    path = hf_hub_download(repo, repo.split("/")[1] + ".zip", etag_timeout=5)
    try:
        hf_hub_download(repo, "vec_normalize.pkl", etag_timeout=5)
    except EntryNotFoundError:
        pass  # trained on plain observations
    return Path(path)


def choose_expert(expert: str, env_id: str, recorded: str | None) -> str:
    """Turn `auto` into what the data set holds already, or the Zoo's PPO agent if the Hub answers, or `embedded`."""
    if expert != "auto":
        return re.sub(r"^([\w.-]+/[\w.-]+):.*", r"\1", expert)  # a Hub's agent as dataset.json names it
    repo = f"sb3/ppo-{env_id}"
    if recorded:
        return repo if recorded.startswith(repo) else recorded
    try:
        download(repo)
    except Exception as error:  # no client, no network, no such agent: the client's exceptions are many
        print(f"Expert: the embedded one, because {repo} could not be had from the Hub ({type(error).__name__}).")
        return "embedded"
    print(f"Expert: {repo} from the Hub, as in the paper.")
    return repo


EMBEDDED = {  # env id: name of a player (the first is the default): player, agent steps after which a game is cut off
    "BreakoutNoFrameskip-v4": {"breakout-follower": (Follower, 2000),  # later the last bricks are missed for ever
                               "breakout-lookahead": (LookAhead, 2000)},
    "PongNoFrameskip-v4": {"pong-lookahead": (LookAhead, 27000)},
    "BoxingNoFrameskip-v4": {"boxing-rule": (Boxer, 27000)},
    "QbertNoFrameskip-v4": {"qbert-painter": (Painter, 1000)},  # later rounds need every cube twice
    "BipedalWalker-v3": {"walker-gait": (Walker, 27000)},
    "Acrobot-v1": {"acrobot-pump": (functools.partial(UserPlayer, acrobot_pump), 27000)},
    "Pendulum-v1": {"pendulum-swing-up": (functools.partial(UserPlayer, pendulum_swing_up), 27000)},
}  # fmt: skip


def load_expert(expert: str, env_id: str, games, greedy: bool = False):
    """Build the expert that --expert names; end with one sentence if it cannot play this environment."""
    own = Path(__file__).parent / "experts" / f"{env_id}.pt"
    try:
        if expert == "random":
            return RandomExpert()
        if expert == "embedded" and own.exists() and env_id not in EMBEDDED:
            return NetworkExpert(own, games, env_id, greedy)
        if expert.split(":")[0] == "embedded":
            players = EMBEDDED.get(env_id, {"planner": (Planner, 27000)} if games.atari else {})
            name = next(iter(players), "") if expert == "embedded" else expert[9:]
            if name not in players:
                known = f"its embedded experts: {', '.join(players)}"
                raise ValueError(known if players else "no embedded expert knows this environment")
            player, max_steps = players[name]
            return PlayerExpert(f"embedded:{name}", functools.partial(player, env_id=env_id), max_steps)
        if expert.endswith((".zip", ".pt")):
            return NetworkExpert(Path(expert), games, env_id, greedy)
        if ":" in expert:
            module, function = expert.split(":")
            sys.path.insert(0, "")  # modules in the folder where the command is typed
            policy = getattr(importlib.import_module(module), function)
            return PlayerExpert(expert, functools.partial(UserPlayer, policy, env_id=env_id))
        if re.fullmatch(r"[\w.-]+/[\w.-]+", expert):
            network = NetworkExpert(download(expert), games, env_id, greedy)
            network.name = f"{expert}:{network.name}"
            return network
        raise ValueError("no such expert")
    except Exception as error:  # files and modules of strangers fail in many ways
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise SystemExit(
            f"--expert {expert} cannot play {env_id} ({type(error).__name__}: {reason}). Choose auto, embedded, "
            f"embedded:name, random, a Hub id like sb3/ppo-{env_id}, a Stable-Baselines3 .zip, a train_expert.py .pt, "
            "module:function."
        ) from error
