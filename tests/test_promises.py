"""What the README promises of interrupted work, other people's data and bad input, tried out."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import tiny_dmc
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import assert_one_sentence, read_log, same_tensors

import aime
import aime_atari
import bc_pixels
import bco
import collect_data
import d_bc
import d_gail
import ditto
import dmc
import expert_policies
import train_expert
import world_model
from world_model import Episodes

ROOT = Path(ditto.__file__).parent
TIMES = {"charts/SPS", "charts/seconds", "charts/frames_per_second", "args"}


def debug_args(recorded: Path, trained, run_dir: Path, **changes):
    """Arguments of a short run of ditto.py on the CPU."""
    where = {"data_dir": str(recorded / "expert"), "world_model": f"{trained[0]}/checkpoint.pt"}
    return tiny.debug_args(ditto, **where | {"run_dir": str(run_dir)} | changes)


def rows(run_dir: Path) -> list[tuple[int, str]]:
    """Step and name of every scalar of a run but times, as often as it was written."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    names = set(events.Tags()["scalars"]) - TIMES
    return sorted((e.step, name) for name in names for e in events.Scalars(name))


# a stage is done when it says so


def collect_args(folder: Path, **changes):
    """Arguments of a small data set of Blocks."""
    fixed = dict(env_id="Blocks-v0", data_dir=str(folder), expert="tiny:expert", num_processes=1, num_episodes=3)
    return collect_data.Args(**fixed | dict(num_val_episodes=2) | changes)


@pytest.mark.parametrize("moment", ["games", "shuffled"])
def test_a_data_set_is_done_when_it_says_so(tmp_path, monkeypatch, moment):
    folder, games = tmp_path / "Blocks-v0" / "expert", []
    with monkeypatch.context() as patch:
        if moment == "games":  # after the training games, before the held-out ones
            summary = collect_data.summary
            patch.setattr(collect_data, "summary", lambda *it: 1 / (len(games) < 3) and games.append(1) or summary(*it))
        else:
            patch.setattr(collect_data, "SimpleNamespace", lambda act: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            collect_data.main(collect_args(tmp_path))
    assert len(list(folder.glob("*.npz"))) == (4 if moment == "games" else 5) and not world_model.collected(folder, 3)
    with pytest.raises(SystemExit, match="not complete: first repeat") as stop:
        Episodes([folder], "train")
    assert_one_sentence(stop)
    collect_data.main(collect_args(tmp_path))
    meta = world_model.read_meta(folder)
    assert world_model.collected(folder, 3) and not world_model.collected(folder, 4)
    assert meta["complete"] and len(meta["episodes"]) == 5 and len(meta["shuffled_returns"]) == 20
    del meta["complete"]  # as older ones were written
    (folder / "dataset.json").write_text(json.dumps(meta))
    assert world_model.collected(folder, 3)
    (folder / "dataset.json").write_text(json.dumps(meta | {"shuffled_returns": []}))
    assert not world_model.collected(folder, 3)


def stages(monkeypatch, folder: Path) -> list[list[str]]:
    """The commands by which ditto.py would make a world model for the demonstrations in `folder`."""
    commands = []
    monkeypatch.setattr(ditto, "make", lambda command, allowed: commands.append(command))
    monkeypatch.setattr(ditto, "finished", lambda checkpoint: bool(commands))
    ditto.trained_world_model(tiny.debug_args(ditto), folder)
    return commands


def test_the_wider_data_are_of_the_expert_that_the_demonstrations_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    collect_data.main(collect_args(tmp_path))
    folder = tmp_path / "Blocks-v0" / "expert"
    collect, train = stages(monkeypatch, folder)
    assert collect[collect.index("--expert") + 1] == "tiny:expert" and "Nobody" not in capsys.readouterr().out
    for meta in ({"expert": "embedded:x"}, {"expert": "x.zip:1", "expert_option": "embedded:x"}):
        (folder / "dataset.json").write_text(json.dumps(meta))
        assert "--expert embedded:x" in " ".join(stages(monkeypatch, folder)[0])
    assert expert_policies.choose_expert("sb3/ppo-Env-v0:ppo.zip:12ab", "Env-v0", None) == "sb3/ppo-Env-v0"
    (folder / "dataset.json").write_text("{}")  # people's recordings
    capsys.readouterr()
    collect, train = stages(monkeypatch, folder)
    assert collect[collect.index("--expert") + 1] == "random" and f",{folder}" in " ".join(train)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Nobody can play") and "random" in line


# two runs in one folder, and what resumes what


def test_a_second_process_is_refused_at_once_and_kill_9_leaves_no_lock(tmp_path):
    code = "import sys, time, world_model; world_model.claim(sys.argv[1]); print('taken', flush=True); time.sleep(99)"
    first = subprocess.Popen([sys.executable, "-c", code, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"taken\n"
    for make in (True, False):
        with pytest.raises(SystemExit, match="in use by another process") as stop:
            world_model.claim(tmp_path / "run", make)
        assert_one_sentence(stop)
    first.kill()
    first.wait()
    world_model.claim(tmp_path / "run", make=False)
    world_model.claim(tmp_path / "run")  # mine already
    world_model.claim(tmp_path / "new", make=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    for folder in ("file", "file/below/it"):
        with pytest.raises(SystemExit, match="is a file: name another folder") as stop:
            world_model.claim(tmp_path / folder, make=False)
        assert_one_sentence(stop)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"seed": 2}, "--seed 1"),
        ({"learning_rate": 1e-4}, "--learning-rate 0.001"),
        ({"batch_length": 4}, "--batch-length 8"),
        ({"grad_clip": 1.0}, "--grad-clip 200.0"),
        ({}, "another dataset"),
    ],
)
def test_a_world_model_goes_on_with_its_own_settings_and_data_only(recorded, trained, tmp_path, changes, named):
    shutil.copy(trained[0] / "checkpoint.pt", tmp_path)
    where = {"data_dir": f"{recorded}/world" + f",{recorded}/expert" * bool(changes), "run_dir": str(tmp_path)}
    with pytest.raises(SystemExit, match=named) as stop:
        world_model.main(tiny.debug_args(world_model, **where, **changes))
    assert_one_sentence(stop)


