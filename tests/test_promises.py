"""What the README promises of interrupted work, other people's data and bad input, tried out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import assert_one_sentence, read_log, same_tensors

import collect_data
import ditto
import expert_policies
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
            patch.setattr(collect_data, "ShuffledExpert", lambda taken: 1 / 0)
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
    first = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
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
def test_a_stage_ends_with_the_command_that_makes_it(tmp_path):
    (tmp_path / "stage.py").write_text(
        "import sys, time, world_model\nworld_model.begin(world_model.Args())\n"
        "print('begun', flush=True)\ntime.sleep(99)\n"
    )
    code = f"import world_model; world_model.make([{str(tmp_path / 'stage.py')!r}])"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    first = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    assert first.stdout.readline().startswith(b"$ python")
    assert first.stdout.readline() == b"begun\n"
    first.kill()
    first.wait()
    began = time.time()
    assert first.stdout.read() == b"" and time.time() - began < 60  # the pipe closes when the stage has ended too


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
