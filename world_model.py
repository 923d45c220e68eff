# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""World model: a recurrent state-space model (RSSM) with categorical latents, trained on recorded episodes.

Paper: DITTO, arXiv 2302.03086 v2, appendix B; the model is DreamerV2's (arXiv 2010.02193 v4).
It learns to predict what the screen will show after an action, in a latent space: h_t remembers, z_t holds what h_t
could not foresee. Imitation then happens inside this model, without the environment.

  (1) take B streams of L consecutive frames x_t with the action a_{t-1} that led to each        `Streams`
  (2) h_t = f(h_{t-1}, z_{t-1}, a_{t-1})                                           Eq. 10        `WorldModel.recur`
  (3) posterior q(z_t | h_t, x_t), prior p(z_t | h_t), sample z_t ~ q              Eq. 10        `WorldModel.encode`
  (4) decode x_t from s_t = (h_t, z_t), squared error                              Eq. 11        `WorldModel.loss`
  (5) KL between posterior and prior, balanced so that the prior moves faster      Eq. 12        `kl_balanced`
  (6) Adam step on (4) + beta (5); carry (h, z) on to the next L frames            Eq. 11        `main`

    python collect_data.py --env-id BreakoutNoFrameskip-v4 --name world --num-episodes 1000
    python world_model.py --env-id BreakoutNoFrameskip-v4
    torchrun --nproc-per-node 4 world_model.py --env-id BreakoutNoFrameskip-v4      (several GPUs)

Symbols (paper: code, shape), with B batch, T time, D deter, S groups, K classes, F = D + S*K, E embedding, A actions:
  x_t: image (T, B, 64, 64, C) uint8    a_{t-1}: prev_action (T, B, A), one-hot if discrete; it led to image[t]
  h_t: deter (T, B, D)    z_t: stoch (T, B, S*K)    s_t: feat (T, B, F)    is_first (T, B) bool, true on a first frame

Differences from the paper: Eq. 12 as printed puts delta on the wrong term; prose, DreamerV2 and the authors' code agree
on ours. The small and debug sizes leave the paper in width, batch, step size, pixel scaling, loss weights (see SIZES).

