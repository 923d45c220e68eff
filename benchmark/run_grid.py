# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Run a grid of environment x script x N^E x seed (x variant), several cells at once, and collect the results as CSV.

    python benchmark/run_grid.py --env-ids MsPacmanNoFrameskip-v4 --scripts ditto d_bc --num-expert-episodes 4 30 --seeds 1 2 3 --jobs 2 --options="--updates 1500 --eval-every 250 --threads 1"
    python benchmark/run_grid.py --scripts ditto --variants "h3: --horizon 3" "h9: --horizon 9" --dry-run
    python benchmark/run_grid.py --launcher submitit --cluster slurm --slurm-partition gpu --gpus-per-job 1 --jobs 16

A cell is one run of one script, in <out>/<env_id>/<script>[-<variant>]-<size>-<N^E>-<seed>. The same command skips the
cells that are finished and continues those that were interrupted. A cell that fails does not stop the others: its output
is in console.log in its folder, and the exit status is not zero. After each cell its rows are replaced in three files:

    grid.csv            one row per cell: final return, score, latent distance, time, hardware, commit, command
    grid_metrics.csv    its validations through training, from its event files: step, seconds, name, value
    grid_episodes.csv   every game of its final evaluation

Relative paths are relative to the repository. `benchmark/plot.py` draws these files. The commands of every figure are in
benchmark/figures.sh.
"""  # noqa: E501  (a command is one line)

import contextlib
import csv
import dataclasses
import importlib.metadata
import importlib.util
import io
import itertools
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from filelock import FileLock
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from world_model import command, home, progress  # noqa: E402


@dataclass
class Args:
    # grid
    env_ids: list[str] = field(default_factory=lambda: ["PongNoFrameskip-v4"])
    """environments"""
    scripts: list[str] = field(default_factory=lambda: ["ditto", "d_gail", "d_bc", "bc_pixels"])
    """scripts, without .py"""
    num_expert_episodes: list[int] = field(default_factory=lambda: [30])
    """numbers of expert episodes, N^E"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """seeds"""
    variants: list[str] = field(default_factory=lambda: ["default:"])
    """named settings, each "name: options", of which every script of the grid is run with each"""
    options: str = ""
    """options for every cell, in quotes and after an equals sign: --options="--updates 1500 --threads 1" (see above)"""
    script_options: list[str] = field(default_factory=list)
    """options for the cells of one script, each "script: options"; later ones win: general, script's, variant's"""
    # files
    out: str = "runs/grid"
    """folder of the runs"""
    results: str = "benchmark/results/grid.csv"
    """CSV of the results; validations and games go to <name>_metrics.csv and <name>_episodes.csv beside it"""
    # run
    jobs: int = 2
    """cells at once; give --threads in --options so that jobs x threads is the number of cores"""
    gpus: list[int] = field(default_factory=list)
    """GPUs that local jobs take in turn, such as 0 1 2 3; empty: every job sees what this process sees"""
    prepare: bool = True
    """collect data and train the world model, if missing, once per environment before its cells"""
    dry_run: bool = False
    """print the commands and which cells are finished, run nothing"""
    # cluster
    launcher: Literal["local", "submitit"] = "local"
    """local: child processes; submitit: jobs through submitit (`pip install submitit`), --jobs of them at once"""
    cluster: Literal["slurm", "local"] = "slurm"
    """submitit's executor; local runs on this machine, to try it out"""
    slurm_partition: str = ""
    """Slurm's partition; empty: its default"""
    slurm_account: str = ""
    """Slurm's account; empty: its default"""
    gpus_per_job: int = 1
    """GPUs of a submitit job; 0 for CPU jobs"""
    cpus_per_job: int = 4
    """CPU cores of a submitit job"""
    memory_per_job: float = 32
    """memory of a Slurm job in GB"""
    hours_per_job: float = 24
    """time limit of a submitit job; a cell cut off by it fails, and the same command continues it"""


