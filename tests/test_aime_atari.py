"""aime_atari.py: straight-through actions, evidence by hand, gradients, a probe with known actions, blindness, runs."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import assert_one_sentence, interrupt, read_log, same_tensors
from torch import nn

import aime_atari
from aime_atari import Actor, Demonstrations, imitation_loss, straight_through
from world_model import CategoricalLatent, Episodes, Streams, WorldModel

LOG_KEYS = {"losses/policy", "losses/nll", "losses/kl", "losses/entropy", "losses/grad_norm", "expert/latent_distance",
            "expert/latent_distance_expert_actions", "expert/action_agreement", "eval/return_mean", "eval/return_std",
            "eval/return_vs_expert", "charts/SPS", "charts/seconds"}  # fmt: skip


def fixed_actor(rule) -> SimpleNamespace:
    """A discrete actor whose logits are rule(feat)."""
    return SimpleNamespace(discrete=True, action_size=3, net=rule)


def test_straight_through_by_hand():
    logits = torch.tensor([[0.0, 0.0, math.log(2.0)]], requires_grad=True)  # probabilities 1/4, 1/4, 1/2
    actor = fixed_actor(lambda feat: logits)
    action, entropy = straight_through(actor, torch.zeros(1, 2))
    drawn = action.detach().round()
    assert torch.allclose(action, drawn) and drawn.sum() == 1
    assert entropy.item() == pytest.approx(1.5 * np.log(2.0))  # 2/4 log 4 + 1/2 log 2
    (action * torch.tensor([4.0, 0.0, 0.0])).sum().backward()
    # of 4 p_0 by the logits: 4 p_0 (1 - p_0), -4 p_0 p_1, -4 p_0 p_2, whichever action was drawn
    assert torch.allclose(logits.grad, torch.tensor([[0.75, -0.25, -0.5]]))


def test_straight_through_draws_by_the_probabilities():
    torch.manual_seed(0)
    rule = lambda feat: torch.tensor([0.0, 0.0, math.log(2.0)]).expand(len(feat), 3)  # noqa: E731
    actor = fixed_actor(rule)
    frequency = straight_through(actor, torch.zeros(20_000, 2))[0].mean(0)
    assert torch.allclose(frequency, torch.tensor([0.25, 0.25, 0.5]), atol=0.02)


class Ring:
    """A model that knows its world: a place on a ring of 4, which an action moves by 0, 1 or 2; frames show the place.

    The latent is the place (one variable, 4 classes) and so is the state; the embedding is the place as one-hot.
    """

    image_weight, beta = 3.0, 2.0
    shifts = torch.stack([torch.eye(4).roll(k, 1) for k in range(3)])  # (3, 4, 4)
    filter, evidence = WorldModel.filter, WorldModel.evidence

    def __init__(self):
        self.asked, self.priors = [], [None]
        self.latent = CategoricalLatent(1, 4)
        self.latent.sample = lambda logits: F.one_hot(logits.argmax(-1), 4).float()  # no noise

    action_in = staticmethod(lambda action: action)
    post_embed = staticmethod(lambda embed: embed)
    post_deter = staticmethod(lambda deter: 0 * deter)

    def recur(self, state, action_in):
        self.asked.append((state[0].detach(), action_in.detach()))
        return torch.einsum("bi,ba,aij->bj", state[1], action_in, self.shifts)

    def prior(self, deter, member=0):
        return 5 * deter

    def post_out(self, hidden):
        return 5 * hidden

    def predict(self, feat):  # (T, B, 8) -> (T, B, 1, 1, 4)
        return feat[..., None, None, :4], None

    def preprocess(self, image):
        return image


def walk(T: int, B: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places (T, B, 4) of walkers that step by place % 3, and what they did (T, B)."""
    place = torch.randint(4, (B,), generator=torch.Generator().manual_seed(seed))
    places, actions = [place], []
    for _ in range(T - 1):
        actions.append(places[-1] % 3)
        places.append((places[-1] + actions[-1]) % 4)
    return F.one_hot(torch.stack(places), 4).float(), torch.stack(actions)


