# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""A GIF of a trained agent playing, beside what its world model dreams of the same actions.

    python benchmark/clip.py --run-dir runs/PongNoFrameskip-v4/ditto-small-30-1 --out docs/agent_and_dream.gif

Left the game; right the dream, which starts in the model's state every `horizon` steps, is then shown no picture any
more (only the actions), and is drawn with a bar that grows as it runs on. For runs of ditto.py, d_gail.py, d_bc.py and
aime_atari.py; and of aime.py, drawn as poses, with a demonstration on the left.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
import tyro
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from aime import Policy, games_of  # noqa: E402
from ditto import Actor  # noqa: E402
from dmc import Trajectories  # noqa: E402
from world_model import Games, load, load_world_model, play, player, read_meta  # noqa: E402


@dataclass
class Args:
    run_dir: str = ""
    """folder of a finished run"""
    out: str = "agent_and_dream.gif"
    """the GIF"""
    steps: int = 240
    """agent steps shown"""
    skip: int = 40
    """agent steps left out before"""
    horizon: int = 15
    """agent steps after which the dream starts anew"""
    seed: int = 1000
    """seed of the game"""


@torch.no_grad()
def main(args: Args) -> Path:
    file = Path(args.run_dir) / "result.json"
    if not file.exists() or "world_model" not in (result := json.loads(file.read_text())):
        sys.exit(f"{args.run_dir} is no finished run of ditto.py, d_gail.py, d_bc.py, aime_atari.py or aime.py.")
    saved = load(Path(args.run_dir) / "checkpoint.pt")
    model, made = load_world_model(result["world_model"]), SimpleNamespace(**result["args"])
    steps = args.skip + args.steps
    if "policy" in saved:  # AIME's
        games, actor = games_of(made, steps)(1), Policy(model.feat_size, model.config["action_size"], made.units)
        act = actor.mode
    else:
        meta = read_meta(result["data"])
        games = Games(made.env_id, 1, steps, meta.get("grayscale", True))
        bounds = (meta.get("low", -1.0), meta.get("high", 1.0))
        actor = Actor(model.feat_size, games.action_size, games.discrete, made.layers, made.units, *bounds)
        act = actor.sample
    actor.load_state_dict(saved["policy" if "policy" in saved else "actor"])
    torch.manual_seed(args.seed)
    (game,) = play(games, player(model, act), [args.seed], keep=(args.seed,))
    if game["length"] <= args.skip:
        sys.exit(f"The game has {game['length']} steps: lower --skip.")
    image = torch.from_numpy(game["observations"])[:, None]  # (T + 1, 1, 64, 64, C)
    action = torch.as_tensor(game["actions"])
    action = torch.nn.functional.one_hot(action.long(), games.action_size).float() if games.discrete else action.float()
    prev_action = torch.cat([torch.zeros_like(action[:1]), action])[:, None]  # (T + 1, 1, A)
    is_first = torch.arange(len(image))[:, None] == 0
    deter, stoch, *_ = model.encode(image, prev_action, is_first)
    dream, state = [], model.initial(1)
    for t in range(len(image)):
        state = (deter[t], stoch[t]) if t % args.horizon == 0 else model.imagine_step(state, prev_action[t])
        dream.append(model.decode(torch.cat(state, -1)))
    parts, shown, scale = [model.preprocess(image)[:, 0], torch.cat(dream)], model.to_pixels, 4
    if model.sensors:
        body, scale = games.envs.envs[0], 1
        demonstration = Trajectories([result["demonstrations"]], body.keys, 1, actions=False).obs
        parts, shown = [demonstration[: len(image)], *parts], lambda obs: body.draw(obs, 112)
    parts = [shown(part[args.skip :]) for part in parts]
    for t, picture in enumerate(parts[-1], args.skip):
        picture[-2:, : len(picture) * (t % args.horizon + 1) // args.horizon] = 255
    gap = torch.full_like(parts[0][:, :, :2], 255)
    film = torch.cat([part for k, panel in enumerate(parts) for part in [gap] * (k > 0) + [panel]], 2).byte().numpy()
    size = scale * film.shape[2], scale * film.shape[1]
    frames = [Image.fromarray(frame.squeeze()).resize(size, 0).quantize(64, dither=0) for frame in film]
    frames[0].save(args.out, save_all=True, append_images=frames[1:], duration=66, loop=0)
    return Path(args.out)


if __name__ == "__main__":
    print(main(tyro.cli(Args)))
