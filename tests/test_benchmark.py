"""benchmark/run_grid.py on a script that pretends to train, and the statistics and figures of benchmark/plot.py."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tyro
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmark"))
import add_pictures  # noqa: E402
import check_body  # noqa: E402
import clip  # noqa: E402
import run_grid  # noqa: E402

try:
    import plot
except ModuleNotFoundError:
    plot = None
needs_plot = pytest.mark.skipif(plot is None, reason="needs requirements-benchmark.txt")

# Writes what ditto.py writes, in no time: four updates, a validation after the second, returns that tell the seed.
# Files in the working directory make it fail or hang: crash (every cell, after the second update), fail_<seed>, hang.
STUB = """
import argparse, dataclasses, json, os, subprocess, sys, time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


@dataclasses.dataclass
class Args:
    env_id: str = "Env-v0"
    size: str = "auto"
    run_dir: str = ""
    seed: int = 1
    num_expert_episodes: int = 30
    updates: int = 4
    horizon: int = 15
    threads: int = 0


SIZES = {"small": {}}


def parse_args(cls, sizes, argv):
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(cls):
        parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, default=field.default)
    return dataclasses.replace(cls(**vars(parser.parse_args(argv))), size="small")


def write(step, seconds, scalars):
    for name, value in [*scalars.items(), ("charts/seconds", seconds)]:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.flush()


def expert_dataset(args):
    if Path("no_data").exists():
        sys.exit("No data.")
    with open("prepared.txt", "a") as out:
        out.write(f"{args.env_id} {args.num_expert_episodes}\\n")


