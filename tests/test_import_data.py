"""import_data.py: recordings of other people, written here, become data sets that train."""

import json
import sys

import numpy as np
import pytest
import tiny
import torch
from tiny import assert_one_sentence

import bc_pixels
import collect_data
import world_model
from import_data import Args, divide, main, pictures
from world_model import Episodes


def grey(rows: int) -> np.ndarray:
    """Row t is grey t all over (rows, 64, 64, 1)."""
    return np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, 64, 64, 1))


def onehot(actions: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Actions (T,) as Dreamer stores them: the row a game begins with has none."""
    return np.eye(3, dtype=np.float32)[actions] * ~first[:, None]


def imported(tmp_path, file, **changes):
    """The folder of an import."""
    main(Args(**{"source": str(file), "env_id": "Nobody-v0", "data_dir": str(tmp_path / "data")} | changes))
    return tmp_path / "data" / "Nobody-v0" / "expert"


def pairs(data: Episodes) -> list[tuple[int, int, int]]:
    """Grey level, action, next grey level of every transition."""
    inside = torch.tensor([t for t in range(len(data.is_first)) if not data.is_first[t]])
    level = data.image[:, 0, 0, 0].int()
    action = data.prev_action.argmax(-1)
    return [(int(level[t - 1]), int(action[t]), int(level[t])) for t in inside]


@pytest.mark.parametrize(
    "shape, kind, scale",
    [((84, 84), np.uint8, 1), ((1, 84, 84), np.float32, 255), ((96, 96, 1), np.float64, 1), ((4, 84, 84), np.uint8, 1),
     ((64, 64, 1), np.int64, 1), ((3, 50, 70), np.uint8, 1)],
)  # fmt: skip
def test_pictures_of_every_kind(shape, kind, scale):
    image = np.broadcast_to(np.arange(6).reshape(6, *[1] * len(shape)) * 40 / scale, (6, *shape)).astype(kind)
    seen = pictures(image, gray=False)
    assert seen.shape == (6, 64, 64, 3 if 3 in shape else 1) and seen.dtype == np.uint8
    assert (seen[:, 9, 9, 0] == np.arange(6) * 40).all()
    assert pictures(image, gray=True).shape[-1] == 1


@pytest.mark.parametrize("episodes", [1, 3, 12])
def test_dreamer_style_with_several_episodes_in_one_file(tmp_path, episodes):
    rows = 20 * episodes
    first = np.arange(rows) % 20 == 0
    action = np.arange(rows) % 3
    image = np.moveaxis(grey(rows), -1, 1) / np.float32(255)  # floats, channel-first
    np.savez(tmp_path / "all.npz", image=image, action=onehot(action, first), is_first=first, reward=np.ones(rows),
             is_terminal=np.arange(rows) % 20 == 19, more=np.zeros((rows, 9)))  # fmt: skip
    folder = imported(tmp_path, tmp_path / "all.npz")
    train, val = (Episodes([folder], split) for split in ("train", "val"))
    found = pairs(train) + pairs(val)
    assert sorted(found) == sorted((t - 1, action[t], t) for t in range(rows) if not first[t])  # what happened, no more
    assert len(val.starts) - 1 == 1 and (len(val.image) == (2 if episodes == 1 else 20))
    meta = world_model.read_meta(folder)
    assert meta["complete"] and meta["num_actions"] == 3 and world_model.collected(folder, min(episodes, 2) - 1 or 1)
    assert [episode["return"] for episode in meta["episodes"]] == [19.0] * episodes
    with np.load(folder / "val_00000.npz" if episodes == 1 else sorted(folder.glob("val*"))[0]) as npz:
        assert npz["terminations"][-1] and not npz["truncations"].any()


def test_stable_baselines_style(tmp_path):
    first = np.arange(40) % 20 == 0
    np.savez(tmp_path / "expert.npz", obs=np.repeat(grey(40), 4, -1), actions=np.arange(40)[:, None] % 3,
             rewards=np.ones(40), episode_starts=first)  # fmt: skip
    folder = imported(tmp_path, tmp_path / "expert.npz")
    found = pairs(Episodes([folder], "train")) + pairs(Episodes([folder], "val"))
    assert found == [(t, t % 3, t + 1) for t in range(39) if t != 19]  # actions leave their rows


@pytest.mark.parametrize("key", ["terminals", "timeouts", "is_last"])
def test_games_end_where_a_file_says_so(tmp_path, key):
    """D4RL's layout: no row says where a game begins. The last reward counts, though its action leads nowhere."""
    ends = np.arange(40) % 10 == 9
    arrays = {"observations": grey(40), "actions": np.arange(40) % 3, "rewards": ends * 2.0, key: ends}
    np.savez(tmp_path / "a.npz", **arrays)
    folder = imported(tmp_path, tmp_path / "a.npz", actions="leave")
    found = pairs(Episodes([folder], "train")) + pairs(Episodes([folder], "val"))
    assert found == [(t, t % 3, t + 1) for t in range(39) if t % 10 != 9]
    meta = json.loads((folder / "dataset.json").read_text())
    assert meta["episodes"] == [{"return": 2.0, "length": 9}] * 4 and meta["max_steps"] == 9
    with np.load(folder / "train_00000.npz") as npz:
        assert "return" not in npz


def test_nothing_is_collected_into_an_import(tmp_path):
    np.savez(tmp_path / "a.npz", image=grey(40), action=np.arange(40) % 3, is_first=np.arange(40) % 20 == 0)
    folder = imported(tmp_path, tmp_path / "a.npz", actions="leave", env_id="Blocks-v0")
    folder = folder.parents[1] / "Blocks-v0" / "expert"
    with pytest.raises(SystemExit, match="holds 1 imported games to learn from, and no expert can add") as stop:
        collect_data.main(collect_data.Args(env_id="Blocks-v0", expert="random", data_dir=str(tmp_path / "data")))
    assert_one_sentence(stop)
    assert len(list(folder.glob("*.npz"))) == 2


def test_actions_that_lead_or_leave(tmp_path):
    first, action = np.arange(20) == 0, np.arange(20) % 3
    arrays = {"image": grey(20), "is_first": first}
    with pytest.raises(ValueError, match="say --actions lead or"):
        list(divide(arrays | {"action": action}, Args("x")))
    (left,) = divide(arrays | {"action": action}, Args("x", actions="leave"))
    (led,) = divide(arrays | {"action": action}, Args("x", actions="lead"))
    (told,) = divide(arrays | {"action": np.eye(3)[action]}, Args("x"))  # the first row has an action: it leaves
    assert left["actions"].tolist() == told["actions"].tolist() == action[:-1].tolist()
    assert led["actions"].tolist() == action[1:].tolist()
    rest = {"action": onehot(action, first)[:, :2] * 0.5}  # a robot at rest chooses zeros too
    with pytest.raises(ValueError, match="say --actions lead or"):
        list(divide(arrays | rest, Args("x")))
    (real,) = divide(arrays | rest, Args("x", actions="lead"))
    assert real["actions"].dtype == np.float32 and real["actions"].shape == (19, 2)
    (own,) = divide({"observations": grey(20), "actions": action[:-1]}, Args("x"))
    assert own["actions"].tolist() == action[:-1].tolist()


def test_a_folder_with_one_file_trains_offline(tmp_path):
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "game.npz", image=grey(60), action=np.arange(60) % 3)
    folder = imported(tmp_path, tmp_path / "source", actions="leave")
    args = tiny.debug_args(bc_pixels, env_id="Nobody-v0", data_dir=str(folder), run_dir=str(tmp_path / "run"))
    args.eval_episodes, args.num_expert_episodes, args.updates = 0, 1, 4
    assert bc_pixels.main(args)["step"] == 4


