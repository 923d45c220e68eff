# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""AIME on Atari, an extension: imitation from observations in the categorical world model that DITTO uses.

No paper has this. AIME (arXiv 2312.02019 v1, which has Eq. 8) infers continuous actions in a Gaussian model: `aime.py`.
Here the model is `world_model.py`'s, actions are one-hot, and their gradient is straight-through: the draw goes
forward, the slope of the probabilities goes back. As D-BC, but nobody says what the expert did; the policy's actions
are right if the model then finds the expert's next frames likely.

  (1) embed the expert's frames; their actions are not read                                     `Demonstrations`
  (2) B streams walk through the episodes, T frames per update, their state carried along       `Demonstrations.rows`
  (3) a_{t-1} ~ pi(. | s_{t-1}), s_t ~ posterior given o_t; the evidence of the frames   Eq. 8  `imitation_loss`

    python aime_atari.py --env-id BreakoutNoFrameskip-v4 --num-expert-episodes 30  (makes whatever is missing)
    python aime_atari.py --env-id BreakoutNoFrameskip-v4 --eval-only

Shapes as in world_model.py; T steps, B streams. The action drawn in feat[t - 1] leads to feat[t].
Differs from AIME: streams walk on to their episode's end and keep their state (so does the model's training), clips do
not; the weights of picture and KL are those with which the model was trained; the game is played by sampled actions, as
its siblings do. DITTO's world model was trained on these demonstrations too, with their actions (unless --world-model
names another): the policy never sees them, the model has. The small size has only the KL of Eq. 8 (--objective kl). The
actions of held-out episodes are only for the logged agreement and L_d (Eq. 8 of DITTO; states: Eq. 10 of DITTO).
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model import (CategoricalLatent, Episodes, Games, Run, Streams, WorldModel, collected, command, finished,
                         home, load_world_model, make, parse_args, player, read_meta, run_folder, start,
                         window_starts)  # fmt: skip


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """Atari ...NoFrameskip-v4, or any Gymnasium id with image observations or rgb_array rendering"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<N^E>-<seed>. The same command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    num_expert_episodes: int = 30
    """N^E, expert episodes to imitate"""
    data_dir: str = ""
    """one data set; default data/<env_id>/expert, else (small size) pretrained/<env_id>/expert, else collected now"""
    pretrained: bool = True
    """may use the demonstrations and the small world model that come with the repository"""
    # world model
    world_model: str = ""
    """checkpoint; default runs/<env_id>/world_model-<size>, else (small) pretrained/<env_id>, else trained now"""
    # actor and critic
    updates: int = 50_000
    """gradient steps"""
    batch_size: int = 50
    """B, streams of expert frames"""
    batch_length: int = 50
    """T, frames of each stream per update"""
    horizon: int = 15
    """H, steps of a window or of a dream"""
    layers: int = 8
    """hidden layers of each network of the agent (authors' code)"""
    units: int = 256
    """width of each"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    entropy: float = 0.0
    """weight of the policy's entropy (AIME has none)"""
    grad_clip: float = 100.0
    """largest gradient norm"""
    # evaluation
    eval_episodes: int = 20
    """games of the final evaluation"""
    eval_every: int = 2500
    """updates between validations in the real game (quick_episodes games) and checkpoints"""
    quick_episodes: int = 8
    """games of those validations"""
    eval_consecutive: int = 1
    """final evaluation after each of so many consecutive gradient steps (differs from the paper's v2: 10)"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    log_every: int = 50
    """updates between log rows"""
    # runtime
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""
    # aime
    objective: Literal["elbo", "kl", "reconstruction"] = "elbo"
    """elbo: both terms of Eq. 8; kl, reconstruction: ablations, that one alone"""


SMALL = dict(layers=2, units=128, batch_size=16, batch_length=32, horizon=5, updates=1500, learning_rate=1e-3,
             anneal=True, eval_every=250, objective="kl")  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(layers=1, units=32, updates=20, batch_size=4, batch_length=8, eval_every=10, log_every=5,
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
            draw = (probs / torch.empty_like(probs).exponential_().clamp_min(1e-20)).argmax(-1, keepdim=True)
            return torch.zeros_like(probs).scatter_(-1, draw, 1.0)  # F.one_hot checks its range first
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
    """Closeness of latents (..., F) -> (...), Eq. 8 of DITTO: (a . e) / max(|a|, |e|)^2, in [-1, 1], 1 only if equal.

    Ablations: `l2` minus the distance, `cosine` the cosine similarity.
    """
    if kind == "l2":
        return -(agent_latent - expert_latent).norm(dim=-1)
    if kind == "cosine":
        return F.cosine_similarity(agent_latent, expert_latent, dim=-1)
    longest = torch.maximum(agent_latent.norm(dim=-1), expert_latent.norm(dim=-1)).clamp_min(1e-8)
    return (agent_latent * expert_latent).sum(-1) / longest.square()


# --- end ---


class Demonstrations:
    """The expert's episodes without their actions: frames and their embeddings, for `Streams`."""

    def __init__(self, model: WorldModel, data: Episodes):
        self.data, self.image, self.starts = data, data.image, data.starts
        with torch.no_grad():
            images = (data.pictures(row)[None] for row in torch.arange(len(data.image)).split(500))
            self.embed = torch.cat([model.embed(model.preprocess(image))[0] for image in images])  # (N, E)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """embed (T, B, E), image (T, B, 64, 64, C) and is_first (T, B) at row numbers index (T, B)."""
        image, _, is_first = self.data.rows(index)
        return self.embed[index.to(self.embed.device)], image, is_first


def straight_through(actor: Actor, feat: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (B, A) drawn in feat (B, F) that carry a gradient to the policy, and its entropy (B)."""
    if not actor.discrete:
        return actor.sample(feat), torch.zeros_like(feat[..., 0])  # reparameterised
    logits = F.log_softmax(actor.net(feat), -1)
    action = CategoricalLatent(1, actor.action_size).sample(logits)  # one variable: draws as the latents are drawn
    return action, -(logits.exp() * logits).sum(-1)


def imitation_loss(model: WorldModel, actor: Actor, embed: Tensor, image: Tensor, is_first: Tensor, state,
                   objective: str = "elbo", entropy_weight: float = 0.0):  # fmt: skip
    """Eq. 8, negative, for T frames: embed (T, B, E), image (T, B, 64, 64, C), is_first (T, B), state carried along.

    Loss (), metrics and the next state. Sums over T and means over B, as in aime.py, with the model's own weights of
    the two terms. Where an episode begins, the state is zero and no action led there.
    """
    drawn = []

    def act(feat: Tensor, t: int) -> Tensor:
        drawn.append(straight_through(actor, feat))
        return drawn[-1][0]  # (B, A)

    deter, stoch, post, state = model.filter(embed, act, is_first, state)  # (T, B, D), (T, B, S*K) twice
    if objective == "kl":  # plain, as in `evidence`, but without pictures to decode
        kl, nll = model.latent.kl(post, model.prior(deter)), deter.new_zeros(deter.shape[:2])  # (T, B)
    else:
        nll, kl, _ = model.evidence(model.preprocess(image), deter, stoch, post)  # (T, B)
    nll, kl, entropy = nll.sum(0).mean(), kl.sum(0).mean(), torch.stack([entropy for _, entropy in drawn]).mean()
    terms = {"nll": model.image_weight * nll, "kl": model.beta * kl}
    loss = sum(terms.values()) if objective == "elbo" else terms["kl" if objective == "kl" else "nll"]
    metrics = {"losses/policy": loss, "losses/nll": nll, "losses/kl": kl, "losses/entropy": entropy}
    metrics = {name: value.detach() for name, value in metrics.items()}
    return loss - entropy_weight * len(embed) * entropy, metrics, tuple(part.detach() for part in state)


# --- same in: ditto, d_gail, d_bc, aime_atari ---
class ExpertWindows:
    """Encoded expert episodes; `draw` gives windows of H steps that never cross an episode's end."""

    def __init__(self, model: WorldModel, data: Episodes, horizon: int):
        self.feat, self.data, self.horizon = model.encode_episodes(data), data, horizon  # (rows, F)
        self.allowed = window_starts(data.starts, horizon + 1).to(self.feat.device)
        self.steps = torch.arange(horizon + 1, device=self.feat.device)[:, None]  # (H + 1, 1)
        if not len(self.allowed):
            sys.exit(f"No expert episode has {horizon} steps: lower --horizon or collect longer episodes.")

    def draw(self, count: int, rng: torch.Generator) -> Tensor:
        """Row numbers (H + 1, count) of random windows."""
        first = torch.randint(len(self.allowed), (count,), generator=rng, device=rng.device)
        return self.allowed[first.to(self.allowed.device)] + self.steps


@torch.no_grad()
def agreement(model: WorldModel, actor: Actor, windows: ExpertWindows, seed: int, count: int = 512) -> dict[str, float]:
    """Held-out expert episodes: latent distance L_d = 1 - Eq. 8 of DITTO of its dreams; whether the agent acts alike.

    The same distance under the expert's own actions is what the world model's noise and error cost. The torch random
    state is restored.
    """
    device, deter, horizon = windows.feat.device, model.deter_size, windows.horizon
    with torch.random.fork_rng([device] * (device.type != "cpu"), device_type=device.type):
        torch.manual_seed(seed)
        rows = windows.draw(count, torch.Generator(device).manual_seed(0))
        expert, taken = windows.feat[rows], windows.data.prev_action[rows[1:]]  # (H + 1, N, F), (H, N, A)
        own, _ = model.imagine(lambda feat, t: actor.sample(feat), expert[0], horizon)
        copied, _ = model.imagine(lambda feat, t: taken[t], expert[0], horizon)
    reward = [intrinsic_reward(feat[1:, :, :deter], expert[1:, :, :deter]).mean().item() for feat in (own, copied)]
    mode = actor.mode(expert[:-1])  # (H, N, A)
    same = (mode * taken).sum(-1) if actor.discrete else 1 - ((mode - taken).abs() / (2 * actor.scale)).mean(-1)
    return {"expert/latent_distance": 1 - reward[0], "expert/latent_distance_expert_actions": 1 - reward[1],
            "expert/action_agreement": same.mean().item()}  # fmt: skip


# --- end ---


# --- same in: bc_pixels, ditto, d_gail, d_bc, aime_atari ---
def collect(args, *options: str) -> None:
    """Collect a data set as a user would; debug data is kept apart."""
    debug = ["--num-envs", "2", "--num-val-episodes", "1", "--max-steps", "60"] if args.size == "debug" else []
    root = "data/debug" if args.size == "debug" else "data"
    make(["collect_data.py", "--env-id", args.env_id, "--data-dir", root, *debug, *options], not args.eval_only)


def expert_dataset(args) -> Path:
    """Find the folder of expert episodes, collecting it if there is none."""
    shipped = home("pretrained", args.env_id) / "expert"
    folder = Path(args.data_dir or home("data/debug" if args.size == "debug" else "data", args.env_id) / "expert")
    count = args.num_expert_episodes
    if args.data_dir and not list(folder.glob("*.npz")):
        sys.exit(f"{folder} has no episodes: name another --data-dir.")
    if args.data_dir or collected(folder, count) or "imported" in read_meta(folder):
        return folder
    if args.pretrained and args.size == "small" and not folder.exists() and collected(shipped, count):
        return shipped
    collect(args, "--num-episodes", str(count))
    return folder


def read_dataset(args, folder: Path, device: torch.device, actions: bool = True) -> tuple[Episodes, Episodes, dict]:
    """N^E expert episodes, held-out ones, and mean returns: expert, random, the expert's actions shuffled."""
    data = Episodes([folder], "train", args.num_expert_episodes, device, actions, env_id=args.env_id)
    if len(data.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(data.starts) - 1} episodes: lower --num-expert-episodes or collect more.")
    returns = {"expert": [episode["return"] for episode in data.meta.get("episodes", [])]}
    returns |= {who: data.meta.get(f"{who}_returns") for who in ("random", "shuffled")}
    marks = {who: float(np.mean(values)) if values else float("nan") for who, values in returns.items()}
    return data, Episodes([folder], "val", 6, device), marks


# --- end ---


# --- same in: ditto, d_gail, d_bc, aime_atari ---
def trained_world_model(args, folder: Path) -> Path:
    """Find the world model's checkpoint, training it (on wider data, collected too) if there is none."""
    shipped = home("pretrained", args.env_id) / "world_model.pt"
    checkpoint = Path(args.world_model or home("runs", args.env_id) / f"world_model-{args.size}" / "checkpoint.pt")
    if args.world_model or finished(checkpoint):  # a model that is named is used or refused, never replaced
        return checkpoint
    if args.pretrained and args.size == "small" and not checkpoint.exists() and shipped.exists():
        return shipped
    world = home("data/debug" if args.size == "debug" else "data", args.env_id) / "world"
    meta, count = read_meta(folder), {"paper": 1000, "small": 40, "debug": 2}[args.size]
    expert = meta.get("expert_option", meta.get("expert", ""))
    wider = [world] if expert or args.eval_episodes else []  # offline, and nobody to ask
    if not expert:
        source = "it and random games" if wider else "nothing else"
        print(f"Nobody can play as in {folder}: the world model learns from {source}, and knows little besides.")
    if wider and not collected(world, count):
        options = ["--no-grayscale"] * (meta.get("grayscale") is False) + ["--epsilon", "0.03"] * (args.size != "paper")
        options += ["--max-steps", str(meta["max_steps"])] if "max_steps" in meta else []
        collect(args, "--name", "world", "--expert", expert or "random", *options, "--num-episodes", str(count))
    folders = ",".join(map(str, [*wider, folder]))
    train = ["world_model.py", "--env-id", args.env_id, "--size", args.size, "--data-dir", folders]
    make([*train, "--threads", str(args.threads), "--device", args.device], not args.eval_only)
    if not finished(checkpoint):
        sys.exit(f"{checkpoint} was begun with other --updates: finish it by the command that began it, or delete it.")
    return checkpoint


# --- end ---


def main(args: Args) -> dict:
    device, script = start(args), Path(__file__).stem
    run_dir = run_folder(args, f"{script}-{args.size}-{args.num_expert_episodes}-{args.seed}")
    folder = expert_dataset(args)
    data, held_out, marks = read_dataset(args, folder, device, actions=False)
    if args.entropy and not held_out.discrete:
        sys.exit("--entropy is for discrete actions: leave it out.")
    checkpoint = trained_world_model(args, folder)
    print(f"expert: {folder}\nworld model: {checkpoint}")
    model = load_world_model(checkpoint, device, args.env_id)
    action_size, channels = held_out.prev_action.shape[-1], data.image.shape[-1]
    if (action_size, channels) != (model.config["action_size"], model.config["channels"]):
        sys.exit(f"{checkpoint} and {folder} differ in actions or colours: use one environment.")
    games = functools.partial(Games, args.env_id, max_steps=data.meta.get("max_steps", 27000), grayscale=channels == 1)
    args.eval_episodes and games(num_envs=1)  # what cannot be made or drawn is named now, not after the encoding
    # (1) embed the expert's frames
    streams = Streams(Demonstrations(model, data), args.batch_size, args.batch_length, args.seed)
    streams.state, held_windows = model.initial(args.batch_size), ExpertWindows(model, held_out, args.horizon)
    bounds = (data.meta.get("low", -1.0), data.meta.get("high", 1.0))
    actor = Actor(model.feat_size, action_size, held_out.discrete, args.layers, args.units, *bounds).to(device)
    optimizer = torch.optim.Adam(actor.parameters(), lr=args.learning_rate, fused=True)
    parts = {"actor": actor, "optimizer": optimizer, "streams": streams}
    run = Run(run_dir, args, parts, {"world_model": model.digest(), "dataset": data.digest()}, marks)
    run.draw(model, held_out)

    def update() -> dict[str, Tensor]:
        batch, state = streams.next(), streams.state  # (2)
        loss, metrics, streams.state = imitation_loss(model, actor, *batch, state, args.objective, args.entropy)  # (3)
        optimizer.zero_grad()
        loss.backward()
        metrics["losses/grad_norm"] = nn.utils.clip_grad_norm_(actor.parameters(), args.grad_clip)
        optimizer.step()
        return metrics

    for step in run.steps(0 if args.eval_only else args.updates):
        metrics = update()  # (2), (3)
        if run.due(args.eval_every):
            metrics = metrics | agreement(model, actor, held_windows, args.seed)
            if step < args.updates:  # the last policy plays the final evaluation
                metrics |= run.validate(games, player(model, actor.sample))
        if run.due(args.eval_every) or run.due(args.log_every):
            run.log(metrics, "losses/policy", "losses/entropy", "expert/action_agreement", "eval/return_mean")
        if run.due(args.eval_every):
            run.save()
    if "expert/action_agreement" not in run.report:  # nothing was left to train
        run.report |= agreement(model, actor, held_windows, args.seed)
    sources = {"data": str(folder), "world_model": str(checkpoint), "size": args.size}
    return run.finish(games, lambda: player(model, actor.sample), sources, update)


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
