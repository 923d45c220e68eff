# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""CMIL: imitation with a conservative world model and a little interaction; also VMAIL and cloning.

Paper: arXiv 2405.13193 v1 (and its equation numbers); "code": its authors'. VMAIL: arXiv 2107.08829 v3.
Continuous actions, a few demonstrations with actions, no rewards. A world model learns from the demonstrations and from
what the policy plays; a discriminator tells the expert's state-action pairs from those of the policy in the model's
dreams, and is the reward. Caution keeps the policy where the model knows its way: dreams on which an ensemble of priors
disagrees cost reward, and the policy is drawn to the expert's actions.

  (1) demonstrations, seen in this environment: the replay's first episodes (control.py)         `main`
  (2) play: filter what is seen, a_t ~ pi(a | s_t); 5 steps for 2 updates (control.py)           `main`
  (3) model: -log p(x_t | s_t) + KL(q || p), p of one member per time-step           Eq. 1       `model_loss`
  (4) imagine H steps from every posterior of (3), each step by a member drawn anew              `Model.dream`
  (5) discriminator: expert pairs 1, imagined pairs 0, noise on both                 Eq. 8       `discriminator_loss`
  (6) reward: what the discriminator says minus alpha times the disagreement         Eq. 9, 10   `imitation_reward`
  (7) lambda-returns of the smaller of two critics                                   Eq. 11      `lambda_return`
  (8) actor: their gradient through the model, plus beta times cloning               Eq. 12      `actor_loss`
  (9) critics: Q(s, a) of imagined pairs and of real ones                     Eq. 13, 14, 15     `critic_loss`
  (10) every 100 updates copy the critics to the target critics                                  `main`

    python cmil.py --env-id Pendulum-v1 --obs state --num-expert-episodes 5       (quick; makes what is missing)
    python cmil.py --env-id Pendulum-v1 --obs state --num-expert-episodes 5 --method no-conservatism
    python cmil.py --env-id FrankaKitchen-v1 --num-expert-episodes 10             (first: control.py --source)

