"""collect_data.py and expert_policies.py: frames by hand, what is recorded, experts from files, storage, bad input."""

import io
import json
import pickle
import sys
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ale_py.vector_env import AtariVectorEnv

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny
from tiny import assert_one_sentence

from collect_data import FIELDS, Args, Policy, collect, main
from expert_policies import (
    Follower,
    Emulator,
    RandomExpert,
    StatisticsUnpickler,
    choose_expert,
    load_expert,
    pendulum_swing_up,
    pong_rally,
)
from world_model import Games, area_matrix, make_env, play, resize, to_gray

BREAKOUT = "BreakoutNoFrameskip-v4"


class Counting(gym.Env):
    """Every pixel shows 10 * steps + last action; the reward is the action; the game ends after 3 to 6 steps."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        """Draw the length of the game from the seed."""
        super().reset(seed=seed)
        self.steps, self.length = 0, int(self.np_random.integers(3, 7))
        return np.zeros((64, 64, 1), np.uint8), {}

    def step(self, action):
        """Count."""
        self.steps += 1
        frame = np.full((64, 64, 1), 10 * self.steps + action, np.uint8)
        return frame, float(action), self.steps == self.length, False, {}


gym.register("Counting-v0", Counting)


def counting_args(folder, **changes) -> Args:
    return replace(
        Args(env_id="Counting-v0", expert="random", data_dir=str(folder), num_episodes=5, num_val_episodes=2),
        **{"num_processes": 1, **changes},
    )


def load(folder, env_id="Counting-v0", name="expert") -> dict[str, dict]:
    files = sorted((Path(folder) / env_id.replace(":", "_") / name).glob("*.npz"))
    return {file.name: dict(np.load(file)) for file in files}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[file][key], b[file][key]) for file in a for key in FIELDS)


# ---- frames


def test_area_resize_by_hand():
    # 3 pixels to 2: each new pixel covers 1.5 old ones
    assert np.allclose(area_matrix(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    frame = np.array([[0, 90, 180], [90, 180, 0], [180, 0, 90]], np.uint8)
    # rows first: [2 r0 + r1] / 3 = [30, 120, 120] and [r1 + 2 r2] / 3 = [150, 60, 60]; then columns likewise
    assert resize(frame, 2).tolist() == [[60, 120], [120, 60]]
    assert resize(np.arange(16, dtype=np.uint8).reshape(4, 4) * 10, 2).tolist() == [[25, 45], [105, 125]]
    assert resize(np.full((5, 210, 160), 77, np.uint8)).shape == (5, 64, 64)
    assert (resize(np.full((84, 84), 77, np.uint8)) == 77).all()


def test_gray_by_hand():
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [100, 50, 200]]], np.uint8)
    assert to_gray(rgb).tolist() == [[76, 150, 29, 255, 82]]  # 0.299 R + 0.587 G + 0.114 B; 29.9 + 29.35 + 22.8 = 82.05


# ---- games


def test_forced_actions_after_a_lost_life():
    games = Games(BREAKOUT, 1)
    games.reset([0])
    assert games.fresh[0]
    played, forced, lives, fresh = [], [], [], []
    for _ in range(120):  # action 3 keeps the paddle in the corner and never fires
        _, _, _, info = games.step(np.array([3]))
        played.append(int(info["action"][0]))
        forced.append(bool(info["forced"][0]))
        lives.append(int(info["lives"][0]))
        fresh.append(bool(games.fresh[0]))
    lost = next(t for t in range(120) if lives[t] == 4)
    assert played[lost + 1 : lost + 5] == [0, 1, 2, 3] and forced[lost : lost + 5] == [False, True, True, True, False]
    assert fresh[lost - 1 : lost + 5] == [False, True, True, True, True, False]
    assert 3 in lives  # the ball came back: FIRE worked


def test_rewards_are_not_clipped_and_max_steps_cuts():
    games = Games("SpaceInvadersNoFrameskip-v4", 4, max_steps=150)
    games.reset(range(4))
    rng, rewards = np.random.default_rng(0), []
    for t in range(150):
        reward, terminated, truncated, info = games.step(rng.integers(6, size=4))
        rewards += reward.tolist()
        assert (truncated == (t == 149)).all() and not terminated.any()
    assert max(rewards) >= 5 and (games.steps == 0).all() and info["seen"].shape == (4, 64, 64, 1)


def test_emulator_shows_the_same_frames():
    for env_id in (BREAKOUT, "MsPacmanNoFrameskip-v4"):
        games, rng, total = Games(env_id, 2), np.random.default_rng(0), 0
        games.envs = AtariVectorEnv(gym.spec(env_id).kwargs["game"], 2, stack_num=1, reward_clipping=False,
                                    img_height=210, img_width=160, autoreset_mode="SameStep")  # fmt: skip
        games.reset([3, 4])
        emulator, twin = (Emulator(games, 1, rng, env_id) for _ in range(2))
        assert np.array_equal(emulator.ale.getScreenGrayscale(), games.frames84[1])  # not resized, so byte for byte
        for t in range(100):
            if t % 20 == 0:
                twin.value(lambda t: t % 4)  # trying something leaves no trace
            reward, terminated, _, _ = games.step(rng.integers(4, size=2))
            if terminated[1]:
                break
            screens, action = [], emulator.actions[int(games.action[1])]
            for _ in range(4):
                total += emulator.ale.act(action) - reward[1] / 4
                screens.append(emulator.ale.getScreenGrayscale())
            assert np.array_equal(np.maximum(screens[2], screens[3]), games.frames84[1]) and total == 0
            twin.follow()
            assert np.array_equal(twin.ale.getRAM(), emulator.ale.getRAM()) and twin.ale.lives() == games.lives[1]


def test_a_game_is_a_function_of_its_seed():
    def games_of(num_envs, seeds):
        games = Games(BREAKOUT, num_envs, max_steps=40)
        played = play(games, Policy(games, RandomExpert(), epsilon=0.1), seeds, keep=seeds)
        return {game["seed"]: game for game in played}

    together, alone = games_of(3, [7, 8, 9, 10]), games_of(1, [10])
    assert set(together) == {7, 8, 9, 10}
    assert all(np.array_equal(together[10][key], alone[10][key]) for key in FIELDS)
    assert not np.array_equal(together[7]["actions"], together[8]["actions"])


# ---- what is recorded


def test_actions_lead_to_the_next_observation(tmp_path):
    main(counting_args(tmp_path))
    episodes = load(tmp_path)
    assert list(episodes) == [f"train_{k:05d}.npz" for k in range(5)] + ["val_00000.npz", "val_00001.npz"]
    for episode in episodes.values():
        T = len(episode["actions"])
        shown, expected = episode["observations"][:, 0, 0, 0].tolist(), [0]
        expected += [10 * (t + 1) + int(episode["actions"][t]) for t in range(T)]
        assert shown == expected and 3 <= T <= 6
        assert episode["rewards"].tolist() == episode["actions"].tolist()
        assert episode["terminations"].tolist() == [False] * (T - 1) + [True] and not episode["truncations"].any()
        assert episode["lives"].shape == (T + 1,) and not episode["forced"].any()
    assert len({int(episode["seed"]) for episode in episodes.values()}) == 7
    assert episodes["train_00000.npz"]["observations"].dtype == np.uint8
    meta = json.loads((tmp_path / "Counting-v0/expert/dataset.json").read_text())
    assert meta["num_actions"] == 3 and len(meta["random_returns"]) == 20 and len(meta["expert_returns"]) == 7
    assert meta["episodes"][0]["return"] == episodes["train_00000.npz"]["rewards"].sum()


def test_truncation_and_epsilon(tmp_path):
    (tmp_path / "constant_policy.py").write_text("def one(observation, env):\n    return 1\n")
    sys.path.insert(0, str(tmp_path))
    args = counting_args(tmp_path, expert="constant_policy:one", num_episodes=30, num_val_episodes=0, max_steps=3)
    main(args)
    assert all((episode["actions"] == 1).all() for episode in load(tmp_path).values())
    ends = [(e["terminations"][-1], e["truncations"][-1], len(e["actions"])) for e in load(tmp_path).values()]
    assert (False, True, 3) in ends and all(terminated != truncated for terminated, truncated, _ in ends)
    main(replace(args, name="world", epsilon=0.5))
    other = np.concatenate([episode["actions"] for episode in load(tmp_path, name="world").values()])
    assert 0.2 < (other != 1).mean() < 0.7


def test_continuous_actions_rgb_and_grey():
    for grayscale, channels in ((True, 1), (False, 3)):
        games = Games("Drawn-v0", 2, grayscale=grayscale)
        games.reset([0, 1])
        assert games.seen.shape == (2, 64, 64, channels)
        *_, info = games.step(np.array([[5.0], [-0.5]]))
        blue = np.array([30, 5])  # 10 + 10 * angle
        expected = [255, 100, blue] if channels == 3 else [0.299 * 255 + 0.587 * 100 + 0.114 * blue]
        for c, value in enumerate(expected):
            assert (np.abs(games.seen[..., c] - np.reshape(value, (-1, 1, 1))) <= 1).all()
        assert info["action"].dtype == np.float32 and info["action"].tolist() == [[2.0], [-0.5]]  # clipped to the Box


class Pair(gym.Env):
    """Observes a tuple and is seen through `render()`, which counts how often it was called; three steps a game."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Tuple((gym.spaces.Discrete(4), gym.spaces.Discrete(2)))
    action_space = gym.spaces.Discrete(2)
    drawn = 0

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return (0, 0), {}

    def step(self, action):
        self.steps += 1
        return (self.steps, action), 1.0, self.steps == 3, False, {}

    def render(self):
        Pair.drawn += 1
        return np.zeros((64, 64, 3), np.uint8)


