"""train_expert.py: equations on hand-computed numbers, then a tiny run from start to file, with and without a break."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import train_expert
from train_expert import ActorCritic, Args, gae, policy_loss, push_frame


def test_gae_by_hand():
    reward, value = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[10.0], [20.0], [30.0], [40.0]])
    # gamma 0.5, lambda 0.5; deltas: 1 + 10 - 10 = 1, 2 + 15 - 20 = -3, 4 + 20 - 30 = -6
    # advantages backwards: -6, -3 - 6/4 = -4.5, 1 - 4.5/4 = -0.125
    advantage = gae(reward, torch.zeros(3, 1, dtype=torch.bool), value, 0.5, 0.5)
    assert advantage[:, 0].tolist() == [-0.125, -4.5, -6.0]
    # step 1 ends a life: its delta is 2 - 20 = -18 and nothing later counts; step 0 becomes 1 - 18/4 = -3.5
    advantage = gae(reward, torch.tensor([[False], [True], [False]]), value, 0.5, 0.5)
    assert advantage[:, 0].tolist() == [-3.5, -18.0, -6.0]


def test_policy_loss_by_hand():
    logits = torch.zeros(3, 2)  # probability 0.5 of each action
    old_logprob = torch.log(torch.tensor([0.25, 1.0, 0.5]))  # ratios 2, 0.5, 1
    forced = torch.tensor([False, False, True])
    action = torch.tensor([0, 1, 0])
    # clipped at 1.1: min(2, 1.1) * 1 = 1.1; negative advantage: min(-0.5, -0.9) = -0.9; the forced step is left out
    loss, entropy = policy_loss(logits, action, old_logprob, torch.tensor([1.0, -1.0, 1000.0]), forced, 0.1)
    assert loss.item() == pytest.approx(-(1.1 - 0.9) / 2, abs=1e-6)
    assert entropy.item() == pytest.approx(np.log(2))
    loss, entropy = policy_loss(logits, action, old_logprob, torch.ones(3), torch.ones(3, dtype=torch.bool), 0.1)
    assert loss.item() == 0 and entropy.item() == 0  # nothing but forced steps: no signal, and no division by zero


def test_stack_is_zeroed_at_a_start_only():
    stack = np.arange(1, 5, dtype=np.uint8) * np.ones((2, 64, 64, 1), np.uint8)
    stack = push_frame(stack, np.full((2, 64, 64, 1), 9, np.uint8), np.array([False, True]))
    assert stack[0, 0, 0].tolist() == [2, 3, 4, 9] and stack[1, 0, 0].tolist() == [0, 0, 0, 9]


def test_debug_run_writes_an_actor_and_resumes_exactly(tmp_path, monkeypatch):
    def args(name):
        return Args(env_id="BreakoutNoFrameskip-v4", size="debug", run_dir=str(tmp_path / name))

    score = train_expert.main(args("whole"))
    expert = torch.load(score["actor"], weights_only=True)
    assert expert["format"] == "ppo-actor-64" and expert["num_actions"] == 4 and expert["eval_episodes"] == 2
    assert expert["return_mean"] == score["return_mean"] and str(tmp_path) not in expert["command"]
    model = ActorCritic(4)
    model.actor.load_state_dict(expert["actor"])
    assert (tmp_path / "whole" / "log.csv").read_text().startswith("steps,seconds,return_last20,entropy,sps\n192,")

    write = train_expert.write

    def write_then_break(path, save):
        write(path, save)
        if path.name == "checkpoint.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(train_expert, "write", write_then_break)
    with pytest.raises(KeyboardInterrupt):
        train_expert.main(args("broken"))
    assert torch.load(tmp_path / "broken" / "checkpoint.pt", weights_only=True)["update"] == 3  # of 6
    monkeypatch.setattr(train_expert, "write", write)
    resumed = train_expert.main(args("broken"))
    whole, broken = (torch.load(tmp_path / n / "checkpoint.pt", weights_only=True) for n in ("whole", "broken"))
    assert all(torch.equal(whole["model"][k], broken["model"][k]) for k in whole["model"])
    assert resumed["return_mean"] == score["return_mean"]

    with pytest.raises(SystemExit, match="other settings"):
        train_expert.main(Args(size="debug", run_dir=str(tmp_path / "broken")))


class FakeGames:
    """Two games that pay 3 and -2 a step; the first loses a life in step 5 of them, the second ends in step 9."""

    action_size = 3

    def __init__(self, *rest):
        self.seen, self.steps = np.full((2, 64, 64, 1), 9, np.uint8), 0

    def reset(self, seeds):
        pass

    def step(self, action):
        self.seen, self.steps = self.seen + np.uint8(9), self.steps + 1
        lives, over = np.array([3 - (self.steps >= 5), 3]), np.array([False, self.steps == 9])
        info = {"lives": lives, "forced": np.zeros(2, bool)}
        return np.array([3.0, -2.0]), over, np.zeros(2, bool), info


def test_what_ppo_learns_from(tmp_path, monkeypatch):
    estimated = []

    def estimate(reward, done, value, gamma, lam):
        estimated.append((reward, done, value))
        return 100 * torch.arange(32.0).view(16, 2)

    def loss(value, target):
        reward, done, value = estimated[0]
        assert reward.tolist() == [[1.0, -1.0]] * 16 and done.nonzero().tolist() == [[4, 0], [8, 1]]
        expected = 100 * torch.arange(32.0) + value[:-1].flatten()  # advantage + value
        assert len(target) == 16 and torch.isin(target, expected).all() and value.all()
        raise KeyboardInterrupt

    monkeypatch.setattr(train_expert, "Games", FakeGames)
    monkeypatch.setattr(train_expert, "gae", estimate)
    monkeypatch.setattr(train_expert.F, "mse_loss", loss)
    with pytest.raises(KeyboardInterrupt):
        train_expert.main(Args(env_id="BreakoutNoFrameskip-v4", size="debug", run_dir=str(tmp_path)))


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "NoSuchGameNoFrameskip-v4", "Pong-ramNoFrameskip-v4", "CartPole-v1"])
def test_bad_env_id_is_one_sentence(env_id):
    with pytest.raises(SystemExit, match="is not an Atari game"):
        train_expert.main(Args(env_id=env_id))
