"""ditto.py: equations on hand-computed numbers, time-steps, gradients, a probe with an exact model, whole runs."""

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import assert_one_sentence, interrupt, read_log, same_tensors

import collect_data
import ditto
import world_model
from ditto import (
    Actor,
    Args,
    ExpertWindows,
    actor_loss,
    critic_loss,
    intrinsic_reward,
    lambda_return,
    mlp,
)
from world_model import Episodes, Games, WorldModel, play, player

ROOT = Path(ditto.__file__).parent
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOG_KEYS = {"losses/policy", "losses/value", "losses/entropy", "imagine/reward", "imagine/value",
            "imagine/reward_first", "imagine/reward_last", "expert/latent_distance", "expert/action_agreement",
            "expert/latent_distance_expert_actions", "eval/return_mean", "eval/return_std", "eval/return_vs_expert",
            "charts/SPS", "charts/seconds", "charts/imagined_steps"}  # fmt: skip


# equations


@pytest.mark.parametrize(
    "agent, expert, reward",
    [
        ([3.0, 4.0], [3.0, 4.0], 1.0),
        ([3.0, 4.0], [-3.0, -4.0], -1.0),
        ([3.0, 4.0], [6.0, 8.0], 0.5),  # 50 / 10^2: half the length is half the reward
        ([6.0, 8.0], [3.0, 4.0], 0.5),
        ([1.0, 0.0], [0.0, 5.0], 0.0),
        ([1.0, 2.0], [2.0, 2.0], 0.75),  # 6 / 8
        ([0.0, 0.0], [1.0, 1.0], 0.0),
    ],
)
def test_intrinsic_reward_by_hand(agent, expert, reward):
    assert intrinsic_reward(torch.tensor(agent), torch.tensor(expert)).item() == pytest.approx(reward)


def test_intrinsic_reward_bounds_and_shape():
    torch.manual_seed(0)
    agent, expert = torch.randn(7, 5, 3), torch.randn(7, 5, 3)
    reward = intrinsic_reward(agent, expert)
    assert reward.shape == (7, 5) and reward.abs().max() < 1
    assert intrinsic_reward(torch.zeros(3), torch.zeros(3)).isfinite()


def test_ablation_rewards_by_hand():
    agent, expert = torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])
    assert intrinsic_reward(agent, expert, "l2").item() == -5.0
    assert intrinsic_reward(agent, expert, "cosine").item() == pytest.approx(1.0)  # blind to length
    assert intrinsic_reward(agent, torch.tensor([4.0, 3.0]), "cosine").item() == pytest.approx(24 / 25)


@pytest.mark.parametrize(
    "lam, expected",
    [
        (0.5, [6.5, 12.0]),  # V_1 = 2 + 0.5 * 20 = 12; V_0 = 1 + 0.5 * (0.5 * 10 + 0.5 * 12) = 6.5
        (0.0, [6.0, 12.0]),  # one step: 1 + 0.5 * 10
        (1.0, [7.0, 12.0]),  # Monte Carlo and the last value: 1 + 0.5 * 2 + 0.25 * 20
    ],
)
def test_lambda_return_by_hand(lam, expected):
    reward, value = torch.tensor([[1.0], [2.0]]), torch.tensor([[1000.0], [10.0], [20.0]])  # value[0] is not used
    assert lambda_return(reward, value, 0.5, lam)[:, 0].tolist() == expected


def test_lambda_return_keeps_streams_apart():
    reward, value = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 4.0]])
    returns = lambda_return(reward, value, 0.5, 0.5)
    assert returns.tolist() == [[6.5, 0.5], [12.0, 2.0]]


def test_critic_loss_by_hand():
    value, returns = torch.tensor([[1.0], [3.0]], requires_grad=True), torch.tensor([[2.0], [1.0]], requires_grad=True)
    loss = critic_loss(value, returns)
    assert loss.item() == 1.25  # (1/2 + 4/2) / 2
    loss.backward()
    assert value.grad[:, 0].tolist() == [-0.5, 1.0] and returns.grad is None


def test_actor_loss_by_hand():
    log_prob, entropy, advantage = (
        torch.tensor(x, requires_grad=True) for x in ([[-1.0], [-2.0]], [[0.5], [0.7]], [[2.0], [-3.0]])
    )
    loss = actor_loss(log_prob, entropy, advantage, 0.1)
    # minus the mean of -1 * 2 + 0.1 * 0.5 = -1.95 and -2 * -3 + 0.1 * 0.7 = 6.07
    assert loss.item() == pytest.approx(-2.06)
    loss.backward()
    assert log_prob.grad[:, 0].tolist() == [-1.0, 1.5] and advantage.grad is None
    assert entropy.grad[:, 0].tolist() == pytest.approx([-0.05, -0.05])


# actor


