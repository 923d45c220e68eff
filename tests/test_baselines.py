"""d_gail.py, d_bc.py, bc_pixels.py: losses and rewards by hand, frame stacks, gradients, probes, whole runs."""

import ast
import csv
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import assert_one_sentence, interrupt, read_log, same_tensors
from torch.utils._python_dispatch import TorchDispatchMode

import bc_pixels
import collect_data
import d_bc
import d_gail
import ditto
import world_model
from bc_pixels import ExpertFrames, FrameEncoder
from d_gail import adversarial_reward, disc_pairs, discriminator_loss
from world_model import Episodes

ROOT = Path(ditto.__file__).parent
SCRIPTS = [d_gail, d_bc, bc_pixels]
D_GAIL_KEYS = {"losses/policy", "losses/value", "losses/entropy", "losses/discriminator", "imagine/d_expert",
               "imagine/d_agent", "imagine/reward", "imagine/value", "imagine/reward_first", "imagine/reward_last",
               "expert/latent_distance", "expert/latent_distance_expert_actions", "expert/action_agreement",
               "eval/return_mean", "eval/return_std", "eval/return_vs_expert", "charts/SPS", "charts/seconds",
               "charts/imagined_steps"}  # fmt: skip
D_BC_KEYS = {"losses/policy", "losses/entropy", "expert/latent_distance", "expert/latent_distance_expert_actions",
             "expert/action_agreement", "eval/return_mean", "eval/return_std", "eval/return_vs_expert",
             "charts/SPS", "charts/seconds"}  # fmt: skip
BC_PIXELS_KEYS = {"losses/policy", "losses/entropy", "expert/action_agreement", "eval/return_mean",
                  "eval/return_std", "eval/return_vs_expert", "charts/SPS", "charts/seconds"}  # fmt: skip
RESULT_KEYS = {"expert_return", "random_return", "shuffled_return", "best_validation", "step",
               "percent_of_expert"}  # besides the log's  # fmt: skip
CLOCKS = ("charts/SPS", "charts/seconds")
WORLD_MODEL = {d_gail: {"world_model"}, d_bc: {"world_model"}, bc_pixels: set()}  # where its name is stored
LOG_KEYS = {d_gail: D_GAIL_KEYS, d_bc: D_BC_KEYS, bc_pixels: BC_PIXELS_KEYS}


def name_of(value) -> str | None:
    """A module's name, for the names of tests."""
    return getattr(value, "__name__", None)


# discriminator


def test_discriminator_loss_by_hand():
    # expert D = 0.8 and 0.5, agent D = 0.2 and 0.75: half of each mean of -ln 0.8, -ln 0.5 and of -ln 0.8, -ln 0.25
    expert = torch.tensor([[math.log(4.0)], [0.0]], requires_grad=True)
    agent = torch.tensor([[-math.log(4.0)], [math.log(3.0)]], requires_grad=True)
    loss = discriminator_loss(expert, agent)
    assert loss.item() == pytest.approx(0.25 * (0.2231436 + 0.6931472 + 0.2231436 + 1.3862944))
    loss.backward()  # a quarter of D - 1 for the expert and of D for the agent
    assert expert.grad[:, 0].tolist() == pytest.approx([-0.05, -0.125])
    assert agent.grad[:, 0].tolist() == pytest.approx([0.05, 0.1875])


def test_discriminator_loss_at_chance_and_at_the_ends():
    assert discriminator_loss(torch.zeros(3, 2), torch.zeros(3, 2)).item() == pytest.approx(0.6931472)
    right, wrong = torch.full((3, 2), 200.0), torch.full((3, 2), -200.0)
    assert discriminator_loss(right, wrong).item() == pytest.approx(0.0)
    assert discriminator_loss(wrong, right).item() == pytest.approx(200.0)  # large, but finite


def test_discriminator_loss_weighs_both_sides_equally():
    # 3 expert logits and 1 agent logit: still one half each
    loss = discriminator_loss(torch.full((3,), math.log(3.0)), torch.zeros(1))
    assert loss.item() == pytest.approx(0.5 * 0.2876821 + 0.5 * 0.6931472)


@pytest.mark.parametrize(
    "kind, rewards",
    [
        ("d", [0.2, 0.5, 0.8]),
        ("log_d", [-1.6094379, -0.6931472, -0.2231436]),  # ln 0.2, ln 0.5, ln 0.8
        ("log_1_d", [0.2231436, 0.6931472, 1.6094379]),  # -ln 0.8, -ln 0.5, -ln 0.2
    ],
)
def test_adversarial_reward_by_hand(kind, rewards):
    logits = torch.tensor([-math.log(4.0), 0.0, math.log(4.0)])  # D = 0.2, 0.5, 0.8
    assert adversarial_reward(logits, kind).tolist() == pytest.approx(rewards)