gym.register("Pair-v0", Pair)


def test_only_what_is_recorded_is_drawn(tmp_path):
    main(counting_args(tmp_path, env_id="Pair-v0", num_episodes=1, num_val_episodes=0, num_envs=2))
    # each environment when it is made (two scores of 20 games, each in a new one, and one to ask), the frames of the
    # one game recorded, the first of a next that nobody plays
    assert Pair.drawn == 2 + 2 * (1 + 20) + 1 + 4 + 1
    meta = json.loads((tmp_path / "Pair-v0/expert/dataset.json").read_text())
    assert meta["random_returns"] == meta["shuffled_returns"] == [3.0] * 20


# ---- storage


def test_a_data_set_is_enlarged_by_its_own_player_and_steps(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def policy(observation, env):\n    return 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    main(counting_args(tmp_path, expert="mine:policy", max_steps=3, num_episodes=1, num_val_episodes=0))
    main(counting_args(tmp_path, expert="auto", num_episodes=2, num_val_episodes=0))
    meta = json.loads((tmp_path / "Counting-v0/expert/dataset.json").read_text())
    assert len(meta["episodes"]) == 2 and (meta["expert"], meta["max_steps"]) == ("mine:policy", 3)


def test_resume_equals_uninterrupted(tmp_path, capsys):
    main(counting_args(tmp_path / "a"))
    main(counting_args(tmp_path / "b", num_episodes=2, num_val_episodes=0))
    folder = tmp_path / "b/Counting-v0/expert"
    before = (folder / "train_00000.npz").stat().st_mtime_ns
    main(counting_args(tmp_path / "b"))
    assert same(load(tmp_path / "a"), load(tmp_path / "b"))
    assert (folder / "train_00000.npz").stat().st_mtime_ns == before and not list(folder.glob("*.tmp"))
    meta = [json.loads((tmp_path / x / "Counting-v0/expert/dataset.json").read_text()) for x in "ab"]
    assert meta[0] == meta[1]


def test_damaged_foreign_and_mixed_files_are_refused(tmp_path):
    main(counting_args(tmp_path, num_episodes=2))
    folder = tmp_path / "Counting-v0/expert"
    (tmp_path / "zero_policy.py").write_text("def zero(observation, env):\n    return 0")
    sys.path.insert(0, str(tmp_path))
    for word, value in (("expert", "zero_policy:zero"), ("epsilon", 0.5), ("seed", 9), ("grayscale", False)):
        with pytest.raises(SystemExit, match=f"{word} .*choose another --name"):
            main(counting_args(tmp_path, **{word: value}))
    path = folder / "train_00001.npz"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(SystemExit, match="train_00001.npz is damaged"):
        main(counting_args(tmp_path, num_episodes=2))
    path.write_bytes((folder / "train_00000.npz").read_bytes())  # whole, but another game
    with pytest.raises(SystemExit, match="train_00001.npz is damaged or foreign"):
        main(counting_args(tmp_path, num_episodes=2))
    path.unlink()
    main(counting_args(tmp_path, num_episodes=2))
    assert path.read_bytes() == data or same({"x": dict(np.load(path))}, {"x": dict(np.load(io.BytesIO(data)))})
    (folder / "dataset.json").unlink()
    with pytest.raises(SystemExit, match="no dataset.json"):
        main(counting_args(tmp_path, num_episodes=2))


def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path):
    for change, sentence in (
        ({"env_id": "BreakotNoFrameskip-v4"}, "BreakoutNoFrameskip"),
        ({"env_id": "Counting-v1"}, "`v0`"),
        ({"env_id": "no_such_module:Env-v0"}, "no_such_module"),
        ({"env_id": "ALE/Breakout-v5"}, "NoFrameskip-v4"),
        ({"expert": "embedded"}, "no embedded expert"),
        ({"expert": "nothing.zip"}, "nothing.zip"),
        ({"expert": "no_such_module:policy"}, "no_such_module"),
        ({"epsilon": 2.0}, "between 0 and 1"),
        ({"num_envs": 0}, "between 1 and"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(counting_args(tmp_path, **change))
    assert not list(tmp_path.iterdir())


class Boundless(Counting):
    """Actions of another kind than a flat, bounded Box."""

    def __init__(self, space: gym.Space):
        self.action_space = space


SPACES = {"Boundless-v0": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32), "Bits-v0": gym.spaces.MultiBinary(3),
          "HalfBounded-v0": gym.spaces.Box(0.0, np.inf, (1,), np.float32),
          "Several-v0": gym.spaces.Tuple([gym.spaces.Discrete(2)] * 2)}  # fmt: skip
for name, space in SPACES.items():
    gym.register(name, Boundless, kwargs={"space": space})


@pytest.mark.parametrize("env_id", SPACES)
def test_actions_of_another_kind_are_refused(env_id):
    with pytest.raises(SystemExit, match="bounded float Box") as stop:
        make_env(env_id)
    assert_one_sentence(stop)


# ---- experts


def write_zip(path: Path, weights: dict, data: bytes = b"{}") -> None:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("data", data)


def test_zoo_atari_agent(tmp_path):
    shapes = {"cnn.0": (32, 4, 8, 8), "cnn.2": (64, 32, 4, 4), "cnn.4": (64, 64, 3, 3), "linear.0": (512, 3136)}
    shapes = {f"features_extractor.{key}": shape for key, shape in shapes.items()} | {"action_net": (4, 512)}
    generator = torch.Generator().manual_seed(0)
    weights = {"value_net.weight": torch.zeros(1, 512), "pi_features_extractor.cnn.0.weight": torch.zeros(1, 4, 8, 8)}
    for key, shape in shapes.items():
        weights[f"{key}.weight"] = torch.randn(shape, generator=generator) * 0.05
        weights[f"{key}.bias"] = torch.randn(shape[0], generator=generator) * 0.05
    write_zip(tmp_path / "agent.zip", weights)
    games = Games(BREAKOUT, 2)
    games.reset([0, 1])
    expert = load_expert(str(tmp_path / "agent.zip"), BREAKOUT, games)
    frames = torch.randint(0, 256, (3, 4, 84, 84), generator=generator) / 255
    w = {key: (weights[f"{key}.weight"], weights[f"{key}.bias"]) for key in shapes}
    hidden = frames
    for key, stride in (("cnn.0", 4), ("cnn.2", 2), ("cnn.4", 1)):
        hidden = F.relu(F.conv2d(hidden, *w[f"features_extractor.{key}"], stride=stride))
    hidden = F.relu(F.linear(hidden.flatten(1), *w["features_extractor.linear.0"]))
    assert torch.allclose(expert.network(frames), F.linear(hidden, *w["action_net"]), atol=1e-5)

    rngs = [np.random.default_rng(i) for i in range(2)]
    first = games.frames84.copy()
    assert expert.act(games, rngs, np.ones(2, bool)).shape == (2,)
    assert not expert.stack[:, :3].any() and np.array_equal(expert.stack[:, 3], first)  # oldest first
    games.step(np.zeros(2, np.int64))
    expert.act(games, rngs, np.ones(2, bool))
    assert np.array_equal(expert.stack[:, 2], first) and np.array_equal(expert.stack[:, 3], games.frames84)
    with pytest.raises(SystemExit, match="4 outputs, this environment takes 6"):
        load_expert(str(tmp_path / "agent.zip"), "PongNoFrameskip-v4", Games("PongNoFrameskip-v4", 1))


class RunningMeanStd:
    """Stands for stable-baselines3's class of that name."""


class VecNormalize:
    """Stands for stable-baselines3's class of that name."""


def test_zoo_vector_agent_with_statistics(tmp_path):
    weights = {"log_std": torch.tensor([-20.0])}
    for key, shape in {"mlp_extractor.policy_net.0": (2, 3), "action_net": (1, 2)}.items():
        weights[f"{key}.weight"], weights[f"{key}.bias"] = torch.ones(shape), torch.zeros(shape[0])
    write_zip(tmp_path / "agent.zip", weights)
    stats, stats.obs_rms = (VecNormalize(), RunningMeanStd())[0], RunningMeanStd()
    stats.obs_rms.mean, stats.obs_rms.var = np.array([1.0, 0.0, 0.0]), np.array([4.0, 1.0, 1.0])
    stats.epsilon, stats.clip_obs = 0.0, 10.0
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(stats))
    games = Games("Drawn-v0", 1)
    games.reset([0])
    games.obs = [np.array([3.0, 0.5, -1000.0], np.float32)]
    expert = load_expert(str(tmp_path / "agent.zip"), "Drawn-v0", games)
    action = expert.act(games, [np.random.default_rng(0)], np.ones(1, bool))
    assert np.allclose(action, 2 * np.tanh(1.0 + 0.5 - 10.0), atol=1e-6)  # (3 - 1) / 2, 0.5, clipped to -10
    stats.norm_obs = False
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(stats))
    assert np.array_equal(load_expert(str(tmp_path / "agent.zip"), "Drawn-v0", games).observe(games), games.obs)
    weights["mlp_extractor.policy_net.0.weight"] = torch.ones(2, 24)
    write_zip(tmp_path / "wide.zip", weights)
    with pytest.raises(SystemExit, match="cannot play Drawn-v0 .RuntimeError: mat1 and mat2"):
        load_expert(str(tmp_path / "wide.zip"), "Drawn-v0", games)
    write_zip(tmp_path / "elu.zip", weights, b'{"activation_fn": "torch.nn.modules.activation.ELU"}')
    with pytest.raises(SystemExit, match="only ReLU and Tanh are known"):
        load_expert(str(tmp_path / "elu.zip"), "Drawn-v0", games)