def test_an_environment_that_is_installed_adds_its_actions_and_the_random_score(tmp_path):
    np.savez(tmp_path / "a.npz", image=grey(40), action=np.arange(40) % 2, is_first=np.arange(40) % 20 == 0)
    meta = main(Args(str(tmp_path / "a.npz"), "Blocks-v0", data_dir=str(tmp_path / "data"), actions="leave"))
    assert meta["num_actions"] == 3 and len(meta["random_returns"]) == 20
    with pytest.raises(SystemExit, match="has other actions than Slide-v0") as stop:
        main(Args(str(tmp_path / "a.npz"), "Slide-v0", data_dir=str(tmp_path / "data"), actions="leave"))
    assert_one_sentence(stop)
    assert not (tmp_path / "data" / "Slide-v0" / "expert").exists()


GOOD = {"image": grey(12), "action": np.arange(12) % 3}


@pytest.mark.parametrize(
    "change, text",
    [
        ({"image": grey(12) * np.float32(np.nan)}, "row 0 has values that are no grey levels"),
        ({"image": np.where(grey(12) == 5, -1.0, grey(12))}, "row 5 has values"),
        ({"image": np.zeros((12, 7))}, "not pictures"),
        ({"image": np.zeros((12, 64, 64, 7))}, "not pictures"),
        ({"action": np.where(np.arange(12) == 7, -1, 0)}, "action in row 7 is impossible"),
        ({"action": np.where(np.arange(12) == 3, np.nan, 0.5)}, "action in row 3 is impossible"),
        ({"action": np.zeros((12, 2, 2))}, "not one number or one flat vector"),
        ({"action": np.zeros(7)}, "7 actions for 12 pictures"),
        ({"is_first": np.zeros(7)}, "cannot be imported"),
        ({"action": np.array(["x"] * 12)}, "not one number"),
    ],
)
def test_what_cannot_be_read_is_refused_and_leaves_nothing(tmp_path, change, text):
    np.savez(tmp_path / "good.npz", **GOOD)
    np.savez(tmp_path / "odd.npz", **GOOD | change)
    with pytest.raises(SystemExit, match=f"odd.npz cannot be imported .*{text}" if text[0] != "c" else text) as stop:
        imported(tmp_path, tmp_path, actions="leave")
    assert_one_sentence(stop)
    assert not (tmp_path / "data" / "Nobody-v0" / "expert").exists()


