"""cmil.py and control.py: equations by hand, which pairs are seen, who gets gradient, a point on a line, whole runs."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from tiny import assert_one_sentence, interrupt, read_log, same_tensors

import cmil
import control
from cmil import (Actor, Args, BoundedGaussian, Model, TruncatedNormal, Values, actor_loss, agent_loss, balanced_kl,
                  critic_loss, data_target, descend, disagreement, discriminator_loss, imitation_reward, lambda_return,
                  mlp, model_loss, noisy, weight_penalty)  # fmt: skip
from control import Interaction, Replay

BC_KEYS = {"losses/world_model", "losses/nll", "losses/kl", "losses/cloning", "expert/disagreement", "eval/return_mean",
           "eval/return_std", "eval/return_vs_expert", "charts/env_steps", "charts/SPS", "charts/seconds"}  # fmt: skip
LOG_KEYS = BC_KEYS | {"losses/discriminator", "losses/policy", "losses/value", "losses/entropy", "imagine/reward",
                      "imagine/value", "imagine/disagreement", "expert/discriminator_gap", "play/return"}  # fmt: skip
STEPS = 12


class Point(gym.Env):
    """A point on a line moves by a tenth of the action in [-2, 2]; reward 1 minus its distance from the middle."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float64)
    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode

    def observe(self) -> np.ndarray:
        return np.array([self.place, self.steps / STEPS])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(0.5, 1.0) * self.np_random.choice([-1, 1]), 0
        return self.observe(), {}

    def step(self, action):
        self.place, self.steps = self.place + 0.1 * float(action[0]), self.steps + 1
        return self.observe(), 1 - abs(self.place), False, self.steps == STEPS, {}

    def render(self) -> np.ndarray:
        return np.full((80, 80, 3), np.clip(128 + 60 * self.place, 0, 255), np.uint8)


gym.register("Point-v0", Point)


def write_demonstrations(folder: Path, count: int = 4) -> Path:
    """Games of an expert that walks to the middle, in the format of collect_data.py."""
    folder.mkdir(parents=True)
    env = gym.make("Point-v0")
    for seed in range(count):
        place, actions, rewards = env.reset(seed=seed)[0][0], [], []
        for _ in range(STEPS):
            actions.append(np.array([np.clip(-10 * place, -2, 2)], np.float32))
            obs, reward, *_ = env.step(actions[-1])
            rewards.append(reward), (place := obs[0])
        np.savez(folder / f"train_{seed:05d}.npz", actions=np.stack(actions), rewards=np.array(rewards), seed=seed)
    (folder / "dataset.json").write_text(json.dumps({"low": [-2.0], "high": [2.0], "env_id": "Point-v0"}))
    return folder


def dreamer_file(file: Path, rows: int = 281, size: int = 9) -> None:
    """A game in the format of the authors' kitchen files."""
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (rows, size)).astype(np.float32)
    action[0] = 0
    image = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, 64, 64, 3))
    np.savez(file, action=action, image=image, reward=np.ones(rows, np.float32), is_first=np.arange(rows) == 0)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folder of four demonstrations; the working directory is temporary."""
    monkeypatch.chdir(tmp_path)
    return write_demonstrations(tmp_path / "data")


def debug_args(data, **changes) -> Args:
    """Arguments of a run with --size debug on the CPU."""
    fixed = {"env_id": "Point-v0", "data_dir": str(data), "obs": "state", "max_steps": 0}
    return tiny.debug_args(cmil, **fixed | changes)


def small_model(**changes) -> Model:
    """Untrained model of a few hundred weights: two sensors, one action."""
    torch.manual_seed(0)
    config = dict(depth=2, picture=32, deter=6, stoch=3, hidden=8, ensemble=3, action_size=1, channels=3, sensors=2)
    return Model(config | changes)


def small_agent(model: Model, critics: int = 2, inputs: int = 0) -> dict:
    """The networks of agent_loss beside a model."""
    pair = model.feat_size + 1
    parts = {"model": model, "discriminator": mlp(pair, 1, 2, 8), "actor": Actor(model.feat_size, 1, 1, 8)}
    return parts | {name: Values(critics, inputs or pair, 1, 8) for name in ("critics", "targets")}


def slices(T: int = 6, B: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Observations (T, B, 2), actions (T, B, 1), is_first (T, B)."""
    rng = torch.Generator().manual_seed(3)
    first = torch.zeros(T, B, dtype=torch.bool)
    first[0] = True
    return torch.randn(T, B, 2, generator=rng), 2 * torch.rand(T, B, 1, generator=rng) - 1, first


