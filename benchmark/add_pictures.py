# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Pictures for the games that dmc.py has recorded: their actions are played again, and what is seen is rendered.

    python benchmark/add_pictures.py --data walker-walk-buffer --every 10

A picture costs 20 ms of a CPU core, half a million of them hours; a tenth of SAC's games took 17 minutes. The
files keep their numbers and all they hold. A game whose sensors do not come out as recorded, to the last bit, ends the
command: other versions of dm_control or MuJoCo, or another CPU, made it. The same command goes on where it stopped.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dmc import DMC, recorded_actions, recordings
from world_model import begin, command, progress, read_meta, write


@dataclass
class Args:
    data: str = "walker-walk-buffer"
    """data set of dmc.py"""
    every: int = 1
    """take every so-manieth game"""
    count: int = 0
    """end after so many games; 0: all"""
    data_dir: str = "data/dmc"
    """folder of the data set"""
    out_dir: str = "data/dmc-visual"
    """folder that gets a data set of the same name"""


def main(args: Args) -> None:
    begin(args)
    source, target = Path(args.data_dir) / args.data, Path(args.out_dir) / args.data
    files, meta = recordings(source), read_meta(source)
    if not files or "args" not in meta:
        sys.exit(f"{source} is no finished data set of dmc.py: make it with dmc.py, or give another --data.")
    if source.resolve() == target.resolve():
        sys.exit(f"The pictures would go into {source} itself: give another --out-dir.")
    chosen = range(0, len(files), args.every)[: args.count or None]
    env, kind = DMC(meta["env_id"], max_steps=meta["max_steps"]), args.data.split("-")[-1]
    target.mkdir(parents=True, exist_ok=True)
    (target / "unfinished").touch()
    bar = progress(len(chosen), f"{{n}}/{{total}} games of {args.data}  {{remaining}} left")
    for k, file in enumerate(files[: chosen[-1] + 1]):
        # the seeds of dmc.py: one for all games that SAC plays, else one for each game
        seed = meta["seed"] * 100_000 + k + 50_000_000 * (kind == "expert")
        made = target / file.name  # of these very actions, or of an earlier data set's
        new = k in chosen and not (made.exists() and np.array_equal(recorded_actions(made), recorded_actions(file)))
        env.pixels = new
        _, info = env.reset(seed=seed if kind != "buffer" else meta["seed"] if k == 0 else None)
        if new:
            with np.load(file) as npz:
                game = dict(npz)
            rows = [info] + [env.step(action)[-1] for action in game["pre_action"][1:]]
            kept = [name for name in env.sensors if name in game]  # pretrained/walker has no velocities
            if wrong := [name for name in kept if not np.array_equal([row[name] for row in rows], game[name])]:
                sys.exit(f"{file}: {', '.join(wrong)} came out otherwise here: make the data set anew with dmc.py.")
            game["image"] = np.stack([row["image"] for row in rows])
            write(made, lambda out: np.savez_compressed(out, **game))
        bar.update(k in chosen)
    bar.close()
    meta["args"]["pixels"] = True
    write(target / "dataset.json", lambda out: out.write(json.dumps(meta, indent=1).encode()))
    (target / "unfinished").unlink()


if __name__ == "__main__":
    command(main, lambda: tyro.cli(Args), "goes on with the games that are missing")
