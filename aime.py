# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "pillow"]
# ///
"""AIME: imitation from observations by action inference, maximising the evidence of demonstrations under a world model.

Paper: arXiv 2312.02019 v1. A body that has learnt from its own past what its actions do can watch an expert without
seeing the expert's actions: they are those that make what is seen likeliest under its model. Phase 1 trains that model
on trajectories with actions, phase 2 freezes it and trains a policy by the same objective, its actions taking the place
of the recorded ones. No rewards, no environment, and in phase 2 no actions.

  (1) phase 1: draw B clips of T observations o_t, and the actions a_{t-1} that led to them    `draw_clips`
  (2) filter them, z_t ~ q(z | h_t, o_t); Adam step on -ELBO(o_{1:T} | a_{0:T-1})              `body_loss`
  (3) freeze the model; new policy pi(a | s), a tanh-squashed Gaussian                         `Policy`
  (4) phase 2: draw clips of the demonstrations' observations                                  `draw_clips`
  (5) a_{t-1} ~ pi(. | s_{t-1}), s_t ~ posterior given o_t; Adam step on -ELBO   Eq. 8         `imitation_loss`
  (6) play: filter what is seen, likeliest action                                              `evaluate`

    python aime.py --env-id walker-walk --body walker-stand-buffer       (makes whatever is missing; needs dm_control)
    python aime.py --env-id walker-walk --body walker-stand-buffer,walker-random --setting mdp
    python aime.py --env-id walker-walk --body walker-stand-buffer --eval-only

Shapes: world_model.py; obs (T, B, O). prev_action[t] led to obs[t]; pi chooses it in feat[t - 1], zeros before t = 0.
Differences from the paper: step sizes as in the authors' code (3e-4; paper 1e-3 on Walker); no decoders of unobserved
sensors beside the model (diagnostics only). As the authors' code: sensors on Walker train with the beta-NLL, which
weights Eq. 8 by the decoder's deviation. The small size leaves the paper in width, batch, updates, step size (SIZES).
"""

import csv
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dmc import DMC, observed, random_returns
from world_model import (
    GaussianWorldModel,
    Log,
    Trajectories,
    TwinMLP,
    clock,
    kl_gaussian,
    load,
    load_world_model,
    parse_args,
    save,
)


@dataclass
class Args:
    # run
    env_id: str = "walker-walk"
    """task of the demonstrations and of the test: walker-stand, -walk, -run, cheetah-run, -runb, -flip or -flipb"""
    size: str = "auto"
    """auto, paper, small or debug: which column of SIZES gives the defaults (auto: paper on CUDA, small on a CPU)"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/<script>-<size>-<setting>-<body>-<N^E>-<seed>. The same
    command resumes"""
    seed: int = 1
    """same seed, versions, device and thread count give identical losses; evaluation has its own random numbers"""
    cuda: bool = True
    """use a GPU if there is one"""
    # data
    body: str = ""
    """D_body, data sets separated by commas (several: a mix); default <body>-stand-buffer or <body>-run-buffer"""
    num_expert_episodes: int = 100
    """N^E, demonstrations to imitate, the first ones in numeric order"""
    data_dir: str = ""
    """folder of all data sets; default data/dmc (visual: data/dmc-visual)"""
    setting: Literal["lpomdp", "mdp", "visual"] = "lpomdp"
    """what is observed: lpomdp (sensors without velocities), mdp (all sensors), visual (64x64 pictures)"""
    # world model
    world_model: str = ""
    """checkpoint of phase 1; default runs/<body>/world_model-<size>-<setting>-<data sets>-<seed>, with --run-dir
    <run_dir>/world_model; trained now if there is none"""
    variant: Literal["auto", "rssm", "rssmo"] = "auto"
    """auto (rssm on Walker, rssmo on Cheetah, as the authors' configs), rssm or rssmo"""
    deter: int = 512
    """D, width of the recurrent state h"""
    stoch: int = 0
    """Z, width of the latent z; 0: 128 (rssm) or 30 (rssmo)"""
    hidden: int = 0
    """width of the model's hidden layers; 0: 128 (rssm) or 512 (rssmo)"""
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
    """phase 2: both terms of Eq. 8, or, as ablations, only one"""
    imitation_kl: float = 1.0
    """weight of the KL in phase 2"""
    idm: bool = False
    """ablation: train an inverse dynamics model beside phase 1, and clone its actions in phase 2"""