def ring_inputs(T: int = 6, B: int = 8, seed: int = 0):
    """embed, image and is_first of walkers, and their actions."""
    place, actions = walk(T, B, seed)
    is_first = torch.zeros(T, B, dtype=torch.bool)
    is_first[0] = True
    return place, place[:, :, None, None], is_first, actions


def test_evidence_of_known_and_of_wrong_actions_by_hand():
    embed, image, is_first, _ = ring_inputs(T=3, B=2)
    zero = torch.zeros(2, 4), torch.zeros(2, 4)
    right = fixed_actor(lambda feat: 100 * F.one_hot(feat[:, 4:].argmax(-1) % 3, 3).float())
    wrong = fixed_actor(lambda feat: 100 * F.one_hot((feat[:, 4:].argmax(-1) % 3 + 1) % 3, 3).float())
    _, hit, _ = imitation_loss(Ring(), right, embed, image, is_first, zero)
    _, miss, _ = imitation_loss(Ring(), wrong, embed, image, is_first, zero)
    # the first step has a flat prior: KL = log 4 - entropy of softmax(5, 0, 0, 0). A wrong one: 5 (p_max - p_other)
    p = torch.tensor([5.0, 0, 0, 0]).softmax(-1)
    start = (p * (p * 4).log()).sum().item()
    assert hit["losses/kl"].item() == pytest.approx(start, abs=1e-4)
    assert miss["losses/kl"].item() == pytest.approx(start + 2 * 5 * (p[0] - p[1]).item(), abs=1e-4)
    # pictures are decoded from deter: (0 - 1)^2 / 2 at the start, then 0 or (1 + 1) / 2
    assert hit["losses/nll"].item() == pytest.approx(0.5, abs=1e-4)
    assert miss["losses/nll"].item() == pytest.approx(0.5 + 2 * 1.0, abs=1e-4)
    assert hit["losses/policy"].item() == pytest.approx(2 * start + 3 * 0.5, abs=1e-3)  # beta and image_weight
    for objective, value in (("kl", 2 * start), ("reconstruction", 1.5)):
        loss, _, _ = imitation_loss(Ring(), right, embed, image, is_first, zero, objective)
        assert loss.item() == pytest.approx(value, abs=1e-3)


def test_the_entropy_weight_adds_the_entropy_of_every_step():
    embed, image, is_first, _ = ring_inputs(T=3, B=2)
    actor, losses = fixed_actor(lambda feat: torch.zeros(2, 3)), []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        zero = torch.zeros(2, 4), torch.zeros(2, 4)
        losses.append(imitation_loss(Ring(), actor, embed, image, is_first, zero, "kl", weight)[0].item())
    assert losses[1] - losses[0] == pytest.approx(-0.5 * 3 * np.log(3), abs=1e-4)


def test_actions_are_chosen_in_the_state_before_and_a_start_has_none():
    embed, image, is_first, actions = ring_inputs(T=5, B=3)
    is_first[2, 1] = True  # a new episode in the second stream
    model, asked = Ring(), []

    def rule(feat):
        asked.append(feat.detach())
        return 100 * F.one_hot(feat[:, 4:].argmax(-1) % 3, 3).float()

    carried = torch.full((3, 4), 0.5), F.one_hot(torch.tensor([3, 3, 3]), 4).float()
    _, _, state = imitation_loss(model, fixed_actor(rule), embed, image, is_first, carried)
    assert torch.equal(asked[0][:, 4:], carried[1])  # the first action is chosen in the state that was carried here
    for t in range(1, 5):
        assert torch.equal(asked[t][:, 4:], embed[t - 1])  # z of the row before
        keep = (~is_first[t]).float()[:, None]
        assert torch.allclose(model.asked[t][1], keep * F.one_hot(actions[t - 1], 3))
    assert not model.asked[0][0].any() and not model.asked[0][1].any()  # is_first: zero state, no action
    assert not model.asked[2][0][1].any() and not model.asked[2][1][1].any() and model.asked[2][1][0].any()
    assert torch.equal(state[1], embed[-1]) and not state[0].requires_grad