def constant_actor(outputs: list[float], **options) -> Actor:
    """An actor whose network gives the same numbers for every state (feature size 1)."""
    discrete = options.pop("discrete")
    actor = Actor(1, len(outputs) // (1 if discrete else 2), discrete, 0, 0, **options)
    with torch.no_grad():
        actor.net[0].weight.zero_()
        actor.net[0].bias.copy_(torch.tensor(outputs))
    return actor


def test_categorical_actor_by_hand():
    actor = constant_actor([math.log(0.1), math.log(0.2), math.log(0.7)], discrete=True)
    log_prob, entropy = actor.log_prob(torch.zeros(3, 1), torch.eye(3))
    assert log_prob.tolist() == pytest.approx([math.log(0.1), math.log(0.2), math.log(0.7)])
    assert entropy.tolist() == pytest.approx([0.2302585 + 0.3218876 + 0.2496725] * 3)
    assert actor.mode(torch.zeros(1, 1)).tolist() == [[0.0, 0.0, 1.0]]
    torch.manual_seed(0)
    samples = actor.sample(torch.zeros(20_000, 1))
    assert samples.sum(-1).eq(1).all()
    torch.testing.assert_close(samples.mean(0), torch.tensor([0.1, 0.2, 0.7]), atol=0.015, rtol=0)


@pytest.mark.parametrize("mean, raw", [(0.3, 0.0), (-1.0, 1.0), (0.0, -1.5)])
def test_squashed_gaussian_density_integrates_to_one(mean, raw):
    actor = constant_actor([mean, raw], discrete=False, low=[-2.0], high=[3.0])
    width = 5.0 / 50_000
    action = (-2.0 + width * (torch.arange(50_000, dtype=torch.float64) + 0.5)).float()[:, None]
    density = actor.log_prob(torch.zeros(len(action), 1), action)[0].exp()
    assert (density.double().sum() * width).item() == pytest.approx(1.0, abs=2e-3)


def test_squashed_gaussian_of_two_actions():
    actor = constant_actor([0.3, -0.2, 0.0, 1.0], discrete=False, low=[-1.0, 0.0], high=[1.0, 4.0])
    one = [constant_actor([0.3, 0.0], discrete=False, low=[-1.0], high=[1.0]),
           constant_actor([-0.2, 1.0], discrete=False, low=[0.0], high=[4.0])]  # fmt: skip
    torch.manual_seed(0)
    feat = torch.zeros(1000, 1)
    action = actor.sample(feat)
    assert (action >= torch.tensor([-1.0, 0.0])).all() and (action <= torch.tensor([1.0, 4.0])).all()
    parts = [part.log_prob(feat, action[:, [i]]) for i, part in enumerate(one)]
    log_prob, entropy = actor.log_prob(feat, action)
    torch.testing.assert_close(log_prob, parts[0][0] + parts[1][0])
    assert entropy.shape == (1000,) and entropy.std() > 0.1  # an estimate: see the next test
    # the mean is 5 tanh(output / 5): 0.2996404 and -0.1998935
    assert actor.mode(feat[:1]).tolist()[0] == pytest.approx([math.tanh(0.2996404), 2 + 2 * math.tanh(-0.1998935)])
    edge = torch.tensor([[1.0, 4.0]])
    assert actor.log_prob(feat[:1], edge)[0].isfinite()


@pytest.mark.parametrize("mean, raw", [(0.3, 0.0), (-1.0, 1.0), (0.0, -1.5), (0.0, 8.0)])
def test_entropy_of_the_squashed_gaussian(mean, raw):
    actor = constant_actor([mean, raw], discrete=False, low=[-2.0], high=[3.0])
    # of x = mean + std * e, and of action = 0.5 + 2.5 tanh(x): H(x) + E[log(2.5 (1 - tanh(x)^2))], integrated over e
    std, mean = math.log1p(math.exp(raw)) + 0.05, 5 * math.tanh(mean / 5)
    e = np.linspace(-8, 8, 200_001)
    weight = np.exp(-0.5 * e**2) / np.sqrt(2 * np.pi) * (e[1] - e[0])
    slope = 2 * np.log(1 / np.cosh(np.clip(mean + std * e, -300, 300))) + math.log(2.5)
    expected = math.log(std) + 1.4189385 + float((weight * slope).sum())
    torch.manual_seed(0)
    entropy = actor.log_prob(torch.zeros(200_000, 1), torch.full((200_000, 1), 0.5))[1]
    error = 4 * entropy.std().item() / 200_000**0.5
    assert entropy.mean().item() == pytest.approx(expected, abs=max(error, 1e-3))
    assert expected < math.log(5.0)  # never above that of the uniform distribution over the range
    entropy.mean().backward()  # its gradient holds back a deviation that has grown too large
    assert (actor.net[-1].bias.grad[1] > 0) == (raw < 1)


@pytest.mark.parametrize("output", [1e6, -1e6])
def test_an_extreme_network_has_finite_losses(output):
    actor = constant_actor([output, -1e6], discrete=False, low=[-1.0], high=[1.0])
    assert actor.gaussian(torch.zeros(1, 1))[0].item() == pytest.approx(math.copysign(5.0, output))
    for action in (-1.0, 0.0, 1.0):
        log_prob, entropy = actor.log_prob(torch.zeros(1, 1), torch.tensor([[action]]))
        # the worst: 0.5 ((atanh(1 - 1e-5) + 5) / 0.05)^2 = 24 700; entropy: ln(0.05) + 1.42 - 2 (5.2 - ln 2) = -10.6
        assert -25_000 < log_prob.item() < 20 and entropy.item() > -12


# time-steps


class CountingModel:
    """deter counts the steps; stoch is the action that led there."""

    deter_size = 1

    def imagine_step(self, state, action):
        return state[0] + 1, action


def test_imagined_step_uses_the_action_chosen_from_the_feature_before():
    start = torch.tensor([[5.0, 0.0], [100.0, 0.0]])  # two states, steps 5 and 100
    feat, action = WorldModel.imagine(CountingModel(), lambda feat, t: 10 * feat[:, :1] + t, start, 4)
    assert feat.shape == (5, 2, 2) and action.shape == (4, 2, 1) and torch.equal(feat[0], start)
    assert feat[:, 0, 0].tolist() == [5, 6, 7, 8, 9] and feat[:, 1, 0].tolist() == [100, 101, 102, 103, 104]
    assert action[:, 0, 0].tolist() == [50, 61, 72, 83]
    assert torch.equal(feat[1:, :, 1:], action)


def test_reward_compares_equal_time_steps(recorded, tmp_path, exact_model, monkeypatch):
    seen = []

    def record(agent, expert, *kind):
        seen.append((agent, expert))
        return intrinsic_reward(agent, expert, *kind)

    data = Episodes([str(recorded / "expert")], "train", 80)
    windows, drawn = ExpertWindows(exact_model, data, 5), []
    draw = ExpertWindows.draw
    monkeypatch.setattr(ExpertWindows, "draw", lambda self, *rest: drawn.append(draw(self, *rest)) or drawn[-1])
    monkeypatch.setattr(ditto, "intrinsic_reward", record)
    # a policy that replays the expert: only at equal time-steps does it get the whole reward
    imagine = tiny.ExactModel.imagine
    replay = lambda model, act, feat, H: imagine(model, lambda feat, t: data.prev_action[drawn[-1][t + 1]], feat, H)  # noqa: E731
    monkeypatch.setattr(tiny.ExactModel, "imagine", replay)
    monkeypatch.setattr(world_model.Run, "draw", lambda *it: None)  # it imagines too
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    ditto.main(tiny.exact_args(ditto, **where, updates=1, log_every=1))
    agent, expert = seen[0]
    assert torch.equal(expert, windows.feat[drawn[0]][1:, :, :16]) and torch.equal(agent, expert)
    assert read_log(tmp_path)[1, "imagine/reward"] == pytest.approx(1, abs=1e-5)


def test_agreement_of_the_expert_itself(recorded, exact_model):
    data = Episodes([str(recorded / "expert")], "val")
    windows = ExpertWindows(exact_model, data, 5)

    class Perfect:
        discrete = True

        def sample(self, feat):
            move = feat[..., 8:16].argmax(-1) - feat[..., :8].argmax(-1)
            return torch.nn.functional.one_hot(1 + move.sign(), 3).float()

        mode = sample

    metrics = ditto.agreement(exact_model, Perfect(), windows, seed=1)
    assert metrics["expert/action_agreement"] == 1.0
    assert metrics["expert/latent_distance"] == metrics["expert/latent_distance_expert_actions"]
    assert abs(metrics["expert/latent_distance"]) < 1e-6


def test_expert_windows_never_cross_an_end(counting, small_model):
    data = Episodes([str(counting)], "train")  # rows 0-5, 6-15, 16-19, 20-27
    windows = ExpertWindows(small_model, data, 4)
    assert windows.allowed.tolist() == [0, 1, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]
    rows = windows.draw(500, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 500) and set(rows[0].tolist()) == set(windows.allowed.tolist())
    grey = data.image[rows][..., 0, 0, 0].long()
    assert torch.equal(grey, grey[:1] + torch.arange(5)[:, None])
    assert windows.feat.shape == (28, 8 + 12)


def test_expert_windows_need_a_long_episode(counting, small_model):
    with pytest.raises(SystemExit, match="--horizon") as stop:
        ExpertWindows(small_model, Episodes([str(counting)], "train"), 10)
    assert_one_sentence(stop)


@pytest.mark.parametrize("chunk", [3, 100])
def test_encode_expert_filters_every_episode_from_its_start(counting, small_model, chunk):
    small_model.latent.sample = lambda params: params.unflatten(-1, (3, 4)).softmax(-1).flatten(-2)  # no noise
    data = Episodes([str(counting)], "train")
    feat = small_model.encode_episodes(data, chunk)
    for start, end in zip(data.starts[:-1], data.starts[1:]):
        deter, stoch, *_ = small_model.encode(*data.rows(torch.arange(start, end)[:, None]))
        torch.testing.assert_close(feat[start:end], torch.cat([deter, stoch], -1)[:, 0])
    assert not feat.requires_grad


def test_agent_loss_by_hand(monkeypatch):
    """Three steps of reward 1; a feature is the number of its step."""
    model, values = CountingModel(), torch.tensor([4.0, 1.0, 2.0, 4.0])  # of the target
    model.imagine = lambda act, feat, H: WorldModel.imagine(model, act, feat, H)
    count = lambda feat: feat[..., :1]  # noqa: E731
    log_prob = lambda feat, action: (-((1 + feat[..., 0]) ** 2), torch.full(feat.shape[:2], 0.5))  # noqa: E731
    actor = SimpleNamespace(sample=count, log_prob=log_prob)
    monkeypatch.setattr(ditto, "intrinsic_reward", lambda agent, *rest: torch.ones(agent.shape[:2]))
    args, target = Args(horizon=3, gamma=0.5, lam=0.75), lambda feat: values[feat[..., :1].long()]
    loss, metrics = ditto.agent_loss(args, model, actor, count, target, torch.tensor(0.1), torch.zeros(4, 1, 2))
    # V_2 = 1 + 0.5 * 4 = 3, V_1 = 1 + 0.5 * (0.25 * 2 + 0.75 * 3) = 2.375, V_0 = 1 + 0.5 * (0.25 + 1.78125) = 2.015625
    # critic, 0 1 2: errors 2.015625, 1.375, 1: half the mean square is 1.1588949
    assert metrics["losses/value"].item() == pytest.approx(1.1588949)
    # advantages -1.984375, 1.375, 1: mean 0.1302083, deviation 1.8408566: -1.1486954, 0.6762024, 0.4724930
    # log pi, -1 -4 -9: the mean product is -1.9361837; and 0.1 * 0.5 of entropy
    assert metrics["losses/policy"].item() == pytest.approx(1.8861837)
    assert loss.item() == pytest.approx(1.1588949 + 1.8861837)


# gradients


def test_each_loss_trains_its_own_network(small_model):
    torch.manual_seed(0)
    actor, critic = Actor(20, 3, True, 2, 16), mlp(20, 1, 2, 16)
    feat, action = small_model.imagine(lambda feat, t: actor.sample(feat), torch.randn(6, 20), 3)
    assert not feat.requires_grad and not action.requires_grad
    reward = intrinsic_reward(feat[1:], torch.randn(3, 6, 20))
    value = critic(feat).squeeze(-1)
    returns = lambda_return(reward, value, 0.9, 0.9)  # with gradient: the losses must stop it themselves
    log_prob, entropy = actor.log_prob(feat[:-1], action)
    for loss, learns, stays in (
        (actor_loss(log_prob, entropy, returns - value[:-1], 0.1), actor, critic),
        (critic_loss(critic(feat[:-1]).squeeze(-1), returns), critic, actor),
    ):
        for part in (actor, critic):
            part.zero_grad(set_to_none=True)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learns.parameters())
        assert all(p.grad is None for p in (*stays.parameters(), *small_model.parameters()))


