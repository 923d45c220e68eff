"""world_model.py: equations on hand-computed numbers, which action belongs to which frame, gradients, whole runs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import assert_one_sentence, interrupt, read_log, same_tensors

import ditto
import world_model
from world_model import (
    Args,
    CategoricalLatent,
    Episodes,
    GaussianLatent,
    Run,
    Streams,
    WorldModel,
    beta_nll,
    gaussian_log_prob,
    kl_balanced,
    window_starts,
)

ROOT = Path(world_model.__file__).parent
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LOG_KEYS = {"losses/world_model", "losses/image_nll", "losses/kl", "losses/grad_norm", "charts/frames_per_second",
            "charts/SPS", "charts/seconds",
            "world_model/posterior_error_start", "world_model/posterior_error_end", "world_model/open_loop_error_1",
            "world_model/open_loop_error_15", "world_model/copy_error_15", "world_model/moving_error_1",
            "world_model/moving_error_5", "world_model/moving_error_10", "world_model/moving_error_15"}  # fmt: skip


def debug_args(folder: Path | str, run_dir: Path, **changes) -> Args:
    """Arguments of a run with --size debug on the CPU."""
    return tiny.debug_args(world_model, data_dir=str(folder), run_dir=str(run_dir), **changes)


# equations


def test_kl_balanced_value_and_gradients_by_hand():
    # q = (1/2, 1/2), p = (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln(2/3) = 0.1438410; a second, equal variable adds nothing
    post = torch.tensor([[0.5, 0.5, 0.3, 0.7]]).log().requires_grad_()
    prior = torch.tensor([[0.25, 0.75, 0.3, 0.7]]).log().requires_grad_()
    kl = kl_balanced(CategoricalLatent(2, 2), post, prior, 0.8)
    assert kl.shape == (1,) and kl.item() == pytest.approx(0.1438410, abs=1e-6)
    kl.sum().backward()
    # prior: alpha * (p - q) = 0.8 * (-1/4, 1/4)
    torch.testing.assert_close(prior.grad, torch.tensor([[-0.2, 0.2, 0.0, 0.0]]), atol=1e-6, rtol=0)
    # posterior: (1 - alpha) * q * (ln(q / p) - KL) = 0.2 * 1/2 * (0.6931472 - 0.1438410) and the opposite
    torch.testing.assert_close(post.grad, torch.tensor([[0.0549306, -0.0549306, 0.0, 0.0]]), atol=1e-6, rtol=0)


def test_gaussian_kl_value_gradients_and_free_nats_by_hand():
    # N(1, 2) from N(0, 1): ln(1/2) + (4 + 1) / 2 - 1/2 = 1.3068528
    post, prior = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[0.0, 1.0]], requires_grad=True)
    kl = kl_balanced(GaussianLatent(1), post, prior, None)
    assert kl.item() == pytest.approx(1.3068528, abs=1e-6)
    kl.sum().backward()
    # d/d mean = 1, d/d std = 2 - 1/2; of the prior: -1 and 1 - (4 + 1)
    torch.testing.assert_close(post.grad, torch.tensor([[1.0, 1.5]]))
    torch.testing.assert_close(prior.grad, torch.tensor([[-1.0, -4.0]]))
    for free_nats, trained in ((1.3, True), (1.4, False)):  # below the free nats: the same value, no gradient
        post.grad = None
        free = kl_balanced(GaussianLatent(1), post, prior, 0.8, free_nats)
        free.sum().backward()
        assert free.item() == pytest.approx(1.3068528, abs=1e-6) and (post.grad.abs().max() > 0) == trained
        assert not trained or post.grad[0, 0].item() == pytest.approx(0.2)  # (1 - 0.8) * 1


def test_gaussian_deviation_is_a_softplus():
    found = GaussianLatent(2).params(torch.tensor([5.0, -5.0, -3.0, 0.0]))
    assert found.tolist() == pytest.approx([5.0, -5.0, 0.0485874, 0.6931472], abs=1e-5)  # ln(1 + e^-3), ln 2


def test_gaussian_density_and_beta_nll_by_hand():
    # N(0, 1) at 0: -0.9189385; N(1, 2) at 3: -0.5 - ln 2 - 0.9189385 = -2.1120857
    mean, std = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    log_prob = gaussian_log_prob(torch.tensor([[[0.0, 3.0]]]), mean, std)
    torch.testing.assert_close(log_prob.detach(), torch.tensor([[[-0.9189385, -2.1120857]]]))
    nll, kl = beta_nll(log_prob, std, torch.tensor([[4.0]]))
    assert nll.item() == pytest.approx(0.9189385 + 2 * 2.1120857, abs=1e-5)
    assert kl.item() == 6.0 and not kl.requires_grad  # the mean deviation is 3/2
    assert beta_nll(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]]), torch.ones(2))[1].tolist() == [1.0, 3.0]  # by step
    nll.sum().backward()
    # d(-log p)/d std, times the deviation as a constant: 1 * (1 - 0) and 2 * (1/2 - 4/8)
    torch.testing.assert_close(std.grad, torch.tensor([[[1.0, 0.0]]]))


def test_latent_sample_frequencies_and_straight_through_gradient():
    torch.manual_seed(0)
    latent = CategoricalLatent(2, 3)
    logits = torch.tensor([0.1, 0.2, 0.7, 0.5, 0.5, 1e-9]).log().requires_grad_()
    sample = latent.sample(logits.expand(20_000, 6))
    assert sample.shape == (20_000, 6)
    groups = sample.detach().unflatten(-1, (2, 3))
    assert (groups.sum(-1) - 1).abs().max() < 1e-6 and groups.amax(-1).sub(1).abs().max() < 1e-6  # one-hot
    # standard error of a frequency is at most 0.0036
    torch.testing.assert_close(sample.mean(0), torch.tensor([0.1, 0.2, 0.7, 0.5, 0.5, 0.0]), atol=0.015, rtol=0)
    (latent.sample(logits) * torch.tensor([1.0, 2.0, 3.0, 0.0, 0.0, 0.0])).sum().backward()
    # gradient of the softmax: p * (w - p.w) with p.w = 0.1 + 0.4 + 2.1 = 2.6
    torch.testing.assert_close(logits.grad[:3], torch.tensor([-0.16, -0.12, 0.28]), atol=1e-6, rtol=0)


def test_loss_is_weighted_error_plus_weighted_kl(small_model, monkeypatch):
    small_model.image_weight, small_model.beta = 3.0, 10.0
    monkeypatch.setattr(small_model, "predict", lambda feat: (feat.new_full((*feat.shape[:-1], 1, 64, 64), 2.0), None))
    monkeypatch.setattr(world_model, "kl_balanced", lambda latent, post, *rest: torch.full(post.shape[:-1], rest[1]))
    image = torch.full((2, 3, 64, 64, 1), 60, dtype=torch.uint8)  # the mean: 0 when normalised
    loss, metrics, _ = small_model.loss(image, torch.zeros(2, 3, 3), torch.ones(2, 3, dtype=torch.bool))
    assert metrics["losses/image_nll"].item() == 0.5 * 64 * 64 * 2.0**2  # summed over pixels, averaged over frames
    assert loss.item() == pytest.approx(3.0 * 8192 + 10.0 * 0.8)


def test_preprocess_normalises_and_dilates(small_model):
    image = torch.zeros(1, 64, 64, 1, dtype=torch.uint8)
    image[0, 10, 20], image[0, 63, 0] = 90, 120
    pixels = small_model.preprocess(image)  # mean 60, standard deviation 30
    assert pixels.shape == (1, 1, 64, 64)
    assert [pixels[0, 0, y, x].item() for y, x in ((10, 20), (63, 0), (0, 0))] == [1.0, 2.0, -2.0]
    assert torch.equal(small_model.to_pixels(pixels).byte(), image)
    small_model.dilation = 5
    wide = small_model.preprocess(image)
    assert (wide == 1).sum() == 25 and (wide == 2).sum() == 9  # 5x5; a corner keeps 3x3 of it
    reference = F.max_pool2d(image.movedim(-1, 1).float(), 5, stride=1, padding=2)
    assert torch.equal(wide, (reference - 60) / 30)


def test_pixel_statistics(counting, small_model):
    data = Episodes([str(counting)], "train")
    grey = np.concatenate([20 * k + np.arange(T + 1) for k, T in enumerate((5, 9, 3, 7))])
    small_model.measure(data.image, 1.0)
    mean, std = small_model.pixel_mean, small_model.pixel_std
    assert mean.shape == std.shape == (1, 1, 1) and mean.item() == pytest.approx(grey.mean(), rel=1e-5)
    assert std.item() == pytest.approx(grey.std(), rel=1e-4)
    data.image[:, 0, 0] = 7  # a pixel that never changes
    model = WorldModel(small_model.config | {"pixel_stats": "pixel"})
    model.measure(data.image, 2.0)
    mean, std = model.pixel_mean, model.pixel_std
    assert mean.shape == std.shape == (1, 64, 64)
    assert (mean[0, 0, 0].item(), std[0, 0, 0].item()) == (7.0, 2.0)
    assert std[0, 1, 1].item() == pytest.approx(grey.std(ddof=1), rel=1e-4)


# one class: latents, observations, ensembles


def body(**changes) -> WorldModel:
    """A model of five sensors with a Gaussian latent and a learned deviation."""
    torch.manual_seed(0)
    return WorldModel(dict(sensors=5, deviation="learned", deter=8, stoch=3, hidden=8, action_size=2) | changes)


def test_sensors_and_a_gaussian_latent():
    model, is_first = body(), torch.zeros(4, 2, dtype=torch.bool)
    obs, action = torch.randn(4, 2, 5), torch.randn(4, 2, 2)
    deter, stoch, post, _ = model.encode(obs, action, is_first)
    assert (deter.shape, stoch.shape, post.shape) == ((4, 2, 8), (4, 2, 3), (4, 2, 6))
    mean, std = model.predict(torch.cat([deter, stoch], -1))
    assert mean.shape == std.shape == (4, 2, 5) and (std > 0).all() and (post[..., 3:] > 0).all()
    nll, kl, elbo = model.evidence(obs, deter, stoch, post)
    log_prob, plain = gaussian_log_prob(obs, mean, std).sum(-1), model.latent.kl(post, model.prior(deter))
    torch.testing.assert_close(elbo, (log_prob - plain).detach())
    assert nll.shape == kl.shape == (4, 2) and not elbo.requires_grad
    loss, *_ = model.loss(obs, action, is_first)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_policy_takes_the_place_of_recorded_actions():
    model, is_first = body(), torch.zeros(4, 2, dtype=torch.bool)
    obs, action, asked = torch.randn(4, 2, 5), torch.randn(4, 2, 2), []
    torch.manual_seed(1)
    recorded = model.encode(obs, action, is_first)
    torch.manual_seed(1)
    played = model.encode(obs, lambda feat, t: asked.append((feat, t)) or action[t], is_first)
    for left, right in zip(recorded[:3], played[:3]):
        torch.testing.assert_close(left, right)
    assert [t for _, t in asked] == [0, 1, 2, 3] and not asked[0][0].any()  # first asked in the zero state
    for t in (1, 2, 3):  # then in the state before the step
        torch.testing.assert_close(asked[t][0], torch.cat([recorded[0][t - 1], recorded[1][t - 1]], -1))


@pytest.mark.parametrize("picture", [32, 64])
def test_pictures_of_two_sizes(small_model, picture):
    model = WorldModel(small_model.config | {"picture": picture, "dilation": 3})
    image = torch.zeros(2, 3, 64, 64, 1, dtype=torch.uint8)
    image[:, :, 20, 30] = image[:, :, 41, 7] = 200  # an even pixel, and an odd one that only the maximum saves
    deter, stoch, *_ = model.encode(image, torch.zeros(2, 3, 3), torch.ones(2, 3, dtype=torch.bool))
    assert model.decode(torch.cat([deter, stoch], -1)).shape == (2, 3, 1, picture, picture)
    shown = world_model.shrink(image, 3, picture)
    assert shown.shape == (2, 3, picture, picture, 1)
    lit = [tuple(place) for place in shown[0, 0, :, :, 0].nonzero().tolist()]
    if picture == 32:
        assert lit == [(10, 15), (20, 3), (20, 4), (21, 3), (21, 4)]
        torch.testing.assert_close(model.preprocess(shown), model.preprocess(image))  # shrunk before or here
    else:
        assert len(lit) == 18 and (19, 29) in lit and (42, 8) in lit


def test_a_checkpoint_of_another_picture_size_says_so(recorded, trained, tmp_path):
    shutil.copy(trained[0] / "checkpoint.pt", tmp_path / "checkpoint.pt")
    for picture, match in ((64, "--picture 32"), (48, "--picture 48")):
        with pytest.raises(SystemExit, match=match) as stop:
            world_model.main(debug_args(recorded / "expert", tmp_path, picture=picture))
        assert_one_sentence(stop)


# which action belongs to which frame


def smooth(model: WorldModel) -> WorldModel:
    """Replace draws by probabilities, so that equal inputs give equal states."""
    model.latent.sample = lambda params: params.unflatten(-1, (3, 4)).softmax(-1).flatten(-2)
    return model


def random_batch(T: int, B: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise pictures, one-hot actions, is_first only at the start."""
    rng = torch.Generator().manual_seed(3)
    image = torch.randint(256, (T, B, 64, 64, 1), generator=rng, dtype=torch.uint8)
    prev_action = F.one_hot(torch.randint(3, (T, B), generator=rng), 3).float()
    return image, prev_action, torch.arange(T)[:, None].expand(T, B) == 0