class Malicious:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('executed').touch()",)


def test_no_pickle_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    StatisticsUnpickler(io.BytesIO(pickle.dumps({"mean": np.ones(3), "bad": Malicious()}))).load()
    with zipfile.ZipFile("agent.zip", "w") as archive:
        archive.writestr("policy.pth", pickle.dumps(Malicious()))
    torch.save({"actor": Malicious()}, "actor.pt")
    games = Games("Drawn-v0", 1)
    for file in ("agent.zip", "actor.pt"):
        with pytest.raises(SystemExit, match=f"{file} cannot play"):
            load_expert(file, "Drawn-v0", games)
    assert not Path("executed").exists()


def test_own_actor(tmp_path):
    actor = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, 16, 8, 4), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 4, 2), torch.nn.ReLU()),
        *(torch.nn.Conv2d(32, 32, 3, 1), torch.nn.ReLU(), torch.nn.Flatten()),
        *(torch.nn.Linear(512, 256), torch.nn.ReLU(), torch.nn.Linear(256, 4)),
    )
    state = {key: value.half() for key, value in actor.state_dict().items()}
    saved = {"env_id": BREAKOUT, "format": "ppo-actor-64", "actor": state, "num_actions": 4}
    torch.save(saved, tmp_path / "actor.pt")
    games = Games(BREAKOUT, 2)
    games.reset([0, 1])
    expert = load_expert(str(tmp_path / "actor.pt"), BREAKOUT, games)
    frames = torch.rand(3, 4, 64, 64)
    assert torch.allclose(expert.network(frames), actor(frames), atol=1e-2)
    expert.act(games, [np.random.default_rng(i) for i in range(2)], np.ones(2, bool))
    assert np.array_equal(expert.stack[:, 3], games.seen[..., 0])
    with pytest.raises(SystemExit, match="trained on Breakout"):
        load_expert(str(tmp_path / "actor.pt"), "PongNoFrameskip-v4", Games("PongNoFrameskip-v4", 1))