KEY = ("env_id", "script", "variant", "size", "num_expert_episodes", "seed")
COLUMNS = {
    "": ("script", "env_id", "variant", "size", "num_expert_episodes", "seed", "updates", "horizon", "games",
         "return_mean", "standard_error", "expert_return", "random_return", "score", "best_validation",
         "latent_distance", "latent_distance_expert_actions", "action_agreement", "wall_seconds", "threads",
         "hardware", "torch", "commit", "command"),
    "_metrics": (*KEY, "step", "seconds", "name", "value"),
    "_episodes": (*KEY, "update", "game_seed", "return", "length"),
}  # fmt: skip
OWN = ("--env-id", "--num-expert-episodes", "--seed", "--run-dir", "--eval-only")  # options that the grid itself gives
MAKES = ("device", "data_dir", "world_model", "pretrained", "body", "demo", "setting", "source", "obs", "max_steps")
FREE = ("updates", "run_dir", "threads", "device", "cudagraphs", "log_every")  # other values do not make another result


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: what it is, its command without the interpreter, and its arguments as its script reads them."""

    env_id: str
    script: str
    variant: str
    size: str
    num_expert_episodes: int
    seed: int
    run_dir: Path
    command: tuple[str, ...]
    arguments: dict


# the grid


def load_script(name: str):
    """Import a script of the repository as a module; it is asked how it reads its arguments."""
    path = ROOT / f"{name}.py"
    if not path.exists():
        sys.exit(f"--scripts {name}: there is no {name}.py beside ditto.py.")
    spec = importlib.util.spec_from_file_location(f"grid_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "parse_args"):
        sys.exit(f"--scripts {name}: {name}.py has other arguments than ditto.py, d_gail.py, d_bc.py and bc_pixels.py.")
    return module


def read_options(name: str, module, words: list[str]):
    """Arguments that a script makes of these options; end with one sentence if it does not know them."""
    given = {word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    if clash := sorted(given & set(OWN)):
        sys.exit(f"{', '.join(clash)} in the options of {name}: the grid's own arguments set these.")
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return module.parse_args(module.Args, module.SIZES, words)
    except SystemExit as error:
        why = error.code if isinstance(error.code, str) else f"`python {name}.py {shlex.join(words)}` says why"
        sys.exit(f"{name}.py does not take the options {shlex.join(words)}: {why}")


def named(texts: list[str], flag: str) -> dict[str, list[str]]:
    """`name: options` as name and words."""
    pairs = [text.partition(":") for text in texts]
    for name, colon, _ in pairs:
        if not colon or not re.fullmatch(r"[\w.]+", name):
            sys.exit(f'{flag} "{name}": write "name: options", the name of letters, digits, _ and full stops.')
    return {name: shlex.split(options) for name, _, options in pairs}


def cells_home(out: str, env_id: str) -> Path:
    """Folder of an environment's cells, spelt as the scripts spell theirs."""
    return Path(out) / home(ROOT / out, env_id).relative_to(ROOT / out)


def make_cells(args: Args) -> list[Cell]:
    """The cells of the grid; seed by seed, so that the first seed of everything is there early."""
    own, variants = named(args.script_options, "--script-options"), named(args.variants, "--variants")
    if unknown := sorted(set(own) - set(args.scripts)):
        sys.exit(f"--script-options names {', '.join(unknown)}, which --scripts does not.")
    parsed = {}
    for script in dict.fromkeys(args.scripts):
        module = load_script(script)
        for variant, more in variants.items():
            words = [*shlex.split(args.options), *own.get(script, []), *more]
            parsed[script, variant] = words, read_options(script, module, words)
    cells = {}
    product = itertools.product(args.seeds, args.env_ids, args.num_expert_episodes, parsed.items())
    for seed, env_id, count, ((script, variant), (words, base)) in product:
        label = script if variant == "default" else f"{script}-{variant}"
        run_dir = cells_home(args.out, env_id) / f"{label}-{base.size}-{count}-{seed}"
        # the size is always named: "auto" may mean something else on the machine that runs the cell
        size = [] if base.size in words or f"--size={base.size}" in words else ["--size", base.size]
        command = (f"{script}.py", "--env-id", env_id, "--num-expert-episodes", str(count), "--seed", str(seed), *words,
                   *size, "--run-dir", str(run_dir))  # fmt: skip
        full = dataclasses.replace(base, env_id=env_id, num_expert_episodes=count, seed=seed)
        arguments = json.loads(json.dumps(dataclasses.asdict(full)))
        cells[run_dir] = Cell(env_id, script, variant, base.size, count, seed, run_dir, command, arguments)
    return list(cells.values())