Shapes as in world_model.py; N = T * B start states, K members. action[t] led to obs[t], so the pair (s_t, a_t) is
feat[t] with action[t + 1]; in a dream action[k] is taken in feat[k], and the disagreement of pair k is feat[k + 1]'s.
Differences from the paper: where paper and code part, the code's side (docs/cmil.md); the model's layers are those of
world_model.py; interaction is counted without the demonstrations. The small size leaves the paper in widths, layers,
picture, ensemble, batch, horizon, alpha, step size and length (SIZES).
"""

import copy
import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from control import Interaction, Replay, demonstrations, digest, foresight, make_game
from world_model import Games, GaussianLatent, Run, WorldModel, command, parse_args, player, run_folder, start


@dataclass
class Args:
    # run
    env_id: str = "FrankaKitchen-v1"
    """FrankaKitchen-v1, a task of dmc.py (walker-walk, ...), or a Gymnasium id with continuous actions"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """its folder; default runs/<env_id>/<script>-<method>-<size>-<obs>-<N^E>-<seed>. The same command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    num_expert_episodes: int = 10
    """N^E, expert episodes to imitate"""
    data_dir: str = ""
    """folder of recorded games; default data/<env_id>/expert (dmc.py's tasks: data/dmc/<env_id>-expert), made now if
    missing (not the kitchen's). Actions are replayed, to be drawn by this renderer; Dreamer-style files are not"""
    obs: Literal["pixels", "state"] = "pixels"
    """what is observed: 64x64 pictures (paper) or the environment's own vector (a quick look)"""
    max_steps: int = 0
    """steps after which demonstrations and games are cut; 0: the environment's own limit"""
    # world model
    depth: int = 48
    """channels of the first convolution; each further one doubles them"""
    picture: int = 64
    """side of the pictures that the model sees: 64, or 32, every second pixel after the moving maximum"""
    deter: int = 400
    """D, width of the recurrent state h"""
    stoch: int = 360
    """Z, width of the latent z (code)"""
    hidden: int = 400
    """width of the model's hidden layers"""
    ensemble: int = 10
    """K, prior heads (vmail: 1)"""
    obs_weight: float = 0.0
    """weight of 0.5 * squared error summed over pixels in [-0.5, 0.5] or sensors; 0: 1 for pixels, 100 for state"""
    # actor and critic
    env_steps: int = 200_000
    """steps played in the environment, without the demonstrations' (bc: none)"""
    batch_size: int = 32
    """B, slices of episodes per update, from the replay and again from the demonstrations"""
    batch_length: int = 50
    """T, steps per slice"""
    horizon: int = 15
    """H, steps of a window or of a dream"""
    layers: int = 4
    """hidden layers of actor and critics"""
    units: int = 400
    """width of each"""
    learning_rate: float = 3e-4
    """Adam's step size, of all networks"""
    gamma: float = 0.99
    """discount"""
    lam: float = 0.95
    """lambda of Eq. 11"""
    # evaluation
    eval_episodes: int = 20
    """games of the final evaluation"""
    eval_every: int = 1000
    """updates between validations in the real environment (quick_episodes games) and checkpoints"""
    quick_episodes: int = 10
    """games of those validations"""
    eval_only: bool = False
    """only evaluate the checkpoint of the run"""
    log_every: int = 50
    """updates between log rows"""
    # runtime
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""
    # cmil
    method: Literal["cmil", "no-conservatism", "vmail", "bc"] = "cmil"
    """cmil; no-conservatism: alpha = beta = 0, no pre-training; vmail: also a critic V(s), one prior, a penalty instead
    of the noise; bc: model and cloning on the demonstrations alone"""
    alpha: float = 10.0
    """weight of the disagreement in the reward, Eq. 10 (cmil; 0 in the others)"""
    beta: float = 10.0
    """weight of cloning (cmil; 0 in no-conservatism and vmail)"""
    sigma: float = 2.5
    """deviation of the noise on the discriminator's input; differs from the paper's variance 2.5 (code; vmail: 0)"""
    reward_form: Literal["prob", "logit"] = "prob"
    """what the discriminator gives: prob D (code), logit log D - log(1 - D) (paper, Eq. 10)"""
    action_noise: float = 0.0
    """standard deviation of noise on the actions that are played (vmail: 0.3, its code's)"""
    disc_units: int = 200
    """width of the discriminator's two hidden layers"""
    pretrain: int = 1000
    """updates on the demonstrations alone, before anything is played (cmil)"""
    seed_steps: int = 5000
    """steps played after pretraining, before further updates"""
    train_every: int = 5
    """environment steps between updates"""
    train_updates: int = 2
    """updates each time"""


SMALL = dict(depth=16, picture=32, deter=128, stoch=32, hidden=128, ensemble=5, env_steps=12_000, batch_size=8,
             batch_length=16, horizon=8, layers=2, units=128, disc_units=128, learning_rate=1e-3, pretrain=800,
             seed_steps=500, alpha=2.0, eval_every=600, threads=1)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(depth=2, deter=8, stoch=4, hidden=8, ensemble=2, env_steps=50, batch_size=2, batch_length=6,
                          horizon=4, layers=1, units=8, disc_units=8, pretrain=6, seed_steps=15, eval_every=10,
                          log_every=5, eval_episodes=2, quick_episodes=2, num_expert_episodes=2, max_steps=20),
}  # fmt: skip
ENTROPY, DECAY, CLIP, FREE_NATS, BALANCE, COPY_EVERY = 1e-4, 1e-6, 100.0, 1.0, 0.8, 100  # the authors', on all tasks
METHODS = {  # what cmil and bc leave as it is
    "no-conservatism": dict(alpha=0.0, beta=0.0, pretrain=0),
    "vmail": dict(alpha=0.0, beta=0.0, sigma=0.0, pretrain=0, ensemble=1, action_noise=0.3),
}


