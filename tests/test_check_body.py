"""benchmark/check_body.py: its measures by hand, on a body whose sensors are its summed actions, and whole runs."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import assert_one_sentence
from tiny_dmc import rewrite, write_trajectories

from dmc import Trajectories
from world_model import WorldModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmark"))
import check_body

KEYS = {"orientations": 14, "height": 1}


def summed(folder: Path, count: int, seed: int = 0) -> Path:
    """Trajectories in which sensor i < 6 moves by action i / 5."""

    def change(arrays: dict) -> dict:
        arrays["orientations"] = np.zeros_like(arrays["orientations"])
        arrays["orientations"][:, :6] = arrays["pre_action"].cumsum(0) / 5
        return arrays

    write_trajectories(folder, count, seed)
    rewrite(folder, change)
    return folder


def test_motion_by_hand():
    data = Trajectories.__new__(Trajectories)
    data.obs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0], [5.0, 5.0], [5.0, 8.0]])  # games of 2 and 3 rows
    data.prev_action = torch.tensor([[9.0], [1.0], [9.0], [2.0], [3.0]])  # first rows: no action has led there
    data.starts, data.returns = torch.tensor([0, 2, 5]), [1.0, 4.0]
    assert check_body.motion(data, 0, 2) == pytest.approx(
        {"return": 2.5, "sensor_change": (0.5 + 0 + 1.5) / 3, "squared_action": (1 + 4 + 9) / 3}
    )
    assert check_body.motion(data, 1, 2) == pytest.approx({"return": 4.0, "sensor_change": 0.75, "squared_action": 6.5})


def test_inverse_error_tells_motions_that_the_body_knows(tmp_path):
    body, same = (Trajectories([str(summed(tmp_path / name, 30, k))], KEYS) for k, name in enumerate("ab"))
    turned = Trajectories([str(summed(tmp_path / "c", 30, 2))], KEYS)
    turned.prev_action = -turned.prev_action  # another body: the same actions move it the other way
    known = check_body.inverse_errors(body, same, KEYS, 600, 0)
    unknown = check_body.inverse_errors(body, turned, KEYS, 600, 0)
    assert known["action_variance"] == pytest.approx(1 / 3, rel=0.1)  # uniform in [-1, 1]
    assert known["demonstrations"] < 0.1 < 1 / 3 < unknown["demonstrations"]


def test_rows_are_written_and_appended(tmp_path, capsys):
    for name in ("walker-stand-buffer", "walker-walk-expert"):
        summed(tmp_path / name, 7)
    torch.manual_seed(0)
    model = WorldModel(dict(sensors=15, deviation="learned", deter=8, stoch=3, hidden=8, keys=KEYS, action_size=6))
    torch.save({"config": model.config, "model": model.state_dict(), "step": 1}, tmp_path / "checkpoint.pt")
    args = dict(data_dir=str(tmp_path), updates=2, clips=4, batch_length=5, csv=str(tmp_path / "out.csv"))
    check_body.main(check_body.Args(**args))
    rows = check_body.main(check_body.Args(world_model=str(tmp_path / "checkpoint.pt"), **args))
    assert [row["part"] for row in rows[:6]] == ["games 0..0", "games 1..2", "games 3..3", "games 4..5", "games 6..6",
                                                 "all"]  # fmt: skip
    assert [row["actions"] for row in rows if row["part"] == "evidence"] == [
        "recorded",
        "of another clip",
        "uniform",
    ] * 2
    assert all(np.isfinite(row["elbo"]) for row in rows if row["part"] == "evidence")
    with open(tmp_path / "out.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8 + 14 and float(table[7]["inverse_error"]) == pytest.approx(
        float(table[15]["inverse_error"]), rel=1e-3
    )
    assert "inverse_error" in capsys.readouterr().out


class Stander:
    """An agent whose mean action is zero."""

    @staticmethod
    def load(path, device):
        assert path.exists() and device == "cpu"
        return Stander()

    def predict(self, obs, deterministic):
        assert deterministic and obs.shape == (24,)
        return np.zeros(6, np.float32), None


def test_agents_of_the_body_play_the_demonstrations_task(tmp_path, monkeypatch):
    folder = summed(tmp_path / "walker-stand-buffer", 5)
    (folder / "agent.zip").touch()
    summed(tmp_path / "walker-walk-expert", 5)
    monkeypatch.setitem(sys.modules, "stable_baselines3", SimpleNamespace(SAC=Stander))
    monkeypatch.setattr(check_body, "DMC", lambda env_id: {"walker-walk": Upright()}[env_id])
    rows = check_body.main(check_body.Args(data_dir=str(tmp_path), updates=1, games=3))
    (row,) = [row for row in rows if row["part"] == "agent on walker-walk"]
    # the returns 1000, 1001, 1002: deviation sqrt(2 / 3), error that / sqrt(2)
    assert row["return"] == pytest.approx(1001) and row["standard_error"] == pytest.approx((1 / 3) ** 0.5)


class Upright:
    """One step per game, whose reward is the game's seed."""

    def reset(self, seed: int):
        self.seed = seed
        return np.zeros(24, np.float32), {}

    def step(self, action):
        return np.zeros(24, np.float32), float(self.seed), False, True, {}


def test_bad_input_ends_with_a_sentence(tmp_path):
    summed(tmp_path / "walker-stand-buffer", 2), summed(tmp_path / "walker-walk-expert", 2)
    model = WorldModel(dict(sensors=1, deter=8, stoch=3, hidden=8, keys={"height": 1}, action_size=6))
    torch.save({"config": model.config, "model": model.state_dict(), "step": 1}, tmp_path / "checkpoint.pt")
    for changes, message in ((dict(setting="visual"), "--setting"), (dict(body="walker-fly-buffer"), "dmc.py"),
                             (dict(world_model=str(tmp_path / "checkpoint.pt")), "--world-model"),
                             (dict(games=2), "--games")):  # fmt: skip
        with pytest.raises(SystemExit, match=message) as stop:
            check_body.main(check_body.Args(data_dir=str(tmp_path), **changes))
        assert_one_sentence(stop)