# the real environment


def by_hand(seed: int) -> float:
    """Return of the expert in the game with this seed, without any code of ditto.py."""
    env, total, ended = tiny.Blocks(), 0.0, False
    env.reset(seed=seed)
    while not ended:
        _, reward, _, ended, _ = env.step(1 + int(np.sign(env.goal - env.place)))
        total += reward
    return total


def perfect_action(feat: torch.Tensor) -> torch.Tensor:
    """The expert's action in states of the exact model."""
    move = feat[..., 8:16].argmax(-1) - feat[..., :8].argmax(-1)
    return torch.nn.functional.one_hot(1 + move.sign(), 3).float()


@pytest.mark.parametrize("num_envs", [1, 2, 5])
def test_evaluation_plays_the_first_games_whole(num_envs):
    model, fed = tiny.ExactModel(), []
    step = model.filter_step
    model.filter_step = lambda state, image, action, first: (
        fed.append((action, first)) or step(state, image, action, first)
    )
    games = play(Games("Blocks-v0", num_envs), player(model, perfect_action), range(40, 45), keep=(40,))
    rows = sorted(games, key=lambda game: game["seed"])
    clip = rows[0]["observations"]
    assert [row["seed"] for row in rows] == [40, 41, 42, 43, 44]
    assert [row["return"] for row in rows] == [by_hand(seed) for seed in range(40, 45)]
    assert [row["length"] for row in rows] == [16] * 5
    assert clip.shape == (17, 64, 64, 1) and clip.dtype == np.uint8
    for t, (action, first) in enumerate(fed):  # is_first on the first frame of each game, and only there
        assert first.tolist() == [t % 16 == 0] * num_envs
        assert t == 0 or action.sum(-1).tolist() == [1] * num_envs