# Runs in a child process, once per environment and before its cells: cells that start together would all find the same
# dataset or world model missing and would all write it into the same folder. The scripts' own functions look and make,
# for the largest N^E that is wanted, so that the smaller ones find enough.
PREPARE = """
import importlib, json, sys
for name, words in json.loads(sys.argv[1]):
    script = importlib.import_module(name)
    args = script.parse_args(script.Args, script.SIZES, words)
    if hasattr(script, "datasets"):  # aime.py, bco.py; a world model of theirs is named with --world-model
        script.datasets(args)
        continue
    owner = script if hasattr(script, "expert_dataset") else importlib.import_module("control")  # cmil.py's
    folder = owner.expert_dataset(args)
    if hasattr(script, "trained_world_model"):
        script.trained_world_model(args, folder)
"""


def preparation(cells: list[Cell], out: str) -> Cell:
    """The command that makes what the cells of one environment need, as a cell whose script is empty."""
    needed = {}
    for cell in sorted(cells, key=lambda cell: cell.num_expert_episodes):
        needed[cell.size, *(str(cell.arguments.get(name)) for name in MAKES)] = cell  # the largest N^E stays
    stages = [(cell.script, cell.command[1:]) for cell in sorted(needed.values(), key=lambda c: -c.num_expert_episodes)]
    env_id = cells[0].env_id
    run_dir = cells_home(out, env_id) / "prepare"
    return Cell(env_id, "", "", "", 0, 0, run_dir, ("-c", PREPARE, json.dumps(stages)), {})


# what a run left


def read_json(path: Path) -> dict:
    """A JSON file, or nothing if it is missing or cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def number(value) -> str:
    """A number with six digits; empty if there is none, or it is not finite."""
    return "" if value is None or not abs(value) < float("inf") else f"{value:.6g}"


def read_log(folder: Path, lost: bool = False) -> list[dict[str, str]]:
    """Scalars in a run's event files, in the order of logging: rows of step, seconds, name, value.

    Their seconds are charts/seconds, the last scalar of every row that a run logs. With `lost` also what an
    interrupted run logged after its last checkpoint, before what was logged instead.
    """
    if not folder.is_dir():
        return []
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every continued run
    log = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=not lost).Reload()
    events = [(event.wall_time, name == "charts/seconds", event.step, name, event.value)
              for name in log.Tags()["scalars"] for event in log.Scalars(name)]  # fmt: skip
    rows, seconds = [], {}
    for _, is_clock, step, name, value in sorted(events, reverse=True):
        if is_clock:
            seconds[step] = f"{value:.1f}"
        else:
            rows.append({"step": str(step), "seconds": seconds.get(step, ""), "name": name, "value": number(value)})
    return rows[::-1]


def finished(cell: Cell) -> bool:
    """Whether the cell's last update was made and its final games were played, with these arguments."""
    result = read_json(ROOT / cell.run_dir / "result.json")
    old = {name: value for name, value in result.get("args", {}).items() if name not in FREE and name in cell.arguments}
    updates = cell.arguments.get("updates", 0)  # bco.py stops by itself, and leaves no result before
    return result.get("step", -1) >= updates and all(cell.arguments[k] == v for k, v in old.items())


def share_done(cell: Cell) -> float:
    """Share of the updates that the log shows."""
    log, updates = read_log(ROOT / cell.run_dir), cell.arguments.get("updates", 0)
    return min(1.0, int(log[-1]["step"]) / updates) if log and updates else 0.0


def wall_seconds(log: list[dict[str, str]]) -> float:
    """Seconds that the rows of a log took, repeated and lost ones of an interrupted run included."""
    total, before, at = 0.0, 0.0, {}  # at: the clock at each step
    for step, now in ((int(row["step"]), float(row["seconds"])) for row in log if row["seconds"]):
        if now < before:  # the run was continued from its checkpoint, which set back the clock
            before = next((at[earlier] for earlier in sorted(at, reverse=True) if earlier < step), 0.0)
        total += now - before
        before = at[step] = now
    return total