@pytest.mark.parametrize("objective", ["elbo", "kl", "reconstruction"])
def test_the_known_actions_are_recovered(objective):
    torch.manual_seed(0)
    actor, model = Actor(8, 3, True, 1, 32), Ring()
    optimizer = torch.optim.Adam(actor.parameters(), lr=1e-2)
    for k in range(300):
        embed, image, is_first, actions = ring_inputs(seed=k)
        zero = torch.zeros(8, 4), torch.zeros(8, 4)
        loss, _, _ = imitation_loss(model, actor, embed, image, is_first, zero, objective)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    place = torch.eye(4)
    deter = place  # under right actions the prior is certain of the place
    found = actor.mode(torch.cat([deter, place], -1)).argmax(-1)
    assert found.tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("objective", ["elbo", "kl", "reconstruction"])
def test_gradients_reach_the_policy_through_either_term_and_never_the_model(small_model, counting, objective):
    data = Episodes([counting], "train", actions=False)
    small_model.requires_grad_(False)
    embed, image, is_first = Streams(Demonstrations(small_model, data), 2, 4, seed=0).next()
    actor = Actor(small_model.feat_size, 3, True, 1, 8)
    nn.init.normal_(actor.net[-1].weight, std=2.0)
    loss, _, _ = imitation_loss(small_model, actor, embed, image, is_first, small_model.initial(2), objective)
    loss.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in actor.parameters())
    assert all(weight.grad is None for weight in small_model.parameters())


def test_evidence_is_what_the_model_was_trained_on(small_model, counting):
    """With the recorded actions in place of the policy's: the model's own loss, up to its mean over frames."""
    recorded = Episodes([counting], "train")
    small_model.kl_balance, T, B = 0.5, 5, 2
    rows = recorded.starts[:2] + torch.arange(T)[:, None]  # (T, B)
    image, prev_action, is_first = recorded.rows(rows)
    queue = list(prev_action)
    actor = SimpleNamespace(discrete=False, sample=lambda feat: queue.pop(0))
    with torch.no_grad():
        torch.manual_seed(3)
        expected, parts, _ = small_model.loss(image, prev_action, is_first)
        torch.manual_seed(3)
        embed = small_model.embed(small_model.preprocess(image))
        loss, metrics, _ = imitation_loss(small_model, actor, embed, image, is_first, small_model.initial(B))
    assert loss.item() == pytest.approx(T * expected.item(), rel=1e-4)
    assert metrics["losses/kl"].item() == pytest.approx(T * parts["losses/kl"].item(), rel=1e-4)


def test_the_kl_alone_is_the_evidences_kl_and_decodes_nothing(small_model, counting, monkeypatch):
    data, kls = Demonstrations(small_model, Episodes([counting], "train", actions=False)), []
    actor = Actor(small_model.feat_size, 3, True, 1, 8)
    for objective in ("elbo", "kl"):
        torch.manual_seed(0)
        batch = Streams(data, 2, 4, seed=0).next()
        _, metrics, _ = imitation_loss(small_model, actor, *batch, small_model.initial(2), objective)
        kls.append(metrics["losses/kl"])
        monkeypatch.setattr(small_model, "predict", None)
    assert torch.equal(*kls) and metrics["losses/nll"] == 0


# whole runs


def debug_args(recorded: Path, trained, run_dir: Path, **changes):
    """Arguments of a run with --size debug on the CPU."""
    where = {"data_dir": str(recorded / "expert"), "world_model": f"{trained[0]}/checkpoint.pt"}
    return tiny.debug_args(aime_atari, run_dir=str(run_dir), **where | changes)


@pytest.fixture(scope="module")
def run(recorded, trained, tmp_path_factory):
    """A finished run of the debug size: its folder and what main returned."""
    run_dir = tmp_path_factory.mktemp("aime_atari")
    return run_dir, aime_atari.main(debug_args(recorded, trained, run_dir))


def test_run_writes_its_files_and_logs_its_keys(run):
    run_dir, result = run
    files = {"checkpoint.pt", "episodes.csv", "final_episodes.csv", "result.json", "agent.gif", "dream.png", ".lock"}
    assert files == {path.name for path in run_dir.iterdir() if "tfevents" not in path.name}
    log = read_log(run_dir)
    assert {name for _, name in log} == LOG_KEYS and {step for step, _ in log} == {5, 10, 15, 20}
    assert np.isfinite(list(log.values())).all()
    stored = json.loads((run_dir / "result.json").read_text())
    assert {key: stored[key] for key in result} == result and len(stored["returns"]) == 2