# probe: with an exact model there is one right policy, and the script must find it


def test_ditto_finds_the_experts_actions_in_an_exact_model(recorded, tmp_path, exact_model):
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    args = tiny.exact_args(ditto, **where, updates=800, log_every=800, batch_size=256, eval_episodes=20, entropy=0.1)
    result = ditto.main(args)
    assert result["imagine/reward"] > 0.98 and abs(result["expert/latent_distance_expert_actions"]) < 1e-6
    assert result["expert/latent_distance"] < 0.02 and result["eval/return_vs_expert"] > 0.85
    assert result["expert/action_agreement"] > 0.8  # at the walls pushing on is as good as staying


# whole runs


def debug_args(recorded: Path, trained, run_dir: Path, **changes) -> Args:
    """Arguments of a run with --size debug on the CPU."""
    where = {"data_dir": str(recorded / "expert"), "world_model": f"{trained[0]}/checkpoint.pt"}
    return tiny.debug_args(ditto, **where | {"run_dir": str(run_dir), "target_every": 3} | changes)


@pytest.fixture(scope="module")
def run(recorded, trained, tmp_path_factory):
    """One finished run of the debug size: its folder and what main returned."""
    run_dir = tmp_path_factory.mktemp("ditto")
    return run_dir, ditto.main(debug_args(recorded, trained, run_dir))


def test_run_writes_its_files(recorded, run):
    run_dir, result = run
    files = {"checkpoint.pt", "episodes.csv", "final_episodes.csv", "result.json", "agent.gif"}
    assert files <= {path.name for path in run_dir.iterdir()}
    assert list(run_dir.glob("events.out.tfevents.*")) and not list(run_dir.glob("*.tmp"))
    log = read_log(run_dir)
    validated = {name for name in LOG_KEYS if name.startswith(("expert/", "eval/"))}
    for step in (5, 10, 15, 20):  # validations are logged where they were made
        assert {name for at, name in log if at == step} == LOG_KEYS - (validated if step in (5, 15) else set()), step
    assert {step for step, _ in log} == {5, 10, 15, 20}
    assert np.isfinite(list(log.values())).all()
    stored = json.loads((run_dir / "result.json").read_text())
    assert {key: stored[key] for key in result} == result and stored["args"]["num_expert_episodes"] == 2
    assert stored["data"] == str(recorded / "expert") and stored["world_model"].endswith("checkpoint.pt")
    assert len(stored["returns"]) == 2 and np.mean(stored["returns"]) == result["eval/return_mean"]
    meta = json.loads((recorded / "expert" / "dataset.json").read_text())
    assert result["expert_return"] == np.mean([episode["return"] for episode in meta["episodes"]])
    assert result["random_return"] == np.mean(meta["random_returns"])
    assert result["shuffled_return"] == np.mean(meta["shuffled_returns"])
    assert Image.open(run_dir / "agent.gif").size == (192, 192)