@pytest.mark.parametrize("kind, low, high", [("d", 0.0, 1.0), ("log_d", -math.inf, 0.0), ("log_1_d", 0.0, math.inf)])
def test_sign_and_slope_of_the_adversarial_reward(kind, low, high):
    logits = torch.linspace(-12, 12, 101, dtype=torch.float64).view(101, 1)
    reward = adversarial_reward(logits, kind)
    assert reward.shape == (101, 1) and reward.min() > low and reward.max() < high
    step = reward.diff(dim=0)
    assert (step > 0).all()  # more expert-like is always better
    steepest = step.argmax().item()
    assert {"d": 45 < steepest < 55, "log_d": steepest == 0, "log_1_d": steepest == 99}[kind]
    assert adversarial_reward(torch.tensor([-200.0, 200.0]), kind).isfinite().all()


def test_pairs_of_the_discriminator():
    # step t, trajectory n, feature f: 100 t + 10 n + f; the first two of three features are deter
    t, n, f = torch.arange(4.0).view(4, 1, 1), torch.arange(2.0).view(1, 2, 1), torch.arange(3.0)
    feat, action = 100 * t + 10 * n + f, -(1 + 100 * t[:3] + 10 * n)
    transition = disc_pairs(feat, action, 2, "transition")
    assert transition.shape == (3, 2, 4)
    assert transition[0].tolist() == [[0, 1, 100, 101], [10, 11, 110, 111]]
    assert transition[2].tolist() == [[200, 201, 300, 301], [210, 211, 310, 311]]
    state_action = disc_pairs(feat, action, 2, "state_action")
    assert state_action.shape == (3, 2, 4)
    assert state_action[0].tolist() == [[0, 1, 2, -1], [10, 11, 12, -11]]
    assert state_action[2].tolist() == [[200, 201, 202, -201], [210, 211, 212, -211]]


def test_discriminator_sees_the_expert_and_the_agent_from_the_same_states(recorded, tmp_path, exact_model, monkeypatch):
    seen = []

    def record(feat, action, *rest):
        seen.append((feat, action))
        return disc_pairs(feat, action, *rest)

    monkeypatch.setattr(d_gail, "disc_pairs", record)
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    d_gail.main(tiny.exact_args(d_gail, **where, updates=1, log_every=1, disc_input="state_action"))
    (expert, taken), (agent, chosen) = seen
    assert expert.shape == agent.shape == (6, 64, 17) and taken.shape == chosen.shape == (5, 64, 3)
    assert torch.equal(expert[0], agent[0]) and not torch.equal(expert, agent)
    for feat, action in seen:  # each action leads to the next state
        place = feat[..., :8].argmax(-1)
        assert torch.equal(place[1:], (place[:-1] + action.argmax(-1) - 1).clamp(0, 7))
    assert torch.equal(taken.argmax(-1), 1 + (expert[:-1, :, 8:16].argmax(-1) - expert[:-1, :, :8].argmax(-1)).sign())


def test_agent_loss_of_d_gail_by_hand():
    """Two steps: dreams go from 0 by 1 a step, the expert by -1; the discriminator says log 3 a step, D = 3/4."""
    path = torch.arange(3.0)[:, None, None]
    model = SimpleNamespace(deter_size=1, imagine=lambda act, feat, H: (path, path[:2]))
    actor = SimpleNamespace(log_prob=lambda feat, action: (-((1 + feat[..., 0]) ** 2), 0 * feat[..., 0]))
    disc, target = lambda pair: math.log(3) * pair.diff(dim=-1), lambda feat: torch.tensor([4.0, 1.0, 1.0])[feat.long()]
    args, critic = d_gail.Args(horizon=2, gamma=0.5, lam=0.75), lambda feat: feat
    _, metrics = d_gail.agent_loss(args, model, actor, critic, target, torch.tensor(0.1), disc, -path, -path[:2])
    shown = {name: metrics[f"imagine/{name}"].item() for name in ("d_agent", "d_expert", "reward")}
    assert shown == pytest.approx({"d_agent": 0.75, "d_expert": 0.25, "reward": 0.75})
    assert metrics["losses/discriminator"].item() == pytest.approx(1.3862944)  # half of -2 ln 0.25
    # V_1 = 0.75 + 0.5 * 1 = 1.25, V_0 = 0.75 + 0.5 * (0.25 * 1 + 0.75 * 1.25) = 1.34375; the critic says 0, 1
    assert metrics["losses/value"].item() == pytest.approx(0.5 * (1.34375**2 + 0.25**2) / 2)
    # advantages 1.34375 - 4 and 1.25 - 1, normalised -0.7071068 and 0.7071068; log pi -1 and -4
    assert metrics["losses/policy"].item() == pytest.approx(3 * 0.7071068 / 2)


