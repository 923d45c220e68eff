"""aime.py and the Gaussian world models: equations by hand, who gets gradient, a toy with known actions, whole runs."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageSequence
from tiny import assert_one_sentence, interrupt, read_log, same_tensors
from tiny_dmc import STEPS, FakeDMC, rewrite, write_trajectories, write_vd4rl

import aime
import dmc
import world_model
from aime import Args, Policy, action_error, body_loss, clip_evidence, draw_clips, imitation_loss
from dmc import Trajectories
from world_model import WorldModel, kl_balanced, window_starts

BODY_KEYS = {"losses/world_model", "losses/nll", "losses/kl", "losses/grad_norm", "world_model/elbo", "charts/SPS",
             "charts/seconds"}  # fmt: skip
POLICY_KEYS = {"losses/policy", "losses/nll", "losses/kl", "losses/grad_norm", "imitate/elbo", "charts/SPS",
               "charts/seconds", "imitate/action_error", "imitate/elbo_true_actions", "eval/return_mean",
               "eval/return_std", "eval/return_vs_expert"}  # fmt: skip
LOG_KEYS = BODY_KEYS | POLICY_KEYS | {"losses/idm"}
LPOMDP = {"orientations": 14, "height": 1}


def small_model(deviation: str = "learned", keys: dict | None = None, **changes) -> WorldModel:
    """Untrained model of a few thousand weights: Gaussian latent, sensors or pictures."""
    torch.manual_seed(0)
    keys = keys or LPOMDP
    seen = {"depth": 2, "channels": 3} if "image" in keys else {"sensors": sum(keys.values()), "deviation": deviation}
    return WorldModel(dict(deter=8, stoch=3, hidden=8, action_size=6) | seen | changes)


def clips(T: int = 5, B: int = 2, size: int = 15) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations (T, B, O) and actions (T, B, 6)."""
    rng = torch.Generator().manual_seed(3)
    return torch.randn(T, B, size, generator=rng), 2 * torch.rand(T, B, 6, generator=rng) - 1


# equations