def mlp(inputs: int, outputs: int, layers: int, units: int) -> nn.Sequential:
    """ELU network with `layers` hidden layers, no normalisation."""
    sizes = [inputs] + [units] * layers
    hidden = [part for i, o in zip(sizes, sizes[1:]) for part in (nn.Linear(i, o), nn.ELU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], outputs))


def deviation(raw: Tensor) -> Tensor:
    """A standard deviation in (0.1, 2.1) from a layer's output, of latents and actions alike."""
    return 2 * torch.sigmoid(raw / 2) + 0.1


class TruncatedNormal:
    """Normal distribution (..., A) restricted to [-1, 1], every dimension for itself."""

    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std
        self.low, self.high = (-1 - mean) / std, (1 - mean) / std
        self.below = torch.special.ndtr(self.low)
        self.mass = torch.special.ndtr(self.high) - self.below  # of the normal between the bounds

    def sample(self) -> Tensor:
        """Reparameterised sample (..., A) by the inverse of the distribution function, clipped straight-through."""
        share = (self.below + self.mass * torch.rand_like(self.mean)).clamp(1e-6, 1 - 1e-6)
        value = self.mean + self.std * torch.special.ndtri(share)
        return value + (value.clamp(-1 + 1e-6, 1 - 1e-6) - value).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density (...) of value (..., A), summed over dimensions."""
        density = -0.5 * ((value - self.mean) / self.std).square() - self.std.log() - 0.5 * math.log(2 * math.pi)
        return (density - self.mass.log()).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...), summed over dimensions."""
        bell = lambda x: (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)  # noqa: E731
        edges = (self.low * bell(self.low) - self.high * bell(self.high)) / (2 * self.mass)
        return (0.5 * math.log(2 * math.pi * math.e) + (self.std * self.mass).log() + edges).sum(-1)


class Actor(nn.Module):
    """pi(a | s) in states feat (..., F): a truncated normal, of which a sample is played as it is imagined."""

    def __init__(self, feat_size: int, action_size: int, layers: int, units: int):
        super().__init__()
        self.net = mlp(feat_size, 2 * action_size, layers, units)

    def forward(self, feat: Tensor) -> TruncatedNormal:
        mean, raw = self.net(feat).chunk(2, -1)
        return TruncatedNormal(torch.tanh(mean), deviation(raw))


class Values(nn.ModuleList):
    """Several networks that give one number each: (..., inputs) -> (networks, ...)."""

    def __init__(self, count: int, inputs: int, layers: int, units: int):
        super().__init__(mlp(inputs, 1, layers, units) for _ in range(count))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([net(inputs).squeeze(-1) for net in self])


class BoundedGaussian(GaussianLatent):
    """Z independent Gaussians whose deviation lies in (0.1, 2.1): so a disagreement of 0.1 is at most one deviation."""

    def params(self, output: Tensor) -> Tensor:
        mean, raw = output.float().chunk(2, -1)
        return torch.cat([mean, deviation(raw)], -1)