def test_a_world_model_does_not_learn_another_game(recorded, tmp_path):
    where = {"data_dir": f"{recorded}/expert", "run_dir": str(tmp_path / "run"), "env_id": "PongNoFrameskip-v4"}
    with pytest.raises(SystemExit, match="is of Blocks-v0, not of PongNoFrameskip-v4") as stop:
        world_model.main(tiny.debug_args(world_model, **where))
    assert_one_sentence(stop)
    assert not (tmp_path / "run").exists()


# nobody works on for a command that was killed

SLOW = "import time\n\n\ndef policy(observation, env):\n    time.sleep(0.2)\n    return 1\n"


def running(word: str) -> list[int]:
    """Processes whose command line or environment holds a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = word.encode() in (folder / "environ").read_bytes()
            found += [int(folder.name)] if mine and b"State:\tZ" not in (folder / "status").read_bytes() else []
        except OSError:
            pass
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_command(tmp_path, end):
    (tmp_path / "slow.py").write_text(SLOW)
    word = f"MARK={tmp_path}"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "tests")]), "MARK": str(tmp_path)}
    options = ["--env-id", "tiny:Blocks-v0", "--expert", "slow:policy", "--data-dir", str(tmp_path / "data")]
    command = [sys.executable, "collect_data.py", *options, "--num-processes", "2", "--num-episodes", "40"]
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  (a background shell ignores Ctrl-C)
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             preexec_fn=heeds)  # fmt: skip
    until = time.time() + 120
    while not list(tmp_path.glob("data/**/train_*.npz")) and time.time() < until:
        time.sleep(0.2)
    assert len(running(word)) >= 3
    first.send_signal(end)
    assert first.wait(30) != 0
    until = time.time() + 10
    while running(word) and time.time() < until:
        time.sleep(0.2)
    assert not running(word)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells nobody that a parent is gone")
@pytest.mark.parametrize("moment", [b"importing", b"begun"])
def test_a_stage_ends_with_the_command_that_makes_it(tmp_path, moment):
    (tmp_path / "stage.py").write_text(
        "import time\nprint('importing', flush=True)\nimport world_model\nworld_model.begin(world_model.Args())\n"
        "print('begun', flush=True)\ntime.sleep(99)\n"
    )
    code = f"import world_model; world_model.make([{str(tmp_path / 'stage.py')!r}])"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert first.stdout.readline().startswith(b"$ python")
    while first.stdout.readline().strip() != moment:
        pass
    first.kill()
    first.wait()
    began = time.time()
    first.stdout.read()  # the pipe closes when the stage has ended too
    assert time.time() - began < 60


# a kill at any moment: the same checkpoint, log and result


def test_a_kill_during_the_final_games_changes_nothing(recorded, trained, tmp_path, monkeypatch):
    changes = {"eval_consecutive": 2, "updates": 10, "eval_every": 5}
    whole, broken = (debug_args(recorded, trained, tmp_path / name, **changes) for name in ("whole", "broken"))
    ditto.main(whole)
    played, play = [], world_model.Run.play

    def play_or_break(self, games, act, episodes, seed, name, step):
        played.append(name)
        if played.count("final_episodes.csv") == 2:
            raise KeyboardInterrupt
        return play(self, games, act, episodes, seed, name, step)

    with monkeypatch.context() as patch:
        patch.setattr(world_model.Run, "play", play_or_break)
        with pytest.raises(KeyboardInterrupt):
            ditto.main(broken)
    for _ in range(2):  # what is finished can be started again
        time.sleep(1.1)  # event files are put in order by the second
        ditto.main(broken)
        left, right = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "broken"))
        assert left.keys() == right.keys() and all(left[key] == right[key] for key in left.keys() - TIMES)
        assert rows(tmp_path / "whole") == rows(tmp_path / "broken")
    for name in ("episodes.csv", "final_episodes.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_a_kill_between_the_final_row_and_the_result_writes_the_row_once(recorded, trained, tmp_path, monkeypatch):
    whole, broken = (debug_args(recorded, trained, tmp_path / name, updates=6) for name in ("whole", "broken"))
    ditto.main(whole)
    write = world_model.write

    def write_or_break(path, save):
        if path.name == "result.json":
            raise KeyboardInterrupt
        write(path, save)

    with monkeypatch.context() as patch:
        patch.setattr(world_model, "write", write_or_break)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                ditto.main(broken)
    for updates in (6, 6, 8):  # on, once more, and then further
        ditto.main(dataclasses.replace(broken, updates=updates))
        final = [name for step, name in rows(tmp_path / "broken") if step == 6]
        assert final == [name for step, name in rows(tmp_path / "whole") if step == 6]
        assert final.count("eval/return_mean") == 1
    left, right = (read_log(tmp_path / name) for name in ("whole", "broken"))
    assert left[6, "eval/return_mean"] == right[6, "eval/return_mean"] and (8, "eval/return_mean") in right


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("module", [ditto, world_model])
def test_a_kill_around_a_checkpoint_loses_no_row(recorded, trained, tmp_path, monkeypatch, module, moment):
    changes = {"updates": 6, "eval_every": 2, "log_every": 2}
    where = {"data_dir": f"{recorded}/expert"}
    where |= {"world_model": f"{trained[0]}/checkpoint.pt"} if module is ditto else {}
    run_dirs = f"{tmp_path}/whole", f"{tmp_path}/broken"
    whole, broken = (tiny.debug_args(module, run_dir=run_dir, **where, **changes) for run_dir in run_dirs)
    module.main(whole)
    save = world_model.Run.save

    def save_or_break(self):
        if self.step != 4 or moment == "after":
            save(self)
        if self.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(world_model.Run, "save", save_or_break)
        with pytest.raises(KeyboardInterrupt):
            module.main(broken)
    time.sleep(1.1)  # event files are put in order by the second
    module.main(broken)
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")
    left, right = (read_log(tmp_path / name) for name in ("whole", "broken"))
    assert all(left[key] == right[key] for key in left if key[1] not in TIMES)
    saved = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "broken")]
    parts = saved[0].keys() - {"args", "seconds", "report"}
    assert saved[0].keys() == saved[1].keys() and all(same_tensors(saved[0][k], saved[1][k]) for k in parts)


@pytest.mark.parametrize("tail", [b"\n", b"\0" * 300, b"15,20000,3.", b"15"])
def test_a_table_that_a_power_failure_tore_is_mended(recorded, trained, tmp_path, tail):
    args = debug_args(recorded, trained, tmp_path, updates=10, eval_every=5)
    ditto.main(args)
    whole = (tmp_path / "episodes.csv").read_bytes()
    (tmp_path / "episodes.csv").write_bytes(whole + tail)
    ditto.main(args)
    assert (tmp_path / "episodes.csv").read_bytes() == whole and whole.count(b"\n") == 3


# numbers out of their range, and data that cannot be

SCRIPTS = [world_model, ditto, d_gail, d_bc, bc_pixels, aime_atari]


@pytest.mark.parametrize(
    "module, flag, value",
    [(world_model, *pair) for pair in (
        ("--seed", "-1"), ("--seed", "9999999999"), ("--learning-rate", "inf"), ("--learning-rate", "-1"),
        ("--beta", "-1"), ("--kl-balance", "7"), ("--pixel-std-floor", "0"), ("--grad-clip", "0"),
        ("--image-weight", "nan"), ("--dilation", "999"), ("--dilation", "4"), ("--picture", "48"),
        ("--batch-size", "1000000000"), ("--threads", "1000000"), ("--deter", "0"), ("--updates", "-1"))]
    + [(ditto, *pair) for pair in (
        ("--gamma", "5"), ("--gamma", "nan"), ("--lam", "-3"), ("--entropy", "nan"), ("--entropy-end", "nan"),
        ("--learning-rate", "nan"), ("--seed", "-1"), ("--horizon", "0"), ("--layers", "-1"), ("--eval-every", "0"))]
    + [(bc_pixels, "--dilation", "4"), (aime_atari, "--grad-clip", "nan"), (aime, "--free-nats", "-2"),
       (aime, "--model-kl", "inf"), (bco, "--validation-share", "1"), (collect_data, "--epsilon", "2"),
       (collect_data, "--max-steps", "1000000000000"), (collect_data, "--num-envs", "0"), (dmc, "--noise", "nan"),
       (dmc, "--learning-rate", "0"), (train_expert, "--lr", "nan"), (train_expert, "--clip", "-1")],
)  # fmt: skip
def test_numbers_out_of_their_range_are_refused(module, flag, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if hasattr(module, "SIZES"):
        args = world_model.parse_args(module.Args, module.SIZES, ["--size", "debug", flag, value])
    else:
        args = tyro.cli(module.Args, args=[flag, value])
    with pytest.raises(SystemExit, match=f"^{flag} ") as stop:
        module.main(args)
    assert_one_sentence(stop)
    assert not list(tmp_path.iterdir())


def test_every_number_has_a_range_and_every_default_lies_in_it():
    for module in (collect_data, train_expert, world_model, ditto, d_gail, d_bc, bc_pixels, aime, aime_atari, bco, dmc):
        sizes = getattr(module, "SIZES", {"": {}})
        for values in sizes.values():
            world_model.begin(module.Args(**values))
        for field in dataclasses.fields(module.Args):
            assert field.type is not float or field.name in world_model.LIMITS, (module, field.name)


def damaged(recorded: Path, folder: Path, change) -> Path:
    """The demonstrations with change(arrays) in one file."""
    shutil.copytree(recorded / "expert", folder)
    file = folder / "train_00001.npz"
    with np.load(file) as npz:
        arrays = dict(npz)
    change(arrays)
    np.savez(file, **arrays)
    return folder


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda it: it["actions"].__setitem__(3, -1), "action -1 in row 3"),
        (lambda it: it["actions"].__setitem__(2, 3), "action 3 in row 2"),
        (lambda it: it.update(actions=np.where(np.arange(16) == 5, np.nan, 0)), "action nan in row 5"),
        (lambda it: it.update(is_first=np.arange(17) % 8 == 0), "another begins in row 8, let import_data.py"),
        (lambda it: it.update(observations=it["observations"][:1], actions=it["actions"][:0]), "two or more"),
        (lambda it: it.update(observations=it["observations"][:0], actions=it["actions"][:0]), "not an episode"),
        (lambda it: it.update(actions=it["actions"][:9]), "as many actions"),
    ],
)
def test_impossible_episodes_are_named(recorded, tmp_path, change, text):
    folder = damaged(recorded, tmp_path / "data", change)
    with pytest.raises(SystemExit, match=f"train_00001.npz .*{text}") as stop:
        Episodes([folder], "train")
    assert_one_sentence(stop)


@pytest.mark.parametrize("action", [np.nan, np.inf, -np.inf, 1e9])
def test_impossible_continuous_actions_are_named(tmp_path, action):
    for name in ("train_00000", "val_00000"):
        actions = np.zeros((6, 2), np.float32)
        actions[4, 1] = action
        tiny.write_episode(tmp_path / f"{name}.npz", np.zeros((7, 64, 64, 1), np.uint8), actions)
    (tmp_path / "dataset.json").write_text(json.dumps({"low": [-1, -1], "high": [1, 1]}))
    with pytest.raises(SystemExit, match="train_00000.npz .* in row 4 is impossible") as stop:
        Episodes([tmp_path], "train")
    assert_one_sentence(stop)


def test_a_trajectory_that_is_not_finite_is_named(tmp_path):
    folder = tiny_dmc.write_trajectories(tmp_path / "walker", 2)
    for key, row in (("height", 3), ("pre_action", 5)):
        tiny_dmc.rewrite(folder, lambda it: it | {key: np.where(np.arange(len(it[key])) == row, np.nan, it[key].T).T})
        with pytest.raises(SystemExit, match=f"0.npz .*row {row} is not finite") as stop:
            dmc.Trajectories([str(folder)], {"height": 1})
        assert_one_sentence(stop)
        tiny_dmc.write_trajectories(folder, 2)


@pytest.mark.parametrize("content", ["{", "[]", '"x"', '{"num_actions": "x"}', '{"low": "x"}', '{"low": [NaN]}'])
def test_damaged_metadata_is_named(counting, content):
    (counting / "dataset.json").write_text(content)
    with pytest.raises(SystemExit, match="dataset.json is damaged") as stop:
        Episodes([counting], "train")
    assert_one_sentence(stop)


def test_a_folder_with_one_episode_says_what_to_do(counting):
    for file in sorted(counting.glob("*.npz"))[1:]:
        file.unlink()
    with pytest.raises(SystemExit, match="no train episode .every tenth, or the last.*import_data.py") as stop:
        Episodes([counting], "train")
    assert_one_sentence(stop)


def test_two_games_in_one_training_are_told_apart(counting, tmp_path):
    other = tiny.counting_episodes(tmp_path / "other", num_actions=4)
    with pytest.raises(SystemExit, match="other/train_00000.npz has other .* than .*counting/train_00000.npz"):
        Episodes([counting, other], "train")
    (other / "dataset.json").write_text(json.dumps({"env_id": "Pong-v0", "num_actions": 3}))
    with pytest.raises(SystemExit, match="other is of Pong-v0, not of Blocks-v0") as stop:
        Episodes([counting, other], "train", env_id="Blocks-v0")
    assert_one_sentence(stop)


def test_a_world_model_of_nan_is_refused(trained, tmp_path):
    saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
    saved["model"]["gru.weight_hh"][3, 4] = torch.nan
    torch.save(saved, tmp_path / "nan.pt")
    with pytest.raises(SystemExit, match="nan.pt is not a world model.*train it again") as stop:
        world_model.load_world_model(tmp_path / "nan.pt")
    assert_one_sentence(stop)


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_a_training_that_diverges_stops_and_keeps_its_last_checkpoint(recorded, trained, tmp_path, monkeypatch, what):
    loss = ditto.agent_loss

    def broken(args, model, actor, *rest):
        value, metrics = loss(args, model, actor, *rest)
        if len(list(tmp_path.glob("checkpoint.pt"))):
            if what == "loss":
                metrics["losses/value"] = metrics["losses/value"] * torch.nan
            else:
                value = value * torch.inf
        return value, metrics

    monkeypatch.setattr(ditto, "agent_loss", broken)
    named = "losses/value is not finite at update 6" if what == "loss" else "is not finite at update (6|8|10)"
    with pytest.raises(SystemExit, match=f"({named}): lower --learning-rate .* of update 5 is kept") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path, updates=20, eval_every=5, log_every=2))
    assert_one_sentence(stop)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 5 and all(value.isfinite().all() for value in saved["actor"].values())


def test_pictures_that_never_change_have_finite_errors(tmp_path):
    for name in ("train_00000", "train_00001", "val_00000"):
        tiny.write_episode(tmp_path / f"{name}.npz", np.full((30, 64, 64, 1), 9, np.uint8), np.zeros(29, int))
    (tmp_path / "dataset.json").write_text(json.dumps({"num_actions": 3}))
    args = tiny.debug_args(world_model, data_dir=str(tmp_path), run_dir=str(tmp_path / "run"), updates=4, eval_every=2)
    world_model.main(args)
    assert np.isfinite(list(read_log(tmp_path / "run").values())).all()


# folders that cannot be written to


class Full:
    """A file on a full disk."""

    def __init__(self, path, *mode):
        self.file = open(path, *mode)

    def __enter__(self):
        return self

    def __exit__(self, *it):
        self.file.close()

    def write(self, text):
        raise OSError(28, "No space left on device")

    def flush(self):
        pass


def test_a_full_disk_leaves_the_old_checkpoint_whole(recorded, trained, tmp_path, monkeypatch):
    args = debug_args(recorded, trained, tmp_path, updates=5, eval_every=5)
    ditto.main(args)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(world_model, "open", Full, raising=False)
    args.updates = 10
    with pytest.raises(SystemExit, match="No space left on device.*make room") as stop:
        world_model.command(ditto.main, lambda: args)
    assert_one_sentence(stop)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before and not list(tmp_path.glob("*.tmp"))


def test_a_disk_that_is_full_already_is_noticed_before_the_work(recorded, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(world_model.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit, match="has no room for 1 MB: name another folder") as stop:
        ditto.main(debug_args(recorded, trained, tmp_path / "run"))
    assert_one_sentence(stop)
    with pytest.raises(SystemExit, match="has no room"):
        collect_data.main(collect_args(tmp_path / "data"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", SCRIPTS)
def test_a_run_folder_that_is_a_file_is_named_first(module, tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/below"):
        with pytest.raises(SystemExit, match="is a file: name another folder") as stop:
            module.main(tiny.debug_args(module, run_dir=str(tmp_path / name), data_dir="nowhere"))
        assert_one_sentence(stop)
    with pytest.raises(SystemExit, match="is a file: name another folder"):
        collect_data.main(collect_args(tmp_path / "file"))


# offline, and names of folders


@pytest.fixture
def unknown(recorded, tmp_path):
    """Demonstrations of an environment that Gymnasium does not know, without returns, by people."""
    folder = tmp_path / "people"
    shutil.copytree(recorded / "expert", folder)
    meta = {"env_id": "robot:Arm/Left-v7", "num_actions": 3, "complete": True}
    (folder / "dataset.json").write_text(json.dumps(meta))
    return folder


@pytest.mark.parametrize("module", SCRIPTS[1:])
def test_offline_without_an_environment(unknown, trained, tmp_path, capsys, module):
    changes = {"data_dir": str(unknown), "env_id": "robot:Arm/Left-v7", "run_dir": str(tmp_path / "run")}
    if module is not bc_pixels:
        saved = torch.load(trained[0] / "checkpoint.pt", weights_only=True)
        torch.save(saved | {"env_id": "robot:Arm/Left-v7"}, tmp_path / "model.pt")
        changes["world_model"] = str(tmp_path / "model.pt")
    args = tiny.debug_args(module, **changes, updates=10, eval_episodes=0)
    for args.eval_only in (False, True):
        report = module.main(args)
        result = json.loads((tmp_path / "run" / ("eval_only.json" if args.eval_only else "result.json")).read_text())
        assert result["returns"] == [] and not any("return_mean" in key or "nan" in str(key) for key in result)
        assert 0 <= report["expert/action_agreement"] <= 1 and result["step"] == 10
        assert ("expert/latent_distance" in result) == (module is not bc_pixels)
    out = capsys.readouterr().out
    assert "nan" not in out and "agreement" in out and not (tmp_path / "run" / "agent.gif").exists()
    assert (tmp_path / "run" / "dream.png").exists() == (module is not bc_pixels)


def test_offline_the_world_model_learns_from_the_demonstrations_only(unknown, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(ditto, "make", lambda command, allowed: commands.append(command))
    monkeypatch.setattr(ditto, "finished", lambda checkpoint: bool(commands))
    path = ditto.trained_world_model(tiny.debug_args(ditto, env_id="robot:Arm/Left-v7", eval_episodes=0), unknown)
    assert path == Path("runs/robot_Arm_Left-v7/world_model-debug/checkpoint.pt")
    ((*_, folder, threads, one, device, cpu),) = commands
    assert folder == str(unknown) and commands[0][0] == "world_model.py"
    assert "learns from nothing else" in capsys.readouterr().out


def test_one_spelling_of_folders_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert world_model.home("runs", "ALE/Pong-v5") == Path("runs/ALE_Pong-v5")
    assert world_model.home("runs", "PongNoFrameskip-v4") == Path("runs/PongNoFrameskip-v4")
    collect_data.main(collect_args(Path("data"), env_id="tiny:Blocks-v0"))
    assert world_model.collected(Path("data/tiny_Blocks-v0/expert"), 3)
    args = tiny.debug_args(bc_pixels, env_id="tiny:Blocks-v0", size="small")
    args.num_expert_episodes = 3
    assert bc_pixels.expert_dataset(args) == Path("data/tiny_Blocks-v0/expert")


def test_what_is_said_while_one_waits(recorded, trained, tmp_path, capsys):
    ditto.main(debug_args(recorded, trained, tmp_path, updates=10, eval_every=5))
    lines = capsys.readouterr().out.splitlines()
    assert "final evaluation: 2 whole games, played by the policy of update 10" in lines
    assert any(line.startswith("2/2 games") for line in lines) and not any("nan" in line for line in lines)
    assert (tmp_path / "dream.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in kilobytes there")
@pytest.mark.parametrize("shown, side", [("None", 64), ("lambda image: world_model.shrink(image, 1, 32)", 32)])
def test_pictures_are_held_once_while_they_are_read(tmp_path, shown, side):
    for k in range(41):
        picture = np.full((301, 64, 64, 1), k, np.uint8)
        np.savez(tmp_path / f"{'train' if k else 'val'}_{k:05d}.npz", observations=picture, actions=np.zeros(300, int))
    (tmp_path / "dataset.json").write_text('{"num_actions": 3}')
    code = (
        "import resource, sys, world_model\nbefore = resource.getrusage(0).ru_maxrss\n"
        f"size = world_model.Episodes([sys.argv[1]], 'train', shown={shown}).image.nbytes\n"
        "print(size, 1024 * (resource.getrusage(0).ru_maxrss - before))"
    )
    env = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back at once
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=env)
    size, growth = map(int, run.stdout.split())
    assert size == 40 * 301 * side**2 and growth < 1.1 * size + 16e6, growth
