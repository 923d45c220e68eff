"""What all tests share: the scripts on the path, one CPU thread, a small dataset and a small untrained world model."""

import sys
from pathlib import Path

import pytest
import torch
from tensorboard.summary.writer import event_file_writer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
torch.set_num_threads(1)  # sums in another order would make "bit-identical" depend on the machine

# event files are read in the order of their names: second, process, number in it. So that of two runs in one second
# the later one's is read later, all numbers have as many digits (a run's own process writes two files)
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)

import tiny  # noqa: E402  (registers the environment)

import world_model  # noqa: E402


@pytest.fixture
def counting(tmp_path):
    """Folder of four training episodes and a held-out one whose grey level tells episode and time-step."""
    return tiny.counting_episodes(tmp_path / "counting")


@pytest.fixture
def small_model():
    """Untrained world model of a few thousand weights: D = 8, S = 3, K = 4, three actions, grey pictures."""
    torch.manual_seed(0)
    config = dict(depth=2, deter=8, stoch=3, classes=4, hidden=8, pixel_stats="global", dilation=1, image_weight=1.0,
                  beta=1.0, kl_balance=0.8, channels=1, action_size=3)  # fmt: skip
    model = world_model.WorldModel(config)
    model.pixel_mean.fill_(60.0), model.pixel_std.fill_(30.0)
    return model


@pytest.fixture
def exact_model(monkeypatch):
    """Let the scripts load the exact model of Blocks instead of a file."""
    model = tiny.ExactModel()
    for module in filter(None, map(sys.modules.get, ("ditto", "d_gail", "d_bc"))):
        monkeypatch.setattr(module, "load_world_model", lambda path, device, env_id: model)
    return model


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Eighty expert episodes (and wider ones) of the tiny environment, written by collect_data.py itself."""
    import collect_data

    data_dir = tmp_path_factory.mktemp("data")
    common = dict(env_id="Blocks-v0", data_dir=str(data_dir), expert="tiny:expert", num_processes=1)
    collect_data.main(collect_data.Args(**common, num_episodes=80, num_val_episodes=8))
    collect_data.main(collect_data.Args(**common, name="world", epsilon=0.3, num_episodes=40, num_val_episodes=2))
    return data_dir / "Blocks-v0"


@pytest.fixture(scope="session")
def trained(recorded, tmp_path_factory):
    """A finished run of world_model.py at the debug size: its folder and what main returned."""
    run_dir = tmp_path_factory.mktemp("world_model")
    folders = f"{recorded}/world,{recorded}/expert"
    return run_dir, world_model.main(tiny.debug_args(world_model, data_dir=folders, run_dir=str(run_dir)))