@pytest.mark.parametrize("updates, equal", [(3, True), (2, False)])
def test_d_gails_target_becomes_its_critic_every_so_often(recorded, trained, tmp_path, updates, equal):
    d_gail.main(debug_args(d_gail, recorded, trained, tmp_path, updates=updates, eval_episodes=0))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same_tensors(saved["critic"], saved["target"]) == equal


# cloning


@pytest.mark.parametrize("module", [d_bc, bc_pixels], ids=name_of)
def test_cloning_loss_by_hand(module):
    log_prob, entropy = (torch.tensor(x, requires_grad=True) for x in ([[-1.0], [-2.0]], [[0.5], [0.7]]))
    loss = module.cloning_loss(log_prob, entropy, 0.1)
    # minus the mean of -1 + 0.1 * 0.5 = -0.95 and -2 + 0.1 * 0.7 = -1.93
    assert loss.item() == pytest.approx(1.44)
    loss.backward()
    assert log_prob.grad[:, 0].tolist() == [-0.5, -0.5]
    assert entropy.grad[:, 0].tolist() == pytest.approx([-0.05, -0.05])


def test_cloning_clones_the_action_taken_in_each_state(recorded, tmp_path, exact_model, monkeypatch):
    seen = []

    class Watched(d_bc.Actor):
        def log_prob(self, feat, action):
            seen.append((feat, action))
            return super().log_prob(feat, action)

    monkeypatch.setattr(d_bc, "Actor", Watched)
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    d_bc.main(tiny.exact_args(d_bc, **where, updates=1, log_every=1))
    feat, action = seen[0]
    assert feat.shape == (5, 64, 17) and action.shape == (5, 64, 3)
    place, goal = feat[..., :8].argmax(-1), feat[..., 8:16].argmax(-1)
    assert torch.equal(action.argmax(-1), 1 + (goal - place).sign())


# frame stacks


def counting_frames(count: int, start: int = 0) -> torch.Tensor:
    """Frames (count, 64, 64, 1) with grey levels start, start + 1, ..."""
    return torch.arange(start, start + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 64, 64, 1)


def small_encoder(channels: int = 1, dilation: int = 1, mean: float = 0.0, std: float = 1.0) -> FrameEncoder:
    """An encoder with one statistic for all pixels."""
    torch.manual_seed(0)
    encoder = FrameEncoder(channels, 2, "global", dilation)
    encoder.pixel_mean.fill_(mean), encoder.pixel_std.fill_(std)
    return encoder


def test_a_first_frame_fills_the_stack_and_later_frames_push():
    encoder = small_encoder()
    state, stacks = encoder.initial(2), []
    assert state[0].shape == (2, 64, 64, 4) and state[0].dtype == torch.uint8
    for t in range(6):  # game 0 shows 10, 11, ...; game 1 shows 100, 101, ... and begins anew at step 3
        image = torch.cat([counting_frames(1, 10 + t), counting_frames(1, 100 + t)])
        is_first = torch.tensor([t == 0, t in (0, 3)])
        state = encoder.filter_step(state, image, torch.zeros(2, 3), is_first)
        stacks.append(state[0][:, 5, 9].tolist())
        assert state[0].eq(state[0][:, :1, :1]).all() and state[0].dtype == torch.uint8
    assert [stack[0] for stack in stacks] == [
        [10, 10, 10, 10], [10, 10, 10, 11], [10, 10, 11, 12], [10, 11, 12, 13], [11, 12, 13, 14], [12, 13, 14, 15],
    ]  # fmt: skip
    assert [stack[1] for stack in stacks] == [
        [100] * 4, [100, 100, 100, 101], [100, 100, 101, 102], [103] * 4, [103, 103, 103, 104], [103, 103, 104, 105],
    ]  # fmt: skip


def test_colours_stay_together_in_the_stack():
    encoder = small_encoder(channels=3)
    colour = torch.tensor([1, 2, 3], dtype=torch.uint8).expand(1, 64, 64, 3)
    (state,) = encoder.filter_step(encoder.initial(1), colour, torch.zeros(1, 3), torch.tensor([True]))
    (state,) = encoder.filter_step((state,), colour + 10, torch.zeros(1, 3), torch.tensor([False]))
    assert state[0, 0, 0].tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 11, 12, 13]