if __name__ == "__main__":
    args = parse_args(Args, SIZES, sys.argv[1:])
    folder = Path(args.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    step = int((folder / "checkpoint").read_text()) if (folder / "checkpoint").exists() else 0
    print(f"from update {step}", flush=True)
    if Path("hang").exists():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (folder / "pids").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    writer = EventFileWriter(str(folder))
    start = SessionLog(status=SessionLog.START)  # as SummaryWriter's purge_step
    writer.add_event(Event(wall_time=time.time(), step=step + 1, session_log=start))
    while step < args.updates:
        step += 1
        # from step 2 on every row repeats the last validation
        validation = {"eval/return_mean": 5, "expert/latent_distance": (10 - step) / 10} if step >= 2 else {}
        write(step, step, {"losses/entropy": step, "losses/policy": 9} | validation)
        if step == 2:
            (folder / "episodes.csv").write_text("update,seed,return,length\\n2,20000,5,7\\n")
            (folder / "checkpoint").write_text("2")
        if step == 3 and Path("crash").exists() or Path(f"fail_{args.seed}").exists():
            sys.exit("The stub was told to fail.")
    returns = [10.0 * args.seed, 10.0 * args.seed + 4]
    write(step, step + 0.5, {"eval/return_mean": returns[0] + 2})
    writer.close()
    lines = [f"{step},{1000 + i},{value},7\\n" for i, value in enumerate(returns)]
    (folder / "final_episodes.csv").write_text("update,seed,return,length\\n" + "".join(lines))
    result = {"eval/return_mean": returns[0] + 2, "eval/return_vs_expert": 0.5, "expert_return": 30.0,
              "random_return": 0.0, "best_validation": float("-inf"), "step": step, "returns": returns,
              "args": dataclasses.asdict(args)}
    (folder / "result.json").write_text(json.dumps(result))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder with two such scripts in place of the repository."""
    for name in ("stub", "other"):
        (tmp_path / f"{name}.py").write_text(STUB)
    monkeypatch.setattr(run_grid, "ROOT", tmp_path)
    return tmp_path


def grid(**options) -> dict:
    """Run a small grid."""
    options = dict(env_ids=["Env-v0"], scripts=["stub"], seeds=[1, 2], num_expert_episodes=[4]) | options
    return run_grid.main(run_grid.Args(**options))


def rows(repository: Path, end: str = "") -> list[dict[str, str]]:
    """Rows of one of the three files."""
    with open(repository / f"benchmark/results/grid{end}.csv", newline="") as file:
        return list(csv.DictReader(file))


def log(repository: Path, name: str) -> str:
    """What a cell printed."""
    return (repository / f"runs/grid/Env-v0/{name}/console.log").read_text()


# the grid


def test_cells_have_own_folders_and_commands(repository):
    args = run_grid.Args(env_ids=["A-v0", "B-v0"], scripts=["stub", "other"], num_expert_episodes=[4, 8], seeds=[1, 2],
                         variants=["default:", "h3: --horizon 3"], options="--threads 1",
                         script_options=["other: --horizon 7"])  # fmt: skip
    cells = run_grid.make_cells(args)
    assert len({cell.run_dir for cell in cells}) == len(cells) == 32
    first, last = " ".join(cells[0].command), " ".join(cells[-1].command)
    assert first == ("stub.py --env-id A-v0 --num-expert-episodes 4 --seed 1 --threads 1 --size small "
                     "--run-dir runs/grid/A-v0/stub-small-4-1")  # fmt: skip
    assert last == ("other.py --env-id B-v0 --num-expert-episodes 8 --seed 2 --threads 1 --horizon 7 --horizon 3 "
                    "--size small --run-dir runs/grid/B-v0/other-h3-small-8-2")  # fmt: skip
    assert cells[-1].arguments["horizon"] == 3 and cells[-1].arguments["seed"] == 2


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(options="--speed 3"), "does not take the options --speed 3"),
        (dict(options="--seed=3"), "--seed in the options"),
        (dict(scripts=["nothing"]), "there is no nothing.py"),
        (dict(variants=["h3"]), 'write "name: options"'),
        (dict(script_options=["other: --horizon 3"]), "names other"),
        (dict(seeds=[]), "The grid is empty"),
    ],
)
def test_bad_grids_end_with_a_sentence_before_anything_runs(repository, options, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        grid(**options)
    assert not (repository / "runs").exists()


def test_rows_of_the_three_files(repository):
    assert grid(jobs=2, variants=["default:", "h3: --horizon 3"])["finished"] == 4
    table = rows(repository)
    assert [(row["variant"], row["seed"], row["horizon"]) for row in table] == [
        ("default", "1", "15"), ("default", "2", "15"), ("h3", "1", "3"), ("h3", "2", "3")]  # fmt: skip
    row = table[1]
    assert row["return_mean"] == "22" and row["standard_error"] == "2" and row["games"] == "2"  # of 20 and 24
    assert row["expert_return"] == "30" and row["score"] == "0.5" and row["updates"] == "4"
    assert row["best_validation"] == "" and row["action_agreement"] == ""  # there is none
    assert row["latent_distance"] == "0.6"  # not in result.json, but in the last row of the log
    assert row["wall_seconds"] == "4.5" and row["threads"] == "default" and row["commit"] and row["torch"]
    assert re.search(r"^\d+ cores .+, up to 2 jobs at once$", row["hardware"]) or "+cpu" not in row["torch"]
    assert row["command"] == ("python stub.py --env-id Env-v0 --num-expert-episodes 4 --seed 2 --size small "
                              "--run-dir runs/grid/Env-v0/stub-small-4-2")  # fmt: skip
    points = [(r["step"], r["name"], r["value"]) for r in rows(repository, "_metrics")
              if (r["variant"], r["seed"]) == ("default", "2")]  # fmt: skip
    assert sorted(points) == [("2", "eval/return_mean", "5"), ("2", "expert/latent_distance", "0.8"),
                              ("2", "losses/entropy", "2"), ("4", "eval/return_mean", "22"),
                              ("4", "expert/latent_distance", "0.6"), ("4", "losses/entropy", "4")]  # fmt: skip
    games = [r for r in rows(repository, "_episodes") if (r["variant"], r["seed"]) == ("h3", "1")]
    assert [(r["game_seed"], r["return"], r["length"]) for r in games] == [("1000", "10.0", "7"), ("1001", "14.0", "7")]
    for end in ("", "_metrics", "_episodes"):
        assert tuple(rows(repository, end)[0]) == run_grid.COLUMNS[end]


def test_folders_of_cells_are_spelt_as_the_scripts_spell_theirs(repository):
    args = run_grid.Args(env_ids=["ALE/Pong-v5", "pkg:Env-v0"], scripts=["stub"], seeds=[1])

    def folders():
        cells = run_grid.make_cells(args)
        assert all(cell.command[-1] == str(cell.run_dir) for cell in cells)
        cells += [run_grid.preparation([cell], args.out) for cell in cells]
        return [str(cell.run_dir) for cell in cells]

    new = "ALE_Pong-v5", "pkg_Env-v0"
    assert folders() == [f"runs/grid/{name}/{cell}" for cell in ("stub-small-30-1", "prepare") for name in new]
    args.out = str(repository / "elsewhere")
    assert folders()[1] == f"{args.out}/pkg_Env-v0/stub-small-30-1"


def test_cells_of_several_data_sets_are_all_prepared():
    cell = lambda *words: run_grid.Cell("walker-walk", "bco", "", "small", 100, 1, Path("."), *words)  # noqa: E731
    cells = [cell(("bco.py", "--body", body), {"body": body}) for body in ("walk", "walk", "stand")]
    stages = json.loads(run_grid.preparation(cells, "runs/grid").command[2])
    assert stages == [["bco", ["--body", "walk"]], ["bco", ["--body", "stand"]]]


def test_the_error_of_repeated_final_games_is_that_of_the_games(tmp_path, monkeypatch):
    monkeypatch.setattr(run_grid, "ROOT", tmp_path)
    result = {"step": 4, "returns": [1.0, 3.0, 5.0, 3.0, 5.0, 7.0], "args": {"eval_consecutive": 2}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    cell = run_grid.Cell("Env-v0", "ditto", "default", "small", 4, 1, Path("."), ("ditto.py",), {})
    (row,) = run_grid.collect(cell)[""]
    assert row["standard_error"] == "1.1547" and row["games"] == 6  # games 2, 4, 6: deviation 2, over the root of 3


def test_a_script_like_bco_that_stops_by_itself(repository):
    """It has no --updates, its games have no length, and its data are made by `datasets`."""
    stub = (
        STUB.replace("    updates: int = 4\n", "")
        .replace("args.updates", "4")
        .replace("def expert_dataset", "def datasets")
    )
    stub = stub.replace('"update,seed,return,length\\n" + "".join(lines)', '"update,seed,return\\n4,1000,10.0\\n"')
    (repository / "stub.py").write_text(stub)
    grid(seeds=[1])
    assert (repository / "prepared.txt").read_text() == "Env-v0 4\n"
    assert rows(repository)[0]["updates"] == "4" and rows(repository)[0]["return_mean"] == "12"
    assert [(r["return"], r["length"]) for r in rows(repository, "_episodes")] == [("10.0", "")]
    before = log(repository, "stub-small-4-1")
    grid(seeds=[1])
    assert log(repository, "stub-small-4-1") == before  # finished


def test_finished_cells_are_skipped_until_the_command_asks_for_more(repository, capsys):
    grid(seeds=[1])
    before = log(repository, "stub-small-4-1")
    (repository / "benchmark/results/grid.csv").unlink()
    grid()
    assert "2 cells, 1 finished before" in capsys.readouterr().out
    assert log(repository, "stub-small-4-1") == before and len(rows(repository)) == 2  # its lost row is back
    grid(seeds=[1], options="--threads 3")  # another result is not to be expected
    assert log(repository, "stub-small-4-1") == before
    grid(seeds=[1], options="--updates 6")
    assert log(repository, "stub-small-4-1") != before
    assert [row["updates"] for row in rows(repository)] == ["6", "4"]


def test_an_interrupted_cell_is_continued(repository):
    (repository / "crash").touch()
    with pytest.raises(SystemExit):
        grid(seeds=[1])
    assert not (repository / "benchmark/results/grid.csv").exists()
    (repository / "crash").unlink()
    grid(seeds=[1])
    assert re.findall(r"from update (\d)", log(repository, "stub-small-4-1")) == ["0", "2"]
    steps = [(row["step"], row["name"]) for row in rows(repository, "_metrics")]
    assert len(steps) == len(set(steps))  # step 3 was logged twice


def test_a_failed_cell_is_named_and_does_not_stop_the_others(repository, capsys):
    (repository / "fail_1").touch()
    with pytest.raises(SystemExit) as error:
        grid(scripts=["stub", "other"], jobs=1)
    message = str(error.value)
    assert "2 of 4 cells failed" in message
    for name in ("stub-small-4-1", "other-small-4-1"):
        assert f"runs/grid/Env-v0/{name} (runs/grid/Env-v0/{name}/console.log)" in message
    assert "small-4-2" not in message and [row["seed"] for row in rows(repository)] == ["2", "2"]
    assert "The stub was told to fail." in capsys.readouterr().out


def test_data_are_prepared_once_per_environment_for_the_largest_number(repository):
    grid(env_ids=["A-v0", "B-v0"], scripts=["stub", "other"], num_expert_episodes=[4, 15, 8], seeds=[1], jobs=3)
    assert sorted((repository / "prepared.txt").read_text().splitlines()) == ["A-v0 15", "B-v0 15"]
    grid(env_ids=["A-v0"], seeds=[1])  # finished: nothing to prepare
    assert len((repository / "prepared.txt").read_text().splitlines()) == 2


def test_failed_preparation_names_the_cells_it_costs(repository):
    (repository / "no_data").touch()
    with pytest.raises(SystemExit, match="2 of 2 cells failed.*runs/grid/Env-v0/prepare/console.log"):
        grid()


def alive(pid: str) -> bool:
    """Whether a process exists and is no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_ctrl_c_leaves_no_process_behind(repository):
    (repository / "hang").touch()
    code = (f"import pathlib, signal, sys; sys.path.insert(0, {str(ROOT / 'benchmark')!r}); import run_grid\n"
            f"run_grid.ROOT = pathlib.Path({str(repository)!r})\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "run_grid.main(run_grid.Args(env_ids=['Env-v0'], scripts=['stub'], seeds=[1, 2], jobs=2))")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    files = [repository / f"runs/grid/Env-v0/stub-small-30-{seed}/pids" for seed in (1, 2)]
    until = time.time() + 60
    while time.time() < until and not all(file.exists() and len(file.read_text().split()) == 2 for file in files):
        time.sleep(0.1)
    pids = [pid for file in files for pid in file.read_text().split()]
    assert len(pids) == 4 and all(map(alive, pids))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    assert not any(map(alive, pids))


def test_dry_run_prints_the_commands_and_runs_nothing(repository, capsys):
    grid(dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("python stub.py --env-id Env-v0") for line in lines)
    assert not (repository / "runs").exists()


def test_options_may_follow_without_an_equals_sign():
    words = ["--seeds", "1", "--options", "--updates 5", "--jobs", "1", "--options"]
    assert run_grid.join_options(words) == ["--seeds", "1", "--options=--updates 5", "--jobs", "1", "--options"]


def test_submitit_is_asked_for_in_one_sentence(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(SystemExit, match="pip install submitit"):
        grid(launcher="submitit")


def test_submitit_on_this_machine(repository, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "benchmark"))  # its jobs import what they were given
    (repository / "fail_2").touch()
    with pytest.raises(SystemExit, match="1 of 2 cells failed.*stub-small-4-2"):
        grid(launcher="submitit", cluster="local", gpus_per_job=0, jobs=2)
    assert [row["seed"] for row in rows(repository)] == ["1"]


# the files


def test_time_of_a_continued_run_by_hand():
    clock = [(5, 1), (10, 2), (15, 90), (15, 3), (20, 4), (20, 40)]  # checkpoint at step 10, interrupted after step 15
    assert run_grid.wall_seconds([{"step": str(s), "seconds": str(t)} for s, t in clock]) == 90 + (40 - 2)
    assert run_grid.wall_seconds([]) == 0


def test_log_of_a_continued_run(tmp_path):
    """Each scalar with the seconds of its own row; what a run logged after its checkpoint is lost, but cost time."""
    for first, rows in ((1, [(5, 1, 0.5), (10, 2, 0.25), (15, 90, 7)]), (11, [(15, 3, 0.125), (15, 4.5, 0.0625)])):
        with SummaryWriter(tmp_path, purge_step=first) as writer:
            for step, seconds, value in rows:
                writer.add_scalar("b" if seconds == 4.5 else "a", value, step)
                writer.add_scalar("charts/seconds", seconds, step)
        time.sleep(1.1)  # the next file is named by its second
    kept = run_grid.read_log(tmp_path)
    assert [(row["step"], row["seconds"], row["name"], row["value"]) for row in kept] == [
        ("5", "1.0", "a", "0.5"), ("10", "2.0", "a", "0.25"), ("15", "3.0", "a", "0.125"),
        ("15", "4.5", "b", "0.0625")]  # fmt: skip
    everything = run_grid.read_log(tmp_path, lost=True)
    assert [row["seconds"] for row in everything] == ["1.0", "2.0", "90.0", "3.0", "4.5"]
    assert run_grid.wall_seconds(everything) == 90 + (4.5 - 2)
    assert run_grid.read_log(tmp_path / "nothing") == []


def test_rows_are_replaced_and_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    file, columns = tmp_path / "grid_metrics.csv", run_grid.COLUMNS["_metrics"]
    key = dict(env_id="E", script="s", variant="default", size="small", num_expert_episodes=8, seed=2)

    def put(value, **changes) -> None:
        mine = key | changes
        run_grid.replace_rows(file, columns, mine, [mine | dict(step=1, seconds=0, name="n", value=value)])

    put("a"), put("b", num_expert_episodes=30), put("c", num_expert_episodes=4), put("d")
    table = run_grid.read_rows(file)
    assert [(r["num_expert_episodes"], r["value"]) for r in table] == [("4", "c"), ("8", "d"), ("30", "b")]
    before = file.read_text()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError):
        put("e")
    assert file.read_text() == before


def test_a_foreign_file_is_not_overwritten(repository):
    (repository / "results.csv").write_text("script,score\nditto.py,0.87\n")
    with pytest.raises(SystemExit, match="other columns"):
        grid(results="results.csv")
    assert (repository / "results.csv").read_text() == "script,score\nditto.py,0.87\n"


# statistics


@needs_plot
def test_interquartile_mean_by_hand():
    assert plot.interquartile_mean([100, 1, 7, 3, 0, 5, 6, 2]) == 4  # of 2 3 5 6
    assert plot.interquartile_mean([9, 1, 2]) == 4  # a quarter of three is less than one value
    assert plot.interquartile_mean([[0, 1, 3, 9], [4, 4, 4, 4]]).tolist() == [2, 4]


@needs_plot
def test_correlations_by_hand():
    def pearson(x, y):
        return plot.correlation(x, y)[0]

    def spearman(x, y):
        return plot.correlation(x, y)[1]

    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert pearson([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 8, 27, 64]) == pytest.approx(1)
    assert pearson([1, 2, 3, 4], [1, 8, 27, 64]) < 0.96
    assert spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))  # ranks 1, 2.5, 2.5, 4
    assert np.isnan(plot.correlation([1, 2], [1, 2])).all() and np.isnan(plot.correlation([1, 1, 1], [1, 2, 3])).all()


