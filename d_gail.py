# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""D-GAIL: generative adversarial imitation learning in the latent space of a world model.

Paper: DITTO, arXiv 2302.03086 v2 (equation numbers are v2's), its adversarial baseline; GAIL is arXiv 1606.03476.
As DITTO, but the reward is learned: how much a discriminator takes the agent's imagined latents for the expert's.

  (1) encode the expert's episodes: s_t^E = (h_t, z_t) ~ posterior                 Eq. 10       `ExpertWindows`
  (2) draw N start states s_0 = s_n^E whose next H steps lie in the same episode   Alg. 1       `ExpertWindows`
  (3) imagine H steps: a_t ~ pi(a | s_t), s_{t+1} ~ prior                          Eq. 10       `agent_loss`
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
The small size leaves the paper in width, horizon, batch, step size and more (SIZES).
"""

import copy
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model import (Episodes, Games, Run, WorldModel, collected, command, finished, graphed, home,
                         load_world_model, make, parse_args, player, read_meta, run_folder, start,
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
    batch_size: int = 512
    """B_ac, imagined trajectories per update"""
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
    gamma: float = 0.95
    """discount"""
    lam: float = 0.95
    """lambda of Eq. 14"""
    entropy: float = 0.05
    """eta of Eq. 16, weight of the entropy (v1's table; the authors' yaml says 0.003, their code uses 0.05)"""
    entropy_end: float = -1.0
    """--entropy at the end of the run, reached linearly; negative: as at the start (paper)"""
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
    """final evaluation after each of so many consecutive gradient steps (differs from the paper's v2: 10)"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    log_every: int = 50
    """updates between log rows"""
    # runtime
    cudagraphs: bool = True
    """on one GPU, record an update as a CUDA graph and replay it"""
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


def disc_pairs(feat: Tensor, action: Tensor, deter: int, kind: str) -> Tensor:
    """What the discriminator sees of feat (H + 1, N, F) and action (H, N, A): (H, N, 2 * D) or (H, N, F + A), Eq. 3."""
    pair = (feat[:-1, :, :deter], feat[1:, :, :deter]) if kind == "transition" else (feat[:-1], action)
    return torch.cat(pair, -1)


def discriminator_loss(expert_logits: Tensor, agent_logits: Tensor) -> Tensor:
    """Eq. 3 as binary cross-entropy, expert 1 and agent 0; log 2 when the discriminator is at chance."""
    return 0.5 * (F.softplus(-expert_logits).mean() + F.softplus(agent_logits).mean())


def adversarial_reward(agent_logits: Tensor, kind: str = "d") -> Tensor:
    """Reward (...) from the discriminator's logits (...), Eq. 3; every kind rises with D = sigmoid(logits)."""
    return {"d": torch.sigmoid, "log_d": F.logsigmoid, "log_1_d": F.softplus}[kind](agent_logits)


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


def agent_loss(args: Args, model: WorldModel, actor: Actor, critic: nn.Module, target: nn.Module, eta: Tensor,
               disc: nn.Module, expert_feat: Tensor, expert_action: Tensor) -> tuple[Tensor, dict]:  # fmt: skip
    """Losses in windows expert_feat (H + 1, N, F) and expert_action (H, N, A): their sum () and what is logged."""
    feat, action = model.imagine(lambda feat, t: actor.sample(feat), expert_feat[0], args.horizon)  # (3)
    # differs from Eq. 3: D sees two neighbouring h, and the reward is D itself (code); flags give the paper's
    expert_logits = disc(disc_pairs(expert_feat, expert_action, model.deter_size, args.disc_input)).squeeze(-1)
    agent_logits = disc(disc_pairs(feat, action, model.deter_size, args.disc_input)).squeeze(-1)  # (H, N)
    reward = adversarial_reward(agent_logits.detach(), args.adversarial_reward)  # (4) (H, N), no gradient to D
    with torch.no_grad():
        target_value = target(feat).squeeze(-1)  # (H + 1, N)
    returns = lambda_return(reward, target_value, args.gamma, args.lam)  # (5) (H, N)
    advantage = returns - target_value[:-1]  # differs from Eq. 16: baseline of the target critic (code)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)  # differs from Eq. 16: normalised (code)
    value_loss = critic_loss(critic(feat[:-1]).squeeze(-1), returns)  # (6)
    log_prob, entropy = actor.log_prob(feat[:-1], action)
    policy_loss = actor_loss(log_prob, entropy, advantage, eta)  # (7)
    metrics = {"losses/policy": policy_loss.detach(), "losses/value": value_loss.detach(),
               "losses/entropy": entropy.mean().detach(),
               "imagine/reward": reward.mean(), "imagine/value": target_value.mean(),
               "imagine/reward_first": reward[0].mean(), "imagine/reward_last": reward[-1].mean()}  # fmt: skip
    disc_loss = discriminator_loss(expert_logits, agent_logits)  # (9)
    metrics |= {"losses/discriminator": disc_loss.detach(), "imagine/d_expert": expert_logits.detach().sigmoid().mean(),
                "imagine/d_agent": agent_logits.detach().sigmoid().mean()}  # fmt: skip
    return policy_loss + value_loss + disc_loss, metrics  # separate parameters: one Adam steps all three


def main(args: Args) -> dict:
    device, script = start(args), Path(__file__).stem
    rng = torch.Generator(device).manual_seed(args.seed)  # for the windows; the global one drives dreams and actions
    run_dir = run_folder(args, f"{script}-{args.size}-{args.num_expert_episodes}-{args.seed}")
    folder = expert_dataset(args)
    checkpoint = trained_world_model(args, folder)
    print(f"expert: {folder}\nworld model: {checkpoint}")
    model = load_world_model(checkpoint, device, args.env_id)
    data, held_out, marks = read_dataset(args, folder, device)
    action_size, channels = held_out.prev_action.shape[-1], data.image.shape[-1]
    if (action_size, channels) != (model.config["action_size"], model.config["channels"]):
        sys.exit(f"{checkpoint} and {folder} differ in actions or colours: use one environment.")
    games = functools.partial(Games, args.env_id, max_steps=data.meta.get("max_steps", 27000), grayscale=channels == 1)
    args.eval_episodes and games(num_envs=1)  # what cannot be made or drawn is named now, not after the encoding
    # (1) encode the expert's episodes
    windows, held_windows = ExpertWindows(model, data, args.horizon), ExpertWindows(model, held_out, args.horizon)
    bounds = (data.meta.get("low", -1.0), data.meta.get("high", 1.0))
    actor = Actor(model.feat_size, action_size, held_out.discrete, args.layers, args.units, *bounds).to(device)
    critic = mlp(model.feat_size, 1, args.layers, args.units).to(device)
    target = copy.deepcopy(critic).requires_grad_(False)
    inputs = 2 * model.deter_size if args.disc_input == "transition" else model.feat_size + action_size
    discriminator = mlp(inputs, 1, args.disc_layers, args.disc_units).to(device)
    parameters = [*actor.parameters(), *critic.parameters(), *discriminator.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, fused=True)
    eta_end = args.entropy if args.entropy_end < 0 else args.entropy_end
    eta = torch.tensor(args.entropy, device=device)  # a tensor, so that a recorded CUDA graph sees it change
    parts = {"actor": actor, "critic": critic, "target": target, "optimizer": optimizer, "rng": rng}
    parts |= {"discriminator": discriminator}
    run = Run(run_dir, args, parts, {"world_model": model.digest(), "dataset": data.digest()}, marks)
    run.draw(model, held_out)

    def update(rows: Tensor) -> dict[str, Tensor]:
        expert = windows.feat[rows], windows.data.prev_action[rows[1:]]  # (H + 1, N, F), (H, N, A)
        loss, metrics = agent_loss(args, model, actor, critic, target, eta, discriminator, *expert)  # (3) to (7), (9)
        optimizer.zero_grad(set_to_none=not args.cudagraphs)
        loss.backward()
        optimizer.step()
        return metrics

    if args.cudagraphs and not args.eval_only:
        update = graphed(update, windows.draw(args.batch_size, torch.Generator(device)), optimizer=optimizer)
    for step in run.steps(0 if args.eval_only else args.updates):
        eta.fill_(args.entropy + (eta_end - args.entropy) * (step - 1) / args.updates)
        metrics = update(windows.draw(args.batch_size, rng))  # (2) to (7)
        if step % args.target_every == 0:
            target.load_state_dict(critic.state_dict())  # (8)
        if run.due(args.eval_every):
            metrics = metrics | agreement(model, actor, held_windows, args.seed)
            if step < args.updates:  # the last policy plays the final evaluation
                metrics |= run.validate(games, player(model, actor.sample))
        if run.due(args.eval_every) or run.due(args.log_every):
            metrics = metrics | {"charts/imagined_steps": step * args.batch_size * args.horizon}
            run.log(metrics, "imagine/reward", "losses/entropy", "expert/action_agreement", "eval/return_mean")
        if run.due(args.eval_every):
            run.save()
    eta.fill_(eta_end)
    if "expert/action_agreement" not in run.report:  # nothing was left to train
        run.report |= agreement(model, actor, held_windows, args.seed)
    sources = {"data": str(folder), "world_model": str(checkpoint), "size": args.size}
    return run.finish(games, lambda: player(model, actor.sample), sources,
                      lambda: update(windows.draw(args.batch_size, rng)))  # fmt: skip


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