def test_prev_action_of_a_row_moves_the_state_of_that_row(small_model):
    image, prev_action, is_first = random_batch(4)
    deter = smooth(small_model).encode(image, prev_action, is_first)[0]
    prev_action[2] = prev_action[2].roll(1, -1)
    moved = (small_model.encode(image, prev_action, is_first)[0] - deter).abs().amax((1, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True]


def test_frame_of_a_row_moves_the_deter_of_later_rows_only(small_model):
    image, prev_action, is_first = random_batch(4)
    deter, stoch, *_ = smooth(small_model).encode(image, prev_action, is_first)
    image[1] = 255 - image[1]
    new_deter, new_stoch, *_ = small_model.encode(image, prev_action, is_first)
    assert ((new_deter - deter).abs().amax((1, 2)) > 1e-7).tolist() == [False, False, True, True]
    assert ((new_stoch - stoch).abs().amax((1, 2)) > 1e-7).tolist() == [False, True, True, True]


def test_is_first_resets_exactly_there(small_model):
    image, prev_action, is_first = random_batch(6)
    is_first = is_first.clone()
    is_first[3, 1] = True  # stream 1 begins a new episode, stream 0 goes on
    straight = smooth(small_model).encode(image, prev_action, is_first & False)[0]
    deter = small_model.encode(image, prev_action, is_first)[0]
    fresh = small_model.encode(image[3:], prev_action[3:], is_first[3:])[0]
    torch.testing.assert_close(deter[3:, 1], fresh[:, 1])
    torch.testing.assert_close(deter[1:3, 1], small_model.encode(image[:3], prev_action[:3], is_first[:3])[0][1:, 1])
    assert (deter[3:, 0] - fresh[:, 0]).abs().max() > 1e-4 and (deter[3:, 1] - straight[3:, 1]).abs().max() > 1e-4
    prev_action[3, 1] = prev_action[3, 1].roll(1)  # this action ended the old episode: ignored
    torch.testing.assert_close(small_model.encode(image, prev_action, is_first)[0], deter)


def test_encode_equals_filter_steps_with_the_same_noise(small_model):
    image, prev_action, is_first = random_batch(7)
    torch.manual_seed(5)
    deter, stoch, post, last = small_model.encode(image, prev_action, is_first)
    assert (deter.shape, stoch.shape, post.shape) == ((7, 2, 8), (7, 2, 12), (7, 2, 12))
    assert torch.equal(last[0], deter[-1]) and torch.equal(last[1], stoch[-1])
    torch.manual_seed(5)
    state = small_model.initial(2)
    for t in range(7):
        state = small_model.filter_step(state, image[t], prev_action[t], is_first[t])
        torch.testing.assert_close(state[0], deter[t])
        torch.testing.assert_close(state[1], stoch[t])
    torch.manual_seed(5)  # in two chunks, the state carried on
    first = small_model.encode(image[:3], prev_action[:3], is_first[:3])
    second = small_model.encode(image[3:], prev_action[3:], is_first[3:], first[-1])
    torch.testing.assert_close(torch.cat([first[0], second[0]]), deter)


def test_imagine_step_uses_the_prior_of_the_new_deter(small_model):
    state = torch.randn(2, 8), torch.randn(2, 12)
    action = torch.eye(3)[:2]
    deter, stoch = smooth(small_model).imagine_step(state, action)
    # what filtering computes before it sees the picture
    _, _, _, (filtered, _) = small_model.encode(*(x[:1] for x in random_batch(1)[:1]), action[None],
                                                torch.zeros(1, 2, dtype=torch.bool), state)  # fmt: skip
    torch.testing.assert_close(deter, filtered)
    torch.testing.assert_close(stoch, small_model.latent.sample(small_model.prior(deter)))


# data


def test_episodes_keep_terminal_frames_and_shift_actions(counting):
    data = Episodes([str(counting)], "train")
    assert data.starts.tolist() == [0, 6, 16, 20, 28] and data.discrete
    assert data.is_first.nonzero().flatten().tolist() == [0, 6, 16, 20]
    for k, T in enumerate((5, 9, 3, 7)):
        with np.load(counting / f"train_{k:05d}.npz") as file:
            rows = slice(int(data.starts[k]), int(data.starts[k + 1]))
            assert torch.equal(data.image[rows], torch.from_numpy(file["observations"]))  # T + 1 frames, the last too
            assert torch.equal(data.prev_action[rows][1:].argmax(-1), torch.from_numpy(file["actions"]))
            assert data.prev_action[rows][1:].sum(-1).eq(1).all() and data.prev_action[rows][0].sum() == 0
    held_out = Episodes([str(counting)], "val")
    assert held_out.starts.tolist() == [0, 7] and held_out.image[0, 0, 0, 0] == 80
    assert len(Episodes([str(counting)], "train", limit=2).image) == 16
    assert len(Episodes([str(counting), str(counting)], "train").image) == 56


def dreamer_episodes(folder: Path, count: int = 3) -> Path:
    """Files as DreamerV2 writes them: action, reward and is_first belong to the image of the same row."""
    folder.mkdir()
    for k in range(count):
        image = np.full((10, 64, 64, 3), 10 * k, np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]
        action = np.linspace(-1, 1, 20, dtype=np.float32).reshape(10, 2) + k
        np.savez_compressed(folder / f"2023{k}-9.npz", image=image, action=action, reward=np.zeros(10, np.float32),
                            is_first=np.arange(10) == 0)  # fmt: skip
    return folder


def test_dreamer_style_folder(tmp_path):
    folder = dreamer_episodes(tmp_path / "kitchen")
    data, held_out = (Episodes([str(folder)], split) for split in ("train", "val"))
    assert data.starts.tolist() == [0, 10, 20] and held_out.starts.tolist() == [0, 10]  # the last one is held out
    assert held_out.image[0, 0, 0].tolist() == [20, 20, 20] and not data.discrete
    with np.load(folder / "20231-9.npz") as file:
        assert torch.equal(data.prev_action[10:], torch.from_numpy(file["action"]))  # not shifted: already previous
        assert torch.equal(data.image[10:], torch.from_numpy(file["image"]))


@pytest.mark.parametrize(
    "action, discrete",
    [
        ([[0, 0], [1, 0], [0, 1]], True),  # zeros first, then one-hot
        ([[1, 0], [1, 0], [0, 1]], True),
        ([[0, 0], [1, 1], [0, 1]], False),  # two buttons at once
        ([[0, 0], [0.5, 0.5], [0, 1]], False),
        ([[0, 0], [-1, 0], [0, 1]], False),
    ],
)
def test_kind_of_actions_in_a_dreamer_style_folder(tmp_path, action, discrete):
    for k in range(2):
        np.savez_compressed(tmp_path / f"{k}.npz", image=np.zeros((3, 64, 64, 3), np.uint8), action=np.float32(action))
    data = Episodes([str(tmp_path)], "train")
    assert data.discrete == discrete and data.prev_action.tolist() == action


def test_a_step_on_dreamer_style_data(tmp_path):
    folder = dreamer_episodes(tmp_path / "kitchen")
    result = world_model.main(debug_args(folder, tmp_path / "run", updates=2, eval_every=2, log_every=1))
    model = world_model.load_world_model(result["checkpoint"])
    assert (model.config["channels"], model.config["action_size"]) == (3, 2)
    assert Image.open(tmp_path / "run" / "dream.png").mode == "RGB"


def test_carried_streams_walk_to_the_end_then_start_anew(counting):
    data = Episodes([str(counting)], "train")
    streams = Streams(data, 3, 5, seed=0)
    chunks = [streams.next() for _ in range(40)]
    grey = torch.cat([image[..., 0, 0, 0] for image, _, _ in chunks]).long()  # (T, B): 20 * episode + time-step
    is_first = torch.cat([first for _, _, first in chunks])
    last = torch.tensor([5, 29, 43, 67])
    assert is_first[0].all()  # starts anywhere, from a zero state
    for b in range(3):
        for t in range(1, len(grey)):
            if torch.isin(grey[t - 1, b], last):
                assert grey[t, b] in (0, 20, 40, 60) and is_first[t, b]
            else:
                assert grey[t, b] == grey[t - 1, b] + 1 and not is_first[t, b]
    assert len(grey.unique()) == 28  # terminal frames too
    expected = torch.where(is_first, -1, (grey // 20 + grey % 20 - 1) % 3)  # the action that led to each frame
    prev_action = torch.cat([action for _, action, _ in chunks])
    found = torch.where(is_first, -1, prev_action.argmax(-1))
    assert torch.equal(found, expected)


def test_windows_never_cross_an_end(counting):
    data = Episodes([str(counting)], "train")  # rows 0-5, 6-15, 16-19, 20-27
    assert window_starts(data.starts, 6).tolist() == [0, 6, 7, 8, 9, 10, 20, 21, 22]
    assert window_starts(data.starts, 10).tolist() == [6] and len(window_starts(data.starts, 11)) == 0


def test_several_continuous_actions_can_be_left_unread(tmp_path):
    game = dict(observations=np.zeros((5, 64, 64, 1), np.uint8), actions=np.zeros((4, 3), np.float32))
    np.savez(tmp_path / "train_00000.npz", **game), np.savez(tmp_path / "val_00000.npz", **game)
    (tmp_path / "dataset.json").write_text('{"low": [-1, -1, -2], "high": [1, 1, 2]}')
    assert world_model.Episodes([tmp_path], "train", actions=False).prev_action.shape == (5, 0)
    assert world_model.Episodes([tmp_path], "train").prev_action.shape == (5, 3)


def test_a_stream_may_see_several_episodes_in_one_batch(counting):
    streams = Streams(Episodes([str(counting)], "train"), 64, 25, seed=3)  # episodes of 6, 10, 4 and 8 frames
    streams.next()
    image, _, is_first = streams.next()
    grey, begun = image[..., 0, 0, 0].long(), is_first.sum(0)
    assert begun.min() >= 2 and begun.max() >= 4
    assert torch.equal(is_first, grey % 20 == 0)  # no longer the zero state of the first batch
    follows = grey[1:] == grey[:-1] + 1
    assert torch.equal(follows, ~is_first[1:])


def test_pictures_are_shown_smaller_when_they_are_read(counting):
    small = Episodes([str(counting)], "train", shown=lambda image: image[:, ::2, ::2])
    assert small.image.shape == (28, 32, 32, 1)
    assert torch.equal(small.image[:, 0, 0, 0], Episodes([str(counting)], "train").image[:, 0, 0, 0])


def test_streams_continue_from_their_state(counting):
    data = Episodes([str(counting)], "train")
    whole, other = Streams(data, 3, 4, 0), Streams(data, 3, 4, 9)
    whole.next()
    other.load_state_dict(whole.state_dict())
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(whole.next(), other.next(), strict=True))


# gradients


def test_every_parameter_learns_from_the_loss(small_model):
    torch.manual_seed(0)
    loss, _, state = small_model.loss(*random_batch(4))
    loss.backward()
    missing = [n for n, p in small_model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == [] and not any(part.requires_grad for part in state)
    assert torch.isfinite(torch.stack([p.grad.norm() for p in small_model.parameters()])).all()


def test_bfloat16_changes_the_loss_little(small_model):
    batch = random_batch(3)
    smooth(small_model)
    exact = small_model.loss(*batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, state = small_model.loss(*batch)
    assert loss.dtype == state[0].dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=0.02)


# whole runs


def test_run_writes_its_files(trained):
    run_dir, result = trained
    assert {"checkpoint.pt", "dream.png"} <= {path.name for path in run_dir.iterdir()}
    assert list(run_dir.glob("events.out.tfevents.*")) and not list(run_dir.glob("*.tmp"))
    log = read_log(run_dir)
    assert {step for step, _ in log} == {5, 10, 15, 20} and {name for step, name in log if step == 20} == LOG_KEYS
    assert result["step"] == 20 and LOG_KEYS <= result.keys() and np.isfinite(list(log.values())).all()
    assert Image.open(run_dir / "dream.png").size == (4 * 6 * 32, 4 * 4 * 32)  # 6 steps; truth, posterior, dream, error
    model = world_model.load_world_model(run_dir / "checkpoint.pt")
    assert model.pixel_std.min() >= 16 and model.pixel_mean.shape == (1, 32, 32)  # the small size's pictures
    assert not any(p.requires_grad for p in model.parameters())


def test_resumed_run_equals_uninterrupted_run(recorded, trained, tmp_path, monkeypatch):
    args = debug_args(f"{recorded}/world,{recorded}/expert", tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, 15)  # the last checkpoint is update 10's
        with pytest.raises(KeyboardInterrupt):
            world_model.main(args)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10
    world_model.main(args)
    saved = [torch.load(path / "checkpoint.pt", weights_only=True) for path in (trained[0], tmp_path)]
    for name in ("model", "optimizer", "ranks", "step"):
        assert same_tensors(saved[0][name], saved[1][name]), name
    logs = [read_log(path) for path in (trained[0], tmp_path)]
    assert all(logs[1][key] == logs[0][key] for key in logs[1] if not key[1].startswith("charts/"))
    assert (15, "losses/world_model") in logs[1] and (20, "world_model/open_loop_error_15") in logs[1]


def test_finished_run_is_left_alone(trained):
    run_dir, result = trained
    before = (run_dir / "checkpoint.pt").read_bytes()
    saved = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert world_model.main(Args(**saved["args"]))["step"] == 20
    assert (run_dir / "checkpoint.pt").read_bytes() == before


def test_validation_leaves_the_training_noise_alone(recorded, trained, tmp_path):
    args = debug_args(f"{recorded}/world,{recorded}/expert", tmp_path / "often", eval_every=4)
    world_model.main(args)
    often, rarely = read_log(tmp_path / "often"), read_log(trained[0])
    assert often[20, "losses/world_model"] == rarely[20, "losses/world_model"]


def test_an_update_goes_on_from_the_state_of_the_one_before(counting, tmp_path, monkeypatch):
    states, filtered = [], WorldModel.filter

    def watch(self, embed, act, is_first, state):
        states.append((state, (found := filtered(self, embed, act, is_first, state))[-1]))
        return found

    monkeypatch.setattr(WorldModel, "filter", watch)
    world_model.main(debug_args(counting, tmp_path, updates=3, eval_every=3))
    states = states[:3]  # then it validates
    assert not any(part.any() for part in states[0][0]) and states[0][1][0].any()
    assert all(same_tensors(after[0], before[1]) for before, after in zip(states, states[1:]))


def test_shipped_bfloat16_weights_load(trained, tmp_path):
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    weights = {name: value.bfloat16() for name, value in saved["model"].items()}
    torch.save({"config": saved["config"], "model": weights}, tmp_path / "world_model.pt")
    model = world_model.load_world_model(tmp_path / "world_model.pt")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(model.gru.weight_hh, saved["model"]["gru.weight_hh"], atol=0.01, rtol=0.01)


class Slider:
    """A world of one bright pixel that moves a column per step, under the actions 0, 1, 2, 0, ...; `drawn` says where
    it is dreamt. A feature is the number of its row."""

    feat_size, deter_size = 1, 1

    def __init__(self, drawn):
        self.drawn = drawn

    def encode_episodes(self, data):
        return torch.arange(int(data.starts[-1]))[:, None].float()

    def imagine(self, act, feat, horizon):
        for t in range(horizon):  # the action that leads to row n is that of row n - 1
            assert torch.equal(act(feat, t).argmax(-1), (feat[:, 0].long() + t) % 3)
        return torch.stack([feat + t for t in range(horizon + 1)]), None

    def preprocess(self, image):
        return image.movedim(-1, -3).float() / 100

    def decode(self, feat):
        pictures = torch.zeros(*feat.shape[:-1], 1, 64, 64)
        row, value = self.drawn(feat[..., 0].long() % 40)
        return pictures.index_put((*torch.meshgrid(*map(torch.arange, feat.shape[:-1]), indexing="ij"),
                                   torch.tensor(0), row, feat[..., 0].long() % 40), torch.tensor(value))  # fmt: skip

    def to_pixels(self, pictures):
        return (pictures * 100).movedim(-3, -1)


def held_out(folder: Path, frames: np.ndarray) -> Episodes:
    """A data set whose held-out game shows these frames, under the actions of `Slider`."""
    for name in ("train_00000", "val_00000"):
        tiny.write_episode(folder / f"{name}.npz", frames, np.arange(len(frames) - 1) % 3)
    (folder / "dataset.json").write_text(json.dumps({"num_actions": 3}))
    return Episodes([str(folder)], "val")


@pytest.mark.parametrize(
    "drawn, error",
    [
        (lambda column: (torch.full_like(column, 9), 2.0), 0.0),  # where it is
        (lambda column: (torch.full_like(column, 9), 0.0), 1.0),  # not at all
        (lambda column: (torch.full_like(column, 9), 1.0), 0.25),  # half as bright
    ],
)
def test_moving_error_by_hand(tmp_path, drawn, error):
    frames = np.zeros((40, 64, 64, 1), np.uint8)
    frames[np.arange(40), 9, np.arange(40)] = 200  # 2 when normalised
    frames[:, 30:40] = 50  # still: its error does not count
    metrics = world_model.validate(Slider(drawn), held_out(tmp_path, frames), count=9)
    for step in (1, 5, 10, 15):
        assert metrics[f"world_model/moving_error_{step}"] == pytest.approx(error, abs=1e-6)


def test_errors_of_the_whole_dream_and_of_the_last_frame_by_hand(tmp_path):
    """Row n is grey 4 (n + 1), and dreamt as 4 n."""
    model = Slider(None)
    model.decode = lambda feat: 0.04 * feat[..., None, None].expand(*feat.shape, 64, 64)
    frames = 4 * np.arange(1, 41, dtype=np.uint8)[:, None, None, None].repeat(64, 1).repeat(64, 2)
    metrics = world_model.validate(model, held_out(tmp_path, frames), count=2)  # from rows 0 and 24
    # what is there, 1 and 15 steps ahead: (2^2 + 26^2) / 2 = 340 and (16^2 + 40^2) / 2 = 928; repeated: 15 too low
    for name, error in (("open_loop_error_1", 1 / 340), ("open_loop_error_15", 1 / 928), ("copy_error_15", 225 / 928)):
        assert metrics[f"world_model/{name}"] == pytest.approx(error, rel=1e-5), name


def test_score_by_hand():
    found = Run.score(SimpleNamespace(marks={"expert": 12.0, "random": 2.0}), np.array([3.0, 5.0]))
    assert found == {"eval/return_mean": 4.0, "eval/return_std": 1.0, "eval/return_vs_expert": 0.2}


# bad input ends with one sentence


def test_no_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="collect_data.py --env-id Blocks-v0") as stop:
        world_model.main(Args(env_id="Blocks-v0", size="debug", device="cpu"))
    assert_one_sentence(stop)
    with pytest.raises(SystemExit, match="nowhere") as stop:
        world_model.main(debug_args(tmp_path / "nowhere", tmp_path / "run"))
    assert_one_sentence(stop)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "other keys", "too small"])