# equations


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (0.9, 0.1), (-0.99, 2.1), (0.3, 0.5)])
def test_truncated_normal_against_numerical_integration(mean, std):
    policy = TruncatedNormal(torch.tensor([[mean]], dtype=torch.double), torch.tensor([[std]], dtype=torch.double))
    x = torch.linspace(-1, 1, 20_001, dtype=torch.double)[:, None, None]
    density = policy.log_prob(x).exp()  # (20001, 1)
    assert torch.trapezoid(density, x[..., 0], dim=0).item() == pytest.approx(1, abs=1e-6)
    entropy = -torch.trapezoid(density * density.clamp_min(1e-300).log(), x[..., 0], dim=0).item()
    assert policy.entropy().item() == pytest.approx(entropy, abs=1e-5)
    torch.manual_seed(0)
    many = TruncatedNormal(torch.full((50_000, 1), mean), torch.full((50_000, 1), std))
    samples = many.sample()
    assert samples.abs().max() < 1
    assert many.entropy().mean().item() == pytest.approx(-many.log_prob(samples).mean().item(), abs=0.02)
    average = torch.trapezoid(density * x[..., 0], x[..., 0], dim=0).item()
    assert samples.mean().item() == pytest.approx(average, abs=0.02)


def test_truncated_normal_by_hand():
    # between -1 and 1 lies 0.6826895 of the standard normal: ln p(0) = -0.9189385 - ln 0.6826895
    policy = TruncatedNormal(torch.zeros(1, 2), torch.ones(1, 2))
    assert policy.log_prob(torch.zeros(1, 2)).item() == pytest.approx(2 * -0.5372228, abs=1e-5)  # summed over actions
    assert Actor(3, 2, 1, 8)(torch.randn(5, 3)).std.min() > 0.1


def test_truncated_normal_samples_have_the_gradient_of_finite_differences(monkeypatch):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.8))
    draw = lambda mean, std: TruncatedNormal(mean, std).sample().sum()  # noqa: E731
    inputs = [torch.tensor([0.2], dtype=torch.double, requires_grad=True) for _ in range(2)]
    inputs[1].data.fill_(0.7)
    assert torch.autograd.gradcheck(draw, inputs)


def test_lambda_return_by_hand():
    value = torch.tensor([[9.0], [2.0], [4.0]])
    # G_1 = 3 + 0.5 * 4 = 5; G_0 = 1 + 0.5 * (0.25 * 2 + 0.75 * 5) = 3.125
    found = lambda_return(torch.tensor([[1.0], [3.0]]), value, 0.5, 0.75)
    assert found.flatten().tolist() == [3.125, 5.0]
    assert lambda_return(torch.tensor([[1.0]]), value[:2], 0.5, 0.75).item() == 2.0  # H = 1: r + gamma * value[1]
    assert lambda_return(torch.tensor([[1.0], [3.0]]), value, 0.5, 0.0)[0].item() == 2.0  # one step
    assert lambda_return(torch.tensor([[1.0], [3.0]]), value, 0.5, 1.0)[0].item() == 3.5  # 1 + 0.5 * (3 + 0.5 * 4)


def test_disagreement_and_reward_by_hand():
    means = torch.tensor([[0.0, 2.0], [2.0, 2.0]])  # two members, two dimensions: deviations 1 and 0
    assert disagreement(means[:, None]).item() == 0.5
    logits = torch.tensor([0.0, math.log(3)])
    assert imitation_reward(logits, torch.tensor([0.5, 0.1]), 10.0).tolist() == pytest.approx([0.5 - 5, 0.75 - 1])
    assert imitation_reward(logits, 0.0, 0.0, "logit").tolist() == pytest.approx([0, 1.0986123])


def test_discriminator_at_chance_costs_two_log_two_and_noise_is_the_same_for_both():
    assert discriminator_loss(torch.zeros(7), torch.zeros(3, 5)).item() == pytest.approx(2 * math.log(2))
    # D = 3/4 of the expert's, 1/4 of the policy's: -2 ln 0.75
    expert, policy = torch.full((7,), math.log(3)), torch.full((3,), -math.log(3))
    assert discriminator_loss(expert, policy).item() == pytest.approx(0.5753641)
    torch.manual_seed(0)
    zeros = torch.zeros(10_000, 3)
    assert noisy(zeros, 2.5).std(0).tolist() == pytest.approx([2.5] * 3, abs=0.1) and noisy(zeros, 0.0).eq(0).all()