def test_resumed_run_equals_uninterrupted_run(recorded, trained, run, tmp_path, monkeypatch):
    run_dir, result = run
    args = debug_args(recorded, trained, tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 15)  # the last checkpoint is update 10's
        with pytest.raises(KeyboardInterrupt):
            aime_atari.main(args)
    aime_atari.main(args)
    saved = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (run_dir, tmp_path)]
    for name in ("actor", "optimizer", "step", "best"):
        assert same_tensors(saved[0][name], saved[1][name]), name
    own = [content["ranks"][0] for content in saved]  # random states, and the streams with the state they carry
    states = [dict(content["streams"]) for content in own]
    assert all(torch.equal(a, b) for a, b in zip(*(state.pop("state") for state in states), strict=True))
    assert same_tensors(*states) and torch.equal(own[0]["torch_rng"], own[1]["torch_rng"])
    logs = [read_log(path) for path in (run_dir, tmp_path)]
    assert all(
        key[1] in ("charts/SPS", "charts/seconds") or logs[1][key] == logs[0][key]
        for key in logs[0].keys() | logs[1].keys()
    )


def test_the_demonstrations_actions_cannot_be_read(recorded, trained, run, tmp_path):
    """Training with true, useless and without actions gives the same weights, bit by bit."""
    weights = [torch.load(run[0] / "checkpoint.pt", weights_only=True)["actor"]]
    for kind in ("useless", "missing"):
        folder = tmp_path / kind / "expert"
        shutil.copytree(recorded / "expert", folder)
        for file in folder.glob("train_*.npz"):
            with np.load(file) as npz:
                content = dict(npz)
            if kind == "useless":
                content["actions"] = np.full_like(content["actions"], 2)
            else:
                del content["actions"]
            np.savez_compressed(file, **content)
        args = debug_args(recorded, trained, tmp_path / kind / "run", data_dir=str(folder))
        aime_atari.main(args)
        weights.append(torch.load(tmp_path / kind / "run" / "checkpoint.pt", weights_only=True)["actor"])
    assert same_tensors(weights[0], weights[1]) and same_tensors(weights[0], weights[2])


def test_continuous_actions_run(tmp_path):
    """The class of actions is the dataset's; here a Box."""
    import collect_data
    import world_model

    common = dict(env_id="Slide-v0", data_dir=str(tmp_path), expert="random", num_processes=1)
    collect_data.main(collect_data.Args(**common, num_episodes=3, num_val_episodes=1))
    folder = tmp_path / "Slide-v0" / "expert"
    model = tmp_path / "model"
    world_model.main(tiny.debug_args(world_model, env_id="Slide-v0", data_dir=str(folder), run_dir=str(model)))
    args = tiny.debug_args(aime_atari, env_id="Slide-v0", data_dir=str(folder), run_dir=str(tmp_path / "run"),
                           world_model=str(model / "checkpoint.pt"), eval_every=20)  # fmt: skip
    assert np.isfinite(aime_atari.main(args)["losses/policy"])


def test_bad_input_ends_with_one_sentence(recorded, trained, run, tmp_path):
    for changes, name in (({"data_dir": str(tmp_path / "nowhere")}, "nowhere"), ({"world_model": "lost.pt"}, "lost"),
                          ({"num_expert_episodes": 81}, "--num-expert-episodes"),
                          ({"eval_only": True}, "No checkpoint")):  # fmt: skip
        with pytest.raises(SystemExit, match=name) as stop:
            aime_atari.main(debug_args(recorded, trained, tmp_path / "run", **changes))
        assert_one_sentence(stop)
    shutil.copytree(run[0], tmp_path / "other")
    with pytest.raises(SystemExit, match="--objective kl") as stop:
        aime_atari.main(debug_args(recorded, trained, tmp_path / "other", objective="elbo"))
    assert_one_sentence(stop)