def test_stacks_of_the_expert_equal_filtering_its_episodes(counting):
    data = Episodes([str(counting)], "train")  # rows 0-5, 6-15, 16-19, 20-27; frame t of episode k is grey 20 k + t
    frames, encoder = ExpertFrames(data), small_encoder()
    assert frames.allowed.tolist() == [*range(5), *range(6, 15), *range(16, 19), *range(20, 27)]
    stack, action = frames.stack(frames.allowed)
    assert stack.shape == (24, 64, 64, 4) and stack.dtype == torch.uint8
    grey, taken = stack[:, 0, 0].tolist(), action.argmax(-1).tolist()
    assert grey[:5] == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 4]]
    assert grey[5:9] == [[20, 20, 20, 20], [20, 20, 20, 21], [20, 20, 21, 22], [20, 21, 22, 23]]  # nothing of episode 0
    assert taken[:9] == [0, 1, 2, 0, 1, 1, 2, 0, 1]  # action t of episode k is (k + t) % 3
    assert action.sum(-1).eq(1).all()
    found = iter(stack)
    for k, T in enumerate((5, 9, 3, 7)):
        state = encoder.initial(1)
        for t in range(T):
            first = torch.tensor([t == 0])
            state = encoder.filter_step(state, counting_frames(1, 20 * k + t), torch.zeros(1, 3), first)
            assert torch.equal(next(found), state[0][0]), (k, t)


def test_expert_frames_draws_every_frame_that_an_action_followed(counting):
    frames = ExpertFrames(Episodes([str(counting)], "train"))
    rows = frames.draw(2000, torch.Generator().manual_seed(0))
    assert rows.shape == (2000,) and set(rows.tolist()) == set(frames.allowed.tolist())


def test_encoder_sees_normalised_dilated_frames():
    stack = torch.full((2, 64, 64, 4), 50, dtype=torch.uint8)
    stack[1, 10, 20, 3] = 250  # one bright pixel in the newest frame of the second stack
    for dilation, rows, columns in ((1, {10}, {20}), (3, {9, 10, 11}, {19, 20, 21})):
        encoder = small_encoder(dilation=dilation, mean=50.0, std=100.0)
        encoder.net = torch.nn.Identity()
        pixels = encoder(stack)  # (N, 4, 64, 64)
        assert pixels.shape == (2, 4, 64, 64) and set(pixels.unique().tolist()) == {0.0, 2.0}
        bright = pixels.nonzero()
        assert set(bright[:, 0].tolist()) == {1} and set(bright[:, 1].tolist()) == {3}
        assert set(bright[:, 2].tolist()) == rows and set(bright[:, 3].tolist()) == columns
        assert len(bright) == len(rows) * len(columns)


def test_encoder_normalises_each_colour_of_each_frame():
    encoder = FrameEncoder(3, 2, "pixel", 1)
    encoder.pixel_mean.copy_(torch.tensor([10.0, 20, 30]).view(3, 1, 1))
    encoder.pixel_std.copy_(torch.tensor([1.0, 2, 4]).view(3, 1, 1))
    encoder.net = torch.nn.Identity()
    stack = torch.tensor([12, 26, 42], dtype=torch.uint8).repeat(4).expand(1, 64, 64, 12)
    assert encoder(stack)[0, :, 7, 7].tolist() == [2.0, 3.0, 3.0] * 4


@pytest.mark.parametrize("pixel_stats", ["global", "pixel"])
def test_pixel_statistics_are_of_the_dilated_frames(pixel_stats):
    encoder, frames = FrameEncoder(1, 2, pixel_stats, 3), torch.zeros(2, 64, 64, 1, dtype=torch.uint8)
    frames[0, 10, 20] = 200  # dilated, nine pixels of the first frame are bright
    encoder.measure(frames, 1.0)
    if pixel_stats == "global":
        assert encoder.pixel_mean.item() == pytest.approx(9 * 200 / (2 * 64 * 64))
    else:
        assert set(encoder.pixel_mean.unique().tolist()) == {0.0, 100.0} and (encoder.pixel_mean > 0).sum() == 9
        assert encoder.pixel_std.unique().tolist() == pytest.approx([1.0, 2**0.5 * 100])  # the floor, and of 0 and 200


