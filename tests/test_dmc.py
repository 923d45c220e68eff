"""dmc.py: settings, rewards and repeats of the tasks, the files it writes, whole runs (those need dm_control)."""

import importlib.util
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_dmc
import torch
from tiny import assert_one_sentence

import dmc
from dmc import Trajectories

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmark"))
import add_pictures

installed = all(importlib.util.find_spec(name) for name in ("dm_control", "stable_baselines3"))
needs_dmc = pytest.mark.skipif(not installed, reason="needs requirements-dmc.txt")


@pytest.mark.parametrize(
    "env_id, setting, sizes",
    [
        ("walker-walk", "mdp", [14, 1, 9]),
        ("walker-walk", "lpomdp", [14, 1]),
        ("cheetah-flip", "mdp", [8, 9]),
        ("cheetah-flip", "lpomdp", [8]),
        ("cheetah-flip", "visual", [3]),
    ],
)
def test_sensors_of_the_settings(env_id, setting, sizes):
    assert list(dmc.observed(env_id, setting).values()) == sizes


@pytest.mark.parametrize(
    "env_id, velocity, reward",
    [
        ("cheetah-runb", [-4.0, 9.0, 9.0], 0.4),
        ("cheetah-runb", [4.0, 9.0, 9.0], 0.0),
        ("cheetah-runb", [-40.0, 9.0, 9.0], 1.0),
        ("cheetah-flip", [9.0, 9.0, 2.0], 0.4),
        ("cheetah-flip", [9.0, 9.0, -2.0], 0.0),
        ("cheetah-flipb", [9.0, 9.0, -2.0], 0.4),
    ],
)
def test_custom_rewards_by_hand(env_id, velocity, reward):
    env = object.__new__(dmc.DMC)
    env.env_id = env_id
    assert env.custom_reward(np.array(velocity)) == pytest.approx(reward)


def test_unknown_task_is_named():
    with pytest.raises(SystemExit, match="walker-fly") as stop:
        dmc.observed("walker-fly", "mdp")
    assert_one_sentence(stop)


@needs_dmc
@pytest.mark.parametrize("env_id", ["walker-walk", "cheetah-run"])
def test_sensors_are_drawn_as_the_pose_they_come_from(env_id, monkeypatch):
    env, drawn, poses = dmc.DMC(env_id, "lpomdp"), dmc.DMC(env_id, "lpomdp"), []
    monkeypatch.setattr(drawn, "render", lambda side: poses.append(drawn.task.physics.data.qpos.copy()) or np.zeros(3))
    rng, seen, true = np.random.default_rng(0), [env.reset(seed=1)[0]], [env.task.physics.data.qpos.copy()]
    for _ in range(60):
        seen.append(env.step(rng.uniform(-1, 1, 6))[0])
        true.append(env.task.physics.data.qpos.copy())
    drawn.draw(torch.from_numpy(np.stack(seen)))
    away = np.array(true) - poses
    away[:, 1 if env_id == "walker-walk" else 0] = 0  # the way it has gone is not among the sensors
    assert len(poses) == 61 and np.abs((away + np.pi) % (2 * np.pi) - np.pi).max() < 1e-5


@pytest.mark.parametrize("problem", [ImportError("No module named 'dm_control'"), AttributeError("flex_vertedge")])
def test_a_simulator_that_does_not_load_is_named_and_costs_phase_1_only_its_pictures(monkeypatch, problem):
    """Missing, or with a MuJoCo that it does not fit: a training of recorded sensors goes on."""
    suite = mock.Mock(load=mock.Mock(side_effect=problem))
    monkeypatch.setitem(sys.modules, "dm_control", mock.Mock(suite=suite))
    with pytest.raises(SystemExit, match="requirements-dmc.txt") as stop:
        dmc.DMC("walker-walk")
    assert_one_sentence(stop)
    run = mock.Mock()
    assert dmc.draw(run, None, None, mock.Mock(setting="lpomdp", env_id="walker-walk")) == {} and not run.draw.called


def test_recorder_writes_aligned_rows(tmp_path):
    """The action of a row led there: sensors of the fake body move by its mean."""

    class Sensed(tiny_dmc.FakeDMC):
        action_space = dmc.gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

        def info(self):
            return {"height": np.float32([self.place])}

        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], self.info()

        def step(self, action):
            return *super().step(np.clip(action, -1, 1))[:4], self.info()

    recorder = object.__new__(dmc.Recorder)
    recorder.env, recorder.folder, recorder.bar = Sensed("walker-walk"), tmp_path, dmc.progress(2, "{n}")
    recorder.returns, recorder._action_space = [], Sensed.action_space
    for game in range(3):  # the third is not wanted any more
        recorder.reset(seed=game)
        ended, k = False, 0
        while not ended:
            _, _, _, ended, _ = recorder.step(np.full(6, 2.0 if k == 3 else 0.1 * (k % 5)))
            k += 1
    assert sorted(path.name for path in tmp_path.glob("*")) == ["0.npz", "1.npz"]
    with np.load(tmp_path / "1.npz") as npz:
        assert npz["reward"].shape == (13, 1) and npz["pre_action"].shape == (13, 6) and npz["height"].shape == (13, 1)
        assert (
            npz["is_first"][:, 0].tolist() == [True] + [False] * 12 and npz["is_last"][-1, 0] and not npz["reward"][0]
        )
        assert not npz["pre_action"][0].any() and npz["pre_action"][4].tolist() == [1.0] * 6  # clipped: what was played
        np.testing.assert_allclose(np.diff(npz["height"][:, 0]), 0.2 * npz["pre_action"][1:].mean(-1), atol=1e-6)
        np.testing.assert_allclose(npz["reward"][1:, 0], npz["pre_action"][1:].mean(-1), atol=1e-6)


