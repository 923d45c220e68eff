# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""AIME: imitation from observations by action inference, maximising the evidence of demonstrations under a world model.

Paper: arXiv 2312.02019 v1. A body that has learnt from its own past what its actions do can imitate observations
alone: it infers the actions that make them most likely under its model. Phase 1 trains that model on
trajectories with actions, phase 2 freezes it and trains a policy by the same objective, its actions taking the place
of the recorded ones. No rewards, no environment, and in phase 2 no actions.

  (1) phase 1: draw B clips of T observations o_t, and the actions a_{t-1} that led to them    `draw_clips`
  (2) filter them, z_t ~ q(z | h_t, o_t); Adam step on -ELBO(o_{1:T} | a_{0:T-1})              `body_loss`
  (3) freeze the model; new policy pi(a | s), a tanh-squashed Gaussian                         `Policy`
  (4) phase 2: draw clips of the demonstrations' observations                                  `draw_clips`
  (5) a_{t-1} ~ pi(. | s_{t-1}), s_t ~ posterior given o_t; Adam step on -ELBO   Eq. 8         `imitation_loss`
  (6) play: filter what is seen, act with tanh(mean)                                           `Policy.mode`

    python aime.py --env-id walker-walk                    (walk -> walk; makes whatever is missing; needs dm_control)
    python aime.py --env-id walker-walk --body walker-stand-buffer,walker-random --setting mdp
    python aime.py --env-id walker-walk --eval-only

Shapes: world_model.py; obs (T, B, O). prev_action[t] led to obs[t]; pi chooses it in feat[t - 1], zeros before t = 0.
Differences from the paper: the model's layers are those of world_model.py; step sizes as in the authors' code (3e-4;
paper 1e-3 on Walker); --model-kl is 1 (paper, Cheetah in lpomdp: 0.0002); no decoders of unobserved sensors beside the
model (diagnostics only). As the authors' code: sensors on Walker train with the beta-NLL, which weights Eq. 8 by the
decoder's deviation. The small size leaves the paper in width, batch and updates, and anneals (SIZES).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmc import DMC, Trajectories, draw, observed, random_returns, recorded_actions, recordings
from world_model import (Games, Run, WorldModel, command, kl_gaussian, load, load_world_model, make, parse_args, player,
                         run_folder, start, window_starts)  # fmt: skip


@dataclass
class Args:
    # run
    env_id: str = "walker-walk"
    """task of the demonstrations and of the test: walker-stand, -walk, -run, cheetah-run, -runb, -flip or -flipb"""
    size: str = "auto"
    """auto, paper, small or debug: chooses the other defaults, see SIZES (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<setting>-<data>-<N^E>-<seed>. The same
    command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    # data
    body: str = ""
    """D_body, data sets separated by commas (several: a mix); default <env_id>-buffer, the task's own"""
    demo: str = ""
    """D_demo, data set of the demonstrations; default <env_id>-expert"""
    num_expert_episodes: int = 100
    """N^E, demonstrations to imitate, the first ones in numeric order"""
    data_dir: str = ""
    """folder of all data sets; default data/dmc (visual: data/dmc-visual)"""
    setting: Literal["lpomdp", "mdp", "visual"] = "lpomdp"
    """what is observed: lpomdp (sensors without velocities), mdp (all sensors), visual (64x64 pictures)"""
    # world model
    world_model: str = ""
    """checkpoint of phase 1; default runs/<walker|cheetah>/world_model-<size>-<setting>-<data>-<seed>, with --run-dir
    <run_dir>/world_model; trained now if there is none"""
    variant: Literal["auto", "rssm", "rssmo"] = "auto"
    """rssm (the decoder learns its deviation), rssmo (1), auto: rssm on Walker, rssmo on Cheetah (authors' configs)"""
    deter: int = 512
    """D, width of the recurrent state h"""
    stoch: int = 0
    """Z, width of the latent z; 0: 128 (rssm) or 30 (rssmo)"""
    hidden: int = 0
    """width of the model's hidden layers; 0: 256 (rssm) or 512 (rssmo)"""
    depth: int = 32
    """visual: channels of the first convolution; each further one doubles them"""
    picture: int = 64
    """visual: side of the pictures that the model sees, 64 or 32 (every second pixel)"""
    free_nats: float = -1.0
    """KL per step below which it has no gradient in phase 1; negative: 0 (rssm) or 1 (rssmo). Phase 2 has none"""
    balance: float = -1.0
    """share of the KL that trains the prior in phase 1; negative: plain KL (rssm) or 0.8 (rssmo). Phase 2: plain"""
    model_kl: float = 1.0
    """weight of the KL in phase 1 (paper, Cheetah in lpomdp: 0.0002)"""
    model_updates: int = 100_000
    """gradient steps of phase 1"""
    # actor and critic
    updates: int = 50_000
    """gradient steps of phase 2"""
    batch_size: int = 50
    """B, clips per update, in both phases"""
    batch_length: int = 50
    """T, steps per clip"""
    units: int = 128
    """width of the policy's two hidden layers"""
    learning_rate: float = 3e-4
    """Adam's step size, in both phases (paper, Walker: 1e-3)"""
    anneal: bool = False
    """lower the step size linearly to a tenth over each phase"""
    grad_clip: float = 100.0
    """largest gradient norm"""
    # evaluation
    eval_episodes: int = 100
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
    # aime
    objective: Literal["elbo", "kl", "reconstruction"] = "elbo"
    """phase 2, elbo: both terms of Eq. 8; kl, reconstruction: ablations, that one alone"""
    imitation_kl: float = 1.0
    """weight of the KL in phase 2"""
    idm: bool = False
    """ablation: train an inverse dynamics model beside phase 1, and clone its actions in phase 2"""