def test_encoder_mirrors_the_world_models(small_model):
    encoder = small_encoder()
    stack = torch.randint(256, (3, 2, 64, 64, 4), dtype=torch.uint8)
    assert encoder(stack).shape == (3, 2, 64)  # E = 32 * depth
    torch.testing.assert_close(encoder(stack)[1, 1], encoder(stack[1, 1][None])[0])
    pairs = list(zip(encoder.net, small_model.encoder, strict=True))
    assert [type(left) for left, _ in pairs] == [type(right) for _, right in pairs]
    shapes = [(left.weight.shape, right.weight.shape) for left, right in pairs if hasattr(left, "weight")]
    assert shapes[0] == ((2, 4, 4, 4), (2, 1, 4, 4))  # four frames instead of one
    assert len(shapes) == 4 and all(left == right for left, right in shapes[1:])


# gradients


def test_each_loss_of_d_gail_trains_its_own_network(recorded, tmp_path, exact_model, monkeypatch):
    losses = {"actor": "actor_loss", "critic": "critic_loss", "discriminator": "discriminator_loss"}

    def after_one_update(kept: str | None) -> dict[str, dict]:
        """Weights after one update of a run in which all losses but one are switched off."""
        run_dir = tmp_path / str(kept)
        with monkeypatch.context() as patch:
            for part, name in losses.items():
                if part != kept:
                    patch.setattr(d_gail, name, lambda *inputs: 0.0 * inputs[0].sum())
            where = {"data_dir": str(recorded / "expert"), "run_dir": str(run_dir)}
            d_gail.main(tiny.exact_args(d_gail, **where, updates=1, log_every=1, disc_layers=1, disc_units=8))
        saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
        return {part: saved[part] for part in losses}

    start = after_one_update(None)
    for kept in losses:
        weights = after_one_update(kept)
        for part in losses:
            changed = [not torch.equal(weights[part][name], start[part][name]) for name in start[part]
                       if name not in ("center", "scale")]  # fmt: skip
            assert changed and (all(changed) if part == kept else not any(changed)), (kept, part)


def test_no_gradient_from_the_policy_to_the_discriminator(small_model):
    torch.manual_seed(0)
    actor, critic, discriminator = d_gail.Actor(20, 3, True, 2, 16), d_gail.mlp(20, 1, 2, 16), d_gail.mlp(16, 1, 2, 16)
    feat, action = small_model.imagine(lambda feat, t: actor.sample(feat), torch.randn(6, 20), 3)
    value = critic(feat).squeeze(-1)
    logits = discriminator(disc_pairs(feat, action, 8, "transition")).squeeze(-1)
    reward = adversarial_reward(logits)  # with gradient: the losses must stop it themselves
    returns = d_gail.lambda_return(reward, value, 0.9, 0.9)
    log_prob, entropy = actor.log_prob(feat[:-1], action)
    networks = {"actor": actor, "critic": critic, "discriminator": discriminator, "world model": small_model}
    for loss, learns in (
        (d_gail.actor_loss(log_prob, entropy, returns - value[:-1], 0.1), "actor"),
        (d_gail.critic_loss(value[:-1], returns), "critic"),
        (discriminator_loss(torch.zeros(3, 6), logits), "discriminator"),
    ):
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        for name, network in networks.items():
            received = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]
            none = [p.grad is None for p in network.parameters()]
            assert all(received) if name == learns else all(none), (learns, name)


def test_cloning_trains_every_weight_and_nothing_of_the_world_model(small_model):
    torch.manual_seed(0)
    actor, feat, action = d_bc.Actor(20, 3, True, 2, 16), torch.randn(4, 6, 20), torch.eye(3)[torch.randint(3, (4, 6))]
    d_bc.cloning_loss(*actor.log_prob(feat, action), 0.1).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())
    assert all(p.grad is None for p in small_model.parameters())
    encoder = small_encoder()
    actor = bc_pixels.Actor(64, 3, True, 1, 16)
    actor.net = torch.nn.Sequential(encoder, actor.net)
    stack = torch.randint(256, (6, 64, 64, 4), dtype=torch.uint8)
    bc_pixels.cloning_loss(*actor.log_prob(stack, action[0]), 0.1).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in actor.parameters())
    assert actor.sample(stack).shape == actor.mode(stack).shape == (6, 3)


# probes: problems with one right policy