Not DITTO's: GaussianWorldModel and Trajectories, AIME's model and data (arXiv 2312.02019 v1), which aime.py trains on.
"""

import copy
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import sys
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from ale_py.vector_env import AtariVectorEnv
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

gym.register_envs(ale_py)


@dataclass
class Args:
    # run
    env_id: str = "BreakoutNoFrameskip-v4"
    """environment id; only used to find the data and to name the run"""
    size: str = "auto"
    """auto, paper, small or debug: which column of SIZES gives the defaults (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/world_model-<size>. The same command resumes"""
    seed: int = 1
    """seed of weights, sampling and noise; same versions, device and thread count give identical losses"""
    cuda: bool = True
    """use a GPU if there is one"""
    # data
    data_dir: str = ""
    """dataset folders, separated by commas; default data/<env_id>/world,data/<env_id>/expert as far as they exist"""
    carry_state: bool = True
    """walk through whole episodes and carry (h, z) on from chunk to chunk; off: uniform windows from a zero state"""
    batch_size: int = 50
    """B, streams per update (over all processes together)"""
    batch_length: int = 50
    """L, consecutive frames per stream and update"""
    # world model
    depth: int = 48
    """channels of the first convolution; the others have 2, 4 and 8 times as many"""
    deter: int = 1024
    """D, width of the recurrent state h"""
    stoch: int = 32
    """S, number of categorical variables in z"""
    classes: int = 32
    """K, classes of each"""
    hidden: int = 1000
    """width of the hidden layers around the GRU (authors' code)"""
    pixel_stats: Literal["global", "pixel"] = "global"
    """normalise grey levels by one mean and standard deviation (global, as the authors do) or per pixel (pixel)"""
    pixel_std_floor: float = 1.0
    """smallest standard deviation used for the normalisation, in grey levels"""
    dilation: int = 1
    """odd size of a moving maximum over the picture (1: off); makes a one-pixel ball large enough for a small model"""
    image_weight: float = 2.0
    """weight of 0.5 * squared error summed over pixels (authors' code)"""
    beta: float = 0.1
    """weight of the KL, Eq. 11"""
    kl_balance: float = 0.8
    """delta of Eq. 12: share of the KL that trains the prior"""
    # optimiser
    updates: int = 300_000
    """gradient steps (the authors' checkpoints: 0.3 to 1.1 million)"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    anneal: bool = False
    """lower the step size linearly to a tenth over the run"""
    grad_clip: float = 200.0
    """largest gradient norm (authors' code)"""
    # evaluation
    eval_every: int = 5000
    """updates between validations, pictures and checkpoints"""
    log_every: int = 100
    """updates between log rows"""
    # runtime
    bf16: bool = True
    """on CUDA, convolutions and matrix products in bfloat16 (losses, KL and sampling stay in float32)"""
    cudagraphs: bool = False
    """record one update as a CUDA graph and replay it (GPU only)"""
    compile: bool = False
    """torch.compile the recurrent step"""
    threads: int = 0
    """CPU threads; 0 leaves PyTorch's choice"""


SMALL = dict(depth=8, deter=256, stoch=16, classes=16, hidden=256, batch_size=16, batch_length=32,
             pixel_stats="pixel", pixel_std_floor=16.0, dilation=5, image_weight=0.25, beta=1.0, updates=6000,
             learning_rate=1e-3, anneal=True, bf16=False, eval_every=250, log_every=50)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(depth=4, deter=32, stoch=4, classes=4, hidden=32, batch_size=4, batch_length=8, updates=20,
                          eval_every=10, log_every=5, threads=1),
}  # fmt: skip


def kl_categorical(left_logits: Tensor, right_logits: Tensor) -> Tensor:
    """KL divergence, in nats, from `left` to `right` of S independent categoricals; logits (..., S, K) -> (...)."""
    left, right = F.log_softmax(left_logits.float(), -1), F.log_softmax(right_logits.float(), -1)
    return (left.exp() * (left - right)).sum((-2, -1))


def kl_balanced(post_logits: Tensor, prior_logits: Tensor, alpha: float) -> Tensor:
    """Balanced KL, Eq. 12: alpha trains the prior towards the posterior, 1 - alpha the posterior towards the prior.

    Logits (..., S, K) -> (...). The value is the plain KL; only the gradients are weighted.
    differs from Eq. 12 as printed: alpha weighs KL(sg(q) || p), as the prose, DreamerV2 and the authors' code have it.
    """
    train_prior = kl_categorical(post_logits.detach(), prior_logits)
    train_posterior = kl_categorical(post_logits, prior_logits.detach())
    return alpha * train_prior + (1 - alpha) * train_posterior


class CategoricalLatent:
    """S one-hot variables with K classes; whoever needs another latent (a Gaussian) replaces this class."""

    def __init__(self, stoch: int, classes: int):
        self.stoch, self.classes = stoch, classes
        self.size = self.params = stoch * classes  # width of a sample, number of parameters per sample

    def sample(self, params: Tensor) -> Tensor:
        """Straight-through one-hot sample (..., S*K) from logits (..., S*K) (DreamerV2, algorithm 1)."""
        probs = params.float().unflatten(-1, (self.stoch, self.classes)).softmax(-1)
        # dividing by exponential noise and taking the largest is a categorical draw, without a host synchronisation
        index = (probs.detach() / torch.empty_like(probs).exponential_().clamp_min(1e-20)).argmax(-1)
        onehot = F.one_hot(index, self.classes).to(probs.dtype)
        return (onehot + probs - probs.detach()).flatten(-2)

    def kl(self, post: Tensor, prior: Tensor, alpha: float) -> Tensor:
        """Balanced KL (...) of posterior and prior parameters (..., S*K)."""
        shape = (self.stoch, self.classes)
        return kl_balanced(post.unflatten(-1, shape), prior.unflatten(-1, shape), alpha)


class WorldModel(nn.Module):
    """Encoder, RSSM and decoder. A state is the pair (deter (B, D), stoch (B, S*K)); feat is both, concatenated."""

    def __init__(self, config: dict):
        """`config` holds numbers and strings, see `model_config`; the training script sets the pixel statistics."""
        super().__init__()
        self.config, c = config, config
        depth, hidden, channels = c["depth"], c["hidden"], c["channels"]
        self.latent = CategoricalLatent(c["stoch"], c["classes"])
        self.feat_size = c["deter"] + self.latent.size
        pixels = (channels, 64, 64) if c["pixel_stats"] == "pixel" else (1, 1, 1)
        self.register_buffer("pixel_mean", torch.zeros(pixels))
        self.register_buffer("pixel_std", torch.ones(pixels))
        convs, last = [], channels
        for width in (depth, 2 * depth, 4 * depth, 8 * depth):  # 64 -> 31 -> 14 -> 6 -> 2
            convs += [nn.Conv2d(last, width, 4, stride=2), nn.ELU()]
            last = width
        self.encoder = nn.Sequential(*convs, nn.Flatten())  # (B, C, 64, 64) -> (B, E = 32 * depth)
        # recurrent step: W_z z + W_a a -> LayerNorm -> ELU -> GRU (authors' code)
        self.stoch_in = nn.Linear(self.latent.size, hidden)
        self.action_in = nn.Linear(c["action_size"], hidden, bias=False)
        self.norm_in = nn.LayerNorm(hidden, eps=1e-3)
        self.gru = nn.GRUCell(hidden, c["deter"])
        self.prior = nn.Sequential(nn.Linear(c["deter"], hidden), nn.LayerNorm(hidden, eps=1e-3), nn.ELU(),
                                   nn.Linear(hidden, self.latent.params))  # fmt: skip
        self.post_deter = nn.Linear(c["deter"], hidden)
        self.post_embed = nn.Linear(32 * depth, hidden, bias=False)
        self.post_out = nn.Sequential(nn.LayerNorm(hidden, eps=1e-3), nn.ELU(), nn.Linear(hidden, self.latent.params))
        # the first transposed convolution sees a 1x1 picture: as a matrix product it is nine times faster on a CPU
        self.decoder_in = nn.Sequential(
            nn.Linear(self.feat_size, 32 * depth), nn.Linear(32 * depth, 4 * depth * 25), nn.ELU()
        )
        self.decoder = nn.Sequential(  # 5 -> 13 -> 30 -> 64
            nn.Unflatten(-1, (4 * depth, 5, 5)),
            nn.ConvTranspose2d(4 * depth, 2 * depth, 5, stride=2), nn.ELU(),
            nn.ConvTranspose2d(2 * depth, depth, 6, stride=2), nn.ELU(),
            nn.ConvTranspose2d(depth, channels, 6, stride=2),
        )  # fmt: skip
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                (nn.init.orthogonal_ if name == "gru.weight_hh" else nn.init.xavier_uniform_)(weight)
            elif "bias" in name:
                nn.init.zeros_(weight)
        self.to(memory_format=torch.channels_last)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zero state for `batch` episodes: deter (B, D), stoch (B, S*K)."""
        zeros = self.pixel_mean.new_zeros
        return zeros(batch, self.config["deter"]), zeros(batch, self.latent.size)

    def digest(self) -> str:
        """Hash of the weights, the same on every device: tells whether a checkpoint was made with this model."""
        weights = (weight.cpu().numpy().tobytes() for weight in self.state_dict().values())
        return hashlib.sha256(b"".join(weights)).hexdigest()[:16]

    def preprocess(self, image: Tensor) -> Tensor:
        """Frames (..., 64, 64, C) uint8 to normalised float pictures (..., C, 64, 64)."""
        pixels = image.movedim(-1, -3).float()
        if (half := self.config["dilation"] // 2) > 0:
            # a moving maximum along one axis, then the other: ten times faster on a CPU than max_pool2d, same numbers
            for axis in (-1, -2):
                padded = F.pad(pixels, (half, half, 0, 0) if axis == -1 else (0, 0, half, half))  # grey levels are >= 0
                pixels = functools.reduce(torch.maximum, (padded.narrow(axis, k, 64) for k in range(2 * half + 1)))
        return (pixels - self.pixel_mean) / self.pixel_std

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised pictures (..., C, 64, 64) -> embeddings (..., E)."""
        flat = pixels.flatten(0, -4).contiguous(memory_format=torch.channels_last)
        return self.encoder(flat).unflatten(0, pixels.shape[:-3])

    def recur(self, state: tuple[Tensor, Tensor], action_in: Tensor) -> Tensor:
        """h_t = f(h_{t-1}, z_{t-1}, a_{t-1}), Eq. 10; `action_in` (B, hidden), the projected action -> deter (B, D)."""
        deter, stoch = state
        return self.gru(F.elu(self.norm_in(self.stoch_in(stoch) + action_in)), deter).float()

    def encode(self, image: Tensor, prev_action: Tensor, is_first: Tensor, state: tuple[Tensor, Tensor] | None = None):
        """Filter a batch of sequences: image (T, B, 64, 64, C) uint8, prev_action (T, B, A), is_first (T, B).

        Returns deter (T, B, D), stoch (T, B, S*K), posterior parameters (T, B, S*K) and the state to carry on with.
        Where is_first, the state and the action before it are zeroed, so a window may run over episode ends.
        """
        return self.filter_embeds(self.embed(self.preprocess(image)), prev_action, is_first, state)

    def filter_embeds(self, embed: Tensor, prev_action: Tensor, is_first: Tensor, state=None):
        """The recurrent part of `encode`, from embeddings (T, B, E)."""
        keep = (~is_first).float().unsqueeze(-1)  # (T, B, 1)
        embed_in = self.post_embed(embed)  # (T, B, hidden): all time-steps at once, outside the loop
        action_in = self.action_in(prev_action * keep)  # (T, B, hidden)
        deter, stoch = self.initial(prev_action.shape[1]) if state is None else state
        deters, stochs, posts = [], [], []
        for t in range(len(prev_action)):
            deter = self.recur((deter * keep[t], stoch * keep[t]), action_in[t])  # (B, D)
            post = self.post_out(self.post_deter(deter) + embed_in[t])  # (B, S*K)
            stoch = self.latent.sample(post)  # (B, S*K)
            deters.append(deter), stochs.append(stoch), posts.append(post)
        return torch.stack(deters), torch.stack(stochs), torch.stack(posts), (deter, stoch)

    def filter_step(self, state: tuple[Tensor, Tensor], image: Tensor, prev_action: Tensor, is_first: Tensor):
        """One step of `encode` while playing: image (B, 64, 64, C), prev_action (B, A), is_first (B) -> new state."""
        return self.encode(image[None], prev_action[None], is_first[None], state)[-1]

    def imagine_step(self, state: tuple[Tensor, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        """s_{t+1} after action (B, A) in s_t, its stochastic half drawn from the prior (Eq. 10)."""
        deter = self.recur(state, self.action_in(action))
        return deter, self.latent.sample(self.prior(deter))

    def decode(self, feat: Tensor) -> Tensor:
        """Normalised pictures (..., C, 64, 64) from feat (..., F)."""
        pictures = self.decoder(self.decoder_in(feat.flatten(0, -2)))
        return pictures.float().unflatten(0, feat.shape[:-1])

    def to_pixels(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (..., C, 64, 64) to grey levels (..., 64, 64, C), clipped to 0..255."""
        return (pictures * self.pixel_std + self.pixel_mean).clamp(0, 255).movedim(-3, -1)

    def loss(self, image, prev_action, is_first, state=None) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Eq. 11 on a batch (shapes of `encode`), averaged over frames: loss (), metrics, state to carry on with."""
        c = self.config
        pixels = self.preprocess(image)  # (T, B, C, 64, 64)
        deter, stoch, post, state = self.filter_embeds(self.embed(pixels), prev_action, is_first, state)
        prior = self.prior(deter)  # (T, B, S*K): one batched call, the loop does not need it
        nll = 0.5 * (self.decode(torch.cat([deter, stoch], -1)) - pixels).square().sum((-3, -2, -1)).mean()
        kl = self.latent.kl(post, prior, c["kl_balance"]).mean()
        loss = c["image_weight"] * nll + c["beta"] * kl
        metrics = {"losses/world_model": loss.detach(), "losses/image_nll": nll.detach(), "losses/kl": kl.detach()}
        return loss, metrics, tuple(part.detach() for part in state)

    forward = loss  # DistributedDataParallel calls forward


# --- Gaussian latents and low-dimensional observations: AIME's world models (arXiv 2312.02019 v1), used by aime.py ---


def kl_gaussian(left: Tensor, right: Tensor) -> Tensor:
    """KL divergence, in nats, per latent: mean and standard deviation side by side (..., 2Z) -> (..., Z)."""
    (left_mean, left_std), (right_mean, right_std) = left.float().chunk(2, -1), right.float().chunk(2, -1)
    distance = (left_std.square() + (left_mean - right_mean).square()) / (2 * right_std.square())
    return (right_std / left_std).log() + distance - 0.5


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density (...) of each element, constants included (authors' code)."""
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)


def evidence_terms(log_prob: Tensor, std: Tensor, kl: Tensor, reweight: bool) -> tuple[Tensor, Tensor]:
    """Both halves of the negative ELBO, () each: log_prob and std (T, B, O), kl (T, B); sums over T, mean over B.

    `reweight` is the beta-NLL with beta = 0.5 (authors' code): each log-probability is multiplied by its own standard
    deviation, and the KL of a step by the mean of them. Neither factor gets a gradient: as a part of the loss, sigma
    could be lowered to make any error cheap.
    """
    if reweight:
        log_prob, kl = log_prob * std.detach(), kl * std.detach().mean(-1)
    return -log_prob.sum(-1).sum(0).mean(), kl.sum(0).mean()


class GaussianLatent:
    """Z independent Gaussians; parameters are mean and standard deviation side by side (..., 2Z)."""

    def __init__(self, stoch: int):
        self.size, self.params = stoch, 2 * stoch

    def sample(self, params: Tensor) -> Tensor:
        """Reparameterised sample (..., Z)."""
        mean, std = params.chunk(2, -1)
        return mean + std * torch.randn_like(std)

    def kl(self, post: Tensor, prior: Tensor, alpha: float | None = None, free_nats: float = 0.0) -> Tensor:
        """KL (...) of posterior and prior; alpha balances it as in `kl_balanced` (None: plain).

        Below `free_nats`, the total of a step, it has no gradient. The value is always the plain KL.
        """
        if alpha is None:
            total = kl_gaussian(post, prior).sum(-1)
        else:
            total = alpha * kl_gaussian(post.detach(), prior).sum(-1)
            total = total + (1 - alpha) * kl_gaussian(post, prior.detach()).sum(-1)
        if free_nats <= 0:
            return total
        clamped = total.clamp_min(free_nats)
        return clamped + (total - clamped).detach()


class TwinMLP(nn.Module):
    """Two ELU networks of one shape side by side, mean and standard deviation: (..., inputs) -> two (..., outputs).

    One batched product per layer is half the kernel launches of two networks; PyTorch's default initialisation.
    """

    def __init__(self, inputs: int, outputs: int, units: int, layers: int = 2):
        super().__init__()
        sizes = [inputs, *[units] * layers, outputs]
        shapes = [((2, i, o), (2, 1, o), i**-0.5) for i, o in zip(sizes, sizes[1:])]
        self.weights = nn.ParameterList(torch.empty(weight).uniform_(-bound, bound) for weight, _, bound in shapes)
        self.biases = nn.ParameterList(torch.empty(bias).uniform_(-bound, bound) for _, bias, bound in shapes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = x.flatten(0, -2).expand(2, -1, -1)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            hidden = torch.baddbmm(bias, F.elu(hidden) if k else hidden, weight)
        mean, raw = hidden.unflatten(1, x.shape[:-1])
        return mean, F.softplus(raw) + 1e-6


class TwinGaussian(TwinMLP):
    """The same, mean and standard deviation side by side (..., 2 * outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(super().forward(x), -1)


def silu_mlp(inputs: int, units: int, layers: int, outputs: int = 0) -> nn.Sequential:
    """Linear, LayerNorm, SiLU `layers` times, then a linear layer if `outputs`."""
    sizes = [inputs, *[units] * layers]
    parts = [part for i, o in zip(sizes, sizes[1:]) for part in (nn.Linear(i, o), nn.LayerNorm(o), nn.SiLU())]
    return nn.Sequential(*parts, *([nn.Linear(sizes[-1], outputs)] if outputs else []))


class BoundedGaussian(nn.Module):
    """One SiLU network with a common head: (..., inputs) -> mean and 2 sigmoid(x / 2) + 0.1 side by side (..., 2Z)."""

    def __init__(self, inputs: int, outputs: int, units: int):
        super().__init__()
        self.net = silu_mlp(inputs, units, 1, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        mean, raw = self.net(x).chunk(2, -1)
        return torch.cat([mean, 2 * torch.sigmoid(raw / 2) + 0.1], -1)


class GaussianWorldModel(WorldModel):
    """AIME's model: Gaussian latent (B, Z), observations obs (T, B, O) of sensors, or pictures (T, B, 64, 64, C) uint8.

    config: variant (rssm: Walker's model; rssmo: Cheetah's, `ssm.py:733` of the authors' code), deter, stoch, hidden,
    keys (name and size of every sensor in the order of O; or image and C), action_size.
    rssm: no layer before the GRU, two networks per Gaussian, learned decoder deviation, sensors enter as they are.
    rssmo: LayerNorm and SiLU, bounded deviation, encoder for the sensors, decoder deviation 1.
    """

    def __init__(self, config: dict):
        nn.Module.__init__(self)  # not WorldModel's, whose networks are others
        self.config = config | {"channels": config["keys"].get("image", 0)}
        c, keys, rssm = config, config["keys"], config["variant"] == "rssm"
        self.image, self.reweight = "image" in keys, rssm
        deter, stoch, hidden = c["deter"], c["stoch"], c["hidden"]
        self.latent, self.feat_size = GaussianLatent(stoch), deter + stoch
        if self.image:  # 64 -> 31 -> 14 -> 6 -> 2; the last convolution is linear
            widths, convs = [keys["image"], 32, 64, 128, 256], []
            for i, o in zip(widths, widths[1:]):
                convs += [nn.Conv2d(i, o, 4, stride=2), nn.ReLU()]
            self.encoder, self.embed_size = nn.Sequential(*convs[:-1], nn.Flatten()), 1024
            self.decoder = nn.Sequential(  # 1 -> 5 -> 13 -> 30 -> 64
                nn.Linear(self.feat_size, 1024), nn.Unflatten(-1, (1024, 1, 1)),
                nn.ConvTranspose2d(1024, 128, 5, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(128, 64, 5, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 6, stride=2), nn.ReLU(),
                nn.ConvTranspose2d(32, keys["image"], 6, stride=2), nn.Sigmoid(),
            )  # fmt: skip
        elif rssm:
            self.encoder, self.embed_size = nn.Identity(), sum(keys.values())
            self.decoder = nn.ModuleList(TwinMLP(self.feat_size, size, hidden) for size in keys.values())
        else:
            self.encoder, self.embed_size = silu_mlp(sum(keys.values()), hidden, 2), hidden
            self.decoder = nn.ModuleList(silu_mlp(self.feat_size, hidden, 2, size) for size in keys.values())
        inputs, head = stoch + c["action_size"], TwinGaussian if rssm else BoundedGaussian
        self.action_in = nn.Identity()  # the action enters unprojected
        self.joint_in = nn.Identity() if rssm else silu_mlp(inputs, hidden, 1)
        self.gru = nn.GRUCell(inputs if rssm else hidden, deter)
        self.prior, self.post = head(deter, stoch, hidden), head(deter + self.embed_size, stoch, hidden)

    def initial(self, batch: int) -> tuple[Tensor, Tensor]:
        """Zero state for `batch` episodes: deter (B, D), stoch (B, Z)."""
        zeros = self.gru.weight_hh.new_zeros
        return zeros(batch, self.config["deter"]), zeros(batch, self.config["stoch"])

    def preprocess(self, obs: Tensor) -> Tensor:
        """Pictures (..., 64, 64, C) uint8 to (..., C, 64, 64) in [0, 1]; sensors stay as they are."""
        return obs.movedim(-1, -3).float() / 255 if self.image else obs

    def embed(self, obs: Tensor) -> Tensor:
        """Preprocessed observations -> embeddings (..., E)."""
        if not self.image:
            return self.encoder(obs)
        return self.encoder(obs.flatten(0, -4)).unflatten(0, obs.shape[:-3])

    def recur(self, state: tuple[Tensor, Tensor], action_in: Tensor) -> Tensor:
        """h_t from the state before and the action (B, A) taken in it -> deter (B, D)."""
        return self.gru(self.joint_in(torch.cat([state[1], action_in], -1)), state[0])

    def observe(self, state: tuple[Tensor, Tensor], embed: Tensor, action: Tensor):
        """One step of filtering: the state (B, .) before, embed (B, E), the action (B, A) that led to it."""
        deter = self.recur(state, action)
        post = self.post(torch.cat([deter, embed], -1))
        return (deter, self.latent.sample(post)), post

    def filter_embeds(self, embed: Tensor, prev_action: Tensor, is_first: Tensor, state=None):
        """The recurrent part of `encode`, from embeddings (T, B, E)."""
        keep = (~is_first).float().unsqueeze(-1)  # (T, B, 1)
        state = self.initial(prev_action.shape[1]) if state is None else state
        steps = []
        for t in range(len(prev_action)):
            state, post = self.observe(tuple(x * keep[t] for x in state), embed[t], prev_action[t] * keep[t])
            steps.append((*state, post))
        return *map(torch.stack, zip(*steps)), state

    def decode(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the observation, (..., O) each, from feat (..., F); pictures flattened."""
        if self.image:
            mean = self.decoder(feat.flatten(0, -2)).flatten(1).unflatten(0, feat.shape[:-1])
            return mean, torch.ones_like(mean)
        if self.reweight:
            means, stds = zip(*[net(feat) for net in self.decoder])
            return torch.cat(means, -1), torch.cat(stds, -1)
        mean = torch.cat([net(feat) for net in self.decoder], -1)
        return mean, torch.ones_like(mean)

    def evidence(self, obs: Tensor, act, kl_balance: float | None = None, free_nats: float = 0.0) -> dict[str, Tensor]:
        """The negative ELBO of clips obs (T, B, ...), its actions given by act(feat (B, F), embed (B, E), t) -> (B, A).

        act is asked in the state before a step, first in the zero state, and sees what the step leads to; nothing is
        detached, so that it can be trained through all T steps. Returns nll and kl (), weighted as the variant
        prescribes; elbo (), unweighted; the latents deter, stoch, embed and the actions (T, B, .).
        """
        pixels = self.preprocess(obs)
        embed, state = self.embed(pixels), self.initial(obs.shape[1])
        steps = []
        for t in range(len(obs)):
            action = act(torch.cat(state, -1), embed[t], t)
            state, post = self.observe(state, embed[t], action)
            steps.append((*state, post, action))
        deter, stoch, post, action = map(torch.stack, zip(*steps))
        kl = self.latent.kl(post, self.prior(deter), kl_balance, free_nats)  # (T, B): the loop needs no prior
        mean, std = self.decode(torch.cat([deter, stoch], -1))  # (T, B, O)
        log_prob = gaussian_log_prob(pixels.flatten(2), mean, std)
        nll, weighted_kl = evidence_terms(log_prob, std, kl, self.reweight)
        elbo = (log_prob.detach().sum(-1) - kl.detach()).sum(0).mean()
        latents = {"deter": deter, "stoch": stoch, "embed": embed, "action": action}
        return {"nll": nll, "kl": weighted_kl, "elbo": elbo, "plain_kl": kl.detach().sum(0).mean()} | latents


# --- same in: collect_data, bc_pixels, world_model ---
@functools.cache
def area_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) of an area-averaging resize along one axis; equal to OpenCV's INTER_AREA."""
    edges = np.arange(size_out + 1) * size_in / size_out
    pixel = np.arange(size_in)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (np.clip(overlap, 0, None) * size_out / size_in).astype(np.float32)


def resize(frames: np.ndarray, size: int = 64) -> np.ndarray:
    """Area-average uint8 frames (..., height, width) to (..., size, size)."""
    rows, cols = area_matrix(frames.shape[-2], size), area_matrix(frames.shape[-1], size)
    return np.rint(rows @ frames.astype(np.float32) @ cols.T).astype(np.uint8)


def to_gray(rgb: np.ndarray) -> np.ndarray:
    """Grey levels (height, width) of an RGB picture (height, width, 3), with OpenCV's weights."""
    weights = np.array([9798, 19235, 3735], np.float32) / 32768  # exact in float32, so rounding is that of integers
    return (rgb.astype(np.float32) @ weights + 0.5).astype(np.uint8)


def is_image(space: gym.Space) -> bool:
    """Whether observations are pictures: uint8 (height, width) or (height, width, 1 or 3)."""
    shape = space.shape or ()
    return space.dtype == np.uint8 and len(shape) in (2, 3) and shape[2:] in ((), (1,), (3,))


def make_env(env_id: str) -> gym.Env:
    """Make a Gymnasium environment that can be seen; end with one sentence if there is none."""
    try:
        env = gym.make(env_id)
        space, render = env.action_space, not is_image(env.observation_space)
        if isinstance(env.unwrapped, ale_py.AtariEnv):
            problem = "has other Atari rules than the paper, use its NoFrameskip-v4 id"
        elif render and "rgb_array" not in env.metadata.get("render_modes", []):
            problem = "neither observes images nor renders rgb_array"
        elif not hasattr(space, "n") and not (space.dtype.kind == "f" and len(space.shape) == 1 and space.is_bounded()):
            problem = f"has actions {space}, only Discrete and a flat, bounded float Box are supported"
        else:
            env.close()
            env = gym.make(env_id, **({"render_mode": "rgb_array"} if render else {}))
            if render:  # a renderer that is not installed shows only now
                env.reset(), env.render()
            return env
        env.close()
    except (gym.error.Error, ImportError) as error:
        problem = f"cannot be made ({str(error).strip().splitlines()[0]})"
        if env_id in gym.registry:  # known, but something is not installed
            raise SystemExit(f"--env-id {env_id} {problem}.") from None
    known = [key for key, spec in gym.registry.items() if "NoFrameskip-v4" in key or "game" not in spec.kwargs]
    close = ", ".join(difflib.get_close_matches(env_id, known, cutoff=0.3))
    raise SystemExit(f"--env-id {env_id} {problem}; the closest names: {close or 'none'}.")


class Games:
    """`num_envs` copies of one environment, stepped together; a finished game restarts by itself.

    Atari (`...NoFrameskip-v4`): FIRE and up to 28 no-ops at the start, frame skip 4 with a maximum over the last two
    frames, no sticky actions, unclipped rewards, whole games. When a life is lost in a game that has FIRE, the next
    three actions are forced to no-op, FIRE, action 2 (without them a policy that never fires would wait for ever).
    Everything else: the environment's own steps, seen through its observation if that is an image, or `render()`.
    Slot i begins with seed `seed + i` and goes on with its own random generator. If `coming` is an iterator, every game
    begun takes its seed from there (Atari loads the game anew for that: 0.1 s). A fair sample are the first n games
    begun, not the first n to end, among which long games are rare.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, max_steps: int = 27000, grayscale: bool = True):
        self.num_envs, self.max_steps, self.seed, self.coming = num_envs, max_steps, seed, None
        self.atari = env_id.endswith("NoFrameskip-v4") and env_id in gym.registry
        self.channels = 1 if grayscale or self.atari else 3
        if self.atari:
            limit = 4 * max_steps + 400  # frames, the start included: `max_steps` itself is counted below
            self.envs = AtariVectorEnv(gym.spec(env_id).kwargs["game"], num_envs, stack_num=1, reward_clipping=False,
                                       max_num_frames_per_episode=limit, autoreset_mode="SameStep")  # fmt: skip
            self.action_space = self.envs.single_action_space
            self.has_fire = ale_py.Action.FIRE in self.envs.ale.get_action_set()
        else:
            self.envs = [make_env(env_id) for _ in range(num_envs)]
            self.action_space = self.envs[0].action_space

    def reset(self) -> np.ndarray:
        """Start every game anew; first frames (N, 64, 64, C) uint8."""
        N = self.num_envs
        self.seeds, self.steps, self.lives, self.forced = (np.zeros(N, np.int64) for _ in range(4))
        self.obs, self.frames, self.fresh = [None] * N, np.zeros((N, 64, 64, self.channels), np.uint8), np.ones(N, bool)
        self.restart(np.ones(N, bool), self.coming or itertools.count(self.seed))
        return self.frames.copy()

    def restart(self, which: np.ndarray, coming) -> None:
        """Begin a new game in the slots where `which` (N,) is true, seeded while `coming` has seeds."""
        self.seeds[which] = [next(coming, -1) for _ in range(which.sum())]
        self.steps[which] = self.forced[which] = 0  # `forced` counts the forced actions still to come
        self.fresh[which] = True  # a player who stacks frames must empty the stack: a game or a life has just begun
        if self.atari:
            obs, info = self.envs.reset(seed=self.seeds[which], options={"reset_mask": which})  # -1: do not seed
            self.frames84, self.lives = obs[:, -1], info["lives"].astype(np.int64)  # (N, 84, 84): what Zoo agents see
            self.frames, self.frame_number = resize(self.frames84)[..., None], info["episode_frame_number"]
        for i in () if self.atari else np.flatnonzero(which):
            self.obs[i] = self.envs[i].reset(seed=int(self.seeds[i]) if self.seeds[i] >= 0 else None)[0]
            self.frames[i] = self.picture(i)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Play one action each: frames (N, 64, 64, C), reward (N,), terminated (N,), truncated (N,), info.

        `info` holds what was really played: action, forced (N,), lives (N,) after the step, and final_frame
        (N, 64, 64, C), the last frame of the game where it ended (the frames returned already show the next game).
        """
        forced, before = self.forced > 0, self.lives
        self.steps += 1
        if self.atari:
            action = np.where(forced, 3 - self.forced, action)  # 0 no-op, 1 FIRE, 2
            obs, reward, terminated, truncated, raw = self.envs.step(action)
            self.frames84, self.lives = obs[:, -1].copy(), np.where(terminated, 0, raw["lives"])
            if terminated.any():  # these rows of `obs` show a new game already, with a seed that we did not choose
                self.frames84[terminated] = raw["final_obs"][terminated, -1]
            self.frames = resize(self.frames84)[..., None]
            self.forced = np.where((self.lives < before) & self.has_fire, 3, np.maximum(self.forced - 1, 0))
        else:
            if hasattr(self.action_space, "n"):
                played = action + self.action_space.start
            else:
                played = action = np.clip(action, self.action_space.low, self.action_space.high).astype(np.float32)
            self.obs, reward, *ends = ([*x] for x in zip(*(env.step(a) for env, a in zip(self.envs, played))))
            terminated, truncated = np.array(ends[0], bool), np.array(ends[1], bool)
            self.frames = np.stack([self.picture(i) for i in range(self.num_envs)])
        self.fresh = forced | (self.lives < before)
        truncated |= ~terminated & (self.steps >= self.max_steps)
        info = {"action": action, "forced": forced, "lives": self.lives, "final_frame": self.frames.copy()}
        self.played = action
        if (terminated | truncated).any():
            self.restart(terminated | truncated, self.coming or iter(()))
        return self.frames.copy(), np.array(reward, np.float32), terminated, truncated, info

    def picture(self, i: int) -> np.ndarray:
        """What slot i shows now: (64, 64, C) uint8."""
        picture = self.obs[i] if is_image(self.envs[i].observation_space) else self.envs[i].render()
        picture = picture.reshape(*picture.shape[:2], -1)
        picture = to_gray(picture)[..., None] if picture.shape[-1] == 3 and self.channels == 1 else picture
        return np.broadcast_to(np.moveaxis(resize(np.moveaxis(picture, -1, 0)), 0, -1), (64, 64, self.channels))


# --- end ---


# --- same in: bc_pixels, world_model ---
class Episodes:
    """Recorded episodes, end to end in one array: image (N, 64, 64, C) uint8, prev_action (N, A), is_first (N,).

    Reads the folders of collect_data.py and folders of Dreamer-style .npz files (keys image, action), whose
    action is already the one that led to the image of its row. Held-out files start with val_; elsewhere every tenth.
    With actions=False the files' actions are not read: prev_action has no columns, (N, 0).
    """

    def __init__(self, folders: list[str], split: str, limit: int = 0, device="cpu", actions: bool = True):
        images, prev_actions, self.starts, self.meta = [], [], [0], {}
        for folder in map(Path, folders):
            files = sorted(folder.glob("*.npz"))
            meta_file = folder / "dataset.json"
            try:
                meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
            except ValueError:
                sys.exit(f"{meta_file} is damaged: delete {folder} and collect its episodes anew.")
            if any(f.name.startswith("val_") for f in files):
                files = [f for f in files if f.name.startswith("val_") == (split == "val")]
            else:
                held = {i for i in range(len(files)) if i % 10 == 9 or len(files) < 10 and i == len(files) - 1}
                files = [f for i, f in enumerate(files) if (i in held) == (split == "val")]
            if not files:
                sys.exit(f"No {split} episodes in {folder}: make them with collect_data.py, or name another folder.")
            for file in files[: limit or None]:
                image, prev_action = self.read(file, meta.get("num_actions"), actions)
                images.append(image), prev_actions.append(prev_action), self.starts.append(self.starts[-1] + len(image))
                if image.shape[1:] != images[0].shape[1:] or prev_action.shape[1:] != prev_actions[0].shape[1:]:
                    sys.exit(f"{file} has other image or action shapes than {files[0]}: use one environment.")
            self.meta = self.meta or meta
        self.image = torch.from_numpy(np.concatenate(images)).to(device)
        self.prev_action = torch.from_numpy(np.concatenate(prev_actions)).to(device)
        self.starts = torch.tensor(self.starts)  # (episodes + 1,): episode i is rows starts[i] to starts[i + 1]
        self.is_first = torch.zeros(len(self.image), dtype=torch.bool, device=device)
        self.is_first[self.starts[:-1].to(device)] = True
        # a Dreamer-style folder does not say so: actions that are all zeros or one-hot are discrete
        onehot = bool(
            ((self.prev_action == 0) | (self.prev_action == 1)).all() and (self.prev_action.sum(-1) <= 1).all()
        )
        self.discrete = "num_actions" in self.meta if self.meta else onehot

    def read(self, file: Path, num_actions: int | None, actions: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """One file as image (T+1, 64, 64, C) and prev_action (T+1, A), zeros first, one-hot if discrete."""
        try:
            with np.load(file, allow_pickle=False) as npz:
                if not actions:
                    image = npz["image" if "image" in npz else "observations"]
                    prev_action = np.zeros((len(image), 0), np.float32)
                elif "image" in npz:
                    image, prev_action = npz["image"], npz["action"].astype(np.float32)
                else:
                    image, action = npz["observations"], npz["actions"]
                    if num_actions is not None:
                        action = np.eye(num_actions, dtype=np.float32)[action]
                    prev_action = np.concatenate([np.zeros_like(action[:1]), action]).astype(np.float32)
        except (OSError, ValueError, KeyError, EOFError, IndexError, zipfile.BadZipFile, zlib.error) as error:
            sys.exit(f"{file} is not a readable episode ({error}): delete it and run the collection again.")
        if image.dtype != np.uint8 or image.shape[1:3] != (64, 64) or len(image) != len(prev_action):
            sys.exit(
                f"{file} does not hold 64x64 uint8 pictures with one action each: it has {image.shape} {image.dtype}."
            )
        if prev_action.ndim != 2:
            sys.exit(f"{file} has actions {prev_action.shape[1:]}, not one flat vector each: dataset.json is missing.")
        return image, prev_action

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch (image, prev_action, is_first) at row numbers `index` (T, B), gathered where the data lives."""
        index = index.to(self.image.device)
        return self.image[index], self.prev_action[index], self.is_first[index]

    def digest(self) -> str:
        """A number that tells whether two runs had the same episodes."""
        parts = self.starts, self.prev_action, self.image[::101]
        return hashlib.sha256(b"".join(part.cpu().numpy().tobytes() for part in parts)).hexdigest()


# --- end ---


class Streams:
    """Draws (T, B) windows; with `carry`, each of the B streams walks to its episode's end, then starts another one."""

    def __init__(self, data: Episodes, batch: int, length: int, carry: bool, seed: int):
        self.data, self.length, self.carry = data, length, carry
        self.rng = torch.Generator().manual_seed(seed)
        self.row = torch.randint(len(data.image), (batch,), generator=self.rng)
        self.fresh = True  # the first chunk starts anywhere, from a zero state
        row = torch.arange(len(data.image))
        ends = data.starts[torch.searchsorted(data.starts, row, right=True)]
        self.inside = row[row + length <= ends]  # first rows of the windows that cross no episode's end
        if not carry and not len(self.inside):
            sys.exit(f"No episode has {length} frames: lower --batch-length, or leave out --no-carry-state.")

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next batch: image (L, B, 64, 64, C), prev_action (L, B, A), is_first (L, B)."""
        starts, batch = self.data.starts, len(self.row)
        if self.carry:
            index = torch.empty(self.length, batch, dtype=torch.long)
            for t in range(self.length):
                inside = self.fresh and t == 0  # a row drawn anywhere may be an episode's first
                ended = torch.zeros(batch, dtype=torch.bool) if inside else torch.isin(self.row, starts[1:])
                if ended.any():
                    draw = torch.randint(len(starts) - 1, (batch,), generator=self.rng)
                    self.row = torch.where(ended, starts[draw], self.row)
                index[t] = self.row
                self.row = self.row + 1
        else:
            first = self.inside[torch.randint(len(self.inside), (batch,), generator=self.rng)]
            index = torch.arange(self.length)[:, None] + first
        image, prev_action, is_first = self.data.rows(index)
        if not self.carry or self.fresh:
            is_first[0] = True
        self.fresh = False
        return image, prev_action, is_first

    def state_dict(self) -> dict:
        return {"rng": self.rng.get_state(), "row": self.row, "fresh": self.fresh}

    def load_state_dict(self, saved: dict) -> None:
        self.rng.set_state(saved["rng"].cpu())
        self.row, self.fresh = saved["row"].cpu(), saved["fresh"]


class Trajectories:
    """Recorded trajectories in AIME's published format (`0.npz, 1.npz, ...`), end to end; see docs/aime.md.

    obs (N, O) float32, the sensors in `keys` side by side, or (N, 64, 64, C) uint8; prev_action (N, A), the action that
    led to the row. With actions=False the files' actions are not read and prev_action is None.
    """

    def __init__(self, folders: list[str], keys: dict[str, int], limit: int = 0, actions: bool = True, device="cpu"):
        obs, prev_action, self.starts, self.returns, self.meta = [], [], [0], [], {}
        for folder in map(Path, folders):
            files = sorted((f for f in folder.glob("*.npz") if f.stem.isdigit()), key=lambda f: int(f.stem))
            if not files:
                sys.exit(f"No trajectories in {folder}: make them with dmc.py, or name another folder.")
            for file in files[: limit or None]:
                try:
                    with np.load(file, allow_pickle=False) as npz:  # reads only the keys that are asked for
                        parts = [npz[name] for name in keys]
                        prev_action += [npz["pre_action"].astype(np.float32)] if actions else []
                        self.returns.append(float(npz["reward"].sum(dtype=float)))
                    sizes = [part.shape[-1] if part.ndim > 1 else 1 for part in parts]
                    if sizes != list(keys.values()) or len({len(part) for part in parts}) > 1:
                        raise ValueError(f"it has {dict(zip(keys, sizes))}, not {keys}")
                    if "image" in keys:
                        obs.append(parts[0])
                    else:
                        obs.append(np.concatenate([p.reshape(len(p), -1) for p in parts], -1).astype(np.float32))
                except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    sys.exit(f"{file} is not a trajectory of this kind ({error}): delete it or name another folder.")
                self.starts.append(self.starts[-1] + len(obs[-1]))
            meta_file = folder / "dataset.json"
            self.meta = self.meta or (json.loads(meta_file.read_text()) if meta_file.exists() else {})
        self.obs = torch.from_numpy(np.concatenate(obs)).to(device)
        self.prev_action = torch.from_numpy(np.concatenate(prev_action)).to(device) if actions else None
        self.starts = torch.tensor(self.starts)  # (trajectories + 1,)

    def first_rows(self, length: int) -> Tensor:
        """Rows at which a window of `length` rows begins that crosses no trajectory's end."""
        row = torch.arange(len(self.obs))
        ends = self.starts[torch.searchsorted(self.starts, row, right=True)]
        inside = row[row + length <= ends]
        if not len(inside):
            sys.exit(f"No trajectory has {length} rows: lower --batch-length, or record longer ones.")
        return inside


def pixel_statistics(data: Episodes, args: Args, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of (dilated) frames, global (1, 1, 1) or per pixel (C, 64, 64), in grey levels."""
    smallest = {"depth": 1, "deter": 1, "hidden": 1, "stoch": 1, "classes": 1}
    probe = WorldModel(model_config(args, channels, 1) | smallest)
    pick = torch.linspace(0, len(data.image) - 1, min(len(data.image), 4000)).long().to(data.image.device)
    pixels = probe.to(data.image.device).preprocess(data.image[pick])  # (n, C, 64, 64), mean 0 and std 1 so far
    dim = 0 if args.pixel_stats == "pixel" else (0, 1, 2, 3)
    shape = (channels, 64, 64) if args.pixel_stats == "pixel" else (1, 1, 1)
    return pixels.mean(dim).view(shape), pixels.std(dim).clamp_min(args.pixel_std_floor).view(shape)


def model_config(args: Args, channels: int, action_size: int) -> dict:
    """What a checkpoint must remember to rebuild its model."""
    names = ("depth", "deter", "stoch", "classes", "hidden", "pixel_stats", "dilation", "image_weight", "beta",
             "kl_balance")  # fmt: skip
    return {name: getattr(args, name) for name in names} | {"channels": channels, "action_size": action_size}


# --- same in: bc_pixels, world_model ---
def save(path: Path, content: dict) -> None:
    """Write a checkpoint under a temporary name, then rename: a crash leaves the old one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load(path: Path, device: torch.device) -> dict:
    """Read what `save` wrote; end with one sentence if the file is something else."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        return dict(content)
    except Exception as error:  # the reader fails in many ways
        sys.exit(f"{path} is not a checkpoint ({type(error).__name__}): delete it, or name another.")


# --- end ---


def load_world_model(path: str | Path, device: str | torch.device = "cpu", env_id: str = "") -> WorldModel:
    """The frozen model in a checkpoint of this script (full, or the small one that is shipped), of env_id if given."""
    if not Path(path).exists():
        sys.exit(f"No world model at {path}: train one with world_model.py, or name another with --world-model.")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        cls = GaussianWorldModel if "variant" in content["config"] else WorldModel
        model = cls(content["config"])
        model.load_state_dict({name: value.float() for name, value in content["model"].items()})
    except Exception as error:
        sys.exit(f"{path} is not a world model of this project ({type(error).__name__}): train it again.")
    if env_id and content.get("env_id", env_id) != env_id:
        sys.exit(f"{path} is of {content['env_id']}, not of {env_id}: name another with --world-model.")
    return model.to(device).requires_grad_(False).eval()


@torch.no_grad()
def validate(model: WorldModel, data: Episodes, horizon: int = 15, episodes: int = 2) -> tuple[dict, np.ndarray]:
    """Errors on held-out episodes, filtered from start to end, and a strip of pictures.

    Errors are squared, in units of the normalised picture, as a share of the error of predicting the mean picture (1):
    posterior near the start (t < 100) and at the end (last 100 frames), open loop 1 and `horizon` steps ahead with the
    true actions, and, to compare with, the last frame seen instead of a prediction `horizon` steps ahead.
    """
    sums: dict[str, list[float]] = {name: [] for name in ("start", "end", "open_1", "open_h", "copy_h", "kl")}
    for i in range(min(episodes, len(data.starts) - 1)):
        rows = torch.arange(int(data.starts[i]), int(data.starts[i + 1]))
        state, feats, pixels, kls = None, [], [], []
        for chunk in rows.split(200):
            image, prev_action, is_first = data.rows(chunk[:, None])  # (t, 1, ...)
            deter, stoch, post, state = model.encode(image, prev_action, is_first, state)
            feats.append(torch.cat([deter, stoch], -1)[:, 0]), pixels.append(model.preprocess(image)[:, 0])
            kls.append(model.latent.kl(post, model.prior(deter), 0.5).mean().item())
        feat, pixels = torch.cat(feats), torch.cat(pixels)  # (t, F), (t, C, 64, 64)
        size = len(rows)
        edge = min(100, size // 2)
        ends = torch.cat([torch.arange(edge), torch.arange(size - edge, size)])
        power = pixels.square().sum((1, 2, 3)).mean()
        share = (model.decode(feat[ends]) - pixels[ends]).square().sum((1, 2, 3)) / power
        sums["start"].append(share[:edge].mean().item()), sums["end"].append(share[edge:].mean().item())
        sums["kl"].append(float(np.mean(kls)))
        start = torch.linspace(5, max(size - horizon - 1, 5), 64).long().clamp(max=size - 2)  # (64,) open-loop starts
        deter_size = model.config["deter"]
        state = feat[start, :deter_size], feat[start, deter_size:]
        strip = [feat[start[::8]]]
        for step in range(1, horizon + 1):
            target = (start + step).clamp(max=size - 1)
            state = model.imagine_step(state, data.prev_action[rows[0] + target])
            error = (model.decode(torch.cat(state, -1)) - pixels[target]).square().sum((1, 2, 3)).mean()
            if step == 1:
                sums["open_1"].append((error / pixels[target].square().sum((1, 2, 3)).mean()).item())
            strip.append(torch.cat(state, -1)[::8])
        scale = pixels[target].square().sum((1, 2, 3)).mean()
        sums["open_h"].append((error / scale).item())
        sums["copy_h"].append(((pixels[start] - pixels[target]).square().sum((1, 2, 3)).mean() / scale).item())
    names = {"start": "posterior_error_start", "end": "posterior_error_end", "open_1": "open_loop_error_1",
             "open_h": f"open_loop_error_{horizon}", "copy_h": f"copy_error_{horizon}",
             "kl": "kl_validation"}  # fmt: skip
    metrics = {f"world_model/{names[name]}": float(np.mean(values)) for name, values in sums.items()}
    # rows: truth, posterior, open loop, error; columns: 0, 3, 6, ... steps ahead of one start in the middle
    steps = torch.arange(0, horizon + 1, 3)
    target = (start[32] + steps).clamp(max=size - 1)
    truth, posterior = model.to_pixels(pixels[target]), model.to_pixels(model.decode(feat[target]))
    dream = model.to_pixels(model.decode(torch.stack(strip)[steps, 4]))
    panel = torch.stack([truth, posterior, dream, (dream - truth).abs()])  # (4, steps, 64, 64, C)
    panel = panel.permute(0, 2, 1, 3, 4).reshape(4 * 64, len(steps) * 64, -1)
    return metrics, panel.byte().cpu().numpy()


def graphed(update, *example: Tensor, optimizer: torch.optim.Optimizer | None = None):
    """Record `update(*tensors)` as a CUDA graph; the returned function copies its inputs in and replays it.

    Recording runs the update three times; afterwards the optimiser and its weights are put back as they were.
    """
    groups = optimizer.param_groups if optimizer else []
    before = [(p, p.detach().clone(), copy.deepcopy(dict(optimizer.state[p]))) for g in groups for p in g["params"]]
    rng = torch.cuda.get_rng_state()
    static = [value.clone() for value in example]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up: lets libraries choose kernels and optimisers allocate their state
        for _ in range(3):
            update(*static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = update(*static)
    with torch.no_grad():  # in place: the graph reads and writes these very tensors
        for weight, value, state in before:
            weight.copy_(value)
            for name, part in optimizer.state[weight].items():
                part.copy_(state[name]) if name in state else part.zero_()
    torch.cuda.set_rng_state(rng)

    def replay(*values: Tensor):
        for target, value in zip(static, values, strict=True):
            target.copy_(value)
        graph.replay()
        return result

    return replay


# --- same in: bc_pixels, world_model ---
def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def parse_args(cls, sizes: dict, argv: list[str] | None = None):
    """Command line to Args: --size picks the defaults (a column of `sizes`), every other flag overrides them."""
    argv = sys.argv[1:] if argv is None else argv
    size = dict(zip(argv, argv[1:])).get("--size", next((a[7:] for a in argv if a.startswith("--size=")), "auto"))
    if size == "auto":
        size = "paper" if torch.cuda.is_available() and "--no-cuda" not in argv else "small"
        print(f"--size auto: {size} size ({'CUDA' if size == 'paper' else 'CPU; --size paper needs a GPU, or months'})")
    if size not in sizes:
        sys.exit(f"--size {size} is unknown: choose auto, {', '.join(sizes)}.")
    args = tyro.cli(cls, args=argv, default=cls(**{**sizes[size], "size": size}))
    for name, value in vars(args).items():
        least = 0 if name in ("seed", "updates", "layers") or not getattr(cls, name, 1) else 1
        if type(value) is int and value < least:
            sys.exit(f"--{name.replace('_', '-')} {value}: it must be {least} or more.")
    return dataclasses.replace(args, size=size)


# --- end ---


def main(args: Args) -> dict:
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cuda = args.cuda and torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    if args.dilation > 1 and args.dilation % 2 == 0:
        sys.exit("--dilation must be odd: it is the width of a window around each pixel.")
    if args.batch_size % world or args.cudagraphs and (world > 1 or not cuda):
        sys.exit("--cudagraphs needs one GPU, and --batch-size must be a multiple of the number of processes.")
    if world > 1:
        dist.init_process_group("nccl" if cuda else "gloo")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # CPU arithmetic on denormal numbers (tiny probabilities) is many times slower
    torch.manual_seed(args.seed)
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/world_model-{args.size}")
    folders = [f"data/{args.env_id}/{name}" for name in ("world", "expert")]
    folders = args.data_dir.split(",") if args.data_dir else [f for f in folders if Path(f).exists()]
    if not folders:
        sys.exit(f"No dataset: run python collect_data.py --env-id {args.env_id} --name world, or give --data-dir.")

    # (1) data, and a stream of batches per process
    data, held_out = Episodes(folders, "train", device=device), Episodes(folders, "val", device=device)
    streams = Streams(data, args.batch_size // world, args.batch_length, args.carry_state, args.seed + rank)
    channels, action_size = data.image.shape[-1], data.prev_action.shape[-1]
    model = WorldModel(model_config(args, channels, action_size))
    mean, std = pixel_statistics(data, args, channels)
    model.pixel_mean.copy_(mean), model.pixel_std.copy_(std)
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, eps=1e-5, fused=True)
    carried = model.initial(args.batch_size // world)
    torch.manual_seed(args.seed + rank)  # same weights in every process, different noise
    step, seconds, checkpoint = 0, 0.0, run_dir / "checkpoint.pt"
    if checkpoint.exists():
        saved = load(checkpoint, device)
        if saved.get("config") != model.config or len(saved.get("ranks", ())) != world:
            sys.exit(f"{checkpoint} was made with other settings: give --run-dir, or repeat its settings.")
        model.load_state_dict(saved["model"]), optimizer.load_state_dict(saved["optimizer"])
        step, seconds, own = saved["step"], saved["seconds"], saved["ranks"][rank]
        streams.load_state_dict(own)
        carried = own["deter"].to(device), own["stoch"].to(device)
        if ("cuda_rng" in own) == cuda:  # from another device, random numbers start anew
            torch.set_rng_state(own["torch_rng"].cpu())
            if cuda:
                torch.cuda.set_rng_state(own["cuda_rng"].cpu())
        print(f"resuming {checkpoint} at update {step}")
    if args.compile:
        model.recur = torch.compile(model.recur)
    parallel = DistributedDataParallel(model) if world > 1 else model
    parameters = list(model.parameters())

    def update(image, prev_action, is_first, deter, stoch):
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16 and cuda):
            loss, metrics, state = parallel(image, prev_action, is_first, (deter, stoch))  # (2) to (5)
        optimizer.zero_grad(set_to_none=not args.cudagraphs)
        loss.backward()
        metrics["losses/grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.grad_clip, foreach=True)
        optimizer.step()  # (6)
        return metrics, state

    for group in optimizer.param_groups:  # set anew: the checkpoint may come from a run with or without CUDA graphs
        group["capturable"] = args.cudagraphs
        group["lr"] = torch.tensor(args.learning_rate, device=device) if args.cudagraphs else args.learning_rate
    if args.cudagraphs:
        position = streams.state_dict()
        update = graphed(update, *streams.next(), *carried, optimizer=optimizer)
        streams.load_state_dict(position)

    if rank == 0:
        log = Log(run_dir, step, args)
        count = sum(p.numel() for p in parameters)
        print(f"model: {count / 1e6:.2f} M weights, {len(data.image)} frames, {len(data.starts) - 1} games, {device}")
    frames, began = args.batch_size * args.batch_length, time.time()
    done_before, metrics, report = step, {}, {}
    while step < args.updates:
        if args.anneal:
            rate = args.learning_rate * (1 - 0.9 * step / args.updates)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"].fill_(rate) if args.cudagraphs else rate
        batch = streams.next()
        metrics, carried = update(*batch, *(carried if args.carry_state else model.initial(len(batch[0][0]))))
        step += 1
        elapsed = seconds + time.time() - began
        errors = {}
        if step % args.eval_every == 0 or step == args.updates:
            own = streams.state_dict() | {"deter": carried[0], "stoch": carried[1], "torch_rng": torch.get_rng_state()}
            own |= {"cuda_rng": torch.cuda.get_rng_state()} if cuda else {}
            ranks = [own] * world
            if world > 1:
                dist.all_gather_object(ranks, own)
            if rank == 0:
                rng = torch.get_rng_state()  # validating must not change the training noise
                errors, panel = validate(model, held_out)
                torch.set_rng_state(rng)
                if cuda:
                    torch.cuda.set_rng_state(own["cuda_rng"])
                print("\n  " + "  ".join(f"{name.split('/')[1]} {value:.3f}" for name, value in errors.items()))
                log.writer.add_image("world_model/truth_posterior_dream_error", panel, step, dataformats="HWC")
                picture = Image.fromarray(panel.squeeze())
                picture.resize((2 * picture.width, 2 * picture.height), 0).save(run_dir / "dream.png")
                versions = {"torch": str(torch.__version__), "numpy": str(np.__version__)}
                save(checkpoint, {"config": model.config, "args": vars(args), "step": step, "seconds": elapsed,
                                  "model": model.state_dict(), "optimizer": optimizer.state_dict(), "ranks": ranks,
                                  "env_id": args.env_id, "versions": versions})  # fmt: skip
        if rank == 0 and (step % args.log_every == 0 or errors):
            speed = (step - done_before) / (time.time() - began)
            row = {name: value.item() for name, value in metrics.items()}
            row |= {"charts/frames_per_second": speed * frames} | errors
            log(step, elapsed, row)
            report |= row
            print(f"\rupdate {step}/{args.updates} ({step / args.updates:.0%})"
                  f"  loss {report['losses/world_model']:.2f}  image {report['losses/image_nll']:.2f}"
                  f"  kl {report['losses/kl']:.2f}  {speed * frames:.0f} frames/s"
                  f"  {clock((args.updates - step) / speed)} left", end="", flush=True)  # fmt: skip
    if rank == 0:
        log.writer.close()
        took = clock(seconds + time.time() - began)
        print(f"world model of {args.env_id}: {checkpoint} after {step} updates, {took}")
    if world > 1:
        dist.destroy_process_group()
    return {"step": step, "checkpoint": str(checkpoint)} | report


# --- same in: bc_pixels, world_model ---
class Log:
    """A run's metrics.csv (long format: step, seconds, name, value) and the same in TensorBoard."""

    def __init__(self, run_dir: Path, step: int, args):
        """Go on from update `step`: what an interrupted run wrote after its last checkpoint is taken out."""
        run_dir.mkdir(parents=True, exist_ok=True)
        self.file = run_dir / "metrics.csv"
        for file in (self.file, run_dir / "episodes.csv"):
            if file.exists():
                head, *rows = file.read_bytes().splitlines(keepends=True) or [b""]
                file.write_bytes(head + b"".join(row for row in rows if int(row.split(b",")[0]) <= step))
        self.writer = SummaryWriter(run_dir, purge_step=step + 1)
        self.writer.add_text("hyperparameters", "\n".join(f"- {k}: {v}" for k, v in vars(args).items()))

    def __call__(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        with open(self.file, "a") as out:
            out.write("" if out.tell() else "step,seconds,name,value\n")
            for name, value in metrics.items():
                out.write(f"{step},{seconds:.1f},{name},{value:.6g}\n")
                self.writer.add_scalar(name, value, step)


# --- end ---


if __name__ == "__main__":
    try:
        main(parse_args(Args, SIZES))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from the last checkpoint.")