def test_user_policy_on_atari(tmp_path, monkeypatch):
    code = "def aim(stack, env):\n    assert stack.shape == (4, 84, 84)\n    return env.ale.getRAM()[99] % 4"
    (tmp_path / "ram_policy.py").write_text(code)
    monkeypatch.chdir(tmp_path)  # a module in the folder where the command is typed
    args = Args(expert="ram_policy:aim", num_envs=2, max_steps=20)
    assert [episode["seed"] for episode in collect(args, tmp_path, [("a.npz", 1), ("b.npz", 2)])] == [1, 2]
    assert np.load("a.npz")["actions"].shape == (20,)


@pytest.mark.parametrize("wrong", [3, 1.5, np.nan, [0, 0]])
def test_a_users_impossible_action_is_named(monkeypatch, wrong):
    env_id = "Blocks-v0" if np.size(wrong) == 1 and np.isfinite(wrong) else "Slide-v0"
    monkeypatch.setattr(tiny, "expert", lambda observation, env: wrong)
    games = Games(env_id, 1)
    with pytest.raises(SystemExit, match="action .* is none of") as stop:
        list(play(games, Policy(games, load_expert("tiny:expert", env_id, games)), [1]))
    assert_one_sentence(stop)


def test_processes_play_the_same_games(tmp_path):
    args = Args(env_id="tiny:Blocks-v0", expert="tiny:expert", epsilon=0.1, num_episodes=3, num_val_episodes=1)
    main(replace(args, data_dir=str(tmp_path / "a"), num_processes=2))
    main(replace(args, data_dir=str(tmp_path / "b"), num_processes=1))
    assert same(load(tmp_path / "a", args.env_id), load(tmp_path / "b", args.env_id))
    assert len(load(tmp_path / "a", args.env_id)) == 4