SMALL = dict(deter=200, stoch=30, hidden=128, batch_size=32, batch_length=32, model_updates=15_000, updates=5000,
             learning_rate=1e-3, anneal=True, eval_episodes=50, threads=1)  # fmt: skip
SIZES = {
    "paper": {},
    "small": SMALL,
    "debug": SMALL | dict(deter=16, stoch=4, hidden=16, units=16, batch_size=4, batch_length=8, model_updates=20,
                          updates=20, eval_every=10, log_every=5, eval_episodes=2, quick_episodes=2,
                          num_expert_episodes=2),
}  # fmt: skip


class Policy(nn.Module):
    """Tanh-squashed Gaussian in [-1, 1], two ELU networks for mean and deviation; also the inverse dynamics model."""

    def __init__(self, inputs: int, action_size: int, units: int):
        super().__init__()
        self.net = TwinMLP(inputs, action_size, units)

    def sample(self, feat: Tensor) -> Tensor:
        """Reparameterised actions (..., A) in states feat (..., F)."""
        mean, std = self.net(feat)
        return torch.tanh(mean + std * torch.randn_like(std))

    def mode(self, feat: Tensor) -> Tensor:
        """tanh of the mean, (..., A): what is played."""
        return torch.tanh(self.net(feat)[0])

    def log_prob(self, feat: Tensor, action: Tensor) -> Tensor:
        """log pi(action | feat) (...); actions are moved inside the range, where the density is finite."""
        mean, std = self.net(feat)
        squashed = action.clamp(-0.999, 0.999)
        density = -0.5 * ((torch.atanh(squashed) - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)
        return (density - torch.log1p(-squashed.square())).sum(-1)


def draw_clips(first_rows: Tensor, count: int, length: int, rng: torch.Generator) -> Tensor:
    """Row numbers (T, B) of random clips, uniform over all that fit into a trajectory."""
    first = first_rows[torch.randint(len(first_rows), (count,), generator=rng)]
    return first + torch.arange(length)[:, None]


def body_loss(model: GaussianWorldModel, obs: Tensor, prev_action: Tensor, kl_balance: float | None,
              free_nats: float, kl_weight: float, idm: Policy | None = None):  # fmt: skip
    """Phase 1: -ELBO of clips obs (T, B, ...) given the recorded actions (T, B, A); loss () and metrics.

    An inverse dynamics model learns beside it from detached states: a_t from s_t and the embedding of o_{t+1}.
    """
    out = model.evidence(obs, lambda feat, embed, t: prev_action[t], kl_balance, free_nats)
    loss = out["nll"] + kl_weight * out["kl"]
    metrics = {"losses/world_model": loss, "losses/nll": out["nll"], "losses/kl": out["plain_kl"]}
    metrics |= {"world_model/elbo": out["elbo"]}
    if idm is not None:
        inputs = torch.cat([out["deter"][:-1], out["stoch"][:-1], out["embed"][1:]], -1).detach()
        # differs from the authors' code, which averages over time and sums over the batch: as all other terms here
        inverse = -idm.log_prob(inputs, prev_action[1:]).sum(0).mean()
        loss, metrics = loss + inverse, metrics | {"losses/idm": inverse}
    return loss, metrics


def imitation_loss(model: GaussianWorldModel, policy: Policy, obs: Tensor, objective: str = "elbo",
                   kl_weight: float = 1.0, idm: Policy | None = None):  # fmt: skip
    """Phase 2, Eq. 8: -ELBO of clips obs (T, B, ...) under the policy's actions; loss (), metrics, actions (T, B, A).

    No free nats and no KL balancing: the latter would change the direction of the policy's gradient, which comes
    through the prior as well as through the posterior. With `idm` the actions are the frozen inverse model's, and the
    policy is drawn to it: loss KL(idm || pi), summed over T.
    """
    distances = []

    def act(feat: Tensor, embed: Tensor, t: int) -> Tensor:
        if idm is None:
            return policy.sample(feat)
        inputs = torch.cat([feat, embed], -1)
        distances.append(kl_gaussian(torch.cat(idm.net(inputs), -1), torch.cat(policy.net(feat), -1)).sum(-1))
        return idm.sample(inputs)

    out = model.evidence(obs, act)
    terms = {"elbo": out["nll"] + kl_weight * out["kl"], "kl": kl_weight * out["kl"], "reconstruction": out["nll"]}
    loss = terms[objective]
    if idm is not None:
        loss = loss + torch.stack(distances).sum(0).mean()
    metrics = {"losses/policy": loss, "losses/nll": out["nll"], "losses/kl": out["plain_kl"]}
    return loss, metrics | {"imitate/elbo": out["elbo"]}, out["action"]


@torch.no_grad()
def action_error(model, policy, demos: Trajectories, withheld: Tensor | None, rows: Tensor, idm=None) -> dict:
    """For the log only: how far the inferred actions are from the demonstrations', and the ELBO under those.

    `withheld` (N, A), the recorded actions, never reaches the training: nothing here has a gradient, and the random
    state is restored. Empty if the demonstrations have none.
    """
    if withheld is None:
        return {}
    obs, true = demos.obs[rows.to(demos.obs.device)], withheld[rows.to(withheld.device)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, action = imitation_loss(model, policy, obs, idm=idm)
        known = model.evidence(obs, lambda feat, embed, t: true[t])["elbo"]
    error = (action - true)[1:].square().mean()  # the action before the clip was chosen without a state
    return {"imitate/action_error": error.item(), "imitate/elbo_true_actions": known.item()}


# --- same in: aime, bco ---
@torch.no_grad()
def evaluate(args, begin, episodes: int, seed: int, max_steps: int) -> list[dict]:
    """Play whole games with act = begin(games), action = act(obs (N, ...)): rows of seed and return.

    The torch random state is restored afterwards, so evaluating more often does not change the training.
    """
    envs = [DMC(args.env_id, args.setting, max_steps=max_steps) for _ in range(min(episodes, 25))]
    rows = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        while len(rows) < episodes:
            wave = envs[: episodes - len(rows)]
            seeds = [seed + len(rows) + i for i in range(len(wave))]
            obs = np.stack([env.reset(seed=number)[0] for env, number in zip(wave, seeds)])
            act, total, ended = begin(len(wave)), np.zeros(len(wave)), False
            while not ended:  # all games are equally long
                action = act(torch.from_numpy(obs)).cpu().numpy()
                steps = [env.step(a) for env, a in zip(wave, action)]
                obs, ended = np.stack([step[0] for step in steps]), steps[0][3]
                total += [step[1] for step in steps]
            rows += [{"seed": number, "return": float(value)} for number, value in zip(seeds, total)]
    return rows


def ensure(command: list[str]) -> None:
    """Run a missing stage as the command a user would type."""
    print("$ python " + " ".join(command), flush=True)
    if subprocess.run([sys.executable, *command]).returncode:
        sys.exit(f"The stage above failed; repair it, then run this again: python {' '.join(command)}.")


def datasets(args) -> tuple[list[str], str]:
    """Folders of D_body and of the demonstrations; those that dmc.py can make are made if they are missing."""
    debug, visual = args.size == "debug", args.setting == "visual"
    root = Path(args.data_dir or ("data/debug" if debug else "data") + ("/dmc-visual" if visual else "/dmc"))
    body = args.env_id.split("-")[0]
    names = (args.body or f"{body}-{'stand' if body == 'walker' else 'run'}-buffer").split(",")
    few = ["--num-episodes", "3", "--num-demonstrations", "3", "--max-steps", "40"] if debug else []
    for name in [*names, f"{args.env_id}-expert"]:
        task, _, kind = name.rpartition("-")
        missing = not (root / name).exists() or (root / name / "unfinished").exists()
        if missing and kind in ("buffer", "expert", "random") and not args.data_dir and not args.eval_only:
            agent = ["--env-id", f"{task}-run", "--agent", "random"] if kind == "random" else ["--env-id", task]
            ensure(["dmc.py", *agent, "--data-dir", str(root), *(["--pixels"] if visual else []), *few])
    return [str(root / name) for name in names], str(root / f"{args.env_id}-expert")


def same_settings(saved: dict, settings: dict, file: Path) -> None:
    """End with one sentence if a checkpoint was made with other settings."""
    old = saved.get("settings", {})
    wrong = {name: value for name, value in old.items() if settings.get(name, value) != value}
    no_flag = ("world_model", "keys", "action_size", "body")
    other = []
    for name, value in wrong.items():
        flag, shown = name.replace("_", "-"), "" if isinstance(value, bool) else f" {value}"
        told = name in no_flag or value is None
        other.append(f"another {flag}" if told else f"--{'no-' if value is False else ''}{flag}{shown}")
    if other or not old:
        reason = "with " + ", ".join(other) if other else "by another script"
        sys.exit(f"{file} was made {reason}: give --run-dir for a new run, or repeat its settings.")


def score(returns, expert: float, random: float) -> dict[str, float]:
    """What is logged about the returns of some games."""
    mean, share = float(np.mean(returns)), (float(np.mean(returns)) - random) / ((expert - random) or 1.0)
    return {"eval/return_mean": mean, "eval/return_std": float(np.std(returns)), "eval/return_vs_expert": share}


# --- end ---


def player(model: GaussianWorldModel, policy: Policy):
    """For `evaluate`: filter with a sampled latent, play the likeliest action; the action before the first is zero."""
    device = model.gru.weight_hh.device

    def begin(games: int):
        state, action = model.initial(games), torch.zeros(games, model.config["action_size"], device=device)
        first = torch.ones(games, dtype=torch.bool, device=device)

        def act(obs: Tensor) -> Tensor:
            nonlocal state, action, first
            state = model.filter_step(state, obs.to(device), action, first)
            action, first = policy.mode(torch.cat(state, -1)), torch.zeros_like(first)
            return action

        return act

    return begin


def optimise(parts: dict, loss, updates: int, rng: torch.Generator, run_dir: Path, args: Args, settings: dict,
             remember: dict, validate=lambda step: {}) -> tuple[int, float, dict]:  # fmt: skip
    """Train the networks in `parts` by Adam on loss() -> (loss, metrics); continues from run_dir/checkpoint.pt."""
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    parameters = [weight for part in parts.values() for weight in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, fused=True)
    step, seconds, file = 0, 0.0, run_dir / "checkpoint.pt"
    if file.exists():
        saved = load(file, device)
        same_settings(saved, settings, file)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
        if ("cuda_rng" in saved) == (device.type == "cuda"):  # from another device, random numbers start anew
            rng.set_state(saved["rng"].cpu()), torch.set_rng_state(saved["torch_rng"].cpu())
            if device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_rng"].cpu())
        print(f"resuming {file} at update {step}")
    log = Log(run_dir, step, args)
    began, step_before, report = time.time(), step, {}
    for _ in range(updates - step):
        if args.anneal:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * (1 - 0.9 * step / updates)
        value, metrics = loss()
        optimizer.zero_grad()
        value.backward()
        metrics["losses/grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.grad_clip)
        optimizer.step()
        step += 1
        fresh, milestone = {}, step % args.eval_every == 0 or step == updates
        if milestone:
            fresh = validate(step)
            elapsed = seconds + time.time() - began
            save(file, {name: part.state_dict() for name, part in parts.items()} | remember
                 | {"optimizer": optimizer.state_dict(), "step": step, "seconds": elapsed, "rng": rng.get_state(),
                    "torch_rng": torch.get_rng_state(), "settings": settings, "args": vars(args),
                    "versions": {"torch": str(torch.__version__), "numpy": str(np.__version__)}}
                 | ({"cuda_rng": torch.cuda.get_rng_state()} if device.type == "cuda" else {}))  # fmt: skip
        if milestone or step % args.log_every == 0:
            speed = (step - step_before) / (time.time() - began)
            fresh |= {name: value.item() for name, value in metrics.items()} | {"charts/SPS": speed}
            log(step, seconds + time.time() - began, fresh)
            report |= fresh
            shown = {name.split("/")[1]: number for name, number in report.items() if not name.startswith("charts")}
            names = ("elbo", "kl", "action_error", "return_mean")
            print(f"\rupdate {step}/{updates} ({step / updates:.0%})"
                  + "".join(f"  {name} {shown[name]:.3f}" for name in names if name in shown)
                  + f"  {speed:.1f} updates/s  {clock((updates - step) / speed)} left  ",
                  end="\n" if milestone else "", flush=True)  # fmt: skip
    log.writer.close()
    return step, seconds + time.time() - began, report


def train_world_model(args: Args, folders: list[str], keys: dict[str, int], run_dir: Path, device) -> Path:
    """Phase 1, unless it is finished: the checkpoint of the world model."""
    checkpoint = run_dir / "checkpoint.pt"
    variant = args.variant if args.variant != "auto" else "rssm" if args.env_id.startswith("walker") else "rssmo"
    rssm = variant == "rssm"
    free_nats = args.free_nats if args.free_nats >= 0 else 0.0 if rssm else 1.0
    balance = args.balance if args.balance >= 0 else None if rssm else 0.8
    config = {"variant": variant, "deter": args.deter, "stoch": args.stoch or (128 if rssm else 30),
              "hidden": args.hidden or (128 if rssm else 512), "keys": keys, "action_size": 6}  # fmt: skip
    names = ("seed", "setting", "model_kl", "batch_size", "batch_length", "learning_rate", "anneal", "grad_clip", "idm")
    names += ("model_updates",) if args.anneal else ()  # they say how fast the step size falls
    settings = {name: getattr(args, name) for name in names}
    settings |= config | {"free_nats": free_nats, "balance": balance, "body": ",".join(folders)}
    if checkpoint.exists() and (saved := load(checkpoint, "cpu")).get("step", 0) >= args.model_updates:
        same_settings(saved, settings, checkpoint)
        print(f"phase 1: {checkpoint}, {saved['step']} updates")
        return checkpoint
    data = Trajectories(folders, keys, device=device)
    first_rows, rng = data.first_rows(args.batch_length), torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    model = GaussianWorldModel(config | {"action_size": data.prev_action.shape[-1]}).to(device)
    parts = {"model": model}
    if args.idm:
        inputs = model.feat_size + model.embed_size
        parts["idm"] = Policy(inputs, model.config["action_size"], config["hidden"]).to(device)

    def loss():
        rows = draw_clips(first_rows, args.batch_size, args.batch_length, rng).to(device)
        obs, prev_action = data.obs[rows], data.prev_action[rows]
        return body_loss(model, obs, prev_action, balance, free_nats, args.model_kl, parts.get("idm"))

    print(f"phase 1: {len(data.starts) - 1} trajectories of {', '.join(folders)}")
    optimise(parts, loss, args.model_updates, rng, run_dir, args, settings, {"config": model.config})
    return checkpoint


def main(args: Args) -> dict:
    device = torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # CPU arithmetic on denormal numbers (tiny probabilities) is many times slower
    if args.env_id.endswith("NoFrameskip-v4"):
        sys.exit(f"Atari has a script of its own: python aime_atari.py --env-id {args.env_id}.")
    keys = observed(args.env_id, args.setting)
    folders, demonstrations = datasets(args)
    script, body = Path(__file__).stem, args.env_id.split("-")[0]
    kind = f"{args.size}-{args.setting}-{'+'.join(Path(folder).name for folder in folders)}"
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/{script}-{kind}-{args.num_expert_episodes}-{args.seed}")
    if args.eval_only and not (run_dir / "checkpoint.pt").exists():
        sys.exit(f"No checkpoint at {run_dir / 'checkpoint.pt'}: train first, or name its folder with --run-dir.")
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
    demos = Trajectories([demonstrations], keys, args.num_expert_episodes, actions=False, device=device)
    if len(demos.starts) <= args.num_expert_episodes:
        sys.exit(
            f"{demonstrations} has only {len(demos.starts) - 1} games: lower --num-expert-episodes or record more."
        )
    first_rows, rng = demos.first_rows(args.batch_length), torch.Generator().manual_seed(args.seed)
    max_steps = demos.meta.get("max_steps", 500)
    expert_return = float(np.mean(demos.returns))
    random_return = float(np.mean(demos.meta.get("random_returns") or random_returns(args.env_id)))
    withheld = withheld_actions(demonstrations, args.num_expert_episodes, device)  # for the log only
    torch.manual_seed(args.seed)
    policy = Policy(model.feat_size, model.config["action_size"], args.units).to(device)
    probe = draw_clips(first_rows, 64, args.batch_length, torch.Generator().manual_seed(0))
    free = ("run_dir", "cuda", "data_dir", "world_model", "threads", "updates", "log_every", "body", "env_id")
    settings = {k: v for k, v in vars(args).items() if k not in free and "eval" not in k and "quick" not in k}
    settings |= {"world_model": model.digest(), "env_id": args.env_id}

    def loss():
        rows = draw_clips(first_rows, args.batch_size, args.batch_length, rng).to(device)  # (4) (T, B)
        return imitation_loss(model, policy, demos.obs[rows], args.objective, args.imitation_kl, idm)[:2]  # (5)

    def test(episodes: int, seed: int, step: int, name: str) -> list[float]:
        """Play, and write one row per game to the file `name`."""  # (6)
        rows = evaluate(args, player(model, policy), episodes, seed, max_steps)
        with open(run_dir / name, "a", newline="") as out:
            out.write("" if out.tell() else "update,seed,return\n")
            csv.writer(out).writerows([step, row["seed"], row["return"]] for row in rows)
        return [row["return"] for row in rows]

    def validate(step: int) -> dict[str, float]:
        fresh = action_error(model, policy, demos, withheld, probe, idm)
        if step < args.updates:  # the last policy plays the final evaluation
            fresh |= score(test(args.quick_episodes, 20_000, step, "episodes.csv"), expert_return, random_return)
        return fresh

    print(f"phase 2: {len(demos.starts) - 1} demonstrations of {demonstrations}\nworld model: {checkpoint}")
    updates = load(run_dir / "checkpoint.pt", "cpu")["step"] if args.eval_only else args.updates
    step, seconds, report = optimise({"policy": policy}, loss, updates, rng, run_dir, args, settings, {}, validate)
    games = "eval_only_episodes.csv" if args.eval_only else "final_episodes.csv"
    (run_dir / games).unlink(missing_ok=True)
    returns = np.array(test(args.eval_episodes, 1000, step, games))
    if "imitate/action_error" not in report:  # nothing was left to train
        report |= action_error(model, policy, demos, withheld, probe, idm)
    report |= score(returns, expert_return, random_return)
    finish(args, run_dir, script, step, seconds, report, returns, expert_return, random_return,
           {"data": folders, "demonstrations": demonstrations, "world_model": str(checkpoint)})  # fmt: skip
    return report


def withheld_actions(folder: str, limit: int, device) -> Tensor | None:
    """The demonstrations' actions (N, A) for `action_error`, None if a file has none."""
    files = sorted((f for f in Path(folder).glob("*.npz") if f.stem.isdigit()), key=lambda f: int(f.stem))[:limit]
    found = []
    for file in files:
        with np.load(file) as npz:
            found += [npz["pre_action"].astype(np.float32)] if "pre_action" in npz.files else []
    return torch.from_numpy(np.concatenate(found)).to(device) if len(found) == len(files) else None


# --- same in: aime, bco ---
def finish(args, run_dir: Path, script: str, step: int, seconds: float, report: dict, returns: np.ndarray,
           expert_return: float, random_return: float, sources: dict) -> None:  # fmt: skip
    """Log and print the final evaluation, and write result.json (with --eval-only: eval_only.json)."""
    if not args.eval_only:
        log = Log(run_dir, step, args)
        log(step, seconds, {name: value for name, value in report.items() if name.startswith("eval/")})
        log.writer.close()
    report |= {"expert_return": expert_return, "random_return": random_return, "step": step}
    report |= {"percent_of_expert": 100 * report["eval/return_mean"] / (expert_return or 1.0)}
    everything = report | sources | {"size": args.size, "args": vars(args), "returns": returns.tolist()}
    strict = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in everything.items()}  # no NaN
    (run_dir / ("eval_only.json" if args.eval_only else "result.json")).write_text(json.dumps(strict, indent=1))
    standard_error = returns.std() / max(len(returns) - 1, 1) ** 0.5
    print(f"\n{args.env_id}, {args.setting}, {len(returns)} games, {args.size} size, {step} updates\n"
          f"  {script:10s}{report['eval/return_mean']:8.1f} +- {standard_error:.1f} (standard error)\n"
          f"  expert    {expert_return:8.1f}\n  random    {random_return:8.1f}\n"
          f"  score     {report['eval/return_vs_expert']:8.2f}  (0 random, 1 expert)\n"
          f"  percent   {report['percent_of_expert']:8.1f}  (of the expert's return, as the paper counts)")  # fmt: skip


# --- end ---


if __name__ == "__main__":
    try:
        main(parse_args(Args, SIZES))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from the last checkpoint.")