def read_games(file: Path) -> list[tuple[int, int, float, int]]:
    """Rows (update, seed, return, length) of a table of games, below the header."""
    header, *rows = file.read_text().splitlines()
    assert header == "update,seed,return,length"
    return [(int(row[0]), int(row[1]), float(row[2]), int(row[3])) for row in csv.reader(rows)]


def test_validation_and_final_games_are_in_two_tables(run):
    run_dir, result = run
    validation, final = read_games(run_dir / "episodes.csv"), read_games(run_dir / "final_episodes.csv")
    assert [row[:2] for row in validation] == [(10, 20_000), (10, 20_001)]  # the last update is no validation
    assert [row[:2] for row in final] == [(20, 1000), (20, 1001)]
    assert {length for *_, length in validation + final} == {16}
    assert result["best_validation"] == (validation[0][2] + validation[1][2]) / 2
    assert json.loads((run_dir / "result.json").read_text())["returns"] == [row[2] for row in final]


def test_the_last_row_of_the_log_is_the_final_evaluation(run):
    run_dir, result = run
    log = read_log(run_dir)
    for name in ("eval/return_mean", "eval/return_std", "eval/return_vs_expert"):
        assert log[20, name] == pytest.approx(result[name], rel=1e-6), name
    assert log[10, "eval/return_mean"] == result["best_validation"]
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert saved["best"] == result["best_validation"]


def test_resumed_run_equals_uninterrupted_run(recorded, trained, run, tmp_path, monkeypatch):
    args = debug_args(recorded, trained, tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 15)  # the last checkpoint is update 10's
        with pytest.raises(KeyboardInterrupt):
            ditto.main(args)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10
    result = ditto.main(args)
    saved = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (run[0], tmp_path)]
    for name in ("actor", "critic", "target", "optimizer", "ranks", "step", "best"):  # ranks: random states
        assert same_tensors(saved[0][name], saved[1][name]), name
    logs = [read_log(path) for path in (run[0], tmp_path)]
    for key in logs[1]:
        assert key[1] in ("charts/SPS", "charts/seconds") or logs[1][key] == logs[0][key], key
    assert (15, "losses/policy") in logs[1] and result["eval/return_mean"] == run[1]["eval/return_mean"]


@pytest.mark.parametrize("updates, equal", [(3, True), (2, False)])
def test_the_target_becomes_the_critic_every_so_often(recorded, trained, tmp_path, updates, equal):
    ditto.main(debug_args(recorded, trained, tmp_path, updates=updates, eval_episodes=0))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same_tensors(saved["critic"], saved["target"]) == equal


def test_playing_more_often_does_not_change_the_training(recorded, trained, run, tmp_path):
    ditto.main(debug_args(recorded, trained, tmp_path, eval_every=4, quick_episodes=3))
    often, rarely = read_log(tmp_path), read_log(run[0])
    assert often[20, "losses/policy"] == rarely[20, "losses/policy"]


def test_the_step_size_falls_linearly(recorded, trained, run, tmp_path):
    saved = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1.45e-4)  # 1e-3 (1 - 0.9 * 19 / 20)
    ditto.main(debug_args(recorded, trained, tmp_path, updates=2, eval_every=2, anneal=False))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_the_entropy_weight_falls_linearly_and_a_resumed_run_goes_on_with_it(recorded, trained, tmp_path, monkeypatch):
    weights = []
    monkeypatch.setattr(ditto, "actor_loss", lambda *given: weights.append(given[3].item()) or actor_loss(*given))
    args = debug_args(recorded, trained, tmp_path / "falls", updates=4, eval_every=2, entropy=0.1, entropy_end=0.02)
    with monkeypatch.context() as patch:
        args.log_every = 1
        interrupt(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            ditto.main(args)
    ditto.main(args)
    assert weights == pytest.approx([0.1, 0.08, 0.06, 0.06, 0.04])  # 0.1 - 0.08 step / 4; step 2 is done again
    weights.clear()
    ditto.main(debug_args(recorded, trained, tmp_path / "stays", updates=3, eval_every=3, entropy_end=-1.0))
    assert weights == pytest.approx([0.1] * 3)


def test_eval_only_repeats_the_final_evaluation(recorded, trained, run, tmp_path):
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True)
    result = ditto.main(debug_args(recorded, trained, tmp_path, eval_only=True))
    assert result["step"] == 20 and "eval/return_mean" in result and "expert/action_agreement" in result
    assert all(value == run[1][name] for name, value in result.items() if not name.startswith("charts/"))
    assert read_log(tmp_path) == read_log(run[0])
    for name in ("checkpoint.pt", "episodes.csv", "final_episodes.csv"):  # no row is written twice
        assert (tmp_path / name).read_bytes() == (run[0] / name).read_bytes(), name
    assert (tmp_path / "eval_only_episodes.csv").read_bytes() == (run[0] / "final_episodes.csv").read_bytes()
    assert (tmp_path / "result.json").read_bytes() == (run[0] / "result.json").read_bytes()
    returns = json.loads((run[0] / "result.json").read_text())["returns"]
    assert json.loads((tmp_path / "eval_only.json").read_text())["returns"] == returns