SMALL = dict(deter=200, stoch=30, hidden=256, depth=8, picture=32, batch_size=32,
             batch_length=32, model_updates=15_000, updates=5000, learning_rate=1e-3, anneal=True, eval_episodes=50,
             threads=1)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(deter=16, stoch=4, hidden=16, units=16, batch_size=4, batch_length=8, model_updates=20,
                          updates=20, eval_every=10, log_every=5, eval_episodes=2, quick_episodes=2,
                          num_expert_episodes=2),
}  # fmt: skip


def mlp(inputs: int, outputs: int, units: int) -> nn.Sequential:
    """ELU network with two hidden layers (authors' code), PyTorch's default initialisation."""
    hidden = [nn.Linear(inputs, units), nn.ELU(inplace=True), nn.Linear(units, units), nn.ELU(inplace=True)]
    return nn.Sequential(*hidden, nn.Linear(units, outputs))


class Policy(nn.Module):
    """Tanh-squashed Gaussian in [-1, 1], a network each for mean and deviation; also the inverse dynamics model."""

    def __init__(self, inputs: int, action_size: int, units: int):
        super().__init__()
        self.mean, self.raw = mlp(inputs, action_size, units), mlp(inputs, action_size, units)

    def gaussian(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation before squashing, (..., A) each, in states feat (..., F)."""
        return self.mean(feat), F.softplus(self.raw(feat)) + 1e-6

    def sample(self, feat: Tensor) -> Tensor:
        """Reparameterised actions (..., A) in states feat (..., F)."""
        mean, std = self.gaussian(feat)
        return torch.tanh(mean + std * torch.randn_like(std))

    def mode(self, feat: Tensor) -> Tensor:
        """tanh of the mean, (..., A): what is played."""
        return torch.tanh(self.mean(feat))

    def log_prob(self, feat: Tensor, action: Tensor) -> Tensor:
        """log pi(action | feat) (...); actions are moved inside the range, where the density is finite."""
        mean, std = self.gaussian(feat)
        squashed = action.clamp(-0.999, 0.999)
        density = -0.5 * ((torch.atanh(squashed) - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)
        return (density - torch.log1p(-squashed.square())).sum(-1)


def draw_clips(first_rows: Tensor, count: int, length: int, rng: torch.Generator) -> Tensor:
    """Row numbers (T, B) of random clips, uniform over all that fit into a trajectory."""
    first = first_rows[torch.randint(len(first_rows), (count,), generator=rng)]
    return first + torch.arange(length)[:, None]


def clip_evidence(model: WorldModel, obs: Tensor, act, kl_balance: float | None = None, free_nats: float = 0.0):
    """Evidence of clips obs (T, B, ...) under actions act (T, B, A) or act(feat, t), from a zero state.

    Returns nll and kl (), weighted as the model prescribes, elbo (), and features (T, B, F): sums over T, means over B.
    """
    pixels = model.preprocess(obs)
    deter, stoch, post, _ = model.filter(model.embed(pixels), act)
    terms = model.evidence(pixels, deter, stoch, post, kl_balance, free_nats)
    return *(term.sum(0).mean() for term in terms), torch.cat([deter, stoch], -1)


def body_loss(model: WorldModel, obs: Tensor, prev_action: Tensor, kl_balance: float | None,
              free_nats: float, kl_weight: float, idm: Policy | None = None):  # fmt: skip
    """Phase 1: -ELBO of clips obs (T, B, ...) given the recorded actions (T, B, A); loss () and metrics.

    An inverse dynamics model learns beside it from detached states: a_t from s_t and the embedding of o_{t+1}.
    """
    nll, kl, elbo, feat = clip_evidence(model, obs, prev_action, kl_balance, free_nats)
    loss = nll + kl_weight * kl
    metrics = {"losses/world_model": loss, "losses/nll": nll, "losses/kl": kl, "world_model/elbo": elbo}
    if idm is not None:
        inputs = torch.cat([feat[:-1], model.embed(model.preprocess(obs[1:]))], -1).detach()
        # differs from the authors' code, which averages over time and sums over the batch: as all other terms here
        inverse = -idm.log_prob(inputs, prev_action[1:]).sum(0).mean()
        loss, metrics = loss + inverse, metrics | {"losses/idm": inverse}
    return loss, {key: value.detach() for key, value in metrics.items()}


def imitation_loss(model: WorldModel, policy: Policy, obs: Tensor, objective: str = "elbo",
                   kl_weight: float = 1.0, idm: Policy | None = None):  # fmt: skip
    """Phase 2, Eq. 8: -ELBO of clips obs (T, B, ...) under the policy's actions; loss (), metrics, actions (T, B, A).

    No free nats and no KL balancing: the latter would change the direction of the policy's gradient, which comes
    through the prior as well as through the posterior. With `idm` the actions are the frozen inverse model's, and the
    policy is drawn to it: loss KL(idm || pi), summed over T.
    """
    actions, distances, embed = [], [], None if idm is None else model.embed(model.preprocess(obs))

    def act(feat: Tensor, t: int) -> Tensor:
        if idm is None:
            actions.append(policy.sample(feat))
        else:
            inputs = torch.cat([feat, embed[t]], -1)
            gaussians = torch.cat(idm.gaussian(inputs), -1), torch.cat(policy.gaussian(feat), -1)
            distances.append(kl_gaussian(*gaussians).sum(-1)), actions.append(idm.sample(inputs))
        return actions[-1]

    nll, kl, elbo, _ = clip_evidence(model, obs, act)
    loss = {"elbo": nll + kl_weight * kl, "kl": kl_weight * kl, "reconstruction": nll}[objective]
    if idm is not None:
        loss = loss + torch.stack(distances).sum(0).mean()
    metrics = {"losses/policy": loss, "losses/nll": nll, "losses/kl": kl, "imitate/elbo": elbo}
    return loss, {key: value.detach() for key, value in metrics.items()}, torch.stack(actions)


@torch.no_grad()
def action_error(model, policy, demos: Trajectories, withheld: Tensor | None, rows: Tensor, idm=None) -> dict:
    """For the log only: how far the inferred actions are from the demonstrations', and the ELBO under those.

    `withheld` (N, A), the recorded actions, never reaches the training: nothing here has a gradient, and the random
    state is restored. Empty if the demonstrations have none.
    """
    if withheld is None:
        return {}
    obs, true = demos.rows(rows)[0], withheld[rows.to(withheld.device)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, action = imitation_loss(model, policy, obs, idm=idm)
        elbo = clip_evidence(model, obs, true)[2]
    error = (action - true)[1:].square().mean()  # the action before the clip was chosen without a state
    return {"imitate/action_error": error.item(), "imitate/elbo_true_actions": elbo.item()}


def withheld_actions(folder: str, limit: int, device) -> Tensor | None:
    """The demonstrations' actions (N, A) for `action_error`, None if a file has none."""
    try:
        found = [recorded_actions(file) for file in recordings(folder)[:limit]]
    except KeyError:
        return None
    return torch.from_numpy(np.concatenate(found)).to(device)


# --- same in: aime, bco ---
def datasets(args) -> tuple[list[str], str]:
    """Folders of D_body and of the demonstrations; those that dmc.py can make are made if they are missing."""
    debug, visual = args.size == "debug", args.setting == "visual"
    root = Path(args.data_dir or ("data/debug" if debug else "data") + ("/dmc-visual" if visual else "/dmc"))
    names = (args.body or f"{args.env_id}-buffer").split(",")
    demo = args.demo or f"{args.env_id}-expert"
    few = ["--num-episodes", "3", "--num-demonstrations", "3", "--max-steps", "40"] if debug else []
    for name in [*names, demo]:
        task, _, kind = name.rpartition("-")
        missing = not (root / name).exists() or (root / name / "unfinished").exists()
        if missing and kind in ("buffer", "expert", "random") and not args.data_dir and not args.eval_only:
            agent = ["--env-id", f"{task}-run", "--agent", "random"] if kind == "random" else ["--env-id", task]
            make(["dmc.py", *agent, "--data-dir", str(root), *(["--pixels"] if visual else []), *few])
    return [str(root / name) for name in names], str(root / demo)


def read_demonstrations(args, folder: str, keys: dict[str, int], device, actions: bool) -> tuple[Trajectories, dict]:
    """N^E demonstrations, and mean returns of the expert and of random actions."""
    demos = Trajectories([folder], keys, args.num_expert_episodes, actions=actions, device=device)
    if len(demos.starts) <= args.num_expert_episodes:
        sys.exit(f"{folder} has only {len(demos.starts) - 1} games: lower --num-expert-episodes or record more.")
    random = demos.meta.get("random_returns") or random_returns(args.env_id)
    return demos, {"expert": float(np.mean(demos.returns)), "random": float(np.mean(random))}


def games_of(args, max_steps: int):
    """A function that makes so many games side by side, observed as --setting says."""
    make_one = lambda: DMC(args.env_id, args.setting, max_steps=max_steps)  # noqa: E731
    return lambda count: Games(args.env_id, min(count, 25), max_steps, make=make_one)


# --- end ---


def clip_starts(data: Trajectories, length: int) -> Tensor:
    """Rows at which a clip can begin; end with one sentence if there is none."""
    rows = window_starts(data.starts, length)
    if not len(rows):
        sys.exit(f"No trajectory has {length} rows: lower --batch-length, or record longer ones.")
    return rows


def optimise(run: Run, parameters: list, loss, updates: int, validate=lambda step: {}) -> None:
    """Adam on loss() -> (loss, metrics), with checkpoints and validations."""
    args, optimizer = run.args, run.parts["optimizer"]
    for step in run.steps(updates):
        value, metrics = loss()
        optimizer.zero_grad()
        value.backward()
        metrics["losses/grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.grad_clip)
        optimizer.step()
        if run.due(args.eval_every) or run.due(args.log_every):
            metrics |= validate(step) if run.due(args.eval_every) else {}
            shown = "world_model/elbo", "imitate/elbo", "losses/kl", "imitate/action_error", "eval/return_mean"
            run.log(metrics, *shown)
        if run.due(args.eval_every):
            run.save()


def train_world_model(args: Args, folders: list[str], keys: dict[str, int], run_dir: Path, device) -> Path:
    """Phase 1, unless it is finished: the checkpoint of the world model."""
    variant = args.variant if args.variant != "auto" else "rssm" if args.env_id.startswith("walker") else "rssmo"
    rssm, sensors = variant == "rssm", 0 if "image" in keys else sum(keys.values())
    free_nats = args.free_nats if args.free_nats >= 0 else 0.0 if rssm else 1.0
    balance = args.balance if args.balance >= 0 else None if rssm else 0.8
    data = Trajectories(folders, keys, device=device)
    rows, rng = clip_starts(data, args.batch_length), torch.Generator().manual_seed(args.seed)
    config = {"keys": keys, "sensors": sensors, "deviation": "learned" if rssm and sensors else "fixed",
              "deter": args.deter, "stoch": args.stoch or (128 if rssm else 30), "layers": 2,
              "hidden": args.hidden or (256 if rssm else 512), "action_size": data.prev_action.shape[-1]}  # fmt: skip
    config |= {} if sensors else {"depth": args.depth, "picture": args.picture, "channels": keys["image"]}
    torch.manual_seed(args.seed)
    model = WorldModel(config).to(device)
    if not sensors:
        model.pixel_std.fill_(255)  # pictures in [0, 1], as in the authors' code
    parts = {"model": model}
    if args.idm:
        parts["idm"] = Policy(model.feat_size + model.embed_size, config["action_size"], config["hidden"]).to(device)
    parameters = [weight for part in parts.values() for weight in part.parameters()]
    parts |= {"optimizer": torch.optim.Adam(parameters, lr=args.learning_rate, fused=True), "rng": rng}
    fixed = {"seed", "setting", "model_kl", "batch_size", "batch_length", "learning_rate", "anneal", "grad_clip", "idm"}
    fixed |= {"model_updates"} if args.anneal else set()  # they say how fast the step size falls
    facts = {"config": config, "free_nats": free_nats, "balance": balance, "dataset": data.digest()}
    run = Run(run_dir, args, parts, facts, free=vars(args).keys() - fixed)

    def loss():
        obs, prev_action, _ = data.rows(draw_clips(rows, args.batch_size, args.batch_length, rng))  # (1) (T, B, ...)
        return body_loss(model, obs, prev_action, balance, free_nats, args.model_kl, parts.get("idm"))  # (2)

    print(f"phase 1: {len(data.starts) - 1} trajectories of {', '.join(folders)}, {run.file}")
    optimise(run, parameters, loss, args.model_updates, lambda step: draw(run, model, data, args))
    run.writer.close()
    return run.file


def main(args: Args) -> dict:
    device, script, body = start(args), Path(__file__).stem, args.env_id.split("-")[0]
    if args.env_id.endswith("NoFrameskip-v4"):
        sys.exit(f"Atari has a script of its own: python aime_atari.py --env-id {args.env_id}.")
    keys = observed(args.env_id, args.setting)
    folders, demonstrations = datasets(args)
    kind = f"{args.size}-{args.setting}-{'+'.join(Path(folder).name for folder in folders)}"
    run_dir = run_folder(args, f"{script}-{kind}-{args.num_expert_episodes}-{args.seed}")
    # (1) and (2) phase 1, or its checkpoint
    model_dir = Path(f"runs/{body}/world_model-{kind}-{args.seed}" + ("-idm" if args.idm else ""))
    if args.run_dir and not args.world_model:
        model_dir = run_dir / "world_model"
    checkpoint = Path(args.world_model or train_world_model(args, folders, keys, model_dir, device))
    model = load_world_model(checkpoint, device)  # frozen
    if model.config.get("keys") != keys:
        sys.exit(f"{checkpoint} is no model of {', '.join(keys)}: name another with --world-model.")
    idm = None
    if args.idm:
        weights = load(checkpoint, device).get("idm")
        if weights is None:
            sys.exit(f"{checkpoint} has no inverse dynamics model: train phase 1 with --idm.")
        idm = Policy(model.feat_size + model.embed_size, model.config["action_size"], model.config["hidden"]).to(device)
        idm.load_state_dict(weights)
        idm.requires_grad_(False)
    # (3) demonstrations without their actions, and a new policy
    demos, marks = read_demonstrations(args, demonstrations, keys, device, actions=False)
    rows, rng = clip_starts(demos, args.batch_length), torch.Generator().manual_seed(args.seed)
    withheld = withheld_actions(demonstrations, args.num_expert_episodes, device)  # for the log only
    torch.manual_seed(args.seed)
    policy = Policy(model.feat_size, model.config["action_size"], args.units).to(device)
    parameters = list(policy.parameters())
    parts = {"policy": policy, "optimizer": torch.optim.Adam(parameters, lr=args.learning_rate, fused=True), "rng": rng}
    facts = {"world_model": model.digest(), "dataset": demos.digest()}
    run = Run(run_dir, args, parts, facts, marks, free={"body", "demo"})
    games = games_of(args, demos.meta.get("max_steps", 500))
    probe = draw_clips(rows, 64, args.batch_length, torch.Generator().manual_seed(0))

    def loss():
        obs, *_ = demos.rows(draw_clips(rows, args.batch_size, args.batch_length, rng))  # (4) (T, B, ...)
        return imitation_loss(model, policy, obs, args.objective, args.imitation_kl, idm)[:2]  # (5)

    def validate(step: int) -> dict[str, float]:
        fresh = action_error(model, policy, demos, withheld, probe, idm)
        if step < args.updates:  # the last policy plays the final evaluation
            fresh |= run.validate(games, player(model, policy.mode))
        return fresh

    print(f"phase 2: {len(demos.starts) - 1} demonstrations of {demonstrations}\nworld model: {checkpoint}")
    optimise(run, parameters, loss, 0 if args.eval_only else args.updates, validate)
    if "imitate/action_error" not in run.report:  # nothing was left to train
        run.report |= action_error(model, policy, demos, withheld, probe, idm)
    sources = {"data": folders, "demonstrations": demonstrations, "world_model": str(checkpoint), "size": args.size}
    # (6) play
    return run.finish(games, lambda: player(model, policy.mode), sources)


if __name__ == "__main__":
    command(main, lambda: parse_args(Args, SIZES))