def test_auto_asks_the_hub_and_says_what_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
    assert choose_expert("auto", BREAKOUT, None) == "embedded" and "the embedded one" in capsys.readouterr().out
    hub, errors, asked = types.ModuleType("huggingface_hub"), types.ModuleType("errors"), []
    errors.EntryNotFoundError = FileNotFoundError

    def hf_hub_download(repo, file, etag_timeout):
        asked.append((repo, file))
        if file == "vec_normalize.pkl":
            raise FileNotFoundError
        return str(tmp_path / file)

    hub.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    repo = f"sb3/ppo-{BREAKOUT}"
    assert choose_expert("auto", BREAKOUT, None) == repo and "Hub" in capsys.readouterr().out
    assert asked == [(repo, f"ppo-{BREAKOUT}.zip"), (repo, "vec_normalize.pkl")]
    name = "embedded:breakout-lookahead"
    assert choose_expert("auto", BREAKOUT, name) == name  # what the data set began with
    assert choose_expert("auto", BREAKOUT, f"{repo}:ppo.zip:0") == repo
    assert choose_expert("random", BREAKOUT, None) == "random"


@pytest.mark.parametrize("name", ["embedded", "embedded:breakout-lookahead"])
def test_breakouts_players_keep_the_ball(name):
    games = Games(BREAKOUT, 1, max_steps=250)
    expert = load_expert(name, BREAKOUT, games)
    assert expert.name == ("embedded:breakout-follower" if name == "embedded" else name) and expert.max_steps == 2000
    (game,) = play(games, Policy(games, expert), [5], keep=[5])
    assert game["rewards"].sum() >= 4 and game["lives"].min() == 5