@pytest.mark.parametrize(
    "best, final, collapsed",
    [
        (9.9, 6.0, False),  # random 2: 4 above random after 7.9 above
        (10.1, 6.0, True),  # 4 after 8.1
        (3.0, 1.0, True),
        (1.0, 0.0, False),  # never above random: nothing was lost
        (1.0, 1.0, False),
        (float("-inf"), 1.0, False),  # no validation
    ],
)
def test_collapse_is_named(recorded, trained, run, tmp_path, monkeypatch, capsys, best, final, collapsed):
    saved = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"best": best}, tmp_path / "checkpoint.pt")
    returns, read = np.array([final - 1, final + 1]), ditto.read_dataset
    game = {"observations": np.zeros((1, 64, 64, 1), np.uint8)}
    monkeypatch.setattr(world_model.Run, "play", lambda *rest: (returns, game))
    marks = {"expert": 12.0, "random": 2.0, "shuffled": 3.0}
    monkeypatch.setattr(ditto, "read_dataset", lambda *rest: (*read(*rest)[:2], marks))
    result = ditto.main(debug_args(recorded, trained, tmp_path, eval_only=True))
    lines = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    assert len(lines) == collapsed and all(str(best) in line for line in lines)
    assert result["best_validation"] == (best if np.isfinite(best) else None) and result["eval/return_mean"] == final
    json.loads((tmp_path / "eval_only.json").read_text(), parse_constant=pytest.fail)  # no NaN, no infinity


def test_consecutive_evaluation_plays_after_each_further_update(recorded, trained, run, tmp_path):
    shutil.copy(run[0] / "checkpoint.pt", tmp_path)
    args = debug_args(recorded, trained, tmp_path, eval_consecutive=3)
    result = ditto.main(args)
    returns = json.loads((tmp_path / "result.json").read_text())["returns"]
    assert len(returns) == 6 and result["eval/return_mean"] == pytest.approx(np.mean(returns))
    assert result["eval/return_std"] == pytest.approx(np.std(returns))
    games = read_games(tmp_path / "final_episodes.csv")
    assert [int(row[0]) for row in games] == [20, 20, 21, 21, 22, 22] and [row[2] for row in games] == returns
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 20


@pytest.mark.parametrize("options", [{"reward_latent": "full"}, {"reward": "l2"}, {"reward": "cosine"}])
def test_reward_options_run(recorded, trained, tmp_path, options):
    result = ditto.main(debug_args(recorded, trained, tmp_path, updates=5, eval_every=5, **options))
    assert math.isfinite(result["losses/policy"]) and math.isfinite(result["imagine/reward"])


def test_continuous_actions_run(tmp_path):
    common = dict(env_id="Slide-v0", data_dir=str(tmp_path), expert="random", num_processes=1)
    collect_data.main(collect_data.Args(**common, num_episodes=3, num_val_episodes=1))
    where = {"env_id": "Slide-v0", "data_dir": str(tmp_path / "Slide-v0" / "expert"), "updates": 6, "eval_every": 6}
    model = world_model.main(tiny.debug_args(world_model, run_dir=str(tmp_path / "model"), **where))["checkpoint"]
    result = ditto.main(tiny.debug_args(ditto, world_model=model, run_dir=str(tmp_path / "agent"), **where))
    assert math.isfinite(result["losses/policy"]) and 0 <= result["expert/action_agreement"] <= 1
    actor = torch.load(tmp_path / "agent" / "checkpoint.pt", weights_only=True)["actor"]
    assert actor["center"].tolist() == [1.0] and actor["scale"].tolist() == [2.0]  # Box(-1, 3)


def test_missing_stages_are_run_as_printed_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []

    class Done:
        returncode = 0

    monkeypatch.setattr(world_model.subprocess, "run", lambda command, **_: commands.append(command) or Done())
    monkeypatch.setattr(ditto, "finished", lambda checkpoint: len(commands) == 3)
    folder = ditto.expert_dataset(tiny.debug_args(ditto))
    assert folder == Path("data/debug/Blocks-v0/expert")
    model = ditto.trained_world_model(tiny.debug_args(ditto), folder)
    assert model == Path("runs/Blocks-v0/world_model-debug/checkpoint.pt")
    printed = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert [" ".join(["python", *command[1:]]) for command in commands] == printed
    assert [Path(command[1]).name for command in commands] == ["collect_data.py", "collect_data.py", "world_model.py"]
    Done.returncode = 1
    with pytest.raises(SystemExit) as stop:
        ditto.expert_dataset(tiny.debug_args(ditto))
    assert_one_sentence(stop)
    assert f"python {ROOT / 'collect_data.py'} --env-id Blocks-v0" in stop.value.code  # started in another folder
    with pytest.raises(SystemExit, match="--eval-only makes nothing") as stop:
        ditto.expert_dataset(tiny.debug_args(ditto, eval_only=True))
    assert_one_sentence(stop)
    assert len(commands) == 4
    monkeypatch.chdir(ROOT)
    Done.returncode = 0
    world_model.make(["collect_data.py"])
    assert commands[-1][1] == "collect_data.py"


