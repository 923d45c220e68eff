"""bco.py: windows and splits, which action belongs to which observation, losses, gradients, whole runs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tiny import assert_one_sentence, read_log, same_tensors
from tiny_dmc import FakeDMC, rewrite, write_trajectories

import bco
from bco import Actor, Args, Forward, cloning_loss, forward_loss, gather, inverse_loss, label, split_rows, window_rows

LOG_KEYS = {"losses/inverse", "losses/inverse_validation", "losses/forward", "losses/forward_validation",
            "losses/policy", "losses/policy_validation", "charts/SPS", "charts/seconds", "eval/return_mean",
            "eval/return_std", "eval/return_vs_expert"}  # fmt: skip


# data


@pytest.mark.parametrize("lengths", [(9, 7, 11, 8, 6), (9, 7), (20,)])
def test_training_and_validation_share_no_row(lengths):
    starts = torch.tensor([0, *np.cumsum(lengths)])
    train, held = split_rows(starts, 0.3, torch.Generator().manual_seed(0))
    seen = [{row + k for row in window_rows(pieces, 3).tolist() for k in (-2, -1, 0, 1)} for pieces in (train, held)]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(sum(lengths)))
    if len(lengths) == 5:
        assert len(held) == 2  # 0.3 * 5, rounded


def test_windows_never_cross_an_end():
    assert window_rows([range(0, 6), range(6, 10)], 3).tolist() == [2, 3, 4, 8]
    assert window_rows([range(0, 3)], 1).tolist() == [0, 1]
    obs = torch.arange(10.0)[:, None]
    assert gather(obs, torch.tensor([2, 8]), 3, True)[..., 0].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert gather(obs, torch.tensor([2, 8]), 3, False)[..., 0].tolist() == [[0, 1, 2], [6, 7, 8]]


# losses


def constant(actor: Actor, value: float) -> Actor:
    """An actor that answers tanh(value) whatever it sees."""
    for weight in actor.net.parameters():
        weight.data.zero_()
    actor.net[-1].bias.data.fill_(value)
    return actor


def test_losses_by_hand():
    actor = constant(Actor({"x": 2}, 1, 2, 4), 0.5493061)  # tanh: 0.5
    action = torch.tensor([[0.5, 1.5], [0.5, 0.5]])
    assert inverse_loss(actor, torch.zeros(2, 1, 2), action).item() == pytest.approx(0.25)  # one error of 1 in four
    assert cloning_loss(actor, torch.zeros(2, 1, 2), action).item() == pytest.approx(0.25)
    model = Forward({"x": 2}, 1, 2, 4)
    for weight in model.parameters():
        weight.data.zero_()
    obs = torch.tensor([[[9.0, 9.0], [1.0, 2.0]]])
    assert forward_loss(model, obs, action[:1]).item() == pytest.approx(2.5)  # (1 + 4) / 2: the last row is foreseen


def test_labels_come_from_the_frozen_model_and_stand_at_their_rows():
    inverse = Actor({"x": 1}, 3, 1, 4)
    inverse.forward = lambda obs: obs[:, -1] - obs[:, -2]  # how far the next observation is
    obs = torch.tensor([0.0, 1.0, 3.0, 7.0, 7.5])[:, None]
    assert label(inverse, obs, torch.tensor([1, 2, 3]), 2).flatten().tolist() == [0.0, 2.0, 4.0, 0.5, 0.0]


def test_policy_learns_through_the_frozen_forward_model():
    torch.manual_seed(0)
    model, policy = Forward({"x": 1}, 2, 1, 8).requires_grad_(False), Actor({"x": 1}, 2, 1, 8)
    forward_loss(model, torch.randn(4, 3, 1), policy(torch.randn(4, 2, 1))).backward()
    assert all(p.grad.abs().sum() > 0 for p in policy.parameters()) and all(p.grad is None for p in model.parameters())


def test_a_stage_ends_with_the_weights_of_its_lowest_validation_loss():
    net = torch.nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.0)
    args = Args(min_epochs=1, min_updates=1, patience=2, learning_rate=0.0)
    held = iter([5.0, 3.0, 4.0, 6.0, 1.0])

    def loss(rows):
        if not torch.is_grad_enabled():
            return torch.tensor(next(held))
        net.weight.data += 1  # once an epoch
        return 0 * net.weight.sum()

    parts = bco.stage(args, "policy", net)
    run = SimpleNamespace(parts=parts, args=args, step=0, log=lambda *_: None, save=lambda: None)
    bco.fit(run, "policy", loss, torch.tensor([0]), torch.tensor([0]))
    assert run.step == 4 and net.weight.item() == 2 and parts["policy_stopping"].loss == 3.0


def test_player_repeats_the_first_observation():
    policy = Actor({"x": 1}, 3, 1, 4)
    policy.forward = lambda obs: obs[:, :, 0]

    def shown(k: int, step: int) -> SimpleNamespace:
        return SimpleNamespace(seen=np.array([[k], [k + 10]], np.float32), steps=np.array([step, step]))

    act = bco.stacked(policy, 3, "cpu")
    assert [act(shown(k, k - 1))[0].tolist() for k in (1, 2, 3, 4)] == [[1, 1, 1], [1, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert act(shown(7, 0))[0].tolist() == [7, 7, 7]  # the next game
    act = bco.stacked(policy, 1, "cpu")
    assert [act(shown(k, k - 1))[0].tolist() for k in (1, 2)] == [[1], [2]]


# whole runs


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Folder of a body's trajectories and of demonstrations; dm_control is replaced by a fake."""
    monkeypatch.setattr(bco, "DMC", FakeDMC)
    monkeypatch.chdir(tmp_path)
    write_trajectories(tmp_path / "data" / "walker-random", 6, 1)
    write_trajectories(tmp_path / "data" / "walker-walk-expert", 3, 2, 0.3)
    return tmp_path / "data"