def test_other_bad_input_is_one_sentence(tmp_path):
    np.savez(tmp_path / "short.npz", image=grey(5), action=np.arange(5) % 3)
    np.savez(tmp_path / "keys.npz", pictures=grey(5))
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty").mkdir()
    for source, text in (("short.npz", "too short"), ("keys.npz", "it needs image or"), ("text.npz", "text.npz"),
                         ("empty", "holds no episode"), ("nowhere", "nowhere cannot be imported")):  # fmt: skip
        with pytest.raises(SystemExit, match=text) as stop:
            imported(tmp_path, tmp_path / source, actions="leave")
        assert_one_sentence(stop)
        assert not (tmp_path / "data" / "Nobody-v0" / "expert").exists()
    np.savez(tmp_path / "good.npz", image=grey(30), action=np.arange(30) % 3)
    imported(tmp_path, tmp_path / "good.npz", actions="leave")
    for changes, text in (({}, "give another --name"), ({"env_id": ""}, "--env-id are"), ({"source": ""}, "--source")):
        with pytest.raises(SystemExit, match=text) as stop:
            imported(tmp_path, tmp_path / "good.npz", **changes)
        assert_one_sentence(stop)


def test_minari_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    for changes in ({"source": "minari:a/b-v0"}, {"source": str(tmp_path), "to_minari": "a/b-v0"}):
        with pytest.raises(SystemExit, match="pip install") as stop:
            main(Args(**{"env_id": "Nobody-v0", "data_dir": str(tmp_path / "data")} | changes))
        assert_one_sentence(stop)


@pytest.mark.parametrize("discrete", [True, False])
def test_there_and_back_through_minari(tmp_path, monkeypatch, discrete):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    for k in range(3):
        action = np.arange(14) % 3 if discrete else np.linspace(-1, 1, 28, dtype=np.float32).reshape(14, 2)
        tiny.write_episode(tmp_path / "source" / f"train_{k:05d}.npz", grey(15) + np.uint8(20 * k), action)
    bounds = {"num_actions": 3} if discrete else {"low": [-1, -1], "high": [1, 1]}
    (tmp_path / "source" / "dataset.json").write_text(json.dumps(bounds))
    assert main(Args(str(tmp_path / "source"), to_minari="test/there-v0"))["episodes"] == 3
    folder = imported(tmp_path, "minari:test/there-v0")
    assert len(list(folder.glob("*.npz"))) == 3
    for source, back in zip(sorted((tmp_path / "source").glob("*.npz")), sorted(folder.glob("*.npz")), strict=True):
        with np.load(source) as left, np.load(back) as right:
            for key in ("observations", "actions", "rewards", "terminations", "truncations"):
                assert np.array_equal(left[key], right[key]), key