def test_a_world_model_that_its_stage_does_not_finish_is_named(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ditto, "make", lambda command, allowed: None)
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    folder = Path("runs/Blocks-v0/world_model-debug")
    folder.mkdir(parents=True)
    torch.save(saved | {"args": saved["args"] | {"updates": saved["step"] + 1}}, folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match="finish it") as stop:
        ditto.trained_world_model(tiny.debug_args(ditto), tmp_path)
    assert_one_sentence(stop)
    torch.save(saved, folder / "checkpoint.pt")
    assert ditto.trained_world_model(tiny.debug_args(ditto), tmp_path) == folder / "checkpoint.pt"


def test_the_whole_chain_from_nothing(tmp_path):
    for name in ("collect_data.py", "expert_policies.py", "world_model.py", "ditto.py"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "ditto.py", "--env-id", "BreakoutNoFrameskip-v4", "--size", "debug", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("$ python ") == 3 and done.stdout.count("\n  score ") == 1


# bad input ends with one sentence


def test_missing_dataset_or_world_model(recorded, trained, tmp_path):
    for changes, name in (({"data_dir": str(tmp_path / "nowhere")}, "nowhere"), ({"world_model": "lost.pt"}, "lost")):
        with pytest.raises(SystemExit, match=name) as stop:
            ditto.main(debug_args(recorded, trained, tmp_path, **changes))
        assert_one_sentence(stop)


def test_a_named_world_model_is_never_replaced_by_the_shipped_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    args = Args(env_id="PongNoFrameskip-v4", size="small", run_dir="unused")
    folder = Path("pretrained/PongNoFrameskip-v4")
    if not Path("runs/PongNoFrameskip-v4/world_model-small/checkpoint.pt").exists():
        assert ditto.trained_world_model(args, folder / "expert") == folder / "world_model.pt"
    args.world_model = "nowhere.pt"
    assert ditto.trained_world_model(args, folder / "expert") == Path("nowhere.pt")
    with pytest.raises(SystemExit, match="nowhere.pt"):
        ditto.main(args)
    assert not Path("unused").exists()


def test_wider_data_have_the_colours_of_the_demonstrations(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gray in (True, False):
        (tmp_path / "dataset.json").write_text(json.dumps({"grayscale": gray, "expert_option": "embedded"}))
        asked = []
        monkeypatch.setattr(ditto, "make", lambda command, allowed: asked.append(command))
        monkeypatch.setattr(ditto, "finished", lambda checkpoint: len(asked) > 1)
        ditto.trained_world_model(tiny.debug_args(ditto), tmp_path)
        assert ("--no-grayscale" in asked[0]) is not gray and asked[1][0] == "world_model.py"


def test_demonstrations_that_are_named_or_imported_are_never_collected(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="typo has no episodes: name another --data-dir"):
        ditto.expert_dataset(tiny.debug_args(ditto, data_dir="typo"))
    folder = tmp_path / "data/debug" / tiny.debug_args(ditto).env_id / "expert"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text('{"imported": "recordings"}')
    assert ditto.expert_dataset(tiny.debug_args(ditto, num_expert_episodes=30)) == folder.relative_to(tmp_path)


def test_more_episodes_than_there_are(recorded, trained, tmp_path):
    with pytest.raises(SystemExit, match="--num-expert-episodes") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, num_expert_episodes=81))
    assert_one_sentence(stop)


def test_world_model_of_another_environment(trained, tmp_path):
    tiny.counting_episodes(tmp_path / "expert", lengths=(9, 9), num_actions=5)
    with pytest.raises(SystemExit, match="actions or colours") as stop:
        ditto.main(debug_args(tmp_path, trained, tmp_path / "run"))
    assert_one_sentence(stop)


@pytest.mark.parametrize("changes", [{"units": 16}, {"horizon": 4}, {"seed": 9}])
def test_checkpoint_of_other_settings_is_refused(recorded, trained, run, tmp_path, changes):
    shutil.copy(run[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(SystemExit, match="--run-dir") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, **changes))
    assert_one_sentence(stop)


def test_checkpoint_of_another_world_model_is_refused(recorded, trained, run, tmp_path):
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    saved["model"]["gru.weight_hh"] += 1
    torch.save(saved, tmp_path / "other.pt")
    shutil.copy(run[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(SystemExit, match="another world model") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, world_model=str(tmp_path / "other.pt")))
    assert_one_sentence(stop)


def test_data_and_models_of_another_game_are_refused(recorded, trained, tmp_path):
    shutil.copytree(recorded / "expert", tmp_path / "expert")
    meta = json.loads((tmp_path / "expert" / "dataset.json").read_text())
    (tmp_path / "expert" / "dataset.json").write_text(json.dumps(meta | {"env_id": "Other-v0"}))
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"env_id": "Other-v0"}, tmp_path / "other.pt")
    for changes in ({"data_dir": str(tmp_path / "expert")}, {"world_model": str(tmp_path / "other.pt")}):
        with pytest.raises(SystemExit, match="is of Other-v0, not of Blocks-v0") as stop:
            ditto.main(debug_args(recorded, trained, tmp_path / "run", **changes))
        assert_one_sentence(stop)
    (tmp_path / "expert" / "dataset.json").write_text("{")
    with pytest.raises(SystemExit, match="damaged") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path / "run", data_dir=str(tmp_path / "expert")))
    assert_one_sentence(stop)
    assert not (tmp_path / "run").exists()


def test_a_run_does_not_go_on_with_other_demonstrations(recorded, trained, run, tmp_path):
    shutil.copytree(recorded / "expert", tmp_path / "expert")
    sorted((tmp_path / "expert").glob("train_*"))[0].unlink()
    shutil.copy(run[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(SystemExit, match="another dataset") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, data_dir=str(tmp_path / "expert")))
    assert_one_sentence(stop)