def test_kl_of_gaussians_by_hand():
    # N(1, 2) from N(0, 1): ln(1/2) + (4 + 1) / 2 - 1/2 = 1.3068528; N(3, 0.5) from N(2, 1): ln 2 + 1.25 / 2 - 1/2
    left, right = torch.tensor([1.0, 3.0, 2.0, 0.5]), torch.tensor([0.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(world_model.kl_gaussian(left, right), torch.tensor([1.3068528, 0.8181472]))
    assert world_model.kl_gaussian(left, left).abs().max() == 0


def test_the_evidence_of_clips_is_summed_over_time_and_averaged_over_clips(monkeypatch):
    model = small_model()
    nll, kl = torch.tensor([[3.0, 0.0], [7.0, 0.0]]), torch.tensor([[2.0, 0.0], [5.0, 0.0]])
    monkeypatch.setattr(model, "evidence", lambda *rest: (nll, kl, -nll - kl))
    obs, action = clips(2)
    assert [term.item() for term in clip_evidence(model, obs, action)[:3]] == [
        5.0,
        3.5,
        -8.5,
    ]  # (3 + 7) / 2, (2 + 5) / 2


def fixed_policy(mean: float, std: float) -> Policy:
    """A policy that ignores the state: one action, this mean and deviation before squashing."""
    policy = Policy(2, 1, 4)
    for weight in policy.parameters():
        weight.data.zero_()
    (
        policy.mean[-1].bias.data.fill_(mean),
        policy.raw[-1].bias.data.fill_(np.log(np.expm1(std))),
    )  # softplus of it is std
    return policy


def test_tanh_gaussian_by_hand():
    policy, feat = fixed_policy(0.0, 1.0), torch.zeros(1, 2)
    # x = 1, action tanh 1 = 0.7615942: -1/2 - 0.9189385 - ln(1 - 0.5800257) = -0.5513778
    assert policy.log_prob(feat, torch.tensor([[0.7615942]])).item() == pytest.approx(-0.5513778, abs=1e-5)
    assert policy.log_prob(feat, torch.tensor([[1.0]])).isfinite().all()
    policy = fixed_policy(0.5, 0.01)
    assert policy.mode(feat).item() == pytest.approx(0.4621172, abs=1e-6)  # tanh 0.5
    torch.manual_seed(0)
    samples = torch.atanh(fixed_policy(0.5, 0.7).sample(torch.zeros(20_000, 2)))
    assert (samples.mean().item(), samples.std().item()) == pytest.approx((0.5, 0.7), abs=0.02)


# which action belongs to which observation


@pytest.mark.parametrize("deviation", ["learned", "fixed"])
@pytest.mark.parametrize("keys", [LPOMDP, {"image": 3}])
def test_encode_equals_evidence_with_the_same_noise(deviation, keys):
    model = small_model(deviation, keys)
    obs, prev_action = clips()
    if "image" in keys:
        obs = (obs[:, :, 0, None, None, None] * 40 + 128).clamp(0, 255).byte().expand(-1, -1, 64, 64, 3)
    torch.manual_seed(1)
    deter, stoch, post, state = model.encode(obs, prev_action, torch.zeros(5, 2, dtype=torch.bool))
    torch.manual_seed(1)
    nll, kl, elbo, feat = clip_evidence(model, obs, prev_action)
    assert (deter.shape, stoch.shape, post.shape) == ((5, 2, 8), (5, 2, 3), (5, 2, 6))
    torch.testing.assert_close(feat, torch.cat([deter, stoch], -1))
    assert torch.equal(state[0], deter[-1]) and not elbo.requires_grad
    if not model.learned:  # a learned deviation reweights both terms, and the evidence has its constants
        torch.testing.assert_close(elbo, -(nll + kl))


def test_without_is_first_no_frame_is_a_first():
    model, (obs, prev_action), found = small_model(), clips(), []
    for first in (None, torch.zeros(5, 2, dtype=torch.bool)):
        torch.manual_seed(1)
        found.append(torch.cat(model.filter(obs, lambda feat, t: prev_action[t] * feat[:, :1].cos(), first)[:3], -1))
    assert torch.equal(*found)


# data


def test_trajectories_are_in_numeric_order_and_clips_stay_inside(tmp_path):
    folder = write_trajectories(tmp_path / "walker-stand-buffer", 11)
    data = Trajectories([str(folder)], LPOMDP)
    assert data.starts.tolist() == [13 * k for k in range(12)] and data.obs.shape == (143, 15)
    with np.load(folder / "10.npz") as npz:  # after 9, not after 1
        np.testing.assert_array_equal(data.prev_action[130:], npz["pre_action"])
        np.testing.assert_allclose(data.obs[130:, :14], npz["orientations"], rtol=1e-6)
        assert data.returns[10] == pytest.approx(npz["reward"].sum(), rel=1e-5)
    assert len(Trajectories([str(folder)], LPOMDP, limit=2).obs) == 26
    assert len(Trajectories([str(folder)] * 2, LPOMDP).obs) == 286  # a mix
    first = window_starts(data.starts, 10)
    assert first.tolist() == [13 * k + j for k in range(11) for j in range(4)]
    rows = draw_clips(first, 500, 10, torch.Generator().manual_seed(0))
    assert rows.shape == (10, 500) and set(rows[0].tolist()) == set(first.tolist())
    assert torch.equal(rows // 13, rows[:1] // 13 + torch.zeros_like(rows))


def test_scalars_per_step_and_float64_of_other_writers_are_read(tmp_path):
    folder = write_trajectories(tmp_path / "data", 1)
    expected = Trajectories([str(folder)], LPOMDP).obs
    rewrite(folder, lambda a: a | {"height": a["height"][:, 0], "orientations": a["orientations"].astype(np.float64)})
    assert torch.equal(Trajectories([str(folder)], LPOMDP).obs, expected)


def test_vd4rl_is_read_as_it_is(tmp_path):
    ours, theirs = write_trajectories(tmp_path / "ours", 3), write_vd4rl(tmp_path / "walker_walk/random/64px", 3)
    left, right = (Trajectories([str(folder)], {"image": 3}) for folder in (ours, theirs))
    assert torch.equal(left.obs, right.obs) and right.obs.dtype == torch.uint8
    assert torch.equal(left.prev_action, right.prev_action) and torch.equal(left.starts, right.starts)
    assert left.returns == pytest.approx(right.returns)
    # the body is where the action of the same row led it
    moved = right.obs[1 : STEPS + 1, 0, 0, 0].float() - right.obs[:STEPS, 0, 0, 0].float()
    torch.testing.assert_close(moved, 8 * right.prev_action[1 : STEPS + 1].mean(-1), atol=1.01, rtol=0)
    assert torch.equal(aime.withheld_actions(str(theirs), 2, "cpu"), left.prev_action[: 2 * (STEPS + 1)])
    with pytest.raises(SystemExit, match="orientations") as stop:
        Trajectories([str(theirs)], LPOMDP)
    assert_one_sentence(stop)


def test_pictures_of_another_size_are_refused(tmp_path):
    folder = write_vd4rl(tmp_path / "84px", 1)
    rewrite(folder, lambda a: a | {"image": np.zeros((STEPS + 1, 84, 84, 3), np.uint8)})
    with pytest.raises(SystemExit, match="not 64x64") as stop:
        Trajectories([str(folder)], {"image": 3})
    assert_one_sentence(stop)


def test_unneeded_keys_are_not_read(tmp_path):
    folder = write_trajectories(tmp_path / "data", 1)
    rewrite(folder, lambda a: a | {"pre_action": np.array(["not a number"])})
    assert Trajectories([str(folder)], LPOMDP, actions=False).prev_action is None
    with pytest.raises(SystemExit, match="0.npz") as stop:
        Trajectories([str(folder)], LPOMDP)
    assert_one_sentence(stop)


@pytest.mark.parametrize("damage", ["text", "sensor missing", "other size"])
def test_damaged_trajectory_is_named(tmp_path, damage):
    folder = write_trajectories(tmp_path / "data", 1)
    if damage == "text":
        (folder / "0.npz").write_text("no archive")
    elif damage == "sensor missing":
        rewrite(folder, lambda a: {k: v for k, v in a.items() if k != "height"})
    else:
        rewrite(folder, lambda a: a | {"height": np.zeros((STEPS + 1, 2))})
    with pytest.raises(SystemExit, match="0.npz") as stop:
        Trajectories([str(folder)], LPOMDP)
    assert_one_sentence(stop)


# gradients


@pytest.mark.parametrize("deviation", ["learned", "fixed"])
def test_phase_1_trains_every_weight_of_the_model(deviation):
    model = small_model(deviation)
    loss, metrics = body_loss(model, *clips(), None, 0.0, 1.0)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert metrics["losses/world_model"] == loss.detach()


def test_weights_of_the_kl(monkeypatch):
    model, (obs, action), terms = small_model(), clips(), torch.tensor([2.0, 3.0, 0.0])
    policy = Policy(model.feat_size, 6, 8)

    def evidence(model, obs, act, *rest):
        if callable(act):
            act(torch.zeros(2, model.feat_size), 0)
        return *terms, torch.zeros(5, 2, 1)

    monkeypatch.setattr(aime, "clip_evidence", evidence)
    assert body_loss(model, obs, action, None, 0.0, 10.0)[0].item() == 32.0
    for objective, loss in (("elbo", 32.0), ("kl", 30.0), ("reconstruction", 2.0)):
        assert imitation_loss(model, policy, obs, objective, 10.0)[0].item() == loss


def test_inverse_model_sees_a_state_and_the_next_observation():
    model, (obs, prev_action), seen = small_model(), clips(), []
    idm = Policy(model.feat_size + model.embed_size, 6, 8)
    idm.log_prob = lambda inputs, action: seen.append((inputs, action)) or inputs.sum(-1)
    torch.manual_seed(1)
    feat = clip_evidence(model, obs, prev_action)[3]
    torch.manual_seed(1)
    body_loss(model, obs, prev_action, None, 0.0, 1.0, idm)
    ((inputs, action),) = seen
    assert torch.equal(inputs, torch.cat([feat[:-1], obs[1:]], -1)) and torch.equal(action, prev_action[1:])


def test_the_policy_is_drawn_to_the_inverse_model():
    model, (obs, _), seen, losses = small_model(), clips(), [], []
    idm, policy = Policy(model.feat_size + model.embed_size, 6, 8), Policy(model.feat_size, 6, 8)
    idm.gaussian = lambda inputs: seen.append(inputs) or (torch.zeros(2, 6), torch.ones(2, 6))
    policy.gaussian = lambda feat: (torch.ones(2, 6), torch.full((2, 6), 2.0))
    idm.sample = policy.sample = lambda inputs: torch.zeros(2, 6)
    for used in (idm, None):
        torch.manual_seed(0)
        losses.append(imitation_loss(model, policy, obs, idm=used)[0].item())
    # N(0, 1) from N(1, 2): ln 2 + 2 / 8 - 1/2 = 0.4431472; six actions, five steps
    assert losses[0] - losses[1] == pytest.approx(30 * 0.4431472, rel=1e-4)
    assert torch.equal(torch.stack(seen)[..., -15:], obs) and not seen[0][:, :-15].any()  # chosen in the state before


def test_inverse_model_learns_from_detached_states():
    model = small_model()
    idm = Policy(model.feat_size + model.embed_size, 6, 8)
    obs, prev_action = clips()
    torch.manual_seed(0)
    body_loss(model, obs, prev_action, None, 0.0, 1.0)[0].backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(0)
    body_loss(model, obs, prev_action, None, 0.0, 1.0, idm)[0].backward()
    assert all(torch.equal(alone[name], p.grad) for name, p in model.named_parameters())
    assert all(p.grad.abs().sum() > 0 for p in idm.parameters())


@pytest.mark.parametrize("deviation", ["learned", "fixed"])
@pytest.mark.parametrize("objective", ["elbo", "kl", "reconstruction"])
def test_phase_2_trains_the_policy_through_either_term_and_never_the_model(deviation, objective):
    model = small_model(deviation).requires_grad_(False)
    policy = Policy(model.feat_size, 6, 8)
    loss, _, action = imitation_loss(model, policy, clips()[0], objective)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
    assert all(p.grad is None for p in model.parameters()) and action.shape == (5, 2, 6)


def test_phase_2_gradient_runs_through_all_steps():
    model = small_model().requires_grad_(False)
    policy = Policy(model.feat_size, 6, 8)
    obs, actions = clips()[0], []
    sample = policy.sample

    def remember(feat):
        actions.append(sample(feat))
        actions[-1].retain_grad()
        return actions[-1]

    policy.sample = remember
    feat = clip_evidence(model, obs, lambda feat, t: policy.sample(feat))[3]
    feat[-1, :, :8].sum().backward()  # only the last step: every earlier action still had a part in it
    assert all(action.grad.abs().sum() > 0 for action in actions)


def test_with_an_inverse_model_the_evidence_teaches_the_policy_nothing():
    model = small_model().requires_grad_(False)
    idm = Policy(model.feat_size + model.embed_size, 6, 8).requires_grad_(False)
    gradients = []
    for objective, weight in (("elbo", 1.0), ("kl", 7.0)):
        torch.manual_seed(0)
        policy = Policy(model.feat_size, 6, 8)
        torch.manual_seed(1)
        imitation_loss(model, policy, clips()[0], objective, weight, idm)[0].backward()
        gradients.append([p.grad for p in policy.parameters()])
    assert all(torch.equal(a, b) and a.abs().sum() > 0 for a, b in zip(*gradients))


# a body whose actions are known


class Line(WorldModel):
    """A point on a line, exactly known: x_t = x_{t-1} + 0.5 a_{t-1}; nothing in it is learnt."""

    def __init__(self):
        super().__init__(dict(sensors=1, deter=1, stoch=1, hidden=1, action_size=1))
        self.requires_grad_(False)
        same = torch.nn.Identity()
        del self.post_deter
        self.post_embed, self.action_in, self.post_out = same, same, same
        self.post_deter = torch.zeros_like  # the posterior knows what was seen, and nothing else
        self.recur = lambda state, action: state[1] + 0.5 * action  # from where it was seen to be
        self.latent.params = lambda x: torch.cat([x, torch.full_like(x, 0.01)], -1)
        self.prior = lambda deter, member=0: torch.cat([deter, torch.full_like(deter, 0.1)], -1)
        self.predict = lambda feat: (feat[..., :1], torch.full_like(feat[..., :1], 0.1))


@pytest.mark.parametrize("objective", ["elbo", "kl", "reconstruction"])
def test_the_known_actions_of_a_line_are_recovered(objective):
    model, rng = Line(), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    policy = Policy(2, 1, 16)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    x = [torch.zeros(64, 1)]
    for _ in range(7):
        noise = 0.2 * torch.randn(64, 1, generator=rng)  # visits more places
        x.append(x[-1] + 0.5 * (0.6 - 0.5 * x[-1]) + noise * (len(x) == 1))  # the expert's action is 0.6 - 0.5 x
    obs = torch.stack(x[1:])  # (7, 64, 1)
    for _ in range(250):
        loss, _, _ = imitation_loss(model, policy, obs, objective)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen = obs[1:-1].flatten(0, 1)
    error = policy.mode(torch.cat([seen, seen], -1)) - (0.6 - 0.5 * seen)
    assert error.abs().mean() < 0.06


# whole runs


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folder of a body's trajectories and of demonstrations; dm_control is replaced by a fake."""
    monkeypatch.setattr(aime, "DMC", FakeDMC)
    monkeypatch.setattr(dmc, "DMC", FakeDMC)
    monkeypatch.chdir(tmp_path)
    for body, task in (("walker", "walk"), ("cheetah", "flip")):
        write_trajectories(tmp_path / "data" / f"{body}-random", 4, 1, body=body)
        write_trajectories(tmp_path / "data" / f"{body}-{task}-expert", 3, 2, 0.3, body=body)
    return tmp_path / "data"


def debug_args(data, **changes) -> Args:
    """Arguments of a run with --size debug on the CPU."""
    env_id = changes.get("env_id", "walker-walk")
    fixed = {"env_id": env_id, "data_dir": str(data), "body": f"{env_id.split('-')[0]}-random"}
    return tiny.debug_args(aime, **fixed | changes)


@pytest.mark.parametrize("env_id, setting", [("walker-walk", "mdp"), ("walker-walk", "lpomdp"),
                                             ("walker-walk", "visual"), ("cheetah-flip", "lpomdp"),
                                             ("cheetah-flip", "mdp"), ("cheetah-flip", "visual")])  # fmt: skip
def test_run_of_every_setting(data, monkeypatch, env_id, setting):
    kls = []
    monkeypatch.setattr(world_model, "kl_balanced", lambda *given: kls.append(given[3:]) or kl_balanced(*given))
    short = dict(batch_size=2, batch_length=3, model_updates=4, updates=4, eval_every=2, log_every=1)
    result = aime.main(debug_args(data, env_id=env_id, setting=setting, **short if setting == "visual" else {}))
    steps = 4 if setting == "visual" else 20
    run = data.parent / "runs" / env_id / f"aime-debug-{setting}-{env_id.split('-')[0]}-random-2-1"
    model = next((data.parent / "runs" / env_id.split("-")[0]).iterdir())
    walker = env_id.startswith("walker")
    asked = (None, 0.0) if walker else (0.8, 1.0)  # balance and free nats: rssm or rssmo
    saved = torch.load(model / "checkpoint.pt", weights_only=True)
    assert {*kls[:steps]} == {asked} == {(saved["balance"], saved["free_nats"])}
    assert {*kls[steps:]} == {(None, 0.0)}  # phase 2: neither
    rows = read_log(run)
    assert {name for _, name in rows} == POLICY_KEYS and max(step for step, _ in rows) == steps
    assert {name for _, name in read_log(model)} == BODY_KEYS
    assert np.isfinite(list(rows.values())).all()
    saved = json.loads((run / "result.json").read_text())
    assert len(saved["returns"]) == 2 and saved["step"] == steps and saved["random_return"] == pytest.approx(0.1)
    assert {"episodes.csv", "final_episodes.csv", "checkpoint.pt", "agent.gif"} <= {p.name for p in run.iterdir()}
    with np.load(data / f"{env_id.split('-')[0]}-random" / "0.npz") as npz, Image.open(model / "dream.png") as dream:
        first = np.asarray(dream)[:128, :128]  # the truth, as the fake body is drawn; other rows: the model's
        assert dream.size == (5 * 128, 512) and np.abs(first - float(npz["image"][0].mean())).max() <= 1
    assert result["percent_of_expert"] == pytest.approx(100 * result["eval/return_mean"] / result["expert_return"])
    loaded = world_model.load_world_model(model / "checkpoint.pt")
    visual = setting == "visual"
    assert loaded.learned == (walker and not visual) and loaded.pixel_std.item() == (255 if visual else 1)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == steps


def test_games_are_played_with_the_policys_mode(data, monkeypatch):
    monkeypatch.setattr(Policy, "mode", lambda self, feat: torch.full((len(feat), 6), 0.5))
    result = aime.main(debug_args(data, run_dir="run", model_updates=1, updates=2, eval_every=1))
    assert result["best_validation"] == result["eval/return_mean"] == 0.5 * STEPS


def test_gradients_are_clipped(data):
    weight = torch.nn.Parameter(torch.zeros(1))
    parts = {"optimizer": torch.optim.SGD([weight])}
    args = debug_args(data, grad_clip=3.0, learning_rate=1.0, updates=1, anneal=False)
    run = world_model.Run("run", args, parts)
    aime.optimise(run, [weight], lambda: ((30 * weight).sum(), {}), 1)
    run.writer.close()
    assert weight.item() == pytest.approx(-3) and run.report["losses/grad_norm"] == 30


def test_the_gif_shows_the_game_that_was_played(data):
    """Sensors have no pictures: the first game is played again and drawn, if there is something to draw with."""
    run = world_model.Run("run", debug_args(data, run_dir="run"), {})
    games, actions = aime.games_of(run.args, STEPS)(1), np.linspace(-1, 1, STEPS)[:, None] * np.ones(6)
    (game,) = world_model.play(games, lambda games: actions[games.steps], [7], keep=(7,))
    games.reset([8])  # another game has begun
    run.film(games, game)
    with Image.open("run/agent.gif") as gif:
        seen = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    place = np.random.default_rng(7).uniform(-0.1, 0.1) + 0.2 * np.cumsum([0, *np.linspace(-1, 1, STEPS)])
    assert len(seen) == STEPS + 1 and seen[0].shape == (192, 192, 3)
    assert [frame.max() for frame in seen] == [frame.min() for frame in seen] == np.uint8(128 + 40 * place).tolist()


def test_without_a_renderer_there_are_no_pictures(data, monkeypatch, capsys):
    for number, problem in enumerate((SystemExit("No picture can be rendered: install libegl1."), NotImplementedError)):
        monkeypatch.setattr(FakeDMC, "render", mock.Mock(side_effect=problem))
        monkeypatch.setattr(FakeDMC, "draw", mock.Mock(side_effect=SystemExit))
        result = aime.main(debug_args(data, run_dir=f"run{number}"))
        assert np.isfinite(result["eval/return_mean"]) and Path(f"run{number}/result.json").exists()
        assert not [*Path(f"run{number}").rglob("*.gif"), *Path(f"run{number}").rglob("*.png")]
    out = capsys.readouterr().out
    assert "no agent.gif: No picture can be rendered: install libegl1." in out and "gif: NotImplementedError" in out


def test_data_of_others_train_as_they_are(data, monkeypatch):
    names = [f"walker_walk/{kind}/64px" for kind in ("random", "medium_replay", "expert")]
    for seed, name in enumerate(names):
        write_vd4rl(data / name, 3, seed)
    monkeypatch.setattr(aime, "random_returns", lambda env_id: [0.0, 0.2])  # no dataset.json says them
    short = dict(batch_size=2, batch_length=3, model_updates=2, updates=2, eval_every=2, log_every=1)
    args = debug_args(data, setting="visual", body=",".join(names[:2]), demo=names[2], run_dir="run", **short)
    result = aime.main(args)
    assert result["step"] == 2 and np.isfinite(result["imitate/action_error"]) and result["random_return"] == 0.1
    with np.load(min((data / names[2]).iterdir())) as npz:
        assert abs(result["expert_return"] - npz["reward"].sum()) < STEPS


def test_the_demonstrations_actions_cannot_be_read(data):
    """True, useless or missing: with the demonstrations' actions changed, every bit of the result stays."""
    folder, weights = data / "walker-walk-expert", []
    changes = [lambda a: a, lambda a: a | {"pre_action": np.full((STEPS + 1, 6), np.nan, np.float32)},
               lambda a: {k: v for k, v in a.items() if k != "pre_action"}]  # fmt: skip
    for k, change in enumerate(changes):
        rewrite(folder, change)
        args = debug_args(data, run_dir=str(data.parent / f"run{k}"), world_model="")
        result = aime.main(args)
        assert ("imitate/action_error" in result) == (k < 2)
        run = data.parent / f"run{k}"
        saved = torch.load(run / "checkpoint.pt", weights_only=True)
        weights.append(
            [
                saved["policy"],
                saved["optimizer"],
                json.loads((run / "result.json").read_text())["returns"],
            ]
        )
    for other in weights[1:]:
        assert same_tensors(weights[0][0], other[0]) and same_tensors(weights[0][1], other[1])
        assert weights[0][2] == other[2]


def test_resumed_run_equals_uninterrupted_run(data, monkeypatch):
    aime.main(debug_args(data, run_dir="whole"))
    for phase in (15, 15):  # broken off in phase 1, then in phase 2
        with monkeypatch.context() as patch:
            interrupt(patch, phase)
            with pytest.raises(KeyboardInterrupt):
                aime.main(debug_args(data, run_dir="broken"))
    result = aime.main(debug_args(data, run_dir="broken"))
    for part in ("world_model/", ""):
        left, right = (torch.load(f"{name}/{part}checkpoint.pt", weights_only=True) for name in ("whole", "broken"))
        for name in ({"model"} if part else {"policy"}) | {"optimizer", "step", "ranks"}:
            assert same_tensors(left[name], right[name]), (part, name)
    before = Path("broken/result.json").read_bytes()
    again = aime.main(debug_args(data, run_dir="broken", eval_only=True))
    assert Path("broken/result.json").read_bytes() == before and Path("broken/eval_only.json").exists()
    assert again["eval/return_mean"] == result["eval/return_mean"]
    with pytest.raises(SystemExit, match="--units 16") as stop:
        aime.main(debug_args(data, run_dir="broken", units=8))
    assert_one_sentence(stop)


def test_other_data_under_the_same_names_are_refused(data):
    aime.main(debug_args(data, run_dir="run"))
    data = data.rename(data.with_name("moved"))  # a folder's place is free
    aime.main(debug_args(data, run_dir="run"))
    for name, key in (("walker-walk-expert", "height"), ("walker-random", "pre_action")):
        before = {file: file.read_bytes() for file in (data / name).glob("*.npz")}
        rewrite(data / name, lambda arrays: arrays | {key: arrays[key] * 0.5})  # noqa: B023
        with pytest.raises(SystemExit, match="another dataset") as stop:
            aime.main(debug_args(data, run_dir="run"))
        assert_one_sentence(stop)
        for file in before:
            file.write_bytes(before[file])


def test_ablations_and_inverse_model_run(data):
    for name, changes in (
        ("kl", {"objective": "kl"}),
        ("rec", {"objective": "reconstruction"}),
        ("idm", {"idm": True}),
    ):
        assert np.isfinite(aime.main(debug_args(data, run_dir=name, **changes))["eval/return_mean"])
    assert "losses/idm" in {key for _, key in read_log(data.parent / "idm" / "world_model")}
    with pytest.raises(SystemExit, match="--idm") as stop:
        aime.main(debug_args(data, run_dir="x", idm=True, world_model="kl/world_model/checkpoint.pt"))
    assert_one_sentence(stop)


def test_playing_more_often_does_not_change_the_training(data):
    policies = []
    for name, often in (("often", 5), ("rarely", 20)):
        aime.main(debug_args(data, run_dir=name, eval_every=often))
        policies.append(torch.load(f"{name}/checkpoint.pt", weights_only=True)["policy"])
    assert same_tensors(*policies)


def test_bad_input_ends_with_one_sentence(data):
    for changes, text in (({"env_id": "walker-fly"}, "walker-fly"), ({"num_expert_episodes": 9}, "--num-expert"),
                          ({"batch_length": 40}, "--batch-length"), ({"body": "walker-none"}, "walker-none"),
                          ({"env_id": "BreakoutNoFrameskip-v4"}, "aime_atari.py"),
                          ({"eval_only": True, "run_dir": "none"}, "No checkpoint")):  # fmt: skip
        with pytest.raises(SystemExit, match=text) as stop:
            aime.main(debug_args(data, **changes))
        assert_one_sentence(stop)
    aime.main(debug_args(data, run_dir="a"))
    with pytest.raises(SystemExit, match="--world-model") as stop:  # a model of other sensors
        aime.main(debug_args(data, run_dir="b", setting="mdp", world_model="a/world_model/checkpoint.pt"))
    assert_one_sentence(stop)
    shutil.copy("a/world_model/checkpoint.pt", "a/checkpoint.pt")
    with pytest.raises(SystemExit, match="a/checkpoint.pt") as stop:
        aime.main(debug_args(data, run_dir="a"))
    assert_one_sentence(stop)


def test_action_error_by_hand():
    model, obs, chosen = small_model(), clips(3, 1)[0], iter([9.0, 1.0, 2.0])
    true = torch.tensor([5.0, 0.0, 4.0])[:, None].expand(3, 6)  # the actions that led to these rows
    policy = SimpleNamespace(sample=lambda feat: torch.full((1, 6), next(chosen)))
    found = action_error(model, policy, SimpleNamespace(rows=lambda rows: (obs,)), true, torch.arange(3)[:, None])
    assert found["imitate/action_error"] == 2.5  # (1 - 0)^2 = 1, (2 - 4)^2 = 4; the first was chosen blindly
    torch.manual_seed(0)
    torch.randn(3, 1, 3)  # the draws under the policy's actions
    elbo = clip_evidence(model, obs, true[:, None])[2].item()
    assert found["imitate/elbo_true_actions"] == pytest.approx(elbo)


def test_action_error_leaves_the_random_state_alone(data):
    demos = Trajectories([str(data / "walker-walk-expert")], LPOMDP, actions=False)
    model = small_model().requires_grad_(False)
    policy, rows = (
        Policy(model.feat_size, 6, 8),
        draw_clips(window_starts(demos.starts, 5), 4, 5, torch.Generator().manual_seed(0)),
    )
    torch.manual_seed(4)
    before = torch.get_rng_state()
    true = Trajectories([str(data / "walker-walk-expert")], LPOMDP).prev_action
    found = action_error(model, policy, demos, true, rows)
    assert torch.equal(torch.get_rng_state(), before) and found["imitate/action_error"] > 0
    assert action_error(model, policy, demos, None, rows) == {}