def test_balanced_kl_by_hand():
    latent = BoundedGaussian(1)
    post, prior = (torch.tensor([[x]], requires_grad=True) for x in ([1.0, 2.0], [0.0, 1.0]))  # 1.3068528 nats
    kl = balanced_kl(latent, post, prior, 0.8, 1.0)
    kl.backward()
    assert kl.item() == pytest.approx(1.3068528, abs=1e-6)
    torch.testing.assert_close(post.grad, 0.2 * torch.tensor([[[1.0, 1.5]]]))
    torch.testing.assert_close(prior.grad, 0.8 * torch.tensor([[[-1.0, -4.0]]]))
    assert balanced_kl(latent, post, prior, 0.8, 2.0).item() == 2.0  # below the free nats: no gradient
    # on the batch's average: 0 and 2.6137056 nats have one of 1.3068528 too
    both = torch.cat([post, prior]).detach(), torch.cat([prior, prior]).detach()
    assert balanced_kl(latent, *both, 0.8, 0.1).item() == pytest.approx(0.6534264, abs=1e-6)


def test_deviations_are_bounded():
    found = BoundedGaussian(3).params(torch.tensor([5.0, 0, 0, -90, 0, 90]))
    assert found[:3].tolist() == [5, 0, 0] and found[3:].tolist() == pytest.approx([0.1, 1.1, 2.1])


def test_actor_and_critic_losses_by_hand():
    value, returns, entropy = (torch.tensor([[a], [b]]) for a, b in ((1.0, 2.0), (3.0, 4.0), (0.0, 5.0)))
    # k = 0: 0.25 * 1 + 0.75 * 3 = 2.5; k = 1: 0.5 * (0.25 * 2 + 0.75 * 4 + 0.1 * 5) = 2
    assert actor_loss(value, returns, entropy, 0.5, 0.75, 0.1).item() == pytest.approx(-2.25)
    two = torch.stack([value, value + 1]).requires_grad_()
    target = returns.clone().requires_grad_()
    loss = critic_loss(two, target, torch.tensor([[1.0], [0.5]]))  # squares 4, 4 and 1, 1
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (4 + 2 + 1 + 0.5) / 4) and target.grad is None


def test_data_target_by_hand():
    value, returns = torch.tensor([[1.0], [2.0], [3.0], [9.0]]), torch.tensor([[5.0], [6.0], [7.0], [9.0]])
    # T = 4, two real pairs; the dream from the next state: 0.5 * (0.25 * 2 + 0.75 * 6) = 2.5, 0.5 * (0.75 + 5.25) = 3
    found = data_target(torch.tensor([[10.0], [20.0]]), value, returns, 0.5, 0.75)
    assert found.flatten().tolist() == [12.5, 23.0]


class Fixed(torch.nn.Module):
    """Stands for critics that give these values, whatever they see."""

    def __init__(self, *values: float):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def __len__(self):
        return len(self.values)

    def forward(self, inputs):
        return self.values.view(-1, *[1] * (inputs.ndim - 1)).expand(-1, *inputs.shape[:-1])


def test_agent_loss_by_hand(monkeypatch):
    """D is 1/2, the disagreement 0.1, alpha 2: reward 0.3. One slice of four rows; no entropy, no cloning."""
    model, feat, action = small_model(), torch.zeros(4, 1, 9), torch.zeros(4, 1, 1)
    agent = small_agent(model) | {"critics": Fixed(2.0, 3.0), "targets": Fixed(4.0, 4.0)}
    agent["discriminator"] = lambda pairs: pairs[..., :1] * 0
    dream = Model.dream
    monkeypatch.setattr(model, "dream", lambda *rest: (*dream(model, *rest)[:2], torch.full((3, 4), 0.1)))
    monkeypatch.setattr(cmil, "ENTROPY", 0.0)
    args = Args(horizon=3, alpha=2.0, beta=0.0, gamma=0.5, lam=0.75)
    losses, metrics = agent_loss(args, agent, feat, action, feat, action)
    assert metrics["imagine/reward"].item() == pytest.approx(0.3)
    # the smaller critic, 2: G_1 = 0.3 + 0.5 * 2 = 1.3, G_0 = 0.3 + 0.5 * (0.25 * 2 + 0.75 * 1.3) = 1.0375
    # k = 0: 0.25 * 2 + 0.75 * 1.0375 = 1.278125; k = 1: 0.5 * (0.25 * 2 + 0.75 * 1.3) = 0.7375
    assert losses["actor"].item() == pytest.approx(-(1.278125 + 0.7375) / 2)
    # targets, 4: G_1 = 0.3 + 0.5 * 4 = 2.3, G_0 = 0.3 + 0.5 * (1 + 0.75 * 2.3) = 1.6625, weighing 1/4 and 1/2
    dreamt = 0.5 * (0.3375**2 + 1.3375**2) + 0.25 * (0.3**2 + 0.7**2)
    # a real pair has no penalty: 0.5 + 0.5 * (0.25 * 4 + 0.75 * 1.6625) = 1.6234375
    real = 0.3765625**2 + 1.3765625**2
    assert losses["critics"].item() == pytest.approx(0.5 * (dreamt / 4 + real / 2), rel=1e-5)