def test_d_gail_finds_the_experts_actions_in_an_exact_model(recorded, tmp_path, exact_model):
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    args = tiny.exact_args(d_gail, **where, updates=500, log_every=500, batch_size=128, eval_episodes=20,
                           entropy=0.2, disc_layers=2, disc_units=64)  # fmt: skip
    result = d_gail.main(args)
    assert result["eval/return_vs_expert"] > 0.85 and result["expert/latent_distance"] < 0.02, result
    assert result["expert/action_agreement"] > 0.8  # at the walls pushing on is as good as staying
    assert 0.67 < result["losses/discriminator"] < 0.71  # back at chance, 0.693: it cannot tell agent and expert apart
    assert abs(result["imagine/d_expert"] - result["imagine/d_agent"]) < 0.1


def test_d_bc_clones_the_expert_in_an_exact_model(recorded, tmp_path, exact_model):
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    args = tiny.exact_args(d_bc, **where, updates=400, log_every=400, batch_size=256, eval_episodes=20,
                           entropy=0.01)  # fmt: skip
    result = d_bc.main(args)
    assert result["eval/return_vs_expert"] > 0.9 and result["expert/action_agreement"] > 0.95, result
    assert result["expert/latent_distance"] < 0.02 and abs(result["expert/latent_distance_expert_actions"]) < 1e-6


def test_bc_pixels_clones_the_expert_from_frames(recorded, tmp_path):
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(tmp_path)}
    args = tiny.debug_args(bc_pixels, **where, updates=200, log_every=200, eval_every=200, eval_episodes=20,
                           num_expert_episodes=80, batch_size=64, units=64, learning_rate=2e-3, entropy=0.01,
                           dilation=1, anneal=False)  # fmt: skip
    result = bc_pixels.main(args)
    assert result["eval/return_vs_expert"] > 0.7 and result["expert/action_agreement"] > 0.85, result


# whole runs


def debug_args(module, recorded: Path, trained, run_dir: Path, **changes):
    """Arguments of a run with --size debug on the CPU."""
    where = {"data_dir": str(recorded / "expert"), "run_dir": str(run_dir)}
    where |= {"dilation": 1} if module is bc_pixels else {"world_model": f"{trained[0]}/checkpoint.pt"}  # 1: quicker
    where |= {"target_every": 3} if module is d_gail else {}
    return tiny.debug_args(module, **where | changes)


@pytest.fixture(scope="module", params=SCRIPTS, ids=name_of)
def run(request, recorded, trained, tmp_path_factory):
    """For each script one finished run of the debug size: the module, its folder and what main returned."""
    run_dir = tmp_path_factory.mktemp(request.param.__name__)
    return request.param, run_dir, request.param.main(debug_args(request.param, recorded, trained, run_dir))


def read_games(file: Path) -> list[list[str]]:
    """Rows update, seed, return, length of a table of games, below the header."""
    header, *rows = csv.reader(file.read_text().splitlines())
    assert header == ["update", "seed", "return", "length"]
    return rows


def test_run_writes_its_files_and_logs_its_keys(recorded, run):
    module, run_dir, result = run
    files = {"checkpoint.pt", "episodes.csv", "final_episodes.csv", "result.json", "agent.gif", "dream.png", ".lock"}
    files -= {"dream.png"} if module is bc_pixels else set()
    assert files == {path.name for path in run_dir.iterdir() if "tfevents" not in path.name}
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 2  # the final row has its own
    log = read_log(run_dir)
    validated = {name for name in LOG_KEYS[module] if name.startswith(("expert/", "eval/"))}
    for step in (5, 10, 15, 20):  # validations are logged where they were made
        keys = LOG_KEYS[module] - (validated if step in (5, 15) else set())
        assert {name for at, name in log if at == step} == keys, step
    assert {step for step, _ in log} == {5, 10, 15, 20}
    assert np.isfinite(list(log.values())).all()
    assert log[20, "eval/return_mean"] == pytest.approx(result["eval/return_mean"], rel=1e-6)
    assert result.keys() == LOG_KEYS[module] | RESULT_KEYS
    stored = json.loads((run_dir / "result.json").read_text())
    assert stored.keys() == result.keys() | {"data", "size", "args", "returns"} | WORLD_MODEL[module]
    assert stored["data"] == str(recorded / "expert")
    assert {key: stored[key] for key in result} == result and stored["args"]["num_expert_episodes"] == 2
    validation, final = read_games(run_dir / "episodes.csv"), read_games(run_dir / "final_episodes.csv")
    assert [row[:2] for row in validation] == [["10", "20000"], ["10", "20001"]]
    assert [row[:2] for row in final] == [["20", "1000"], ["20", "1001"]]
    assert stored["returns"] == [float(row[2]) for row in final]
    assert np.mean(stored["returns"]) == result["eval/return_mean"]
    meta = json.loads((recorded / "expert" / "dataset.json").read_text())
    assert result["expert_return"] == np.mean([episode["return"] for episode in meta["episodes"]])
    assert result["random_return"] == np.mean(meta["random_returns"])
    assert result["shuffled_return"] == np.mean(meta["shuffled_returns"])
    assert Image.open(run_dir / "agent.gif").size == (192, 192)