def test_damaged_episode_is_named(counting, damage):
    path = counting / "train_00001.npz"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:80] + bytes(200) + content[280:])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not an archive")
    elif damage == "other keys":
        np.savez(path, pictures=np.zeros(3))
    else:
        tiny.write_episode(path, np.zeros((4, 32, 32, 1), np.uint8), np.zeros(3, int))
    with pytest.raises(SystemExit, match="train_00001.npz") as stop:
        Episodes([str(counting)], "train")
    assert_one_sentence(stop)


def test_discrete_actions_without_metadata_are_refused(counting):
    (counting / "dataset.json").unlink()
    with pytest.raises(SystemExit, match="train_00000.npz") as stop:
        Episodes([str(counting)], "train")
    assert_one_sentence(stop)


def test_datasets_of_two_environments_do_not_mix(counting, tmp_path):
    other = tiny.counting_episodes(tmp_path / "other", num_actions=5)
    with pytest.raises(SystemExit, match="one environment") as stop:
        Episodes([str(counting), str(other)], "train")
    assert_one_sentence(stop)


def test_checkpoint_of_other_settings_is_refused(recorded, trained, tmp_path):
    shutil.copy(trained[0] / "checkpoint.pt", tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit, match="--deter 32") as stop:
        world_model.main(debug_args(recorded / "expert", tmp_path, deter=16))
    assert_one_sentence(stop)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_garbage_checkpoint_is_named(recorded, tmp_path, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    for attempt in (lambda: world_model.main(debug_args(recorded / "expert", tmp_path)),
                    lambda: world_model.load_world_model(tmp_path / "checkpoint.pt")):  # fmt: skip
        with pytest.raises(SystemExit, match="checkpoint.pt") as stop:
            attempt()
        assert_one_sentence(stop)


def test_foreign_checkpoint_and_missing_checkpoint_are_named(tmp_path):
    torch.save({"weights": torch.zeros(3)}, tmp_path / "foreign.pt")
    for name in ("foreign.pt", "missing.pt"):
        with pytest.raises(SystemExit, match=name) as stop:
            world_model.load_world_model(tmp_path / name)
        assert_one_sentence(stop)


def test_sizes_and_flags(capsys):
    def parse(*argv):
        return world_model.parse_args(Args, world_model.SIZES, list(argv))

    assert vars(parse("--size", "paper")) == vars(Args(size="paper"))  # the paper's size is what Args says
    small = parse("--size", "small", "--deter", "77")
    assert small.deter == 77 and small.depth == world_model.SIZES["small"]["depth"] and small.size == "small"
    assert parse("--size=debug").updates == 20
    capsys.readouterr()
    assert parse("--device", "cpu").size == "small"
    assert len(capsys.readouterr().out.strip().splitlines()) == 1  # auto is announced in one line
    with pytest.raises(SystemExit, match="huge") as stop:
        parse("--size", "huge")
    assert_one_sentence(stop)


@pytest.fixture
def machine(monkeypatch):
    """A function that lets PyTorch find so many GPUs, and MPS."""

    def find(gpus: int = 0, mps: bool = False):
        for owner, name, value in ((torch.cuda, "is_available", gpus > 0), (torch.cuda, "device_count", gpus),
                                   (torch.backends.mps, "is_available", mps), (torch.cuda, "set_device", None),
                                   (torch, "set_float32_matmul_precision", None)):  # fmt: skip
            monkeypatch.setattr(owner, name, lambda *_, value=value: value)

    return find


def test_the_device_is_the_one_that_is_asked_for(machine, monkeypatch):
    def found(name):
        return str(world_model.find_device(name))

    assert [found(name) for name in ("auto", "cpu")] == ["cpu", "cpu"]
    machine(gpus=0, mps=True)
    assert [found(name) for name in ("auto", "mps")] == ["cpu", "mps"]  # never unasked
    machine(gpus=2)
    assert [found(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda:0", "cuda:1", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "1")  # torchrun's second process
    assert [found(name) for name in ("auto", "cuda", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    monkeypatch.setenv("LOCAL_RANK", "2")
    for name in ("auto", "cuda"):
        with pytest.raises(SystemExit, match="finds only cpu, cuda:0, cuda:1 here") as stop:
            found(name)
        assert_one_sentence(stop)


def test_the_size_follows_the_device(machine, capsys):
    def size(*argv):
        return world_model.parse_args(Args, world_model.SIZES, list(argv)).size

    machine(gpus=2, mps=True)
    assert [size(), size("--device", "cuda:1"), size("--device=cuda")] == ["paper"] * 3
    assert [size("--device", "cpu"), size("--device=cpu"), size("--device", "mps")] == ["small"] * 3


def test_without_cuda_no_graphs_and_torchrun_takes_no_number(machine, monkeypatch):
    machine(gpus=2, mps=True)
    for device, graphs in (("mps", False), ("cpu", False), ("cuda:1", True)):
        args = Args(device=device)
        assert str(world_model.start(args)) == device and args.cudagraphs == graphs
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="--device cuda, cpu or auto") as stop:
        world_model.main(Args(device="cuda:1"))
    assert_one_sentence(stop)


def test_mps_falls_back_to_the_cpu_which_must_be_said_before_torch_is_imported(machine, monkeypatch):
    begun, ran = [], []
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    monkeypatch.setattr(world_model.os, "execve", lambda *call: begun.append(call) or sys.exit(0))
    for mps in (False, True):
        machine(mps=mps)
        for device in ("cpu", "mps"):
            with pytest.raises(SystemExit) if mps and device == "mps" else contextlib.nullcontext():
                world_model.command(lambda args: ran.append((mps, args.device)), lambda: Args(device=device))
    assert ran == [(False, "cpu"), (False, "mps"), (True, "cpu")]
    ((program, argv, environment),) = begun
    assert program == sys.executable and argv == sys.orig_argv and environment["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    world_model.command(lambda args: ran.append(args.device), lambda: Args(device="mps"))
    assert ran[-1] == "mps"


def test_random_states_of_every_kind_of_device_are_kept(tmp_path, machine, monkeypatch):
    machine(mps=True)
    state, load = torch.arange(7, dtype=torch.uint8), world_model.load
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda device: state)
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda value, device: put.append(value))
    monkeypatch.setattr(world_model, "load", lambda path, device: load(path))  # here nothing can lie on mps

    def run(device):
        run = Run(tmp_path, Args(device=device), {"rng": torch.Generator().manual_seed(5)})
        run.writer.close()
        return run

    put, first = [], run("mps")
    torch.rand(3, generator=first.parts["rng"])
    first.step = 5
    first.save()
    own = load(tmp_path / "checkpoint.pt")["ranks"][0]
    assert torch.equal(own["mps_rng"], state) and "cuda_rng" not in own
    again = run("mps")
    assert again.step == 5 and torch.equal(again.parts["rng"].get_state(), first.parts["rng"].get_state())
    assert len(put) == 1 and torch.equal(put[0], state)
    with again.keep_random_state():
        pass
    assert len(put) == 2
    other = run("cpu")  # another device goes on, with random numbers anew
    assert other.step == 5 and len(put) == 2
    assert torch.equal(other.parts["rng"].get_state(), torch.Generator().manual_seed(5).get_state())


def test_rows_after_the_last_checkpoint_are_taken_out(tmp_path):
    def run():
        return Run(tmp_path, Args(device="cpu"), {"rng": torch.Generator()})

    first = run()
    for first.step in (5, 10, 15):
        first.log({"a": first.step, "b": 2})
        if first.step == 10:
            first.save()
    first.writer.close()
    (tmp_path / "episodes.csv").write_bytes(b"update,seed,return,length\n10,1,2.0,3\r\n15,1,2.0,3\r\n")
    second = run()
    assert second.step == 10
    second.writer.close()
    assert (tmp_path / "episodes.csv").read_bytes() == b"update,seed,return,length\n10,1,2.0,3\r\n"
    log = {key: value for key, value in read_log(tmp_path).items() if not key[1].startswith("charts/")}
    assert log == {(5, "a"): 5, (5, "b"): 2, (10, "a"): 10, (10, "b"): 2}


def test_the_step_size_falls_over_a_phases_own_updates(tmp_path):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    args = Args(device="cpu", updates=10, learning_rate=1.0, anneal=True, cudagraphs=False)
    run = Run(tmp_path, args, {"optimizer": optimizer})
    rates = [optimizer.param_groups[0]["lr"] for _ in run.steps(30)]
    run.writer.close()
    assert rates[::15] == pytest.approx([1.0, 0.55]) and rates[-1] == pytest.approx(0.13)  # 1 - 0.9 * 29 / 30


def test_a_log_file_gets_lines_now_and_then_instead_of_a_bar(tmp_path, capsys):
    run = Run(tmp_path, Args(device="cpu", updates=3), {})
    for step in run.steps(3):
        run.log({"losses/a": step}, "losses/a")
    run.writer.close()
    out = capsys.readouterr().out
    assert "\r" not in out and 1 <= len(out.splitlines()) <= 2 and "3/3 (100%)" in out and "left" in out


def test_another_seed_has_its_own_folder_and_the_first_keeps_its_name(recorded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in ((1, "world_model-debug"), (2, "world_model-debug-2"), (1, "world_model-debug")):
        args = debug_args(recorded / "expert", "", seed=seed, updates=2)
        assert world_model.main(args)["checkpoint"] == f"runs/Blocks-v0/{name}/checkpoint.pt"
    agent = SimpleNamespace(env_id="Blocks-v0", size="debug", world_model="")
    found = ditto.trained_world_model(agent, recorded / "expert")
    assert found == Path("runs/Blocks-v0/world_model-debug/checkpoint.pt")


def test_an_even_dilation_is_refused(recorded, tmp_path):
    with pytest.raises(SystemExit, match="--dilation 4: it must be odd") as stop:
        world_model.main(Args(data_dir=str(recorded / "world"), run_dir=str(tmp_path / "run"), dilation=4))
    assert_one_sentence(stop)


def test_two_processes_train_and_resume(recorded, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
               "--nproc-per-node", "2", str(ROOT / "world_model.py"), "--env-id", "Blocks-v0", "--size", "debug",
               "--device", "cpu", "--data-dir", str(recorded / "expert"), "--run-dir", str(tmp_path),
               "--eval-every", "3"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    for updates in ("3", "6"):
        out = tmp_path / f"out{updates}"
        with open(out, "w") as file:
            run = subprocess.Popen([*command, "--updates", updates], env=environment, stdout=file, stderr=file)
            try:
                status = run.wait(120)
            except subprocess.TimeoutExpired:
                status = "timeout"
                run.terminate()  # not kill(): it must have time to end its own two processes
                run.wait(60)
        assert status == 0, out.read_text()[-3000:]
    assert "resuming" in out.read_text() and out.read_text().count("world model of Blocks-v0") == 1  # one talks
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 6 and len(saved["ranks"]) == 2
    assert all(value.isfinite().all() for value in saved["model"].values())
    left, right = saved["ranks"]
    assert left["streams"]["state"][0].shape == (2, 32)  # half of the four streams each
    assert not torch.equal(left["torch_rng"], right["torch_rng"])
    assert not torch.equal(left["streams"]["row"], right["streams"]["row"])
    with pytest.raises(
        SystemExit, match="another number of processes"
    ):  # two random states cannot continue in one process
        world_model.main(debug_args(recorded / "expert", tmp_path))


def test_metadata_of_the_dataset_is_kept(recorded):
    data = Episodes([str(recorded / "expert")], "train")
    assert data.meta == json.loads((recorded / "expert" / "dataset.json").read_text())
    assert data.prev_action.shape[-1] == 3 and len(data.starts) == 81


# GPU


@gpu
def test_gpu_loss_equals_cpu_loss(small_model):
    batch = random_batch(4)
    expected = smooth(small_model).loss(*batch)[0].item()
    small_model.cuda()
    assert small_model.loss(*(value.cuda() for value in batch))[0].item() == pytest.approx(expected, rel=1e-3)


@gpu
def test_pictures_too_large_for_the_gpu_stay_on_the_host(counting, monkeypatch):
    whole = Streams(Episodes([str(counting)], "train", device="cuda"), 3, 5, 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 28 * 4096 - 1, 10**9))
    host = Streams(Episodes([str(counting)], "train", device="cuda"), 3, 5, 0)
    assert whole.data.image.is_cuda and not host.data.image.is_cuda
    host.row = whole.row.cpu()
    assert all(part.is_cuda for part in host.next())
    for left, right in zip(whole.data.rows(torch.arange(9)), host.data.rows(torch.arange(9)), strict=True):
        assert torch.equal(left, right)


@gpu
def test_an_update_never_waits_for_the_gpu(recorded, tmp_path, monkeypatch):
    steps = Run.steps

    def watched(self, updates):
        for step in steps(self, updates):
            torch.cuda.set_sync_debug_mode("error" if 2 < step < updates else "default")
            yield step
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Run, "steps", watched)
    world_model.main(debug_args(recorded / "expert", tmp_path, device="cuda", eval_every=99, log_every=99, updates=6))


@gpu
def test_graphed_updates_equal_eager_updates(recorded, tmp_path):
    logs = []
    for graphs in (False, True):
        run_dir = tmp_path / str(graphs)
        world_model.main(debug_args(recorded / "expert", run_dir, device="cuda", cudagraphs=graphs, bf16=False))
        logs.append(read_log(run_dir))
    for step in (5, 10, 15, 20):
        assert logs[0][step, "losses/world_model"] == pytest.approx(logs[1][step, "losses/world_model"], rel=0.02)