def test_model_loss_takes_half_the_squared_error(monkeypatch):
    model, obs = small_model(), torch.full((4, 2, 2), 3.0)
    monkeypatch.setattr(model, "decode", lambda feat: obs)
    model.sensor_mean.fill_(1.0), model.sensor_std.fill_(2.0)
    _, metrics, _ = model_loss(model, obs, *slices(4)[1:])
    assert metrics["losses/nll"].item() == pytest.approx(4.0)  # (3 - 1) / 2 = 1, from 3: 2^2 for each of two, halved


def test_vmails_penalty_by_hand():
    net = torch.nn.Linear(1, 1)  # the mean logit's gradient: mean input 3 for the weight, 1 for the bias
    found = weight_penalty(net, torch.full((4, 1), 3.0), torch.full((6, 1), 3.0))
    assert found.item() == pytest.approx((math.sqrt(10) - 1) ** 2)
    deep = mlp(2, 1, 1, 4)
    weight_penalty(deep, torch.randn(4, 2), torch.randn(6, 2)).backward()
    assert all(weight.grad is not None for weight in deep[0].parameters())


# which pairs, which member


class Recorder(torch.nn.Module):
    """Stands for a discriminator or critics and remembers its inputs."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def __len__(self):
        return len(self.net)

    def forward(self, inputs):
        self.seen.append(inputs.detach())
        return self.net(inputs)


def test_discriminator_critics_and_cloning_see_the_same_pairs(monkeypatch):
    model, args = small_model(), Args(horizon=3, sigma=0.0)
    agent = small_agent(model)
    agent["discriminator"], agent["critics"] = Recorder(agent["discriminator"]), Recorder(agent["critics"])
    T, B, F = 5, 2, model.feat_size
    feat, expert = torch.randn(T, B, F), torch.randn(T, B, F)
    action, expert_action = torch.rand(T, B, 1), torch.rand(T, B, 1)
    dreams, cloned = [], []
    monkeypatch.setattr(model, "dream", lambda *rest: dreams.append(Model.dream(model, *rest)) or dreams[-1])
    monkeypatch.setattr(TruncatedNormal, "log_prob", lambda self, value: cloned.append(value) or value.sum(-1))
    agent_loss(args, agent, feat, action, expert, expert_action)
    dream, chosen, _ = dreams[0]
    assert torch.equal(dream[0], feat.flatten(0, 1)) and len(dream) == 4 and len(chosen) == 3
    imagined, demonstrated, real = agent["discriminator"].seen
    for k in range(3):  # a pair joins a state with the action chosen in it
        assert torch.equal(imagined[k], torch.cat([dream[k], chosen[k]], -1))
    for t in range(T - 1):  # action[t + 1] was taken in feat[t]
        assert torch.equal(demonstrated[t], torch.cat([expert[t], expert_action[t + 1]], -1))
    for t in range(T - 2):
        assert torch.equal(real[t], torch.cat([feat[t], action[t + 1]], -1))
    assert len(real) == T - 2 and torch.equal(cloned[0], expert_action[1:])
    values, model_pairs, data_pairs = agent["critics"].seen
    assert torch.equal(values, imagined) and torch.equal(model_pairs, imagined[:2]) and torch.equal(data_pairs, real)


def test_real_pairs_are_judged_without_noise():
    model = small_model()
    agent = small_agent(model)
    agent["discriminator"] = Recorder(agent["discriminator"])
    feat, action = torch.zeros(5, 2, model.feat_size), torch.zeros(5, 2, 1)
    agent_loss(Args(horizon=3, sigma=2.5), agent, feat, action, feat, action)
    imagined, demonstrated, real = agent["discriminator"].seen
    assert imagined.std() > 1 and demonstrated.any() and not real.any()


def test_a_dreams_disagreement_is_that_of_the_state_it_leads_to():
    model = small_model()
    with torch.no_grad():
        dream, action, spread = model.dream(lambda feat, t: feat[:, :1], torch.randn(4, model.feat_size), 3)
    for k in range(3):
        assert torch.equal(action[k], dream[k, :, :1])  # the action is chosen in the state before
        deter = dream[k + 1, :, : model.deter_size]
        torch.testing.assert_close(model.recur(dream[k].split([6, 3], -1), model.action_in(action[k])), deter)
        torch.testing.assert_close(disagreement(model.members(deter).chunk(2, -1)[0]), spread[k])


def test_only_the_chosen_member_learns(monkeypatch):
    monkeypatch.setattr(cmil, "FREE_NATS", 0.0)
    model, (obs, action, first) = small_model(), slices(1)
    torch.manual_seed(2)  # the model's own draws: the posterior's noise first
    torch.randn(2, 3)
    chosen = int(torch.randint(3, (1,)))
    torch.manual_seed(2)
    loss, _, _ = model_loss(model, obs, action, first)
    loss.backward()
    got = [max(weight.grad.abs().max().item() for weight in head.parameters()) > 0 for head in model.priors]
    assert got == [k == chosen for k in range(3)]
    assert any(weight.grad.abs().max() > 0 for weight in model.decoder.parameters())


def test_every_loss_steps_its_own_network_only():
    torch.manual_seed(0)
    model, (obs, action, first) = small_model(), slices()
    agent, args = small_agent(model), Args(horizon=3)
    before = {name: [w.clone() for w in net.parameters()] for name, net in agent.items()}
    optimizers = {name: torch.optim.Adam(net.parameters(), 1e-2) for name, net in agent.items()}
    _, _, feat = model_loss(model, obs, action, first)
    for name in ("discriminator", "actor", "critics"):
        losses, _ = agent_loss(args, agent, feat.detach(), action, feat.detach(), action)
        descend({name: losses[name]}, optimizers)
        for other, net in agent.items():
            moved = any(not torch.equal(a, b) for a, b in zip(before[other], net.parameters()))
            assert moved == (other == name), (name, other)
        before = {name: [w.clone() for w in net.parameters()] for name, net in agent.items()}


def test_the_actors_gradient_comes_through_the_model():
    """A reward of the last state alone, which an action can reach through the dynamics only."""
    model = small_model()
    actor = Actor(model.feat_size, 1, 1, 8)
    dream, _, _ = model.dream(lambda feat, t: actor(feat.detach()).sample(), torch.randn(4, model.feat_size), 2)
    grads = torch.autograd.grad(dream[-1].sum(), list(actor.parameters()))
    assert all(grad.abs().max() > 0 for grad in grads) and all(w.grad is None for w in model.parameters())


def test_the_actor_gets_no_gradient_through_its_input(monkeypatch):
    model, asked = small_model(), []
    agent, ask = small_agent(model), Actor.forward
    monkeypatch.setattr(Actor, "forward", lambda self, feat: asked.append(feat.requires_grad) or ask(self, feat))
    feat, action = torch.zeros(5, 2, model.feat_size), torch.zeros(5, 2, 1)
    agent_loss(Args(horizon=3), agent, feat, action, feat, action)
    assert asked == [False] * 4  # what is cloned, and three steps of dreams


# demonstrations and replay


def episode(length: int, value: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (length, 2): the value and the time-step."""
    obs = torch.stack([torch.full((length,), value), torch.arange(length).float()], -1)
    return obs, torch.zeros(length, 1)