def test_resumed_run_equals_uninterrupted_run(recorded, trained, run, tmp_path, monkeypatch):
    module, run_dir, result = run
    args = debug_args(module, recorded, trained, tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 15)  # the last checkpoint is update 10's
        with pytest.raises(KeyboardInterrupt):
            module.main(args)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10
    again = module.main(args)
    saved = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (run_dir, tmp_path)]
    networks = {d_gail: ("actor", "critic", "target", "discriminator"), d_bc: ("actor",), bc_pixels: ("actor",)}
    for name in (*networks[module], "optimizer", "ranks", "step", "best"):  # ranks: random states
        assert same_tensors(saved[0][name], saved[1][name]), name
    logs = [read_log(path) for path in (run_dir, tmp_path)]
    assert logs[0].keys() == logs[1].keys()
    for key in logs[1]:
        assert key[1] in CLOCKS or logs[1][key] == logs[0][key], key
    for name in ("episodes.csv", "final_episodes.csv"):
        assert (tmp_path / name).read_bytes() == (run_dir / name).read_bytes(), name
    assert all(again[key] == result[key] for key in result if key not in CLOCKS)


def test_the_step_size_falls_linearly(recorded, trained, run, tmp_path):
    module, run_dir, _ = run
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == pytest.approx(1.45e-4)  # 1e-3 (1 - 0.9 * 19 / 20)
    module.main(debug_args(module, recorded, trained, tmp_path, updates=2, eval_every=2, anneal=False))
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_eval_only_repeats_the_final_evaluation(recorded, trained, run, tmp_path):
    module, run_dir, result = run
    shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
    again = module.main(debug_args(module, recorded, trained, tmp_path, eval_only=True))
    assert again["step"] == 20 and again.keys() >= {name for name in result if "expert/" in name}
    assert all(value == result[name] for name, value in again.items() if not name.startswith("charts/"))
    assert read_log(tmp_path) == read_log(run_dir)
    for name in ("checkpoint.pt", "episodes.csv", "final_episodes.csv"):  # no row is written twice
        assert (tmp_path / name).read_bytes() == (run_dir / name).read_bytes(), name
    assert (tmp_path / "eval_only_episodes.csv").read_bytes() == (run_dir / "final_episodes.csv").read_bytes()


@pytest.mark.parametrize(
    "options",
    [{"disc_input": "state_action"}, {"adversarial_reward": "log_d"}, {"adversarial_reward": "log_1_d"}],
    ids=lambda options: "-".join(options.values()),
)
def test_options_of_d_gail_run(recorded, trained, tmp_path, options):
    result = d_gail.main(debug_args(d_gail, recorded, trained, tmp_path, updates=5, eval_every=5, **options))
    reward = result["imagine/reward"]
    sign = {"log_d": reward < 0, "log_1_d": reward > 0}.get(options.get("adversarial_reward"), 0 < reward < 1)
    assert sign and math.isfinite(result["losses/policy"]) and math.isfinite(result["losses/discriminator"])


def test_continuous_actions_run(tmp_path):
    common = dict(env_id="Slide-v0", data_dir=str(tmp_path), expert="random", num_processes=1)
    collect_data.main(collect_data.Args(**common, num_episodes=3, num_val_episodes=1))
    where = {"env_id": "Slide-v0", "data_dir": str(tmp_path / "Slide-v0" / "expert"), "updates": 6, "eval_every": 6}
    model = world_model.main(tiny.debug_args(world_model, run_dir=str(tmp_path / "model"), **where))["checkpoint"]
    for module, changes in (
        (d_gail, {"world_model": model}),
        (d_gail, {"world_model": model, "disc_input": "state_action"}),
        (d_bc, {"world_model": model}),
        (bc_pixels, {}),
    ):
        run_dir = tmp_path / f"{module.__name__}{len(changes)}"
        result = module.main(tiny.debug_args(module, run_dir=str(run_dir), **where | changes))
        assert math.isfinite(result["losses/policy"]) and 0 <= result["expert/action_agreement"] <= 1
        actor = torch.load(run_dir / "checkpoint.pt", weights_only=True)["actor"]
        assert actor["center"].tolist() == [1.0] and actor["scale"].tolist() == [2.0]  # Box(-1, 3)


