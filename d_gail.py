# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""D-GAIL: generative adversarial imitation learning in the latent space of a world model.

Paper: DITTO, arXiv 2302.03086 v2 (equation numbers are v2's), its adversarial baseline; GAIL is arXiv 1606.03476.
As DITTO, but the reward is learned: a discriminator tells the expert's latent transitions from the agent's imagined
ones, and the agent is rewarded for being taken for the expert. No environment, no rewards.

  (1) encode the expert's episodes: s_t^E = (h_t, z_t) ~ posterior                 Eq. 10       `encode_expert`
  (2) draw B start states s_0 = s_n^E whose next H steps lie in the same episode   Alg. 1       `ExpertWindows`
  (3) imagine H steps: a_t ~ pi(a | s_t), s_{t+1} ~ prior                          Eq. 10       `imagine`
  (4) reward each transition by how much the discriminator takes it for expert     Eq. 3        `adversarial_reward`
  (5) lambda-returns V_t with the target critic                                    Eq. 14       `lambda_return`
  (6) critic: squared error to V_t                                                 Eq. 15       `critic_loss`
  (7) actor: REINFORCE with the target critic as baseline, plus entropy            Eq. 16       `actor_loss`
  (8) every 100 updates copy the critic to the target critic                       appendix C   `main`
  (9) discriminator: cross-entropy, expert 1, agent 0                              Eq. 3        `discriminator_loss`

    python d_gail.py --env-id BreakoutNoFrameskip-v4 --num-expert-episodes 30      (makes whatever is missing)
    python d_gail.py --env-id BreakoutNoFrameskip-v4 --eval-only

Shapes as in world_model.py; H horizon, N start states. action[t] is taken in feat[t] and leads to feat[t + 1].
Differences from the paper: the discriminator sees (h_t, h_{t+1}) and the reward is D itself, as in the authors' code
(--disc-input state_action: Eq. 3's (s, a); --adversarial-reward: GAIL's logarithms); advantages are normalised.
"""

import copy
import csv
import functools
import itertools
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from world_model import Episodes, Games, Log, WorldModel, clock, graphed, load, load_world_model, parse_args, save


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari ...NoFrameskip-v4, or any Gymnasium id with image observations or rgb_array rendering"""
    size: str = "auto"
    """auto, paper, small or debug: which column of SIZES gives the defaults (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<N^E>-<seed>. The same command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    cuda: bool = True
    """use a GPU if there is one"""
    # data
    num_expert_episodes: int = 30
    """N^E, expert episodes to imitate"""
    data_dir: str = ""
    """expert dataset; default data/<env_id>/expert, else pretrained/<env_id>/expert, else collected now"""
    pretrained: bool = True
    """may use the demonstrations and the small world model that come with the repository"""
    # world model
    world_model: str = ""
    """checkpoint; default runs/<env_id>/world_model-<size>, else (small) pretrained/<env_id>, else trained now"""
    # actor and critic
    updates: int = 50_000
    """gradient steps"""
    batch_size: int = 512
    """B_ac, imagined trajectories per update"""
    horizon: int = 15
    """H, imagined steps"""
    layers: int = 8
    """hidden layers of actor and critic (authors' code)"""
    units: int = 256
    """width of each"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    gamma: float = 0.95
    """discount"""
    lam: float = 0.95
    """lambda of Eq. 14"""
    entropy: float = 0.05
    """eta of Eq. 16 (v1's table; the authors' yaml says 0.003 but their code uses 0.05)"""
    entropy_end: float = -1.0
    """eta at the end of the run, reached linearly; negative: as at the start (paper)"""
    target_every: int = 100
    """updates between copies of the critic to the target critic"""
    # evaluation
    eval_episodes: int = 20
    """games of the final evaluation"""
    eval_every: int = 2500
    """updates between validations in the real game (quick_episodes games) and checkpoints"""
    quick_episodes: int = 8
    """games of those validations"""
    eval_consecutive: int = 1
    """final evaluation after each of so many consecutive gradient steps (paper, v2: 10)"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    log_every: int = 50
    """updates between log rows"""
    # runtime
    cudagraphs: bool = False
    """record one update as a CUDA graph and replay it (GPU only)"""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""
    # d_gail
    disc_input: Literal["transition", "state_action"] = "transition"
    """what the discriminator sees: transition (h_t, h_{t+1}) (authors' code) or state_action ((h, z)_t, a_t) (Eq. 3)"""
    adversarial_reward: Literal["d", "log_d", "log_1_d"] = "d"
    """d: D (authors' code); log_d: log D, never positive; log_1_d: -log(1 - D), never negative (GAIL)"""
    disc_layers: int = 4
    """hidden layers of the discriminator (authors' code)"""
    disc_units: int = 128
    """width of each"""


SMALL = dict(layers=2, units=128, batch_size=256, horizon=5, updates=6000, learning_rate=1e-3, anneal=True,
             eval_every=500, entropy=0.1, entropy_end=0.005)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(layers=1, units=32, updates=20, batch_size=16, horizon=5, eval_every=10, log_every=5,
                          eval_episodes=2, quick_episodes=2, num_expert_episodes=2, threads=1),
}  # fmt: skip


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
def mlp(inputs: int, outputs: int, layers: int, units: int) -> nn.Sequential:
    """ReLU network with `layers` hidden layers (authors' code: 8 x 256, no normalisation)."""
    sizes = [inputs] + [units] * layers
    hidden = [part for i, o in zip(sizes, sizes[1:]) for part in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


class Actor(nn.Module):
    """pi(a | s): categorical (actions are one-hot), or a tanh-squashed Gaussian between low and high."""

    def __init__(self, feat_size: int, action_size: int, discrete: bool, layers: int, units: int, low=-1.0, high=1.0):
        super().__init__()
        self.discrete, self.action_size = discrete, action_size
        self.net = mlp(feat_size, action_size if discrete else 2 * action_size, layers, units)
        self.register_buffer("center", (torch.as_tensor(high) + torch.as_tensor(low)).float() / 2)
        self.register_buffer("scale", (torch.as_tensor(high) - torch.as_tensor(low)).float() / 2)

    def gaussian(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before squashing, (..., A) each."""
        mean, raw = self.net(feat).chunk(2, -1)
        return 5 * torch.tanh(mean / 5), F.softplus(raw) + 0.05  # our choice: both bounds keep log-probabilities finite

    def sample(self, feat: Tensor) -> Tensor:
        """Actions (..., A) drawn in states feat (..., F)."""
        if self.discrete:
            probs = self.net(feat).softmax(-1)
            draw = (probs / torch.empty_like(probs).exponential_().clamp_min(1e-20)).argmax(-1)
            return F.one_hot(draw, self.action_size).to(feat.dtype)
        mean, std = self.gaussian(feat)
        return self.center + self.scale * torch.tanh(mean + std * torch.randn_like(std))

    def mode(self, feat: Tensor) -> Tensor:
        """The likeliest action (..., A), if continuous the median (for the agreement with the expert)."""
        if self.discrete:
            return F.one_hot(self.net(feat).argmax(-1), self.action_size).to(feat.dtype)
        return self.center + self.scale * torch.tanh(self.gaussian(feat)[0])

    def log_prob(self, feat: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(action | feat) (...) and the entropy (...) (if continuous: estimated from one draw)."""
        if self.discrete:
            logits = F.log_softmax(self.net(feat), -1)
            return (logits * action).sum(-1), -(logits.exp() * logits).sum(-1)
        mean, std = self.gaussian(feat)
        squashed = ((action - self.center) / self.scale).clamp(-1 + 1e-5, 1 - 1e-5)
        density = -0.5 * ((torch.atanh(squashed) - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)
        log_prob = (density - torch.log1p(-squashed.square()) - self.scale.log()).sum(-1)
        drawn = mean + std * torch.randn_like(std)
        log_slope = 2 * (np.log(2) - drawn - F.softplus(-2 * drawn)) + self.scale.log()  # log |d action / d drawn|
        return log_prob, (std.log() + 0.5 * np.log(2 * np.pi * np.e) + log_slope).sum(-1)


# --- end ---


# --- same in: ditto, d_gail, d_bc, aime_atari ---
def intrinsic_reward(agent_latent: Tensor, expert_latent: Tensor, kind: str = "ditto") -> Tensor:
    """Closeness of latents (..., F) -> (...), Eq. 8: (a . e) / max(|a|, |e|)^2, in [-1, 1], 1 only if they are equal.

    Ablations: `l2` minus the distance, `cosine` the cosine similarity.
    """
    if kind == "l2":
        return -(agent_latent - expert_latent).norm(dim=-1)
    if kind == "cosine":
        return F.cosine_similarity(agent_latent, expert_latent, dim=-1)
    longest = torch.maximum(agent_latent.norm(dim=-1), expert_latent.norm(dim=-1)).clamp_min(1e-8)
    return (agent_latent * expert_latent).sum(-1) / longest.square()


# --- end ---


def disc_pairs(feat: Tensor, action: Tensor, deter: int, kind: str) -> Tensor:
    """What the discriminator sees of feat (H + 1, N, F) and action (H, N, A): (H, N, 2 * D) or (H, N, F + A), Eq. 3."""
    if kind == "transition":
        return torch.cat([feat[:-1, :, :deter], feat[1:, :, :deter]], -1)
    return torch.cat([feat[:-1], action], -1)


def discriminator_loss(expert_logits: Tensor, agent_logits: Tensor) -> Tensor:
    """Eq. 3 as binary cross-entropy, expert 1 and agent 0; log 2 when the discriminator is at chance."""
    return 0.5 * (F.softplus(-expert_logits).mean() + F.softplus(agent_logits).mean())


def adversarial_reward(agent_logits: Tensor, kind: str = "d") -> Tensor:
    """Reward (...) from the discriminator's logits (...), Eq. 3; every kind rises with D = sigmoid(logits).

    The sign matters where episodes can end early (log D makes ending attractive, -log(1 - D) staying alive). Imagined
    trajectories all have H steps, so here it only changes where the slope is: log_d where D is near 0, log_1_d near 1.
    """
    if kind == "d":
        return agent_logits.sigmoid()
    return -F.softplus(-agent_logits) if kind == "log_d" else F.softplus(agent_logits)


# --- same in: ditto, d_gail ---
def lambda_return(reward: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """V_t of Eq. 14, time first: reward (H, N), reward[t] follows action[t]; value (H + 1, N) -> (H, N).

    V_t = r_t + gamma * ((1 - lam) * value[t + 1] + lam * V_{t+1}), and V_H = value[H].
    """
    returns, last = [], value[-1]
    for t in reversed(range(len(reward))):
        last = reward[t] + gamma * ((1 - lam) * value[t + 1] + lam * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def critic_loss(value: Tensor, returns: Tensor) -> Tensor:
    """Eq. 15: half the squared error of value (H, N) to the lambda-return (H, N), which gets no gradient."""
    return 0.5 * (value - returns.detach()).square().mean()


def actor_loss(log_prob: Tensor, entropy: Tensor, advantage: Tensor, weight: float) -> Tensor:
    """Eq. 16: REINFORCE with baseline, all (H, N). The advantage gets no gradient."""
    return -(log_prob * advantage.detach() + weight * entropy).mean()


# --- end ---


# --- same in: ditto, d_gail, d_bc, aime_atari ---
@torch.no_grad()
def encode_expert(model: WorldModel, data: Episodes, chunk: int = 100) -> Tensor:
    """Posterior features (rows, F) of every frame in `data`: each episode filtered from its start, all side by side."""
    feat = torch.empty(len(data.image), model.feat_size, device=model.pixel_mean.device)
    starts, lengths = data.starts[:-1], data.starts.diff()
    chunk = min(chunk, max(1, 20_000 // len(starts)))  # frames at once: a bound on the encoder's memory
    state = model.initial(len(starts))
    for t in range(0, int(lengths.max()), chunk):
        time_index = torch.arange(t, min(t + chunk, int(lengths.max())))[:, None]  # (chunk, 1)
        alive = time_index < lengths  # (chunk, episodes)
        rows = starts + torch.minimum(time_index, lengths - 1)
        deter, stoch, _, state = model.encode(*data.rows(rows), state)
        feat[rows[alive].to(feat.device)] = torch.cat([deter, stoch], -1)[alive.to(feat.device)]
    return feat


class ExpertWindows:
    """Encoded expert episodes; `draw` gives windows of H steps that never cross an episode's end."""

    def __init__(self, model: WorldModel, data: Episodes, horizon: int):
        self.feat, self.data, self.horizon = encode_expert(model, data), data, horizon  # (rows, F)
        row = torch.arange(len(data.image))
        ends = data.starts[torch.searchsorted(data.starts, row, right=True)]
        self.allowed = row[row + horizon < ends].to(self.feat.device)
        self.steps = torch.arange(horizon + 1, device=self.feat.device)[:, None]  # (H + 1, 1)
        if not len(self.allowed):
            sys.exit(f"No expert episode has {horizon} steps: lower --horizon or collect longer episodes.")

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Row numbers (H + 1, count) of random windows."""
        first = torch.randint(len(self.allowed), (count,), generator=rng, device=rng.device)
        return self.allowed[first.to(self.allowed.device)] + self.steps


@torch.no_grad()
def imagine(model: WorldModel, act, feat: Tensor, horizon: int) -> tuple[Tensor, Tensor]:
    """Dream from states feat (N, F) with action = act(feat, t): features (H + 1, N, F) and actions (H, N, A)."""
    deter = model.config["deter"]
    state, feats, actions = (feat[:, :deter], feat[:, deter:]), [feat], []
    for t in range(horizon):
        actions.append(act(feats[-1], t))
        state = model.imagine_step(state, actions[-1])
        feats.append(torch.cat(state, -1))
    return torch.stack(feats), torch.stack(actions)


@torch.no_grad()
def agreement(model, actor, windows: ExpertWindows, rng, count: int = 512) -> dict[str, float]:
    """Held-out expert episodes: latent distance L_d = 1 - Eq. 8 of the agent's dreams, and the same action chosen.

    The same distance under the expert's own actions is what the world model's noise alone costs.
    """
    rows, deter = windows.draw(count, rng), model.config["deter"]
    expert, taken = windows.feat[rows], windows.data.prev_action[rows[1:]]  # (H + 1, N, F), (H, N, A)
    own, _ = imagine(model, lambda feat, t: actor.sample(feat), expert[0], windows.horizon)
    copied, _ = imagine(model, lambda feat, t: taken[t], expert[0], windows.horizon)
    reward = [intrinsic_reward(feat[1:, :, :deter], expert[1:, :, :deter]).mean().item() for feat in (own, copied)]
    mode = actor.mode(expert[:-1])  # (H, N, A)
    same = (mode * taken).sum(-1) if actor.discrete else 1 - ((mode - taken).abs() / (2 * actor.scale)).mean(-1)
    return {"expert/latent_distance": 1 - reward[0], "expert/latent_distance_expert_actions": 1 - reward[1],
            "expert/action_agreement": same.mean().item()}  # fmt: skip


# --- end ---


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
@torch.no_grad()
def evaluate(model, act, games: Games, episodes: int, action_size: int, seed: int) -> tuple[list[dict], np.ndarray]:
    """Play whole games in the real environment with action = act(feat): rows of return and length, frames of one game.

    The torch random state is restored afterwards, so evaluating more often does not change the training.
    """
    device, N, discrete = model.pixel_mean.device, games.num_envs, hasattr(games.action_space, "n")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        games.coming = itertools.count(seed)
        frames, state = games.reset(), model.initial(N)
        prev_action, is_first = torch.zeros(N, action_size), torch.ones(N, dtype=torch.bool)
        total, rows, clip = np.zeros(N), [], []
        while len(rows) < episodes:
            clip += [frames[0]] if len(clip) < 2000 and not any(row["seed"] == seed for row in rows) else []
            image = torch.from_numpy(frames).to(device)
            state = model.filter_step(state, image, prev_action.to(device), is_first.to(device))
            action = act(torch.cat(state, -1)).cpu()  # (N, A)
            playing, steps = games.seeds.copy(), games.steps + 1
            chosen = action.argmax(-1).numpy() if discrete else action.numpy()
            frames, reward, terminated, truncated, info = games.step(chosen)
            total, ended = total + reward, terminated | truncated
            for i in np.flatnonzero(ended):
                if playing[i] < seed + episodes:  # the first games begun, whichever ends first
                    rows.append({"seed": int(playing[i]), "return": float(total[i]), "length": int(steps[i])})
            played = torch.as_tensor(info["action"])
            prev_action = F.one_hot(played.long(), action_size).float() if discrete else played.float()
            total[ended], is_first = 0, torch.from_numpy(ended)
    return sorted(rows, key=lambda row: row["seed"]), np.stack(clip)


def ensure(args, command: list[str]) -> None:
    """Run a missing stage as the command a user would type."""
    if args.eval_only:
        sys.exit(f"--eval-only makes nothing that is missing; first: python {' '.join(command)}.")
    print("$ python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        sys.exit(f"The stage above failed; repair it, then run this again: python {' '.join(command)}.")


def has(dataset: Path, episodes: int) -> bool:
    """Whether a folder holds so many training episodes."""
    return len(list(dataset.glob("train_*.npz"))) >= episodes


def collect(args, *options: str) -> list[str]:
    """The command that collects a dataset; debug data is kept apart."""
    debug = ["--num-envs", "2", "--num-val-episodes", "1", "--max-steps", "60"] if args.size == "debug" else []
    root = "data/debug" if args.size == "debug" else "data"
    return ["collect_data.py", "--env-id", args.env_id, "--data-dir", root, *debug, *options]


def expert_dataset(args) -> Path:
    """Find the folder of expert episodes, collecting it if there is none."""
    shipped, root = Path(f"pretrained/{args.env_id}/expert"), "data/debug" if args.size == "debug" else "data"
    folder = Path(args.data_dir or f"{root}/{args.env_id}/expert")
    if args.data_dir or has(folder, args.num_expert_episodes):
        return folder
    if args.pretrained and args.size == "small" and not folder.exists() and has(shipped, args.num_expert_episodes):
        return shipped
    ensure(args, collect(args, "--num-episodes", str(args.num_expert_episodes)))
    return folder


def scores(meta: dict) -> tuple[float, float, float]:
    """Mean return of the expert, a random policy, and the expert's actions shuffled, as dataset.json has them."""
    expert = [episode["return"] for episode in meta.get("episodes", [])]
    returns = expert, meta.get("random_returns"), meta.get("shuffled_returns")
    return tuple(float(np.mean(values)) if values else float("nan") for values in returns)


def typed(name: str, value) -> str:
    """A setting as it is typed on the command line."""
    flag = name.replace("_", "-")
    return f"--{flag}" if value is True else f"--no-{flag}" if value is False else f"--{flag} {value}"


def save_clip(path: Path, frames: np.ndarray) -> None:
    """Frames (t, 64, 64, C) as an animated GIF at three times the size."""
    pictures = [Image.fromarray(frame.squeeze()).resize((192, 192), 0) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=66, loop=0)


# --- end ---


# --- same in: ditto, d_gail, d_bc, aime_atari ---
def finished(checkpoint: Path) -> bool:
    """Whether a world model was trained to its last update; an interrupted one is resumed by its command."""
    if not checkpoint.exists():
        return False
    saved = load(checkpoint, "cpu")
    return saved.get("step", 0) >= saved.get("args", {}).get("updates", 0)


def trained_world_model(args, folder: Path) -> Path:
    """Find the world model's checkpoint, training it (on wider data, collected too) if there is none."""
    shipped = Path(f"pretrained/{args.env_id}/world_model.pt")
    checkpoint = Path(args.world_model or f"runs/{args.env_id}/world_model-{args.size}/checkpoint.pt")
    if args.world_model:
        return checkpoint  # a model that is named is used or refused, never replaced
    if args.pretrained and args.size == "small" and not checkpoint.exists() and shipped.exists():
        return shipped
    if finished(checkpoint):
        return checkpoint
    root, episodes = "data/debug" if args.size == "debug" else "data", {"paper": 1000, "small": 40, "debug": 2}
    world = Path(f"{root}/{args.env_id}/world")
    if not has(world, episodes[args.size]):
        wider = [] if args.size == "paper" else ["--epsilon", "0.03"]
        ensure(args, collect(args, "--name", "world", *wider, "--num-episodes", str(episodes[args.size])))
    train = ["world_model.py", "--env-id", args.env_id, "--size", args.size, "--data-dir", f"{world},{folder}"]
    train += ["--threads", str(args.threads)] if args.threads else []
    ensure(args, train + ([] if args.cuda else ["--no-cuda"]))
    if not finished(checkpoint):
        sys.exit(f"{checkpoint} was begun with other --updates: finish it by the command that began it, or delete it.")
    return checkpoint


# --- end ---


def main(args: Args) -> dict:
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.cudagraphs and device.type != "cuda":
        sys.exit("--cudagraphs needs a GPU: leave it out.")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # CPU arithmetic on denormal numbers (tiny probabilities) is many times slower
    torch.manual_seed(args.seed)
    rng = torch.Generator(device).manual_seed(args.seed)  # for the windows; the global one drives dreams and actions
    script = Path(__file__).stem
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/{script}-{args.size}-{args.num_expert_episodes}-{args.seed}")
    if args.eval_only and not (run_dir / "checkpoint.pt").exists():
        sys.exit(f"No checkpoint at {run_dir / 'checkpoint.pt'}: train first, or name its folder with --run-dir.")
    folder = expert_dataset(args)
    checkpoint = trained_world_model(args, folder)
    print(f"expert: {folder}\nworld model: {checkpoint}")
    model = load_world_model(checkpoint, device, args.env_id)
    data, held_out = Episodes([folder], "train", args.num_expert_episodes, device), Episodes([folder], "val", 6, device)
    action_size, deter = data.prev_action.shape[-1], model.config["deter"]
    if (action_size, data.image.shape[-1]) != (model.config["action_size"], model.config["channels"]):
        sys.exit(f"{checkpoint} and {folder} differ in actions or colours: use one environment.")
    if data.meta.get("env_id", args.env_id) != args.env_id:
        sys.exit(f"{folder} is of {data.meta['env_id']}, not of {args.env_id}: name another --data-dir or --env-id.")
    if len(data.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(data.starts) - 1} episodes: lower --num-expert-episodes or collect more.")
    made_on = {"world_model": model.digest(), "dataset": data.digest()}
    expert_return, random_return, shuffled_return = scores(data.meta)
    # (1) encode the expert's episodes
    windows, held_windows = ExpertWindows(model, data, args.horizon), ExpertWindows(model, held_out, args.horizon)
    bounds = (data.meta.get("low", -1.0), data.meta.get("high", 1.0))
    actor = Actor(model.feat_size, action_size, data.discrete, args.layers, args.units, *bounds).to(device)
    critic = mlp(model.feat_size, 1, args.layers, args.units).to(device)
    target = copy.deepcopy(critic).requires_grad_(False)
    inputs = 2 * deter if args.disc_input == "transition" else model.feat_size + action_size
    discriminator = mlp(inputs, 1, args.disc_layers, args.disc_units).to(device)
    parameters = [*actor.parameters(), *critic.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, fused=True)
    eta_end = args.entropy if args.entropy_end < 0 else args.entropy_end
    eta = torch.tensor(args.entropy, device=device)  # a tensor, so that a recorded CUDA graph sees it change
    parts = {"actor": actor, "critic": critic, "target": target, "optimizer": optimizer, "discriminator": discriminator}
    step, seconds, best, file = 0, 0.0, float("-inf"), run_dir / "checkpoint.pt"
    if file.exists():
        saved = load(file, device)
        free = ("updates", "cuda", "threads", "pretrained", "data_dir", "world_model", "run_dir", "cudagraphs",
                "quick_episodes", "log_every")  # fmt: skip
        old = {k: v for k, v in saved.get("args", {}).items() if k not in free and "eval" not in k}
        other = [typed(k, v) for k, v in old.items() if k in vars(args) and getattr(args, k) != v]
        other += [saved["script"] + ".py"] if saved.get("script", script) != script else []
        other += [f"another {k.replace('_', ' ')}" for k, v in made_on.items() if saved.get(k) != v]
        if other:
            sys.exit(f"{file} was made with {', '.join(other)}: give --run-dir for a new run, or repeat its settings.")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        step, seconds, best = saved["step"], saved["seconds"], saved.get("best", best)
        if ("cuda_rng" in saved) == (device.type == "cuda"):  # from another device, random numbers start anew
            rng.set_state(saved["rng"].cpu()), torch.set_rng_state(saved["torch_rng"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu())
        print(f"resuming {file} at update {step}")
    for group in optimizer.param_groups:  # set anew: the checkpoint may come from a run with or without CUDA graphs
        group["capturable"] = args.cudagraphs
        group["lr"] = torch.tensor(args.learning_rate, device=device) if args.cudagraphs else args.learning_rate
    log = Log(run_dir, step, args)
    games = functools.partial(Games, args.env_id, seed=0, max_steps=data.meta.get("max_steps", 27000),
                              grayscale=data.image.shape[-1] == 1)  # fmt: skip
    games(num_envs=1)  # an environment that cannot be made or drawn is named now, not after the training

    def update(rows: Tensor) -> dict[str, Tensor]:
        expert_feat = windows.feat[rows]  # (2) (H + 1, N, F)
        feat, action = imagine(model, lambda feat, t: actor.sample(feat), expert_feat[0], args.horizon)  # (3)
        expert_action = windows.data.prev_action[rows[1:]]  # (H, N, A)
        expert_logits = discriminator(disc_pairs(expert_feat, expert_action, deter, args.disc_input)).squeeze(-1)
        agent_logits = discriminator(disc_pairs(feat, action, deter, args.disc_input)).squeeze(-1)  # (H, N)
        reward = adversarial_reward(agent_logits.detach(), args.adversarial_reward)  # (4) (H, N), no gradient to D
        with torch.no_grad():
            target_value = target(feat).squeeze(-1)  # (H + 1, N)
        returns = lambda_return(reward, target_value, args.gamma, args.lam)  # (5) (H, N)
        advantage = returns - target_value[:-1]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        value_loss = critic_loss(critic(feat[:-1]).squeeze(-1), returns)  # (6)
        log_prob, entropy = actor.log_prob(feat[:-1], action)
        policy_loss = actor_loss(log_prob, entropy, advantage, eta)  # (7)
        optimizer.zero_grad(set_to_none=not args.cudagraphs)
        disc_loss = discriminator_loss(expert_logits, agent_logits)  # (9)
        (policy_loss + value_loss + disc_loss).backward()  # separate parameters: one Adam steps all three
        optimizer.step()
        return {"losses/policy": policy_loss.detach(), "losses/value": value_loss.detach(),
                "losses/entropy": entropy.mean().detach(), "losses/discriminator": disc_loss.detach(),
                "imagine/d_expert": expert_logits.detach().sigmoid().mean(),
                "imagine/d_agent": agent_logits.detach().sigmoid().mean(),
                "imagine/reward": reward.mean(), "imagine/value": target_value.mean(),
                "imagine/reward_first": reward[0].mean(), "imagine/reward_last": reward[-1].mean()}  # fmt: skip

    def compare() -> dict[str, float]:
        """Measure on held-out expert episodes; the random state is restored."""
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(args.seed)
            return agreement(model, actor, held_windows, torch.Generator(device).manual_seed(0))

    def test(episodes: int, seed: int, at: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Play after update `at`, write one row per game to the file `name`: returns (episodes,), frames of a game."""
        rows, clip = evaluate(model, actor.sample, games(num_envs=episodes), episodes, action_size, seed)
        with open(run_dir / name, "a", newline="") as out:
            out.write("" if out.tell() else "update,seed,return,length\n")
            csv.writer(out).writerows([at, row["seed"], row["return"], row["length"]] for row in rows)
        return np.array([row["return"] for row in rows]), clip

    def summary(returns: np.ndarray) -> dict[str, float]:
        """Mean, standard deviation and score (0 random, 1 expert) of returns."""
        score = (returns.mean() - random_return) / ((expert_return - random_return) or 1.0)
        values = {"return_mean": returns.mean(), "return_std": returns.std(), "return_vs_expert": score}
        return {f"eval/{name}": float(value) for name, value in values.items()}

    if args.cudagraphs and not args.eval_only:
        update = graphed(update, windows.draw(args.batch_size, torch.Generator(device)), optimizer=optimizer)
    began, step_before, report = time.time(), step, {}
    extra = 0 if args.eval_only else args.updates - step
    for _ in range(extra):
        if args.anneal:
            for group in optimizer.param_groups:
                rate = args.learning_rate * (1 - 0.9 * step / args.updates)
                group["lr"] = group["lr"].fill_(rate) if args.cudagraphs else rate
        eta.fill_(args.entropy + (eta_end - args.entropy) * step / args.updates)
        metrics = update(windows.draw(args.batch_size, rng))
        step += 1
        if step % args.target_every == 0:
            target.load_state_dict(critic.state_dict())  # (8)
        fresh = {}  # what this row of the log will hold
        if step % args.eval_every == 0 or step == args.updates:
            fresh = compare()
            if step < args.updates:  # the last policy plays the final evaluation
                fresh |= summary(test(args.quick_episodes, 20_000, step, "episodes.csv")[0])
                best = max(best, fresh["eval/return_mean"])
            elapsed = seconds + time.time() - began
            save(file, {name: part.state_dict() for name, part in parts.items()}
                 | {"step": step, "seconds": elapsed, "best": best, "script": script, "rng": rng.get_state(),
                        "torch_rng": torch.get_rng_state(), "args": vars(args),
                        "versions": {"torch": str(torch.__version__), "numpy": str(np.__version__)}}
                 | made_on | ({"cuda_rng": torch.cuda.get_rng_state()} if device.type == "cuda" else {}))  # fmt: skip
        if step % args.log_every == 0 or step % args.eval_every == 0 or step == args.updates:
            speed = (step - step_before) / (time.time() - began)
            fresh |= {name: value.item() for name, value in metrics.items()} | {"charts/SPS": speed}
            fresh |= {"charts/imagined_steps": step * args.batch_size * args.horizon}
            log(step, seconds + time.time() - began, fresh)
            report |= fresh
            print(f"\rupdate {step}/{args.updates} ({step / args.updates:.0%})  reward {report['imagine/reward']:.4f}"
                  f"  entropy {report['losses/entropy']:.3f}  return {report.get('eval/return_mean', float('nan')):.1f}"
                  f"  {speed:.1f} updates/s  {clock((args.updates - step) / speed)} left",
                  end="", flush=True)  # fmt: skip
            if step % args.eval_every == 0 or step == args.updates:
                distance, copied = (report[f"expert/latent_distance{end}"] for end in ("", "_expert_actions"))
                print(f"  L_d {distance:.4f} ({copied:.4f})  agreement {report['expert/action_agreement']:.3f}")
    # final evaluation: whole games, sampled actions; with --eval-consecutive K after each of K more gradient steps
    eta.fill_(eta_end)
    returns, kind = np.zeros((args.eval_consecutive, args.eval_episodes)), "eval_only" if args.eval_only else "final"
    (run_dir / f"{kind}_episodes.csv").unlink(missing_ok=True)
    for k in range(args.eval_consecutive):
        if k:
            update(windows.draw(args.batch_size, rng))
        returns[k], clip = test(args.eval_episodes, 1000, step + k, f"{kind}_episodes.csv")
    report |= {} if "expert/action_agreement" in report else compare()  # nothing was left to train
    report |= summary(returns)
    standard_error = returns.mean(0).std() / max(args.eval_episodes - 1, 1) ** 0.5  # over games, each K times the same
    if not args.eval_only:
        log(step, seconds + time.time() - began, {k: v for k, v in report.items() if "eval/" in k})
    report |= {"expert_return": expert_return, "random_return": random_return, "shuffled_return": shuffled_return}
    report |= {"best_validation": best if np.isfinite(best) else None, "step": step}
    save_clip(run_dir / "agent.gif", clip)
    everything = report | {"data": str(folder), "world_model": str(checkpoint), "size": args.size, "args": vars(args)}
    everything["returns"] = returns.flatten().tolist()
    strict = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in everything.items()}  # no NaN
    (run_dir / ("eval_only.json" if args.eval_only else "result.json")).write_text(json.dumps(strict, indent=1))
    print(f"\n{args.env_id}, {returns.size} games, {args.size} size, {step} updates\n"
          f"  {script:10s}{report['eval/return_mean']:8.1f} +- {standard_error:.1f} (standard error)\n"
          f"  expert    {expert_return:8.1f}\n  random    {random_return:8.1f}\n"
          f"  shuffled  {shuffled_return:8.1f}  (the expert's actions in random order)\n"
          f"  score     {report['eval/return_vs_expert']:8.2f}  (0 random, 1 expert)")  # fmt: skip
    if best > random_return and report["eval/return_mean"] - random_return < 0.5 * (best - random_return):
        print(f"  collapsed: {best:.1f} was reached in a validation before, twice as far above random or more")
    log.writer.close()
    return report


if __name__ == "__main__":
    try:
        main(parse_args(Args, SIZES))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from the last checkpoint.")