def test_an_unknown_embedded_player_is_refused():
    with pytest.raises(SystemExit, match="breakout-follower, breakout-lookahead") as stop:
        load_expert("embedded:breakout-guess", BREAKOUT, Games(BREAKOUT, 1))
    assert_one_sentence(stop)


def test_the_follower_by_hand():
    before, now = np.zeros(128, np.uint8), np.zeros(128, np.uint8)
    player = Follower.__new__(Follower)
    player.game, player.ale, player.last, player.action = (
        "breakout",
        types.SimpleNamespace(getRAM=lambda: now),
        before,
        0,
    )
    stay, fire, right, left = 0, 1, 2, 3

    def act(along, across, own):  # ball's place (before, now) along and across, the paddle's
        before[99], now[99], before[101], now[101] = *along, *across
        before[72] = now[72] = own
        return player.aim((0, 6), 14, 2)

    # falls by 4 and moves right by 3: in two steps at 106, above the middle of a paddle at 97 (its centre is at + 9)
    assert act((97, 100), (146, 150), 97) == stay and act((97, 100), (146, 150), 90) == right
    assert act((97, 100), (146, 150), 104) == left
    # two pixels above the line at 178: half a step, so at 101.5
    assert act((97, 100), (172, 176), 87) == stay and act((97, 100), (172, 176), 86) == right
    # reflected at the wall at 202: 200 + 2 * 3 = 206 becomes 198
    assert act((197, 200), (146, 150), 189) == stay
    # flies away: where the ball is, within 14
    assert act((97, 100), (150, 146), 104) == stay and act((97, 100), (150, 146), 106) == left
    assert act((97, 100), (150, 0), 90) == fire