@needs_dmc
def test_observations_actions_and_repeats():
    from dm_control import suite

    env = dmc.DMC("walker-walk", "mdp", max_steps=3)
    first, info = env.reset(seed=5)
    assert first.shape == (24,) and first.dtype == np.float32 and env.observation_space.contains(first)
    np.testing.assert_array_equal(first, np.concatenate([info["orientations"], info["height"], info["velocity"]]))
    assert not np.array_equal(env.reset(seed=6)[0], first) and np.array_equal(env.reset(seed=5)[0], first)
    partial = dmc.DMC("walker-walk", "lpomdp")
    np.testing.assert_array_equal(partial.reset(seed=5)[0], first[:15])
    action, time = np.full(6, 0.3, np.float32), env.task.physics.time()
    _, reward, terminated, truncated, _ = env.step(action)
    assert env.task.physics.time() - time == pytest.approx(0.05) and not terminated and not truncated  # two of 0.025 s
    reference = suite.load("walker", "walk")
    reference.task.random.seed(5)
    reference.reset()
    assert reward == pytest.approx(sum(reference.step(action.astype(float)).reward for _ in range(2)))
    env.step(action)
    assert env.step(action)[2:4] == (False, True)


@needs_dmc
def test_custom_reward_is_read_once_per_decision():
    env = dmc.DMC("cheetah-flip", "lpomdp")
    env.reset(seed=1)
    _, reward, _, _, info = env.step(np.array([1.0, -1, 1, -1, 1, -1]))
    assert reward == pytest.approx(np.clip(info["velocity"][2] / 5, 0, 1), abs=1e-6)
    names = [env.task.physics.model.id2name(k, "joint") for k in range(3)]
    assert names == ["rootx", "rootz", "rooty"]


@needs_dmc
def test_commands_make_data_that_the_loader_reads(tmp_path):
    short = dict(data_dir=str(tmp_path), num_episodes=2, num_demonstrations=2, max_steps=20)
    result = dmc.main(dmc.Args(env_id="walker-stand", **short))
    assert set(result) == {"walker-stand-buffer", "walker-stand-expert"}
    assert dmc.main(dmc.Args(env_id="walker-stand", **short)) == {}  # nothing is missing
    wide = dict(env_id="walker-stand", name="walker-wide", target_entropy=0.0, noise=0.5)
    assert set(dmc.main(dmc.Args(**wide, **short))) == {"walker-wide-buffer", "walker-wide-expert"}
    with pytest.raises(SystemExit, match="--target-entropy, --noise") as stop:
        dmc.main(dmc.Args(env_id="walker-stand", name="walker-wide", **short))
    assert_one_sentence(stop)
    dmc.main(dmc.Args(env_id="walker-run", agent="random", **short))
    for name in ("walker-stand-buffer", "walker-stand-expert", "walker-random"):
        data = Trajectories([str(tmp_path / name)], dmc.observed("walker-stand", "mdp"))
        assert data.obs.shape == (42, 24) and data.prev_action.shape == (42, 6)
        meta = json.loads((tmp_path / name / "dataset.json").read_text())
        assert meta["expert_returns"] == pytest.approx(data.returns, rel=1e-4) and len(meta["random_returns"]) == 20
        assert not (tmp_path / name / "unfinished").exists()