@needs_plot
def test_standard_error_by_hand():
    assert plot.standard_error([1, 3]) == pytest.approx(1) and np.isnan(plot.standard_error([1]))


@needs_plot
def test_bootstrap_interval():
    constant = [[np.full(20, 0.7)] * 3, [np.full(20, 0.7)] * 3]
    assert plot.bootstrap(constant, plot.interquartile_mean, 200) == pytest.approx((0.7, 0.7))
    two = [[np.zeros(20), np.ones(20)]]  # seeds are drawn as a whole: both, or one of them twice
    assert plot.bootstrap(two, lambda values: values.mean(-1), 200) == (0, 1)
    strata = [[np.zeros(5)], [np.ones(5)]]  # environments are not
    assert plot.bootstrap(strata, lambda values: values.mean(-1), 200) == (0.5, 0.5)
    games = np.random.default_rng(1).normal(0.5, 0.2, (5, 20))
    low, high = plot.bootstrap([list(games)], plot.interquartile_mean, 500)
    assert low < plot.interquartile_mean(games.ravel()) < high
    unequal = [[np.zeros(3), np.zeros(7)]]  # seeds may have unequal numbers of games
    assert plot.bootstrap(unequal, plot.interquartile_mean, 50) == (0, 0)


# table and figures


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Files of a grid of such scripts; ditto with two numbers of episodes, d_bc with one."""
    folder = tmp_path_factory.mktemp("results")
    for name in ("ditto", "d_bc"):
        (folder / f"{name}.py").write_text(STUB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_grid, "ROOT", folder)
        grid(scripts=["ditto"], seeds=[1, 2, 3], jobs=3, prepare=False)
        grid(scripts=["ditto"], num_expert_episodes=[8], seeds=[1], prepare=False)
        grid(scripts=["ditto"], seeds=[1], variants=["h3: --horizon 3"], prepare=False)
        grid(scripts=["d_bc"], seeds=[1], prepare=False)
    return str(folder / "benchmark/results/grid.csv")


@needs_plot
def test_table_has_means_and_says_what_is_missing(results, capsys):
    lines = plot.main(plot.Args(figure="table", csv=results, draws=50))["table"].splitlines()
    cells = {tuple(line.split(" | ")[1:3]): line for line in lines[2:6]}
    # returns 10 14, 20 24, 30 34 between random 0 and expert 30: the middle four of six are 14 20 24 30
    assert "| 3 | 6 | 22.0 | 30.0 | 0.0 | 0.50 | 0.00 | 0.73 |" in cells["4", "DITTO"]
    assert "| 1 * | 2 | 12.0 |" in cells["4", "D-BC"] and "| one seed |" in cells["4", "D-BC"]
    assert "not run" in cells["8", "D-BC"] and "Fewer than three seeds" in lines[-1]
    assert len({line.count("|") for line in lines[:6]}) == 1


@needs_plot
def test_figures_are_written(results, tmp_path):
    common = dict(csv=results, num_expert_episodes=4)
    for figure in ("training", "episodes", "horizon", "variants"):
        out = tmp_path / "pictures" / f"{figure}.png"
        report = plot.main(plot.Args(figure=figure, out=str(out), **common))
        assert out.stat().st_size > 5000
        if figure == "training":  # latent distance 0.8 with return 5, 0.6 with returns 12, 22, 32 and 12 (D-BC)
            r, rho, count = report["correlations"]["Env-v0"]["expert/latent_distance"]
            x, y = [0.8] * 4 + [0.6] * 4, [5] * 4 + [12, 22, 32, 12]
            assert count == 8 and r == pytest.approx(np.corrcoef(x, y)[0, 1]) and -1 <= rho < 0
        if figure == "horizon":
            assert report["points"]["Env-v0", "ditto"][0].tolist() == [3, 15]


@needs_plot
def test_curves_against_steps_in_the_environment(tmp_path):
    key = "env_id,script,variant,size,num_expert_episodes,seed"
    grid, log = [f"{key},updates,expert_return,random_return"], [f"{key},step,seconds,name,value"]
    for seed, last in ((1, 10.0), (2, 20.0)):
        cell = f"Env-v0,cmil,default,small,4,{seed}"
        grid.append(f"{cell},3,30,0")
        for step, played, value in ((1, 0, 99.0), (2, 0, 5.0), (3, 50, last)):  # two validations before playing
            log += [f"{cell},{step},0,charts/env_steps,{played}", f"{cell},{step},0,eval/return_mean,{value}"]
    (tmp_path / "c.csv").write_text("\n".join(grid)), (tmp_path / "c_metrics.csv").write_text("\n".join(log))
    args = plot.Args(figure="interaction", csv=str(tmp_path / "c.csv"), out=str(tmp_path / "c.png"))
    curves = plot.main(args)["curves"]["Env-v0", "default", "eval/return_mean"]
    assert [list(part) for part in curves] == [[0, 50], [5, 15]] and (tmp_path / "c.png").stat().st_size > 5000


def write_grid(folder, cells: list[str], log: list[str]) -> str:
    """A grid's CSV of cells (script, env_id, variant, seed, updates, return) and of what they logged."""
    key = "script,env_id,variant,size,num_expert_episodes,seed"
    rows = [",".join([*cell.split(",")[:3], "small", "100", *cell.split(",")[3:], "800", "40"]) for cell in cells]
    (folder / "c.csv").write_text("\n".join([f"{key},updates,return_mean,expert_return,random_return", *rows]))
    rows = [",".join([*row.split(",")[:3], "small", "100", *row.split(",")[3:]]) for row in log]
    (folder / "c_metrics.csv").write_text("\n".join([f"{key},step,name,value", *rows]))
    return str(folder / "c.csv")