def collect(cell: Cell) -> dict[str, list[dict]]:
    """Rows of a finished cell for the three files."""
    folder, key = ROOT / cell.run_dir, {name: getattr(cell, name) for name in KEY}
    result, about = read_json(folder / "result.json"), read_json(folder / "grid.json")
    games, validations = read_rows(folder / "final_episodes.csv"), read_rows(folder / "episodes.csv")
    # what was logged when games were played, and of that the last value of each step
    steps = {row["update"] for row in validations} | {str(result["step"])}
    logged = {(row["step"], row["name"]): row for row in read_log(folder) if row["step"] in steps}
    wanted = ("imagine/reward", "losses/entropy", "imitate/action_error", "imitate/elbo", "imagine/disagreement",
              "charts/env_steps", "losses/cloning")  # fmt: skip
    kept = [row for (_, name), row in logged.items() if name.startswith(("eval/", "expert/")) or name in wanted]

    def final(name: str) -> str:
        last = logged.get((str(result["step"]), name), {}).get("value") or "nan"
        return number(result.get(name, float(last)))

    device = result["args"].get("device", "auto" if result["args"].get("cuda", True) else "cpu")  # older runs: cuda
    on_gpu = about.get("gpu") and device.startswith(("auto", "cuda")) and "+cpu" not in about["torch"]
    hardware = about.get("gpu" if on_gpu else "cpu", "unknown")
    hardware += f", up to {about['jobs']} jobs at once" if about.get("jobs", 1) > 1 else ""  # the time depends on it
    returns, K = result["returns"], result["args"].get("eval_consecutive", 1)  # the same n games, K times
    each = [statistics.mean(returns[game :: len(returns) // K]) for game in range(len(returns) // K)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else None
    row = key | {
        "updates": result["step"], "horizon": result["args"].get("horizon", ""), "games": len(returns),
        "return_mean": final("eval/return_mean"), "standard_error": number(error),
        "expert_return": final("expert_return"), "random_return": final("random_return"),
        "score": final("eval/return_vs_expert"), "best_validation": final("best_validation"),
        "latent_distance": final("expert/latent_distance"),
        "latent_distance_expert_actions": final("expert/latent_distance_expert_actions"),
        "action_agreement": final("expert/action_agreement"),
        "wall_seconds": number(wall_seconds(read_log(folder, lost=True))),
        "threads": result["args"].get("threads") or "default", "hardware": hardware,
        "torch": about.get("torch", "unknown"), "commit": "+".join(about.get("commits", ["unknown"])),
        "command": shlex.join(["python", *cell.command]),
    }  # fmt: skip
    episodes = [{"update": r["update"], "game_seed": r["seed"], "return": r["return"], "length": r.get("length", "")}
                for r in games]  # fmt: skip
    return {"": [row], "_metrics": [key | row for row in kept], "_episodes": [key | row for row in episodes]}


# the three files


def results_file(results: str, end: str) -> Path:
    """The CSV of the results, or its neighbour with another ending."""
    path = ROOT / results
    return path.with_name(f"{path.stem}{end}.csv")


def check_files(results: str) -> None:
    """End with one sentence if a file to be rewritten was not written by this script."""
    for end, columns in COLUMNS.items():
        path = results_file(results, end)
        rows = read_rows(path)
        if rows and tuple(rows[0]) != columns:
            sys.exit(f"{path} has other columns than this script writes: name another file with --results.")


def replace_rows(path: Path, columns: tuple[str, ...], key: dict, rows: list[dict]) -> None:
    """Replace a cell's rows in a CSV and sort it; written under a temporary name and renamed, so never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = {name: str(value) for name, value in key.items()}
    with FileLock(path.parent / ".lock"):  # two grids may write the same file
        old = read_rows(path)
        new = [row for row in old if {name: row[name] for name in KEY} != key] + rows
        new.sort(key=lambda row: [int(row[k]) if k in ("num_expert_episodes", "seed") else row[k] for k in KEY])
        new = [{name: str(row[name]) for name in columns} for row in new]
        if new == old:
            return
        temporary = path.with_suffix(".tmp")
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(new)
        os.replace(temporary, path)


def record(cell: Cell, results: str) -> None:
    """Bring the three files up to date with a finished cell."""
    for end, rows in collect(cell).items():
        replace_rows(results_file(results, end), COLUMNS[end], {name: getattr(cell, name) for name in KEY}, rows)


# a job: on this machine in a thread, or on another in a process of submitit


def note_origin(root: Path, run_dir: Path, jobs: int) -> None:
    """Write commit, hardware and version to grid.json in the run's folder, where and when the run starts."""

    def output(*command: str) -> str:
        if not shutil.which(command[0]):
            return ""
        return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()

    # only Python files count as modified: the results that this script rewrites are under version control too
    commit = output("git", "rev-parse", "--short", "HEAD") or "unknown"
    commit += " modified" if output("git", "status", "--porcelain", "-uno", "--", "*.py") else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpu = "" if visible == "" else output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").partition("\n")[0]
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    old = read_json(root / run_dir / "grid.json").get("commits", [])
    commits = list(dict.fromkeys([*old, commit]))  # more than one: it was continued with other code
    about = {"commits": commits, "torch": importlib.metadata.version("torch"), "gpu": gpu, "jobs": jobs,
             "cpu": f"{os.cpu_count()} cores {(names or [platform.machine()])[0].strip()}"}  # fmt: skip
    (root / run_dir / "grid.json").write_text(json.dumps(about, indent=1))


def stop_processes(processes: list[subprocess.Popen], patience: float = 10.0) -> None:
    """End processes and what they started themselves: ask, wait, then kill."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, sign)  # the group outlives its first process if a stage is still running
        until = time.time() + patience
        while time.time() < until and any(process.poll() is None for process in processes):
            time.sleep(0.05)


STARTED: list[subprocess.Popen] = []  # processes of the jobs that run in threads of this process


def run_job(root: Path, run_dir: Path, command: list[str], jobs: int, note: bool, gpu: int | None) -> int:
    """Note where it runs, run a command in its own process group, leave no process behind; its exit status.

    What it prints is added to console.log in the run's folder.
    """
    if threading.current_thread() is threading.main_thread():  # submitit cancels by this signal
        signal.signal(signal.SIGINT, signal.default_int_handler)
    (root / run_dir).mkdir(parents=True, exist_ok=True)
    if note:
        note_origin(root, run_dir, jobs)
    env = os.environ | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)})
    with open(root / run_dir / "console.log", "ab") as log:
        process = subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   env=env, start_new_session=True)  # fmt: skip
    STARTED.append(process)
    try:
        return process.wait()
    finally:
        stop_processes([process])
        STARTED.remove(process)


def make_executor(args: Args):
    """Where jobs run: threads of this process, or submitit's executor, which has the same verbs."""
    if args.launcher == "local":
        return ThreadPoolExecutor(args.jobs)
    try:
        import submitit
    except ImportError:
        sys.exit("--launcher submitit needs the package submitit: pip install submitit, or leave it out.")
    try:
        executor = submitit.AutoExecutor(folder=str(ROOT / args.out / "submitit" / "%j"), cluster=args.cluster)
    except RuntimeError as error:
        sys.exit(f"--cluster {args.cluster} cannot be used here ({error}).")
    slurm = {"slurm_partition": args.slurm_partition, "slurm_account": args.slurm_account}
    slurm |= {"mem_gb": args.memory_per_job} if args.cluster == "slurm" else {}
    executor.update_parameters(name="grid", timeout_min=max(1, int(60 * args.hours_per_job)),
                               cpus_per_task=args.cpus_per_job, gpus_per_node=args.gpus_per_job,
                               **{name: value for name, value in slurm.items() if value})  # fmt: skip
    return executor


def stop(jobs: list) -> None:
    """End jobs and wait until they are gone."""
    for job in jobs:
        job.cancel()
    until = time.time() + 30
    while time.time() < until and not all(job.done() for job in jobs):
        stop_processes(list(STARTED))
        time.sleep(0.2)


# running


def last_line(path: Path) -> str:
    """Last line of a log that says something."""
    lines = re.split(r"[\r\n]+", path.read_text(errors="replace").strip()) if path.exists() else [""]
    return lines[-1].strip()


def run(left: list[Cell], ready: int, args: Args) -> dict[Path, Path]:
    """Run cells, at most `jobs` at once, each after its environment's preparation; the logs of those that failed."""
    executor, running, failed = make_executor(args), {}, {}
    env_ids = dict.fromkeys(cell.env_id for cell in left)
    groups = [[cell for cell in left if cell.env_id == env_id] for env_id in env_ids]
    waiting = [*(preparation(group, args.out) for group in groups if args.prepare), *left]
    prepared = set() if args.prepare else set(env_ids)
    at_once = args.jobs if "local" in (args.launcher, args.cluster) else 1  # on the machine that runs a cell
    share, shown, screen = {cell: share_done(cell) for cell in left}, 0.0, sys.stdout.isatty()
    bar = progress(ready + len(left), "{n:.1f} of {total} cells, {desc}, {elapsed} passed, {remaining} left",
                   initial=ready + sum(share.values()), desc="starting", leave=screen)  # fmt: skip
    try:
        while waiting or running:
            for cell in [cell for cell in waiting if not cell.script or cell.env_id in prepared]:
                if len(running) < args.jobs:
                    waiting.remove(cell)
                    slot = min(set(range(args.jobs)) - {slot for _, slot, _ in running.values()})
                    gpu = args.gpus[slot % len(args.gpus)] if args.gpus and args.launcher == "local" else None
                    command = [sys.executable, *cell.command]
                    job = executor.submit(run_job, ROOT, cell.run_dir, command, at_once, bool(cell.script), gpu)
                    running[job] = cell, slot, time.time()
            ended = [job for job in running if job.done()]
            for job in ended:
                cell, _, began = running.pop(job)
                log, error = cell.run_dir / "console.log", job.exception()
                code = job.result() if error is None else " ".join(str(error).split())
                if not cell.script and code == 0:
                    prepared.add(cell.env_id)
                elif code == 0 and finished(cell):
                    record(cell, args.results)
                    share[cell] = 1.0
                    score = read_json(ROOT / cell.run_dir / "result.json").get("eval/return_vs_expert", float("nan"))
                    took = tqdm.format_interval(time.time() - began)
                    bar.write(f"finished {cell.run_dir}: score {score:.2f}, {took}")
                else:  # without its preparation no cell of an environment can run
                    lost = [cell] if cell.script else [other for other in waiting if other.env_id == cell.env_id]
                    waiting = [other for other in waiting if other not in lost]
                    failed |= {other.run_dir: log for other in lost}
                    bar.write(f"failed {cell.run_dir}, status {code}, see {log}: {last_line(ROOT / log)}")
            if ended or time.time() - shown > (5 if screen else 60):
                shown, share = time.time(), share | {c: share_done(c) for c, *_ in running.values() if c.script}
                bar.n = ready + sum(share.values())
                bar.set_description_str(f"{len(failed)} failed, {len(running)} running", refresh=False)
                bar.refresh()
            time.sleep(0.1)
    finally:  # also after Ctrl-C: nothing that was started here goes on, and a second Ctrl-C does not hinder that
        if running:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop(list(running))
        bar.close()
    return failed


def main(args: Args) -> dict:
    if args.jobs < 1 or not all((args.env_ids, args.scripts, args.num_expert_episodes, args.seeds, args.variants)):
        sys.exit("The grid is empty: give at least one environment, script, N^E, seed, variant and job.")
    check_files(args.results)
    cells = make_cells(args)
    ready = [cell for cell in cells if finished(cell)]
    left = [cell for cell in cells if cell not in ready]
    if args.dry_run:
        for cell in cells:
            print(shlex.join(["python", *cell.command]) + ("  # finished" if cell in ready else ""))
        return {"cells": len(cells), "finished": len(ready), "failed": []}
    for cell in ready:  # the files may be older than the runs, or deleted
        record(cell, args.results)
    print(f"{len(cells)} cells, {len(ready)} finished before", flush=True)
    failed = run(left, len(ready), args) if left else {}
    if failed:
        names = ", ".join(f"{run_dir} ({log})" for run_dir, log in failed.items())
        sys.exit(
            f"\n{len(failed)} of {len(cells)} cells failed (their logs in brackets), the others are finished: {names}"
        )
    print(f"\n{len(cells)} cells are finished: {args.results}")
    return {"cells": len(cells), "finished": len(cells), "failed": []}


def join_options(words: list[str]) -> list[str]:
    """`--options "--updates 5"` as `--options=--updates 5`: the parser takes a value with dashes for a flag."""
    words = list(words)
    for k in range(len(words) - 1, 0, -1):
        if words[k - 1] == "--options" and words[k].startswith("-"):
            words[k - 1 : k + 1] = [f"--options={words[k]}"]
    return words


if __name__ == "__main__":
    for signal_name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, signal_name) and signal.getsignal(getattr(signal, signal_name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, signal_name), signal.default_int_handler)  # as Ctrl-C
    command(main, lambda: tyro.cli(Args, args=join_options(sys.argv[1:])), "continues the cells that are left")