def test_a_run_moves_between_devices(recorded, trained, run, tmp_path):
    saved = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    group = saved["optimizer"]["param_groups"][0] | {"capturable": True, "lr": torch.tensor(1e-3)}  # as of a GPU
    saved["optimizer"]["param_groups"] = [group]
    saved["args"] = {k: v for k, v in saved["args"].items() if k != "device"} | {"cuda": True}  # an older run's
    other = {"cuda_rng": torch.zeros(16, dtype=torch.uint8), "rng": torch.zeros(16, dtype=torch.uint8)}
    torch.save(saved | {"ranks": [saved["ranks"][0] | other]}, tmp_path / "checkpoint.pt")
    result = ditto.main(debug_args(recorded, trained, tmp_path, updates=22))
    group = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert result["step"] == 22 and group["capturable"] is False and isinstance(group["lr"], float)


@pytest.mark.parametrize("flag", ["--num-expert-episodes", "--horizon", "--eval-every", "--quick-episodes", "--layers"])
def test_counts_that_make_no_sense_are_refused(flag):
    with pytest.raises(SystemExit, match=flag) as stop:
        ditto.main(world_model.parse_args(Args, ditto.SIZES, ["--size", "debug", flag, "-1"]))
    assert_one_sentence(stop)
    assert world_model.parse_args(Args, ditto.SIZES, ["--size", "debug", "--updates", "0"]).updates == 0


def test_settings_are_named_as_they_are_typed(recorded, trained, run, tmp_path):
    shutil.copy(run[0] / "checkpoint.pt", tmp_path)
    with pytest.raises(SystemExit, match=r"made with --anneal:"):
        ditto.main(debug_args(recorded, trained, tmp_path, anneal=False, quick_episodes=1))  # games may differ
    saved = torch.load(run[0] / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"args": saved["args"] | {"anneal": False, "batch_size": 3}}, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match=r"made with (--no-anneal, --batch-size 3|--batch-size 3, --no-anneal):"):
        ditto.main(debug_args(recorded, trained, tmp_path))


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_garbage_checkpoint_is_named(recorded, trained, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(SystemExit, match="checkpoint.pt") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path))
    assert_one_sentence(stop)


def test_evaluating_without_a_checkpoint(recorded, trained, tmp_path):
    with pytest.raises(SystemExit, match="train first") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, eval_only=True))
    assert_one_sentence(stop)


def test_unknown_size_and_unknown_reward():
    with pytest.raises(SystemExit, match="huge") as stop:
        world_model.parse_args(Args, ditto.SIZES, ["--size", "huge"])
    assert_one_sentence(stop)
    with pytest.raises(SystemExit) as stop:
        world_model.parse_args(Args, ditto.SIZES, ["--size", "debug", "--reward", "praise"])
    assert stop.value.code == 2


# learning: pixels to policy


def test_ditto_learns_from_pixels(recorded, tmp_path):
    small = dict(env_id="Blocks-v0", size="small", device="cpu", threads=1)
    model = world_model.Args(
        **world_model.SIZES["small"] | small | dict(depth=4, deter=64, stoch=8, classes=8, hidden=64, dilation=1,
        batch_size=8, batch_length=16, updates=600, eval_every=600, learning_rate=3e-3,
        data_dir=f"{recorded}/world,{recorded}/expert", run_dir=str(tmp_path / "model"))
    )  # fmt: skip
    checkpoint = world_model.main(model)["checkpoint"]
    agent = Args(
        **ditto.SIZES["small"] | small | dict(layers=2, units=64, batch_size=128, horizon=6, updates=1000,
        eval_every=1000, num_expert_episodes=80, learning_rate=2e-3, entropy=0.05, world_model=checkpoint,
        data_dir=str(recorded / "expert"), run_dir=str(tmp_path / "agent"))
    )  # fmt: skip
    result = ditto.main(agent)
    assert result["eval/return_vs_expert"] > 0.3, result  # random is 0, the expert 1; 0.59 when this was written


# GPU


@gpu
def test_gpu_losses_equal_cpu_losses():
    torch.manual_seed(0)
    actor, critic, feat, action = Actor(20, 3, True, 2, 16), mlp(20, 1, 2, 16), torch.randn(4, 6, 20), torch.eye(3)
    action = action[torch.randint(3, (3, 6))]
    losses = []
    for device in ("cpu", "cuda"):
        actor, critic, feat, action = (part.to(device) for part in (actor, critic, feat, action))
        value = critic(feat).squeeze(-1)
        returns = lambda_return(intrinsic_reward(feat[1:], feat[:-1]), value, 0.95, 0.95)
        log_prob, entropy = actor.log_prob(feat[:-1], action)
        losses += [[actor_loss(log_prob, entropy, returns - value[:-1], 0.05).item(),
                    critic_loss(value[:-1], returns).item()]]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@gpu
def test_graphed_updates_equal_eager_updates(recorded, trained, tmp_path):
    logs = []
    for graphs in (False, True):
        run_dir = tmp_path / str(graphs)
        ditto.main(debug_args(recorded, trained, run_dir, device="cuda", cudagraphs=graphs))
        logs.append(read_log(run_dir))
    for step in (5, 10, 15, 20):
        assert logs[0][step, "losses/value"] == pytest.approx(logs[1][step, "losses/value"], rel=0.02)