@needs_plot
def test_length_of_phase_1_is_drawn_through_and_after_phase_2(tmp_path):
    cells, log = [], []
    ends = (("m15", 1, 200), ("m15", 2, 400), ("m100", 1, 600), ("m15u40", 1, 8), ("random1000", 1, 9))
    for variant, seed, last in ends:
        updates = 40 if "u40" in variant else 20
        cells.append(f"aime,walker-walk,{variant},{seed},{updates},{last}")
        for step, share in ((updates // 2, 0.5), (updates, 1.0)):
            cell = f"aime,walker-walk,{variant},{seed},{step}"
            log += [f"{cell},eval/return_mean,{share * last}", f"{cell},imitate/action_error,{1 / last}"]
    csv, out = write_grid(tmp_path, cells, log), tmp_path / "lengths.png"
    curves = plot.main(plot.Args(figure="lengths", csv=csv, out=str(out)))["curves"]
    found = {key[1:]: [part.tolist() for part in value[:2]] for key, value in curves.items()}
    assert found["eval/return_mean", 15_000, 20] == [[10, 20], [150, 300]]
    assert found["eval/return_mean", 100_000, 20] == [[10, 20], [300, 600]] and out.stat().st_size > 5000
    assert found["eval/return_mean", 15_000, 40] == [[20, 40], [4, 8]]
    assert found["imitate/action_error", 100_000, 20] == [[10, 20], [pytest.approx(1 / 600)] * 2]


@needs_plot
def test_cells_stand_beside_the_papers(tmp_path):
    cells = ["aime,walker-walk,stand,1,20,400", "aime,walker-walk,stand,2,20,200", "bco,walker-walk,stand,1,20,80",
             "aime,walker-walk,stand_mdp,1,20,80", "aime,walker-stand,walk,1,20,8",
             "aime,walker-walk,random1000m40,1,20,80", "bco,walker-walk,oracle,1,20,8"]  # fmt: skip
    csv, out = write_grid(tmp_path, cells, []), tmp_path / "cells.png"
    bars = plot.main(plot.Args(figure="cells", csv=csv, out=str(out)))["bars"]
    assert bars["stand", "walker-walk", "lpomdp", "aime"] == ([50, 25], 93.4, 6.8)
    assert bars["stand", "walker-walk", "lpomdp", "bco"] == ([10], 14.2, 8.0)
    assert bars["stand", "walker-walk", "mdp", "bco"] == ([], 89.6, 6.7)
    assert bars["walk", "walker-stand", "lpomdp", "aime"] == ([1], 98.4, 4.7)
    assert bars["random", "walker-walk", "lpomdp", "aime"][0] == [10]
    assert len(bars) == 8 and out.stat().st_size > 5000


@needs_plot
def test_one_run_is_published_from_its_event_files(results, tmp_path):
    run, published = Path(results).parents[2] / "runs/grid/Env-v0/ditto-small-4-1", tmp_path / "run_metrics.csv"
    assert plot.main(plot.Args(figure="log", csv=str(run), out=str(published))) == {"rows": 15}
    lines = published.read_text().splitlines()
    assert lines[:3] == ["step,seconds,name,value", "1,1.0,losses/entropy,1", "1,1.0,losses/policy,9"]
    assert lines[-1] == "4,4.5,eval/return_mean,12"


@needs_plot
@pytest.mark.parametrize(
    "options, message",
    [
        (dict(figure="training"), "choose one with --num-expert-episodes"),
        (dict(figure="episodes", env_ids=["Other-v0"]), "run the grid for them first"),
        (dict(figure="variants", num_expert_episodes=99), "No run with N^E = 99"),
        (dict(figure="table", csv="missing.csv"), "There is no missing.csv"),
        (dict(figure="log", csv="missing"), "There is no log in missing: name a run's folder"),
        (dict(figure="interaction", num_expert_episodes=4), "has no run of cmil.py"),
    ],
)
def test_plot_ends_with_a_sentence(results, options, message):
    with pytest.raises(SystemExit, match=re.escape(message)):
        plot.main(plot.Args(**{"csv": results} | options))


# commands


def commands(text: str) -> list[list[str]]:
    """Words of the commands in a text that run a script of benchmark/."""
    lines = (re.split(r"\s{2,}\(", line.strip())[0] for line in text.splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("python benchmark/")]


@needs_plot
@pytest.mark.parametrize("name", ["run_grid.py", "plot.py", "figures.sh", "check_body.py", "add_pictures.py"])
def test_commands_parse(name):
    found = commands((ROOT / "benchmark" / name).read_text())
    assert found
    for script, *words in found:
        if script == "benchmark/plot.py":
            args = tyro.cli(plot.Args, args=words)
            assert args.size in ("", "small", "paper")
        elif script in (tools := {f"benchmark/{t.__name__}.py": t for t in (check_body, add_pictures, clip)}):
            tyro.cli(tools[script].Args, args=words)
        else:
            args = tyro.cli(run_grid.Args, args=run_grid.join_options(words))
            assert run_grid.make_cells(args)  # so every script takes the options of its cells


@needs_plot
def test_moving_errors_of_world_models_are_drawn(tmp_path):
    names = ("world_model/moving_error_1", "world_model/moving_error_15", "losses/kl")
    rows = [f"{run},{frames},1.0,{name},0.5\n" for run in "AB" for frames in (10, 20) for name in names]
    (tmp_path / "log.csv").write_text("run,frames,seconds,name,value\n" + "".join(rows))
    args = plot.Args(figure="model", csv=str(tmp_path / "log.csv"), variants=["B"], out=str(tmp_path / "model.png"))
    assert plot.main(args) == {"runs": {"B": {1: [(10, 0.5), (20, 0.5)], 15: [(10, 0.5), (20, 0.5)]}}}
    assert (tmp_path / "model.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(SystemExit, match="no moving errors"):
        plot.main(plot.Args(figure="model", csv=str(tmp_path / "log.csv"), variants=["C"]))