def test_slices_lie_within_one_episode_and_begin_anew(tmp_path):
    replay, rng = Replay(tmp_path, [episode(9, 1), episode(5, 2)], 5), torch.Generator().manual_seed(0)
    replay.add(*episode(30, 3)), replay.add(*episode(4, 4))
    obs, action, first = replay.draw(300, rng)
    assert obs.shape == (5, 300, 2) and action.shape == (5, 300, 1) and first[0].all() and not first[1:].any()
    assert (obs[..., 0] == obs[0, :, 0]).all() and (obs[1:, :, 1] == obs[:-1, :, 1] + 1).all()
    shares = [(obs[0, :, 0] == k).float().mean().item() for k in (1, 2, 3, 4)]
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0], abs=0.08)  # by episode, not by length; 4 is too short
    assert replay.draw(50, rng, demos=True)[0][..., 0].max() == 2 and replay.short == 1
    again = Replay(tmp_path, [episode(9, 1), episode(5, 2)], 5)
    again.load_state_dict({"played": 1})  # the second was written after the checkpoint
    assert len(again.episodes) == 3 and torch.equal(again.episodes[-1][0], episode(30, 3)[0])


def test_demonstrations_are_played_again_with_actions_between_minus_one_and_one(data):
    args = debug_args(data, num_expert_episodes=4)
    env = control.make_game("Point-v0", "state")
    episodes, marks, _ = control.demonstrations(args, env)
    for k, (obs, action) in enumerate(episodes):
        recorded = np.load(data / f"train_{k:05d}.npz")["actions"]
        assert len(obs) == STEPS + 1 and (action[0] == 0).all() and obs.dtype == torch.float32
        np.testing.assert_allclose(2 * action[1:], recorded)
        np.testing.assert_allclose((obs[1:] - obs[:-1])[:, 0], 0.1 * recorded[:, 0], atol=1e-6)
    assert marks["expert"] > marks["random"]
    short, pixels = dataclasses.replace(args, max_steps=5), dataclasses.replace(args, obs="pixels")
    cut, _, _ = control.demonstrations(short, control.make_game("Point-v0", "state", 5))
    assert {len(obs) for obs, _ in cut} == {6}
    drawn, _, _ = control.demonstrations(pixels, control.make_game("Point-v0", "pixels"))
    assert drawn[0][0].shape == (13, 64, 64, 3) and drawn[0][0].dtype == torch.uint8
    assert abs(drawn[0][0][0].float().mean() - (128 + 60 * episodes[0][0][0, 0])) < 1