class Model(WorldModel):
    """The world model with K prior heads, dreamt in with gradient; sensors are standardised."""

    def __init__(self, config: dict):
        super().__init__(config)
        self.latent = BoundedGaussian(config["stoch"])
        self.register_buffer("sensor_mean", torch.zeros(max(1, self.sensors)))
        self.register_buffer("sensor_std", torch.ones(max(1, self.sensors)))
        self.pixel_mean.fill_(127.5), self.pixel_std.fill_(255.0)  # pictures in [-0.5, 0.5]

    def standardise(self, obs: Tensor) -> None:
        self.sensor_mean.copy_(obs.mean(0)), self.sensor_std.copy_(obs.std(0).clamp_min(1e-2))

    def preprocess(self, image: Tensor) -> Tensor:
        return (image - self.sensor_mean) / self.sensor_std if self.sensors else super().preprocess(image)

    def members(self, deter: Tensor) -> Tensor:
        """Every member's prior in deter (..., D): mean and deviation (K, ..., 2Z)."""
        return torch.stack([self.prior(deter, k) for k in range(len(self.priors))])

    def dream(self, act, feat: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
        """Imagine from feat (N, F) with action = act(feat, t): features (H + 1, N, F), actions (H, N, A), disagreement
        (H, N). The member that draws z is chosen anew at each step, for all dreams together (code)."""
        state, feats, actions, spread = (feat[:, : self.deter_size], feat[:, self.deter_size :]), [feat], [], []
        chosen = torch.randint(len(self.priors), (horizon,), device=feat.device)
        for t in range(horizon):
            actions.append(act(feats[-1], t))
            deter = self.recur(state, self.action_in(actions[-1]))  # (N, D)
            params = self.members(deter)  # (K, N, 2Z)
            spread.append(disagreement(params.chunk(2, -1)[0]))
            state = deter, self.latent.sample(params.index_select(0, chosen[t : t + 1])[0])
            feats.append(torch.cat(state, -1))
        return torch.stack(feats), torch.stack(actions), torch.stack(spread)


def disagreement(means: Tensor) -> Tensor:
    """Spread of the members' means (K, ..., Z): deviation over K, mean over Z (...). The model's error in Eq. 9."""
    return means.std(0, unbiased=False).mean(-1)


def balanced_kl(latent: GaussianLatent, post: Tensor, prior: Tensor, balance: float, free_nats: float) -> Tensor:
    """KL of Eq. 1 () from parameters (..., 2Z). Differs from it: `balance` trains the prior, the rest the posterior,
    each is free_nats at least, on average over the batch (code; `kl_balanced` of world_model.py cuts step by step)."""
    prior_part, post_part = latent.kl(post.detach(), prior).mean(), latent.kl(post, prior.detach()).mean()
    return balance * prior_part.clamp_min(free_nats) + (1 - balance) * post_part.clamp_min(free_nats)


def model_loss(model: Model, obs: Tensor, action: Tensor, is_first: Tensor, weight: float = 1.0):
    """Eq. 1 on slices obs (T, B, ...), action (T, B, A), is_first (T, B): loss (), metrics, features (T, B, F). At each
    step one prior head, drawn for the whole batch, is compared with the posterior (code)."""
    pixels = model.preprocess(obs)
    deter, stoch, post, _ = model.filter(model.embed(pixels), action, is_first)
    member = torch.randint(len(model.priors), (len(obs),), device=obs.device)  # (T,)
    prior = model.members(deter)[member, torch.arange(len(obs), device=obs.device)]  # (T, B, 2Z)
    kl = balanced_kl(model.latent, post, prior, BALANCE, FREE_NATS)
    feat = torch.cat([deter, stoch], -1)
    nll = 0.5 * (model.decode(feat) - pixels).square().flatten(2).sum(-1).mean()
    return weight * nll + kl, {"losses/nll": nll, "losses/kl": model.latent.kl(post, prior).mean()}, feat


def noisy(values: Tensor, sigma: float) -> Tensor:
    """Values with independent noise on every entry: of pairs (..., F + A), features and actions alike."""
    return values + sigma * torch.randn_like(values)


def discriminator_loss(expert_logits: Tensor, policy_logits: Tensor) -> Tensor:
    """Eq. 8: -log D of expert pairs - log(1 - D) of imagined ones, a mean each; 2 log 2 at chance."""
    return F.softplus(-expert_logits).mean() + F.softplus(policy_logits).mean()


def weight_penalty(discriminator: nn.Module, expert: Tensor, policy: Tensor) -> Tensor:
    """VMAIL's penalty between pairs (n, F + A): (norm of the mean logit's gradient with respect to the weights - 1)^2.
    The textbook's gradient is with respect to the inputs; this is what VMAIL's code does."""
    share = torch.rand(len(policy), 1, device=policy.device)
    expert = expert[torch.randint(len(expert), (len(policy),), device=expert.device)]
    logits = discriminator(share * expert + (1 - share) * policy)
    grads = torch.autograd.grad(logits.mean(), list(discriminator.parameters()), create_graph=True)
    return (torch.cat([grad.flatten() for grad in grads]).norm() - 1).square()


def imitation_reward(logits: Tensor, spread: Tensor | float, alpha: float, kind: str = "prob") -> Tensor:
    """Eq. 10 (...): D = sigmoid(logits), or the logits log D - log(1 - D) as printed, minus alpha * disagreement.
    Differs from Eq. 10 by default: D, not its logit (code)."""
    return (torch.sigmoid(logits) if kind == "prob" else logits) - alpha * spread


def lambda_return(reward: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """Eq. 11, time first: reward (H, N) of the pairs 0 to H - 1, value (H + 1, N) of the pairs 0 to H -> (H, N):
    G_t = r_t + gamma * ((1 - lam) * value[t + 1] + lam * G_{t+1}), and G_H = value[H]."""
    returns, last = [], value[-1]
    for t in reversed(range(len(reward))):
        last = reward[t] + gamma * ((1 - lam) * value[t + 1] + lam * last)
        returns.append(last)
    return torch.stack(returns[::-1])


def actor_loss(value: Tensor, returns: Tensor, entropy: Tensor, gamma: float, lam: float, eta: float) -> Tensor:
    """Eq. 12, all (pairs, N), H - 1 of them (vmail: H): minus (1 - lam) * value + lam * returns + eta * entropy, the
    sum discounted by gamma^k. The gradient comes through the model and through the critics. Differs from Eq. 12: the
    entropy is the code's."""
    weight = gamma ** torch.arange(len(returns), device=returns.device)[:, None]
    return -(weight * ((1 - lam) * value + lam * returns + eta * entropy)).mean()


def critic_loss(value: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Eq. 13 and 14: half the squared error of value (C, ...) of C critics to target (...), which has no gradient."""
    return 0.5 * (weight * (value - target.detach()).square()).mean()


def data_target(reward: Tensor, value: Tensor, returns: Tensor, gamma: float, lam: float) -> Tensor:
    """Target of Eq. 14 for real pairs t = 0 to T - 3, from their reward (T - 2, B), and value and return of the dreams'
    first pairs (T, B): the bootstrap is the dream that begins in s_{t+1}."""
    return reward + gamma * ((1 - lam) * value[1:-1] + lam * returns[1:-1])


def agent_loss(args: Args, networks: dict, feat: Tensor, action: Tensor, expert_feat: Tensor, expert_action: Tensor):
    """Losses (), by name, of the three networks, from replay and expert slices (T, B, .), and what is logged."""
    model, discriminator, actor, critics, targets = networks.values()
    pair = lambda feat, action: torch.cat([feat[:-1], action[1:]], -1)  # noqa: E731  (T - 1, B, F + A)
    cloning = -actor(expert_feat[:-1]).log_prob(expert_action[1:]).mean()  # (8) Eq. 12
    if args.method == "bc":
        return {"actor": cloning}, {"losses/cloning": cloning}
    H, gamma, lam, vmail = args.horizon, args.gamma, args.lam, args.method == "vmail"
    # (4) actions are chosen in detached states: a return's gradient reaches them, but not through the actor's input
    policies = []
    act = lambda feat, t: (policies.append(actor(feat.detach())), policies[-1].sample())[1]  # noqa: E731
    dream, chosen, spread = model.dream(act, feat.flatten(0, 1), H)  # (H + 1, N, F), (H, N, A), (H, N)
    pairs, real, expert = torch.cat([dream[:-1], chosen], -1), pair(feat, action), pair(expert_feat, expert_action)
    # (5)
    logits = discriminator(noisy(pairs, args.sigma)).squeeze(-1)  # (H, N)
    expert_logits = discriminator(noisy(expert, args.sigma)).squeeze(-1)  # (T - 1, B)
    disc_loss = discriminator_loss(expert_logits, logits)
    if vmail:
        disc_loss = disc_loss + weight_penalty(discriminator, expert.flatten(0, 1), pairs.detach().flatten(0, 1))
    reward = imitation_reward(logits, spread, args.alpha, args.reward_form)  # (6); differs from Eq. 10: D, noise (code)
    entropy = torch.stack([policy.entropy() for policy in policies])  # (H, N)
    if vmail:  # (7) to (9) with V(s), as Dreamer
        value = critics(dream)[0]  # (H + 1, N)
        returns = lambda_return(reward, value, gamma, lam)  # (H, N)
        policy_loss = actor_loss(value[:-1], returns, entropy, gamma, 1.0, ENTROPY)
        value_loss = critic_loss(critics(dream[:-1].detach()), returns)
    else:
        value = critics(pairs).min(0).values  # (H, N)
        returns = lambda_return(reward[:-1], value, gamma, lam)  # (7) (H - 1, N)
        policy_loss = actor_loss(value[:-1], returns, entropy[:-1], gamma, lam, ENTROPY)  # (8)
        with torch.no_grad():  # (9) differs from Eq. 13: one of the target critics at random (code)
            which = torch.randint(len(targets), (1,), device=feat.device)
            value_bar = targets(pairs).index_select(0, which)[0]  # (H, N)
            returns_bar = lambda_return(reward[:-1], value_bar, gamma, lam)
            known = discriminator(real[:-1]).squeeze(-1)  # (T - 2, B); differs from Eq. 14: no noise, no penalty (code)
            known = imitation_reward(known, 0.0, 0.0, args.reward_form)
            first = (part[0].unflatten(0, feat.shape[:2]) for part in (value_bar, returns_bar))  # (T, B)
            target = data_target(known, *first, gamma, lam)
        weight = gamma ** torch.arange(1, H, device=feat.device)[:, None]  # differs from Eq. 13: gamma^(k + 1) (code)
        value_loss = critic_loss(critics(pairs[:-1].detach()), returns_bar, weight)  # Eq. 13
        value_loss = value_loss + critic_loss(critics(real[:-1]), target)  # Eq. 14; their sum: Eq. 15
    gap = torch.sigmoid(expert_logits).mean() - torch.sigmoid(logits).mean()
    losses = {"discriminator": disc_loss, "actor": policy_loss + args.beta * cloning, "critics": value_loss}
    return losses, {"losses/discriminator": disc_loss, "losses/policy": policy_loss, "losses/cloning": cloning,
                    "losses/value": value_loss, "losses/entropy": entropy.mean(), "imagine/reward": reward.mean(),
                    "imagine/value": value.mean(), "imagine/disagreement": spread.mean(),
                    "expert/discriminator_gap": gap}  # fmt: skip


def descend(losses: dict[str, Tensor], optimizers: dict[str, torch.optim.Optimizer]) -> None:
    """One step per loss, of its own network only: no loss leaves a gradient in a network that it only passes through.
    All gradients are taken before the first step."""
    weights = {name: [w for group in optimizers[name].param_groups for w in group["params"]] for name in losses}
    grads = {name: torch.autograd.grad(loss, weights[name], retain_graph=True) for name, loss in losses.items()}
    for name in losses:
        for weight, grad in zip(weights[name], grads[name]):
            weight.grad = grad
        nn.utils.clip_grad_norm_(weights[name], CLIP)
        optimizers[name].step()


def main(args: Args) -> dict:
    device, given, args = start(args), args, dataclasses.replace(args, **METHODS.get(args.method, {}))
    name = f"{Path(__file__).stem}-{args.method}-{args.size}-{args.obs}-{args.num_expert_episodes}-{args.seed}"
    run_dir = run_folder(args, name)
    # (1) demonstrations, seen in this environment
    env = make_game(args.env_id, args.obs, args.max_steps)
    demos, marks, folder = demonstrations(args, env)
    replay, rng = Replay(run_dir / "replay", demos, args.batch_length), torch.Generator().manual_seed(args.seed)
    action_size, sensors = env.action_space.shape[0], 0 if args.obs == "pixels" else env.observation_space.shape[0]
    weight = args.obs_weight or (100.0 if sensors else 1.0)
    names = ("depth", "picture", "deter", "stoch", "hidden", "ensemble")
    config = {name: getattr(args, name) for name in names} | {"action_size": action_size, "channels": 3}
    torch.manual_seed(args.seed)
    model = Model(config | {"sensors": sensors}).to(device)
    if sensors:
        model.standardise(torch.cat([obs for obs, _ in demos]))
    actor = Actor(model.feat_size, action_size, args.layers, args.units).to(device)
    pair_size, vmail = model.feat_size + action_size, args.method == "vmail"
    discriminator = mlp(pair_size, 1, 2, args.disc_units).to(device)
    critics = Values(1 if vmail else 2, model.feat_size if vmail else pair_size, args.layers, args.units).to(device)
    networks = {"model": model, "discriminator": discriminator, "actor": actor, "critics": critics}
    adam = functools.partial(torch.optim.AdamW, lr=args.learning_rate, eps=1e-5, fused=True,
                             weight_decay=DECAY / args.learning_rate)  # it multiplies the two  # fmt: skip
    optimizers = {name: adam(network.parameters()) for name, network in networks.items()}
    networks["targets"] = copy.deepcopy(critics).requires_grad_(False)
    policy = lambda feat: actor(feat).sample()  # noqa: E731
    act = lambda feat: noisy(policy(feat), args.action_noise).clamp(-1, 1)  # noqa: E731
    game = Interaction(env, model, act, replay, args.seed)
    parts = networks | {"rng": rng, "replay": replay, "game": game}
    parts |= {f"{name}_optimizer": optimizer for name, optimizer in optimizers.items()}
    run = Run(run_dir, given, parts, {"demonstrations": digest(demos)}, marks, free={"env_steps"})
    games = functools.partial(Games, args.env_id, make=lambda: make_game(args.env_id, args.obs, args.max_steps))
    probe = [part.to(device) for part in replay.draw(16, torch.Generator().manual_seed(0), demos=True)]

    def update() -> dict[str, Tensor]:
        obs, action, is_first = (part.to(device) for part in replay.draw(args.batch_size, rng))
        expert_obs, expert_action, _ = (part.to(device) for part in replay.draw(args.batch_size, rng, demos=True))
        loss, metrics, feat = model_loss(model, obs, action, is_first, weight)  # (3)
        descend({"model": loss}, optimizers)
        with torch.no_grad():
            expert_feat = torch.cat(model.encode(expert_obs, expert_action, is_first)[:2], -1)
        losses, more = agent_loss(args, networks, feat.detach(), action, expert_feat, expert_action)  # (4) to (9)
        descend(losses, optimizers)
        return {name: part.detach() for name, part in (metrics | more | {"losses/world_model": loss}).items()}

    rounds = max(0, args.env_steps - args.seed_steps) // args.train_every
    for step in run.steps(0 if args.eval_only else args.pretrain + rounds * args.train_updates):
        if step > args.pretrain and args.method != "bc":  # (2)
            due = args.seed_steps + args.train_every * ((step - args.pretrain - 1) // args.train_updates + 1)
            while game.steps < due:
                game.step()
        metrics = update()
        if step % COPY_EVERY == 0:
            networks["targets"].load_state_dict(critics.state_dict())  # (10)
        if run.due(args.eval_every):
            metrics |= foresight(run, model, probe, args.horizon)
            if step < run.total:  # the last policy plays the final evaluation
                metrics |= run.validate(games, player(model, policy))
        if run.due(args.eval_every) or run.due(args.log_every):
            metrics |= {"charts/env_steps": game.steps} | ({"play/return": game.returns[-1]} if game.returns else {})
            run.log(metrics, "charts/env_steps", "expert/discriminator_gap", "imagine/disagreement", "eval/return_mean")
        if run.due(args.eval_every):
            run.save()
    sources = {"data": str(folder), "size": args.size, "method": args.method, "env_steps": game.steps}
    return run.finish(games, lambda: player(model, policy), sources)


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