@needs_dmc
def test_pictures_are_added_to_recorded_games(tmp_path, monkeypatch):
    """Every second game of all kinds of data is played as it was; the picture shows the torso's height."""
    draw = lambda env: np.full((64, 64, 3), 100 * env.task.physics.named.data.xpos["torso", "z"], np.uint8)  # noqa: E731
    monkeypatch.setattr(dmc.DMC, "render", draw)
    short = dict(data_dir=str(tmp_path / "sensors"), num_episodes=4, num_demonstrations=4, max_steps=20)
    dmc.main(dmc.Args(env_id="walker-stand", **short))
    dmc.main(dmc.Args(env_id="walker-run", agent="random", **short))
    folders = dict(data_dir=str(tmp_path / "sensors"), out_dir=str(tmp_path / "pictures"))
    for name in ("walker-stand-buffer", "walker-stand-expert", "walker-random"):
        add_pictures.main(add_pictures.Args(data=name, every=2, **folders))
        assert [file.name for file in dmc.recordings(tmp_path / "pictures" / name)] == ["0.npz", "2.npz"]
        for number in (0, 2):
            old, new = (np.load(tmp_path / kind / name / f"{number}.npz") for kind in ("sensors", "pictures"))
            assert set(new.files) == {*old.files, "image"} and all(np.array_equal(old[k], new[k]) for k in old.files)
            height = new["image"][:, 0, 0, 0]
            np.testing.assert_array_equal(height, (100 * old["height"][:, 0]).astype(np.uint8))
        assert len(Trajectories([str(tmp_path / "pictures" / name)], {"image": 3}).obs) == 42
    tiny_dmc.rewrite(tmp_path / "sensors" / "walker-random", lambda a: {k: v for k, v in a.items() if k != "velocity"})
    (tmp_path / "pictures" / "walker-random" / "0.npz").unlink()
    add_pictures.main(add_pictures.Args(data="walker-random", every=2, **folders))  # what is kept is compared
    tiny_dmc.rewrite(tmp_path / "sensors" / "walker-random", lambda a: a | {"height": a["height"] + 1e-6})
    (tmp_path / "pictures" / "walker-random" / "2.npz").unlink()
    with pytest.raises(SystemExit, match="2.npz: height came out otherwise") as stop:
        add_pictures.main(add_pictures.Args(data="walker-random", every=2, **folders))
    assert_one_sentence(stop)
    assert (tmp_path / "pictures" / "walker-random" / "unfinished").exists()
    for changes, text in ((dict(out_dir=folders["data_dir"]), "another --out-dir"), (dict(every=0), "--every 0")):
        with pytest.raises(SystemExit, match=text) as stop:
            add_pictures.main(add_pictures.Args(data="walker-random", **folders | changes))
        assert_one_sentence(stop)
    tiny_dmc.rewrite(tmp_path / "pictures" / "walker-stand-expert", lambda a: a | {"pre_action": a["pre_action"] + 1})
    add_pictures.main(add_pictures.Args(data="walker-stand-expert", every=2, **folders))  # an earlier agent's: anew
    with np.load(tmp_path / "pictures" / "walker-stand-expert" / "0.npz") as npz:
        assert np.abs(npz["pre_action"]).max() <= 1


def test_data_of_other_settings_are_not_taken_for_these(tmp_path, capsys):
    tiny_dmc.write_trajectories(tmp_path / "walker-random", 2)
    meta_file = tmp_path / "walker-random" / "dataset.json"
    meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
    meta_file.write_text(json.dumps(meta | {"args": {"seed": 1, "pixels": False, "max_steps": 500}}))
    args = dict(env_id="walker-run", agent="random", data_dir=str(tmp_path), num_episodes=2)
    assert dmc.main(dmc.Args(**args)) == {} and "complete, 2 games" in capsys.readouterr().out
    for changes, flag in (({"seed": 2}, "--seed"), ({"pixels": True}, "--pixels"), ({"max_steps": 20}, "--max-steps")):
        with pytest.raises(SystemExit, match=flag) as stop:
            dmc.main(dmc.Args(**args | changes))
        assert_one_sentence(stop)


def test_games_of_an_earlier_agent_do_not_survive(tmp_path, monkeypatch):
    for name in ("walker-stand-buffer", "walker-stand-expert"):
        tiny_dmc.write_trajectories(tmp_path / name, 3)
        (tmp_path / name / "dataset.json").write_text("{}")

    def train(args, folder):
        dmc.Recorder(dmc.gym.Env(), folder, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(dmc, "train_sac", train)
    with pytest.raises(KeyboardInterrupt):  # more games are wanted than there are: a new agent
        dmc.main(dmc.Args(env_id="walker-stand", data_dir=str(tmp_path), num_episodes=4, num_demonstrations=3))
    assert not list((tmp_path / "walker-stand-buffer").glob("*.npz"))
    assert (tmp_path / "walker-stand-expert" / "unfinished").exists()  # to be played by the new agent


def test_data_of_others_are_not_overwritten(tmp_path):
    tiny_dmc.write_trajectories(tmp_path / "walker-random", 2)
    (tmp_path / "walker-random" / "dataset.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit, match="did not make") as stop:
        dmc.Recorder(dmc.gym.Env(), tmp_path / "walker-random", 4)
    assert_one_sentence(stop)
    assert len(list((tmp_path / "walker-random").glob("*.npz"))) == 2


@pytest.mark.parametrize("max_steps", [0, 501])
def test_length_of_a_game_is_checked(tmp_path, max_steps):
    with pytest.raises(SystemExit, match="--max-steps") as stop:
        dmc.main(dmc.Args(data_dir=str(tmp_path), max_steps=max_steps))
    assert_one_sentence(stop)