def test_ten_dreamer_style_files_of_281_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "make_game", lambda *rest: FakeKitchen())
    for k in range(10):
        dreamer_file(tmp_path / f"2023112{k}T-280.npz")
    env = FakeKitchen()
    args = Args(data_dir=str(tmp_path), num_expert_episodes=10)
    episodes, marks, _ = control.demonstrations(args, env)
    assert [len(action) for _, action in episodes] == [281] * 10 and marks["expert"] == 280
    assert all((action[0] == 0).all() and obs.shape == (281, 64, 64, 3) for obs, action in episodes)
    assert torch.equal(episodes[0][1], torch.from_numpy(np.load(tmp_path / "20231120T-280.npz")["action"]))
    _, _, first = Replay(tmp_path / "replay", episodes, 50).draw(3, torch.Generator())
    assert first[0].all() and not first[1:].any()


class FakeKitchen(gym.Env):
    """Nine actions, nothing to see."""

    action_space = gym.spaces.Box(-1.0, 1.0, (9,), np.float32)
    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros((64, 64, 3), np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.zeros((64, 64, 3), np.uint8), 0.0, False, self.steps == 3, {}


def test_what_is_played_goes_into_the_replay_with_the_action_that_led_there(tmp_path, capsys):
    env, model = control.make_game("Point-v0", "state"), small_model()
    replay = Replay(tmp_path, [episode(9, 1)], 5)
    game = Interaction(env, model, lambda feat: torch.rand(1, 1), replay, 1)
    for _ in range(STEPS + 3):
        game.step()
    obs, action = replay.episodes[1]
    assert len(obs) == STEPS + 1 and (action[0] == 0).all() and game.steps == STEPS + 3 and len(game.returns) == 1
    torch.testing.assert_close((obs[1:] - obs[:-1])[:, 0], 0.2 * action[1:, 0], atol=1e-5, rtol=0)
    other = Interaction(env, model, game.act, again := Replay(tmp_path, [episode(9, 1)], 5), 1)
    again.load_state_dict(replay.state_dict()), other.load_state_dict(game.state_dict())
    assert np.array_equal(other.obs, game.obs) and other.steps == game.steps and other.total == game.total
    other.load_state_dict(game.state_dict() | {"seen": torch.zeros(1, 2)})  # a game that does not repeat itself
    assert len(other.obs) == 1 and other.steps == game.steps and "begins anew" in capsys.readouterr().out


def test_no_game_of_the_replay_is_a_test_game(tmp_path):
    replay, seeds = Replay(tmp_path, [episode(9, 1)], 5), []
    env = SimpleNamespace(action_space=Point.action_space, reset=lambda seed: (seeds.append(seed) or np.zeros(2), {}))
    for seed in (0, 1, 2):
        game = Interaction(env, small_model(), None, replay, seed)
        for replay.played in range(1, 4):
            game.begin()
        replay.played = 0
    assert len(set(seeds)) == 12 and min(seeds) >= 20_000 + 10**6  # final: from 1000, validation: from 20 000


# whole runs


@pytest.mark.parametrize("method, settings", [("cmil", (2.0, 10.0, 2.5, 0.0, 2)), ("bc", (2.0, 10.0, 2.5, 0.0, 2)),
                                              ("no-conservatism", (0.0, 0.0, 2.5, 0.0, 2)),
                                              ("vmail", (0.0, 0.0, 0.0, 0.3, 1))])  # fmt: skip
def test_run_of_every_method(data, monkeypatch, method, settings):
    seen, names = set(), ("alpha", "beta", "sigma", "action_noise")

    def loss(args, networks, *rest):
        seen.add((*(getattr(args, name) for name in names), len(networks["model"].priors)))
        return agent_loss(args, networks, *rest)

    monkeypatch.setattr(cmil, "agent_loss", loss)
    result = cmil.main(debug_args(data, method=method))
    assert seen == {settings}
    run = data.parent / "runs" / "Point-v0" / f"cmil-{method}-debug-state-2-1"
    rows = read_log(run)
    updates = 14 + 6 * (method in ("cmil", "bc"))  # 15 steps, then 2 updates per 5 of the other 35
    assert {name for _, name in rows} == (BC_KEYS if method == "bc" else LOG_KEYS)
    assert max(step for step, _ in rows) == updates == result["step"] and np.isfinite(list(rows.values())).all()
    saved = json.loads((run / "result.json").read_text())
    assert saved["env_steps"] == (0 if method == "bc" else 50) and saved["method"] == method
    assert len(list((run / "replay").glob("*.npz"))) == (0 if method == "bc" else 4)
    assert {"episodes.csv", "final_episodes.csv", "checkpoint.pt"} <= {p.name for p in run.iterdir()}


@pytest.mark.parametrize("updates, equal", [(4, True), (3, False)])
def test_the_targets_become_the_critics_every_so_often(data, monkeypatch, updates, equal):
    monkeypatch.setattr(cmil, "COPY_EVERY", 4)
    cmil.main(debug_args(data, run_dir="run", env_steps=15, pretrain=updates, eval_episodes=0))
    saved = torch.load("run/checkpoint.pt", weights_only=True)
    assert saved["step"] == updates and same_tensors(saved["critics"], saved["targets"]) == equal


def test_run_from_pixels_draws_dreams_and_a_clip(data):
    cmil.main(debug_args(data, obs="pixels", env_steps=20, run_dir="run", eval_every=20))
    assert {"dream.png", "agent.gif", "checkpoint.pt"} <= {p.name for p in Path("run").iterdir()}
    assert np.load("run/replay/000000.npz")["obs"].shape == (13, 64, 64, 3)


def test_resumed_run_equals_uninterrupted_run_in_the_middle_of_a_game(data, monkeypatch):
    cmil.main(debug_args(data, run_dir="whole"))
    with monkeypatch.context() as patch:
        interrupt(patch, 15)  # the checkpoint is of update 10, 4 updates after the first step: 25 steps
        with pytest.raises(KeyboardInterrupt):
            cmil.main(debug_args(data, run_dir="broken"))
    saved = torch.load("broken/checkpoint.pt", weights_only=True)
    assert saved["step"] == 10 and len(saved["ranks"][0]["game"]["action"]) == 2  # 25 = 2 * 12 + 1
    assert len(list(Path("broken/replay").glob("*"))) == 3 > saved["ranks"][0]["replay"]["played"]
    cmil.main(debug_args(data, run_dir="broken"))
    left, right = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "broken"))
    for name in ("model", "actor", "critics", "targets", "discriminator", "actor_optimizer", "step", "ranks"):
        assert same_tensors(left[name], right[name]), name
    for file in sorted(Path("whole/replay").iterdir()):
        with np.load(file) as one, np.load(Path("broken/replay") / file.name) as other:
            assert np.array_equal(one["obs"], other["obs"]) and np.array_equal(one["action"], other["action"])
    one, other = (json.loads(Path(name, "result.json").read_text())["returns"] for name in ("whole", "broken"))
    assert one == other
    cmil.main(debug_args(data, run_dir="broken", env_steps=70))  # more interaction goes on
    assert torch.load("broken/checkpoint.pt", weights_only=True)["step"] == 28
    cmil.main(debug_args(data, run_dir="broken", env_steps=70, eval_only=True))
    for changes, text in (({"alpha": 3.0}, "--alpha 2"), ({"method": "bc"}, "--method cmil"),
                          ({"num_expert_episodes": 3}, "--num-expert-episodes 2")):  # fmt: skip
        with pytest.raises(SystemExit, match=text) as stop:
            cmil.main(debug_args(data, run_dir="broken", env_steps=70, **changes))
        assert_one_sentence(stop)
    Path("broken/replay/000001.npz").write_bytes(b"")
    with pytest.raises(SystemExit, match="000001.npz") as stop:
        cmil.main(debug_args(data, run_dir="broken", env_steps=70))
    assert_one_sentence(stop)


