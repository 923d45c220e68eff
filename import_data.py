# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Import demonstrations: other people's recordings become a data set as collect_data.py makes them, once.

  (1) read a source: .npz files (Dreamer-style, Stable-Baselines3-style, this project's own) or a Minari data set
  (2) make its pictures 64x64 uint8, channels last
  (3) tell its episodes apart, and which action leads from which picture to which
  (4) store each, every tenth held out; of few the last one, of a single one the last tenth
  (5) score random actions, if there is the environment

    python import_data.py --source recordings --env-id PongNoFrameskip-v4
    python import_data.py --source expert.npz --env-id my_package:MyEnv-v0 --actions leave
    python import_data.py --source minari:my/demonstrations-v0 --env-id MyRobot-v7
    python import_data.py --source data/Acrobot-v1/expert --to-minari acrobot/expert-v0
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal

import gymnasium as gym
import numpy as np
import tyro

from collect_data import score
from expert_policies import RandomExpert
from world_model import Games, claim, command, home, read_meta, resize, to_gray, write


@dataclass
class Args:
    source: str = ""
    """a .npz file, a folder of them, or minari: and the name of a local Minari data set"""
    env_id: str = ""
    """environment that was played; it need not be installed"""
    name: str = "expert"
    """name of the data set"""
    data_dir: str = "data"
    """folder of all data sets"""
    actions: Literal["auto", "lead", "leave"] = "auto"
    """whether an action led to the picture in its row or was chosen there; auto: told by the rows where games begin"""
    to_minari: str = ""
    """write the data set in the folder --source as a Minari data set of this name instead"""


KEYS = {"observations": ("image", "observations", "observation", "obs"), "actions": ("action", "actions"),
        "rewards": ("reward", "rewards"), "first": ("is_first", "episode_starts"),
        "terminations": ("is_terminal", "terminations", "terminals")}  # fmt: skip


def pictures(image: np.ndarray, gray: bool) -> np.ndarray:
    """(2) Pictures (T, height, width), (T, C, height, width) or (T, height, width, C) as (T, 64, 64, C) uint8."""
    image = image[..., None] if image.ndim == 3 else image
    if image.ndim != 4 or not {image.shape[1], image.shape[3]} & {1, 3, 4}:
        raise ValueError(f"its observations {image.shape} are not pictures")
    image = image if image.shape[3] in (1, 3, 4) else np.moveaxis(image, 1, -1)
    image = image[..., -1:] if image.shape[3] == 4 else image  # four stacked frames: the newest
    grey = ((image >= 0) & (image <= 255)).all((1, 2, 3))  # not a number: neither
    if not grey.all():
        raise ValueError(f"its picture in row {grey.argmin()} has values that are no grey levels")
    image = np.rint(image * (255 if image.dtype.kind == "f" and image.max(initial=0) <= 1 else 1)).astype(np.uint8)
    image = to_gray(image)[..., None] if gray and image.shape[3] == 3 else image
    return image if image.shape[1:3] == (64, 64) else np.moveaxis(resize(np.moveaxis(image, -1, 1)), 1, -1)


def plain_actions(action: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Actions (T,) or (T, A) as integers (T,), or float32 (T, A); a one-hot can be all zeros in the rows in `first`."""
    if action.ndim not in (1, 2) or action.dtype.kind not in "iufb":
        raise ValueError(f"its actions {action.shape} {action.dtype} are not one number or one flat vector each")
    flat = action.reshape(len(action), -1)
    if flat.shape[1] > 1 and ((flat == 0) | (flat == 1)).all() and (flat.sum(1) == 1)[~first].all():
        return np.where(flat.sum(1) == 1, flat.argmax(1), -1)
    if flat.shape[1] == 1 and action.dtype.kind != "f":
        return flat[:, 0].astype(np.int64)
    return flat.astype(np.float32)


def divide(arrays: dict, args: Args) -> Iterator[dict]:
    """(3) Episodes in a file's arrays: observations (T+1, ...), actions (T, ...); rewards (T,) and return if known."""
    find = lambda name: next((arrays[key] for key in KEYS[name] if key in arrays), None)  # noqa: E731
    image, taken, starts = find("observations"), find("actions"), find("first")
    also = {name: find(name) for name in ("rewards", "terminations")}
    if image is None or taken is None:
        raise ValueError(f"it needs {' or '.join(KEYS['observations'])}, and {' or '.join(KEYS['actions'])}")
    image = pictures(image, args.env_id.endswith("NoFrameskip-v4"))
    first, own = np.arange(len(image)) == 0, len(taken) == len(image) - 1  # own: as collect_data.py stores an episode
    first = first if starts is None else first | (starts.reshape(len(first), -1) != 0).any(1)
    for key in (*KEYS["terminations"], "truncations", "timeouts", "is_last"):
        if starts is None and not own and key in arrays:  # a game begins where another ended
            first[1:] |= arrays[key].reshape(-1)[:-1] != 0
    if len(taken) != len(image) - own or own and first[1:].any():
        raise ValueError(f"it has {len(taken)} actions for {len(image)} pictures")
    action, lead = plain_actions(taken, first[: len(taken)]), args.actions == "lead" and not own
    if args.actions == "auto" and not own and "episode_starts" not in arrays:
        lead = not taken[first].any()  # the first picture of a game has no action before it, so it is zero
        if lead and (action.ndim == 2 or taken.size == len(taken)):  # only a one-hot of zeros is no action
            raise ValueError("its actions may lead to their rows or be chosen there: say --actions lead or leave")
    bad = (action < 0) if action.ndim == 1 else ~np.isfinite(action).all(1)
    if (bad := bad & ~(first & lead)[: len(bad)]).any():
        raise ValueError(f"its action in row {bad.argmax()} is impossible")
    rows = [*np.flatnonzero(first), len(image)]
    for a, b in ((a, b) for a, b in zip(rows, rows[1:]) if b - a > 1):
        steps = slice(a + 1, b) if lead else slice(a, b - 1)  # where the last picture's action leads is not known
        known = {name: values.reshape(-1)[steps] for name, values in also.items() if values is not None}
        if (rewards := also["rewards"]) is not None:  # the last one too, though its action may lead nowhere
            known["return"] = float(rewards.reshape(-1)[a + lead : b].sum(dtype=float))
        yield {"observations": image[a:b], "actions": action[steps]} | known


def read(args: Args) -> Iterator[dict]:
    """(1) All episodes of the source; end with one sentence if something cannot be read."""
    part, path = args.source, Path(args.source)
    try:
        if args.to_minari or part.startswith("minari:"):
            import minari
        if part.startswith("minari:"):
            for episode in minari.load_dataset(part[7:]).iterate_episodes():
                yield from divide({k: np.asarray(getattr(episode, k)) for k in KEYS if hasattr(episode, k)}, args)
            return
        for part in sorted(path.glob("*.npz")) if path.is_dir() else [path]:
            with np.load(part, allow_pickle=False) as arrays:
                yield from divide(arrays, args)
    except ImportError:
        raise SystemExit('Minari is not installed: pip install "minari[hdf5]".') from None
    except Exception as error:  # the files of strangers fail in many ways
        raise SystemExit(f"{part} cannot be imported ({error}): correct it, or take it away.") from None


def export(args: Args) -> dict:
    """Write a folder of this project as a Minari data set."""
    meta, box = read_meta(args.source), gym.spaces.Box
    if not (episodes := list(map(complete, read(args)))):
        raise SystemExit(f"{args.source} holds no episode: name a data set's folder.")
    import minari
    from minari.data_collector import EpisodeBuffer

    names = ("observations", "actions", "rewards", "terminations", "truncations")
    buffer = [EpisodeBuffer(**{name: list(episode[name]) for name in names}) for episode in episodes]
    taken = np.concatenate([episode["actions"] for episode in episodes])
    low, high = (np.float32(meta.get(key, value)) for key, value in (("low", taken.min(0)), ("high", taken.max(0))))
    actions = gym.spaces.Discrete(meta.get("num_actions", int(high.max()) + 1)) if taken.ndim == 1 else box(low, high)
    spaces = {"action_space": actions, "observation_space": box(0, 255, buffer[0].observations[0].shape, np.uint8)}
    try:
        minari.create_dataset_from_buffers(args.to_minari, buffer, jpeg_encoding=False, **spaces)
    except ValueError as error:  # it exists, or is no name
        raise SystemExit(f"--to-minari {args.to_minari}: {error}") from None
    return {"episodes": len(buffer)}


def complete(episode: dict) -> dict:
    """An episode with every field that collect_data.py stores."""
    T = len(episode["actions"])
    ends = episode.get("terminations", np.zeros(T)).astype(bool)
    fields = {"rewards": np.zeros(T, np.float32), "forced": np.zeros(T, bool), "lives": np.zeros(T + 1, int)} | episode
    return fields | {"seed": 0, "terminations": ends, "truncations": (np.arange(T) == T - 1) & ~ends}


def store(folder: Path, args: Args) -> dict:
    """(4) Store the episodes; what dataset.json says of them."""
    names, kinds, taken, returns = [], set(), [], []
    for episode in read(args):
        kinds.add((episode["observations"].shape[1:], episode["actions"].shape[1:], episode["actions"].dtype))
        if len(kinds) > 1:
            raise SystemExit(f"{args.source} holds episodes of several kinds: import each kind with its own --name.")
        names.append(f"{'val' if len(names) % 10 == 9 else 'train'}_{len(names):05d}.npz")
        returns += [episode.pop("return")] if "return" in episode else []
        write(folder / names[-1], lambda file: np.savez_compressed(file, **complete(episode)))
        taken.append(episode["actions"])
    if not names or len(names) == len(taken[0]) // 10 + 1 == 1:
        raise SystemExit(f"{args.source} holds no episode, or one too short to hold a tenth out: add others.")
    if len(names) == 1:
        cut = len(taken[0]) - len(taken[0]) // 10
        for name, rows in (("train_00000.npz", slice(0, cut)), ("val_00000.npz", slice(cut, None))):
            part = {key: value[rows] for key, value in episode.items()}
            part["observations"] = episode["observations"][rows.start :][: len(part["actions"]) + 1]
            write(folder / name, lambda file: np.savez_compressed(file, **complete(part)))
    elif len(names) < 10:
        (folder / names[-1]).rename(folder / names[-1].replace("train", "val"))
    ((shape, _, kind),), most, every = kinds, max(map(len, taken)), np.concatenate(taken)
    meta = {"env_id": args.env_id, "imported": args.source, "max_steps": most, "grayscale": shape[-1] == 1}
    if len(returns) == len(names):
        meta["episodes"] = [{"return": value, "length": len(action)} for value, action in zip(returns, taken)]
    if kind == np.int64:
        return meta | {"num_actions": int(every.max()) + 1}
    return meta | {"low": every.min(0).tolist(), "high": every.max(0).tolist()}


def look(meta: dict) -> dict:
    """(5) What the environment adds to dataset.json, if it is installed: its actions, and what random ones score."""
    try:
        make = lambda slots: Games(meta["env_id"], slots, meta["max_steps"], meta["grayscale"])  # noqa: E731
        games = make(1)
    except SystemExit as error:
        print(f"{error} Without it: --eval-episodes 0.")
        return {}
    space, most = games.action_space, meta.get("num_actions", len(meta.get("low", ())))
    if games.discrete != ("num_actions" in meta) or (most > space.n if games.discrete else most != len(space.low)):
        raise SystemExit(f"{meta['imported']} has other actions than {meta['env_id']}, {space}: name its own --env-id.")
    if not games.discrete and ((space.low - 1e-3 > meta["low"]).any() or (space.high + 1e-3 < meta["high"]).any()):
        raise SystemExit(f"{meta['imported']} has actions beyond {space}: clip them as the environment did.")
    own = {"num_actions": int(space.n)} if games.discrete else {k: getattr(space, k).tolist() for k in ("low", "high")}
    return own | {"random_returns": score(make, RandomExpert(), list(range(20)))}


def main(args: Args) -> dict:
    """Import or export; what was done."""
    if not args.source or not args.env_id + args.to_minari:
        raise SystemExit("--source and --env-id are needed: what to import, and the environment that was played.")
    if args.to_minari:
        return export(args)
    folder = home(args.data_dir, args.env_id) / args.name
    if list(folder.glob("[!.]*")):
        raise SystemExit(f"{folder} is not empty: give another --name.")
    claim(folder)
    try:
        write(folder / "dataset.json", lambda file: file.write(b'{"imported": "", "complete": false}'))
        meta = store(folder, args)
        meta |= look(meta) | {"complete": True}
        write(folder / "dataset.json", lambda file: file.write(json.dumps(meta, indent=1).encode()))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"{folder}: {len(list(folder.glob('*.npz')))} files, games of {meta['max_steps']} steps at most")
    return meta


if __name__ == "__main__":
    command(main, lambda: tyro.cli(Args), "begins anew")
