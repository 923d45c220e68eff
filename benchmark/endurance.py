# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Kill every stage again and again with SIGKILL, let it end, and compare what it made with an uninterrupted run.

    python benchmark/endurance.py
    python benchmark/endurance.py --kills 20 --seed 7

The stages are collect_data.py in two processes, world_model.py, ditto.py and bc_pixels.py, at the debug size on the
tests' tiny environment. Half of the kills come at a random moment, half while a file is written under its temporary
name. Compared are the arrays of every episode, weights, optimisers and random states of the last checkpoints (bit by
bit), the scalars of the logs with their number of rows, the tables of games and result.json, all but times.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
ENV = ["--env-id", "tiny:Blocks-v0"]


@dataclass
class Args:
    # run
    kills: int = 8
    """kills per stage"""
    seed: int = 1
    """seed of the moments"""
    updates: int = 600
    """gradient steps of each training"""


def stages(args: Args) -> dict[str, list[str]]:
    """Name and command of every stage; each reads what the ones before it made."""
    train = [*ENV, "--size", "debug", "--device", "cpu", "--updates", str(args.updates), "--eval-every", "10"]
    data, model = ["--data-dir", "data/tiny_Blocks-v0/expert"], ["--world-model", "model/checkpoint.pt"]
    games = ["--num-episodes", "120", "--num-val-episodes", "6", "--expert", "tiny:expert", "--num-processes", "2"]
    return {"collect_data": [*ENV, *games], "world_model": [*train, *data, "--run-dir", "model"],
            "ditto": [*train, *data, *model, "--run-dir", "ditto", "--eval-consecutive", "2"],
            "bc_pixels": [*train, *data, "--run-dir", "bc_pixels"]}  # fmt: skip


def run(folder: Path, name: str, words: list[str], wait: float = 1e9, writing: bool = False) -> tuple[bool, float]:
    """Run a stage in a folder, kill it `wait` seconds after its work began (`writing`: at the next write then).

    Returns whether it came to its end, and the seconds that it worked.
    """
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(folder / f"{name}.out", "a") as out:
        command = [sys.executable, ROOT / f"{name}.py", *words]
        process, started = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out), time.time()
        while process.poll() is None and not any(  # its files are there: imports and reading are over
            file.stat().st_mtime > started for pattern in ("events.*", "dataset.json") for file in folder.rglob(pattern)
        ):
            time.sleep(0.05)
        began = time.time()
        while process.poll() is None:
            if time.time() - began > wait and (not writing or list(folder.rglob("*.tmp"))):
                process.kill()
            time.sleep(0.001 if writing else 0.01)
    if process.returncode > 0:
        sys.exit(f"{name} failed in {folder}:\n" + (folder / f"{name}.out").read_text()[-2000:])
    return process.returncode == 0, time.time() - began


def content(folder: Path) -> dict:
    """What the stages made in a folder: name of each part, and its value without times."""
    found = {}
    for file in sorted(folder.rglob("*.npz")):
        with np.load(file) as npz:
            found |= {f"{file.relative_to(folder)} {key}": npz[key].tobytes() for key in npz}
    for file in sorted(folder.rglob("checkpoint.pt")):
        saved = torch.load(file, weights_only=True)
        parts = saved.keys() - {"seconds", "report", "args"}
        found |= {f"{file.relative_to(folder)} {key}": saved[key] for key in parts}
        events = EventAccumulator(str(file.parent), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            if name not in ("charts/SPS", "charts/seconds", "charts/frames_per_second"):
                found[f"{file.parent.name} log {name}"] = [(e.step, e.value) for e in events.Scalars(name)]
    for file in sorted([*folder.rglob("*.csv"), *folder.rglob("result.json"), *folder.rglob("dataset.json")]):
        text = file.read_text()
        if file.suffix == ".json":
            text = {k: v for k, v in json.loads(text).items() if k not in ("args", "charts/SPS", "charts/seconds")}
        found[str(file.relative_to(folder))] = text
    return found


def same(left, right) -> bool:
    """Whether two nested values are equal, tensors bit by bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


def main(args: Args) -> dict:
    """Run everything twice; what differs."""
    rng, total = random.Random(args.seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        whole.mkdir(), killed.mkdir()
        for name, words in stages(args).items():
            _, seconds = run(whole, name, words)
            kills, ended = [0, 0], False
            for k in range(args.kills):
                wait = rng.uniform(0, seconds / args.kills)
                ended = ended or run(killed, name, words, wait, writing=k % 2 == 1)[0]
                kills[k % 2] += not ended
            run(killed, name, words)
            left, right = content(whole), content(killed)
            differ = [key for key in left.keys() | right.keys() if not same(left.get(key), right.get(key))]
            spare = [file.name for file in killed.rglob("*.tmp")]
            print(f"{name}: {kills[0]} kills at a random moment, {kills[1]} during a write, {seconds:.0f} s of work; "
                  f"{len(left)} parts, {len(differ)} differ {differ[:5]}; left over {spare}", flush=True)  # fmt: skip
            total += sum(kills)
            if differ:
                sys.exit(f"{name} is not what it would have been without the kills.")
    print(f"{total} kills, nothing differs")
    return {"kills": total}


if __name__ == "__main__":
    main(tyro.cli(Args))