def test_playing_test_games_more_often_does_not_change_the_training(data):
    saved = []
    for name, often in (("often", 5), ("rarely", 20)):
        cmil.main(debug_args(data, run_dir=name, eval_every=often))
        saved.append(torch.load(f"{name}/checkpoint.pt", weights_only=True))
    assert same_tensors(saved[0]["actor"], saved[1]["actor"]) and same_tensors(saved[0]["ranks"], saved[1]["ranks"])


def test_bad_input_ends_with_one_sentence(data, tmp_path):
    for changes, text in (({"env_id": "Blocks-v0"}, "discrete"), ({"env_id": "Nothing-v0"}, "Nothing-v0"),
                          ({"num_expert_episodes": 9}, "--num-expert"), ({"batch_length": 40}, "--batch-length"),
                          ({"horizon": 1}, "--horizon"), ({"data_dir": "none"}, "--num-expert"),
                          ({"eval_only": True, "run_dir": "none"}, "No checkpoint")):  # fmt: skip
        with pytest.raises(SystemExit, match=text) as stop:
            cmil.main(debug_args(data, **changes))
        assert_one_sentence(stop)
    folder = tmp_path / "other"
    folder.mkdir()
    dreamer_file(folder / "0.npz", 20, 9), dreamer_file(folder / "1.npz", 20, 9)
    with pytest.raises(SystemExit, match="actions") as stop:  # another action size
        cmil.main(debug_args(folder))
    assert_one_sentence(stop)
    dreamer_file(folder / "0.npz", 20, 1), dreamer_file(folder / "1.npz", 20, 1)
    with pytest.raises(SystemExit, match="--obs state") as stop:  # pictures, where states are asked for
        cmil.main(debug_args(folder))
    assert_one_sentence(stop)
    (folder / "0.npz").write_bytes(b"x")
    with pytest.raises(SystemExit, match="0.npz") as stop:
        cmil.main(debug_args(folder))
    assert_one_sentence(stop)
    shutil.copy(data / "train_00001.npz", data / "train_00000.npz")
    with np.load(data / "train_00000.npz") as npz:
        np.savez(data / "train_00001.npz", **dict(npz) | {"seed": 77})  # actions of another game
    with pytest.raises(SystemExit, match="played again") as stop:
        cmil.main(debug_args(data))
    assert_one_sentence(stop)