@pytest.mark.parametrize("game, steps, enough", [("Boxing", 500, 40), ("Qbert", 300, 525)])
def test_rules_play(game, steps, enough):
    env_id = f"{game}NoFrameskip-v4"
    games = Games(env_id, 1, max_steps=steps)
    (played,) = play(games, Policy(games, load_expert("embedded", env_id, games)), [5])
    assert played["return"] >= enough  # a random policy: 0 and 150 in these steps, at best


def test_pong_rally_by_hand():
    before, now = np.zeros(128, np.uint8), np.zeros(128, np.uint8)
    ale = types.SimpleNamespace(getRAM=lambda: now)
    env = types.SimpleNamespace(ale=ale, last=before, rng=types.SimpleNamespace(random=lambda: 1.0))
    stay, fire, up, down = 0, 1, 2, 3

    def act(across, along, own):  # each (before, now)
        for value, place in zip((across, along, own), (49, 54, 51)):
            before[place], now[place] = value
        return pong_rally(None, env)

    # 22 steps to the line at 188: 150 + 22 * 4 = 238, reflected at 206: 174, where the paddle's middle belongs
    assert act((96, 100), (146, 150), (100, 100)) == down
    assert act((96, 100), (146, 150), (166, 166)) == stay
    assert act((96, 100), (146, 150), (146, 166)) == up  # slides on by 19
    assert act((96, 100), (146, 150), (150, 150)) == down and act((96, 100), (146, 150), (157, 157)) == stay
    assert act((100, 96), (60, 60), (110, 110)) == stay and act((100, 96), (60, 60), (140, 140)) == up  # flies away
    assert act((0, 0), (60, 60), (110, 110)) == fire and act((0, 50), (60, 60), (140, 140)) == stay


def test_pong_rally_is_even_with_the_console():
    games = Games("PongNoFrameskip-v4", 1, max_steps=250)
    expert = load_expert("expert_policies:pong_rally", "PongNoFrameskip-v4", games)
    (game,) = play(games, Policy(games, expert), [5])
    assert abs(game["return"]) <= 1  # a random policy has lost four to six points by then