def debug_args(data, **changes) -> Args:
    """Arguments of a run with --size debug on the CPU."""
    fixed = {"env_id": "walker-walk", "data_dir": str(data), "body": "walker-random"}
    return tiny.debug_args(bco, **fixed | changes)


@pytest.mark.parametrize("method", ["bco", "oracle", "iidm"])
@pytest.mark.parametrize("setting", ["lpomdp", "mdp", "visual"])
def test_run_of_every_method_and_setting(data, method, setting):
    short = dict(max_epochs=2, stack=2, batch_size=8) if setting == "visual" else {}
    result = bco.main(debug_args(data, method=method, setting=setting, run_dir="run", **short))
    logged = {name for _, name in read_log(data.parent / "run")}
    first = {"bco": "inverse", "iidm": "forward"}.get(method)
    expected = {"losses/policy", "losses/policy_validation", "charts/SPS", "charts/seconds"}
    expected |= {name for name in LOG_KEYS if name.startswith("eval/")}
    assert logged == expected | ({f"losses/{first}", f"losses/{first}_validation"} if first else set())
    saved = json.loads((data.parent / "run" / "result.json").read_text())
    assert len(saved["returns"]) == 2 and saved["method"] == method and np.isfinite(saved["eval/return_mean"])
    before = (data.parent / "run" / "checkpoint.pt").read_bytes()
    again = bco.main(debug_args(data, method=method, setting=setting, run_dir="run", eval_only=True, **short))
    assert again["eval/return_mean"] == result["eval/return_mean"]
    assert (data.parent / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("method, folder, last", [("bco", "walker-random", -2), ("oracle", "walker-walk-expert", -1)])
def test_an_observation_goes_with_the_action_taken_there(data, monkeypatch, method, folder, last):
    pairs, taken, name = [], {}, {"bco": "inverse_loss", "oracle": "cloning_loss"}[method]
    rule = getattr(bco, name)
    monkeypatch.setattr(bco, name, lambda *given: pairs.extend(zip(given[1][:, last, 0], given[2])) or rule(*given))
    bco.main(debug_args(data, method=method, run_dir="run", max_epochs=1, eval_episodes=0))
    for file in (data / folder).glob("*.npz"):
        with np.load(file) as npz:  # by the first sensor; the next row's action was taken there
            taken |= dict(zip(npz["orientations"][:-1, 0].astype(np.float32).tolist(), npz["pre_action"][1:].tolist()))
    assert pairs and all(taken[sensor.item()] == action.tolist() for sensor, action in pairs)


@pytest.mark.parametrize("method, name", [("bco", "inverse"), ("iidm", "forward")])
def test_the_policy_sees_with_the_trained_models_encoder_first(data, monkeypatch, method, name):
    seen = []

    def fit(run, stage, *rest):
        seen.append(same_tensors(*(run.parts[part].encoder.state_dict() for part in ("policy", name))))
        for weight in run.parts[stage].parameters():
            weight.data += 1

    monkeypatch.setattr(bco, "fit", fit)
    bco.main(debug_args(data, method=method, setting="visual", stack=2, eval_episodes=0))
    assert seen == [False, True]


@pytest.mark.parametrize("method", ["bco", "iidm"])
def test_the_demonstrations_actions_cannot_be_read(data, method):
    """With the demonstrations' actions missing, every bit of the policy stays; only the oracle needs them."""
    policies = []
    for k in range(2):
        if k:
            rewrite(data / "walker-walk-expert", lambda a: {n: v for n, v in a.items() if n != "pre_action"})
        bco.main(debug_args(data, method=method, run_dir=f"run{k}"))
        policies.append(torch.load(f"run{k}/checkpoint.pt", weights_only=True)["ranks"][0]["policy_stopping"]["best"])
    assert same_tensors(*policies)
    with pytest.raises(SystemExit, match="pre_action") as stop:
        bco.main(debug_args(data, method="oracle", run_dir="oracle"))
    assert_one_sentence(stop)


@pytest.mark.parametrize("stage", ["inverse", "policy"])
def test_resumed_run_equals_uninterrupted_run(data, monkeypatch, stage):
    bco.main(debug_args(data, run_dir="whole"))
    save, count = bco.Run.save, []

    def save_or_break(self):
        save(self)
        count.append(0 < self.parts[f"{stage}_stopping"].epoch)
        if sum(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bco.Run, "save", save_or_break)
        with pytest.raises(KeyboardInterrupt):
            bco.main(debug_args(data, run_dir="broken"))
    bco.main(debug_args(data, run_dir="broken"))
    left, right = (torch.load(f"{name}/checkpoint.pt", weights_only=True) for name in ("whole", "broken"))
    for name in ("inverse", "policy", "inverse_optimizer", "policy_optimizer", "ranks", "step"):
        assert same_tensors(left[name], right[name]), name
    with pytest.raises(SystemExit, match="--units 16") as stop:
        bco.main(debug_args(data, run_dir="broken", units=8))
    assert_one_sentence(stop)


@pytest.mark.parametrize("method", ["bco", "oracle"])
def test_other_data_under_the_same_names_are_refused(data, method):
    bco.main(debug_args(data, method=method, run_dir="run"))
    data = data.rename(data.with_name("moved"))  # a folder's place is free
    bco.main(debug_args(data, method=method, run_dir="run"))
    for name in ("walker-random", "walker-walk-expert")[method == "oracle" :]:
        rewrite(data / name, lambda arrays: arrays | {"height": arrays["height"] * 0.5})
        with pytest.raises(SystemExit, match="another dataset") as stop:
            bco.main(debug_args(data, method=method, run_dir="run"))
        assert_one_sentence(stop)
        rewrite(data / name, lambda arrays: arrays | {"height": arrays["height"] * 2})
    bco.main(debug_args(data, method=method, run_dir="run"))