def test_kitchens_side_by_side_are_all_drawn():
    pytest.importorskip("gymnasium_robotics")
    kitchens = [control.Kitchen("pixels", 80) for _ in range(2)]  # one graphics context each
    first, second = (kitchen.reset(seed=1)[0] for kitchen in kitchens)
    assert first.mean() > 50 and np.array_equal(first, second)
    seen = [kitchen.step(np.full(9, 0.5, np.float32))[0] for kitchen in kitchens]
    assert seen[0].mean() > 50 and np.array_equal(*seen)


def test_missing_packages_of_the_kitchen_are_named(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(SystemExit, match="requirements-kitchen.txt") as stop:
        cmil.main(debug_args(data, env_id="FrankaKitchen-v1"))
    assert_one_sentence(stop)
    with pytest.raises(SystemExit, match="--source") as stop:
        control.main(control.Args())
    assert_one_sentence(stop)


def test_a_point_learns_to_walk_to_the_middle(data):
    sizes = dict(deter=16, stoch=4, hidden=16, units=16, disc_units=16, batch_size=8, learning_rate=3e-3, pretrain=60)
    sizes |= dict(env_steps=120, num_expert_episodes=4, eval_every=500, eval_episodes=20)
    result = cmil.main(debug_args(data, **sizes))
    assert result["eval/return_vs_expert"] > 0.6, result  # untrained: -0.1