def test_painter_follows_his_rule():
    games = Games("QbertNoFrameskip-v4", 1)
    games.reset([0])
    player = load_expert("embedded", "QbertNoFrameskip-v4", games).make(games, 0, np.random.default_rng(0))
    player.follow, player.rng = lambda: None, types.SimpleNamespace(random=lambda: 1.0)
    memory = np.zeros(128, np.uint8)
    player.ale = types.SimpleNamespace(getRAM=lambda: memory)
    down, right, up, left = 5, 3, 2, 4
    colour = dict(zip(player.cubes, player.colour))

    def act(row, column, flight=0):
        memory[67], memory[35], memory[55] = 25 + 28 * row, 5 - row + 2 * column, flight
        player.goal = None if flight == 0 else player.goal
        return player.act(True)

    assert act(0, 0) == down and act(5, 2) == left  # first to the bottom left
    memory[colour[5, 0]] = 7
    assert act(4, 1) == right and act(5, 1) == up  # then along the bottom
    memory[colour[5, 5]] = 7
    memory[[colour[cube] for cube in ((1, 0), (0, 0), (2, 1))]] = 7
    assert act(1, 0) == down  # then to the nearest: the top and the lower right cube are painted
    memory[colour[2, 0]] = 7
    assert act(1, 0) == down  # nothing beside him; four cubes are two hops away, one of them below
    memory[:] = 9
    assert act(1, 0) == down  # a new round: the colour that all have is the unpainted one
    memory[colour[5, 0]] = memory[colour[5, 5]] = 7
    assert act(1, 0) == down
    memory[67], memory[35], memory[55] = 60, 5 - 2 + 2 * 0, 250  # hops from (1, 0) to (2, 0), first half
    assert player.act(True) == down
    memory[colour[3, 0]] = 7
    memory[55] = 235  # second half: (3, 0) is painted, (3, 1) is not
    assert player.act(True) == right
    memory[67], memory[35] = 181, 0  # falling beside the pyramid
    assert player.act(True) == 0


def unseen(env_id: str, num_envs: int) -> Games:
    """Games that are not rendered."""
    return Games(env_id, num_envs, make=lambda: gym.make(env_id))


def test_walker_walks():
    pytest.importorskip("Box2D")
    games = unseen("BipedalWalker-v3", 1)
    (game,) = play(games, Policy(games, load_expert("embedded", "BipedalWalker-v3", games)), [1], keep=[1])
    assert game["return"] > 250 and game["actions"].shape[1] == 4


def test_pendulum_swings_up_by_hand():
    push = lambda observation: pendulum_swing_up(observation, None)  # noqa: E731
    assert push(np.array([-1.0, 0.0, 0.5])) == 2 and push(np.array([-1.0, 0.0, -0.5])) == -2  # hanging: with the swing
    assert push(np.array([0.0, 1.0, 6.0])) == -2  # too fast: 18 of 15
    assert push(np.array([0.0, 1.0, 5.0])) == 2 and push(np.array([0.0, 1.0, -5.4])) == pytest.approx(-0.42)
    assert push(np.array([np.cos(0.1), np.sin(0.1), -0.3])) == pytest.approx(-0.4, abs=1e-6)  # -10 * 0.1 + 2 * 0.3


def test_pendulum_stands():
    pytest.importorskip("pygame")
    games = unseen("Pendulum-v1", 4)
    played = play(games, Policy(games, load_expert("embedded", "Pendulum-v1", games)), [1, 2, 3, 4])
    returns = [game["return"] for game in played]
    assert np.mean(returns) > -250 and min(returns) > -450  # random: -1238


def test_a_missing_renderer_is_named_at_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="pygame is not installed") as stop:
        make_env("Acrobot-v1")
    assert_one_sentence(stop)


def test_acrobot_swings_up():
    pytest.importorskip("pygame")
    games, seeds = unseen("Acrobot-v1", 4), [1, 2, 3, 4]
    played = [*play(games, Policy(games, load_expert("embedded", "Acrobot-v1", games)), seeds, keep=seeds)]
    assert all(-200 < game["return"] < -50 for game in played)  # random: -500
    assert set(np.concatenate([game["actions"] for game in played])) == {0, 2}


def test_every_atari_id_has_a_rom():
    ids = [env_id for env_id in gym.registry if env_id.endswith("NoFrameskip-v4")]
    missing = [i for i in ids if not ale_py.roms.get_rom_path(gym.spec(i).kwargs["game"])]
    assert len(ids) > 50 and not missing