def test_colour_frames_run(tmp_path):
    common = dict(env_id="Drawn-v0", data_dir=str(tmp_path), expert="random", num_processes=1, grayscale=False)
    collect_data.main(collect_data.Args(**common, num_episodes=2, num_val_episodes=1, max_steps=20))
    where = {"data_dir": str(tmp_path / "Drawn-v0" / "expert"), "run_dir": str(tmp_path / "run")}
    result = bc_pixels.main(tiny.debug_args(bc_pixels, env_id="Drawn-v0", **where, updates=4, eval_every=4))
    assert math.isfinite(result["losses/policy"])
    actor = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["actor"]
    assert actor["net.0.net.0.weight"].shape == (4, 12, 4, 4) and actor["net.0.pixel_mean"].shape == (3, 64, 64)


@pytest.mark.parametrize("module", SCRIPTS, ids=name_of)
def test_a_script_needs_world_model_and_nothing_else_of_the_project(module):
    tree = ast.parse(Path(module.__file__).read_text())
    own = {path.stem for path in ROOT.glob("*.py")} - sys.stdlib_module_names
    assert {"ditto", "world_model", "collect_data", "bc_pixels"} <= own
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert "torch" in imported and imported & own == {"world_model"}, imported & own


# bad input ends with one sentence


@pytest.mark.parametrize("module", SCRIPTS, ids=name_of)
def test_more_episodes_than_there_are(module, recorded, trained, tmp_path):
    with pytest.raises(SystemExit, match="--num-expert-episodes") as stop:
        module.main(debug_args(module, recorded, trained, tmp_path, num_expert_episodes=81))
    assert_one_sentence(stop)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("module", SCRIPTS, ids=name_of)
def test_evaluating_without_a_checkpoint(module, recorded, trained, tmp_path):
    with pytest.raises(SystemExit, match="train first") as stop:
        module.main(debug_args(module, recorded, trained, tmp_path, eval_only=True))
    assert_one_sentence(stop)


def test_checkpoint_of_other_settings_is_refused(recorded, trained, run, tmp_path):
    module, run_dir, _ = run
    shutil.copy(run_dir / "checkpoint.pt", tmp_path)
    own = {d_gail: {"disc_units": 8}, d_bc: {"entropy": 0.2}, bc_pixels: {"depth": 2}}[module]
    for changes in ({"units": 16}, {"seed": 9}, own):
        (name,) = changes
        with pytest.raises(SystemExit, match=f"--{name.replace('_', '-')} .*--run-dir") as stop:
            module.main(debug_args(module, recorded, trained, tmp_path, **changes))
        assert_one_sentence(stop)


def test_run_folder_of_another_script_is_refused(recorded, trained, tmp_path):
    where = {
        "data_dir": str(recorded / "expert"),
        "world_model": f"{trained[0]}/checkpoint.pt",
        "run_dir": str(tmp_path),
    }
    ditto.main(tiny.debug_args(ditto, **where, updates=5, eval_every=5))
    with pytest.raises(SystemExit, match="ditto.py") as stop:
        d_gail.main(tiny.debug_args(d_gail, **where, updates=5, eval_every=5))
    assert_one_sentence(stop)


# speed


class Operations(TorchDispatchMode):
    """Count the operations that PyTorch carries out, views included, and among them the reads of a tensor by Python."""

    def __init__(self):
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        self.reads += "_local_scalar_dense" in str(func) or "nonzero" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("module, most", [(world_model, 1500), (ditto, 530), (d_gail, 760), (d_bc, 100)], ids=name_of)
def test_an_update_reads_no_tensor_and_needs_few_operations(module, most, recorded, trained, tmp_path):
    counted = []
    for updates in (3, 5):
        changes = {"updates": updates, "eval_every": 99, "log_every": 99, "anneal": False}
        if module is world_model:
            changes |= {"data_dir": str(recorded / "expert"), "run_dir": f"{tmp_path}/{updates}"}
            args = tiny.debug_args(module, **changes)
        else:
            args = debug_args(module, recorded, trained, tmp_path / str(updates), **changes)
        torch.manual_seed(0)
        with Operations() as operations:
            game = {"observations": np.zeros((1, 64, 64, 1), np.uint8)}
            module.Run.play, played = lambda *a: (np.zeros(1), game), module.Run.play
            try:
                module.main(args)
            finally:
                module.Run.play = played
        counted.append((operations.count, operations.reads))
    count, reads = ((after - before) / 2 for before, after in zip(*counted))
    assert reads == 0 and 0 < count <= most, (reads, count)
