# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Train a small Atari expert from pixels with PPO, on one core.

Paper: PPO, arXiv 1707.06347 v2; its advantage estimate: GAE, arXiv 1506.02438 v6.
The expert, 0.15 M parameters, looks at stacks of four of the 64x64 grey frames that the data sets store. It is weaker
than the RL Zoo's experts, but needs no download and trains in under an hour. The entropy bonus fades during the run,
because a policy that is sure of itself is easier to imitate.

  (1) start all games; the stack of frames begins with zeros, and again after a lost life
  (2) anneal the learning rate to zero and the entropy weight to its final value, both linearly
  (3) play T steps in every game with actions sampled from the actor; clip rewards to their sign
  (4) estimate advantages from the critic (GAE Eq. 16); a lost life ends the return, though the game goes on
  (5) K passes over shuffled minibatches: clipped objective (Eq. 7) with value error and entropy bonus (Eq. 9)
  (6) log; from time to time write checkpoint and actor, and go to (1), else to (2)
  (7) evaluate in whole games with unclipped rewards and sampled actions, and write the expert

    python train_expert.py --env-id MsPacmanNoFrameskip-v4                  # --size debug: under a minute

The same command continues an interrupted run, to the same weights as without interruption. An emulator's state cannot
be saved; therefore every checkpoint starts all games anew (6), in an uninterrupted run too.

Differences from the paper: 64x64 frames, fewer filters, orthogonal initialisation, advantages normalised in each
minibatch, gradients clipped (0.5), clip range not annealed, entropy weight annealed, truncation treated like an end,
forced actions left out of the objective; 16 games (8), 4 passes (3), value error weighted 0.25 (1), step 4e-4 (2.5e-4).
"""

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from world_model import Games, begin, claim, command, load, play, write


@dataclass
class Args:
    # run
    env_id: str = "MsPacmanNoFrameskip-v4"
    """Atari game, an id that ends in NoFrameskip-v4"""
    size: Literal["auto", "debug"] = "auto"
    """debug: a run so short that it only shows that everything works; its actor stays in run_dir"""
    run_dir: str = ""
    """folder of checkpoints and logs; default runs/<env_id>/train_expert-<size>. The same command resumes"""
    experts_dir: str = "experts"
    """folder of the trained expert, <env_id>.pt"""
    seed: int = 1
    """seed of weights, games and sampled actions; same versions and thread count give identical losses"""
    # data
    num_envs: int = 16
    """games played at the same time, N"""
    num_steps: int = 128
    """agent steps in every game between updates, T"""
    max_steps: int = 27000
    """agent steps (4 frames) after which a game is cut off"""
    # evaluation
    eval_episodes: int = 20
    """whole games played with sampled actions at the end"""
    # runtime
    checkpoint_every: int = 50
    """updates from one checkpoint to the next, when all games start anew: longer ones do not end"""
    # PPO
    total_steps: int = 1_600_000
    """agent steps of the whole run, all games together"""
    lr: float = 4e-4
    """Adam's learning rate at the start; it falls to 0"""
    gamma: float = 0.99
    """discount"""
    lam: float = 0.95
    """lambda of the advantage estimate"""
    epochs: int = 4
    """passes over the steps played, K"""
    num_minibatches: int = 8
    """minibatches in a pass"""
    clip: float = 0.1
    """clip range epsilon of the probability ratio"""
    entropy_start: float = 0.01
    """weight of the entropy bonus, c2, at the start"""
    entropy_end: float = 0.001
    """weight of the entropy bonus, c2, at the end"""


class ActorCritic(nn.Module):
    """Actor and critic on one trunk; the weights of `actor` are the file format "ppo-actor-64"."""

    def __init__(self, num_actions: int):
        super().__init__()
        self.actor = nn.Sequential(
            nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Conv2d(32, 32, 3, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, num_actions),
        )  # fmt: skip
        self.critic = nn.Linear(256, 1)
        for layer in (layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)):
            # The actor's tiny gain makes the first policy uniform, so that it explores.
            gain = 0.01 if layer is self.actor[9] else 1.0 if layer is self.critic else 2**0.5
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 stacks (N, 64, 64, 4), oldest frame first, to action logits (N, A) and values (N,)."""
        # The permuted array has the memory layout that channels-last convolutions want: nothing is rearranged.
        x = self.actor[:9](stack.permute(0, 3, 1, 2).float() / 255)  # (N, 256)
        return self.actor[9](x), self.critic(x)[:, 0]


def push_frame(stack: np.ndarray, frame: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Append frames (N, 64, 64, 1) to stacks (N, 64, 64, 4); where `start` (N,) is true, older frames become zero."""
    stack = np.concatenate([stack[..., 1:], frame], -1)
    stack[start, ..., :-1] = 0
    return stack


def gae(reward: Tensor, done: Tensor, value: Tensor, gamma: float, lam: float) -> Tensor:
    """Estimate advantages (T, N) from reward (T, N), done (T, N) and value (T+1, N), GAE Eq. 16.

    done[t] is true when step t ended a life or a game: value[t+1] then belongs to the next one and is not used.
    """
    delta = reward + gamma * value[1:] * ~done - value[:-1]
    advantage = torch.zeros_like(value)
    for t in reversed(range(len(reward))):
        advantage[t] = delta[t] + gamma * lam * ~done[t] * advantage[t + 1]
    return advantage[:-1]


def policy_loss(logits: Tensor, action: Tensor, old_logprob: Tensor, advantage: Tensor, forced: Tensor, clip: float):
    """Clipped objective, negated (Eq. 7), and entropy of N steps; logits (N, A), everything else (N,).

    Forced steps are left out, since the policy did not choose their actions; the critic does learn from them.
    """
    logprobs = F.log_softmax(logits, -1)  # (N, A)
    weight = ~forced / (~forced).sum().clamp(min=1)
    ratio = (logprobs.gather(1, action[:, None])[:, 0] - old_logprob).exp()
    objective = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -(weight * objective).sum(), -(weight * (logprobs.exp() * logprobs).sum(-1)).sum()


@torch.no_grad()
def evaluate(model: ActorCritic, env_id: str, episodes: int, seed: int, max_steps: int) -> np.ndarray:
    """Play whole games with sampled actions; unclipped returns (episodes,)."""
    generator = torch.Generator().manual_seed(seed)
    stack, lives = np.zeros((episodes, 64, 64, 4), np.uint8), np.zeros(episodes, int)

    def act(games: Games) -> np.ndarray:
        nonlocal stack, lives
        stack = push_frame(stack, games.seen, (games.steps == 0) | (games.lives < lives))
        lives = games.lives
        return torch.multinomial(model(torch.from_numpy(stack))[0].softmax(-1), 1, generator=generator)[:, 0].numpy()

    played = play(Games(env_id, episodes, max_steps), act, range(seed, seed + episodes))
    return np.array([game["return"] for game in sorted(played, key=lambda game: game["seed"])])


def main(args: Args) -> dict:
    """Train, evaluate and write one expert; returns its score and where it lies."""
    begin(args)
    torch.set_num_threads(1)  # networks this small gain nothing from more
    if not args.eval_episodes:
        raise SystemExit("--eval-episodes 0: the expert's score is part of its file, so play one or more.")
    if args.env_id not in gym.registry or not re.fullmatch(r"\w+NoFrameskip-v4", args.env_id):
        raise SystemExit(f"--env-id {args.env_id} is not an Atari game; write it like MsPacmanNoFrameskip-v4.")
    run_dir = Path(args.run_dir or f"runs/{args.env_id}/train_expert-{args.size}")
    if args.size == "debug":
        args = dataclasses.replace(args, num_envs=2, num_steps=16, total_steps=192, max_steps=100, eval_episodes=2,
                                   checkpoint_every=3, epochs=2, num_minibatches=2)  # fmt: skip
    settings = {k: v for k, v in dataclasses.asdict(args).items() if not k.endswith("_dir")}
    changed = {k: v for k, v in settings.items() if k == "env_id" or v != getattr(Args, k)}
    typed = " ".join(["python train_expert.py", *(f"--{k.replace('_', '-')} {v}" for k, v in changed.items())])

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = ActorCritic(num_actions := Games(args.env_id, 1).action_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, eps=1e-5, fused=True)
    T, N = args.num_steps, args.num_envs
    updates = max(args.total_steps // (T * N), 1)
    first, seconds, recent, rows = 0, 0.0, [], []  # recent: returns of the last 20 games
    checkpoint = run_dir / "checkpoint.pt"
    if checkpoint.exists():
        saved = load(checkpoint)
        if saved.get("settings") != settings:
            raise SystemExit(f"{checkpoint} is from a run with other settings; delete it or choose another --run-dir.")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        generator.set_state(saved["generator"])
        first, seconds, recent, rows = saved["update"], saved["seconds"], saved["recent"], saved["rows"]
        print(f"Resume {run_dir} after {first} of {updates} updates.")
    args.size == "debug" or claim(Path(args.experts_dir, args.env_id), make=False)  # looks, but takes nothing
    claim(run_dir)
    writer = SummaryWriter(run_dir, purge_step=first * T * N + 1)
    began = time.perf_counter() - seconds

    def save_actor(folder: Path, returns, eval_episodes: int, steps: int) -> str:
        path, returns = folder / f"{args.env_id}.pt", returns or [0.0]
        actor = {k: v.detach().half().contiguous() for k, v in model.actor.state_dict().items()}
        about = {"env_id": args.env_id, "format": "ppo-actor-64", "num_actions": num_actions, "seed": args.seed}
        score = {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns)), "steps": steps}
        content = {**about, **score, "eval_episodes": eval_episodes, "command": typed, "actor": actor}
        write(path, lambda file: torch.save(content, file))
        return str(path)

    obs, value = torch.zeros(T, N, 64, 64, 4, dtype=torch.uint8), torch.zeros(T + 1, N)
    action, forced, done = (torch.zeros(T, N, dtype=kind) for kind in (torch.long, torch.bool, torch.bool))
    logprob, reward = torch.zeros(T, N), torch.zeros(T, N)
    for update in range(first, updates):
        if update == first or update % args.checkpoint_every == 0:  # (1) start, with seeds not used before
            games, seed = Games(args.env_id, N, args.max_steps), args.seed + 1000 * (update + 1)
            games.reset(range(seed, seed + N))
            stack = push_frame(np.zeros((N, 64, 64, 4), np.uint8), games.seen, np.ones(N, bool))
            lives, returns, since, steps_since = np.zeros(N, int), np.zeros(N), time.perf_counter(), 0
        remaining = 1 - update / updates  # (2) anneal
        optimizer.param_groups[0]["lr"] = remaining * args.lr
        entropy_weight = args.entropy_end + remaining * (args.entropy_start - args.entropy_end)
        with torch.no_grad():  # (3) play
            for t in range(T):
                obs[t] = torch.from_numpy(stack)
                logits, value[t] = model(obs[t])
                action[t] = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
                logprob[t] = logits.log_softmax(-1).gather(1, action[t][:, None])[:, 0]
                raw_reward, terminated, truncated, info = games.step(action[t].numpy())
                over, lost, lives = terminated | truncated, info["lives"] < lives, info["lives"]
                reward[t], done[t] = torch.from_numpy(np.sign(raw_reward)), torch.from_numpy(over | lost)
                forced[t] = torch.from_numpy(info["forced"])
                stack = push_frame(stack, games.seen, over | lost)
                returns += raw_reward
                for i in np.flatnonzero(over):
                    writer.add_scalar("charts/episodic_return", returns[i], (update * T + t + 1) * N)
                    recent = [*recent[-19:], float(returns[i])]
                returns[over] = 0
            value[T] = model(torch.from_numpy(stack))[1]

        advantage = gae(reward, done, value, args.gamma, args.lam)  # (4)
        target, losses = advantage + value[:-1], []
        flat = [x.flatten(0, 1) for x in (obs, action, logprob, advantage, forced, target)]  # (T*N, ...)
        for _ in range(args.epochs):  # (5) update
            for index in torch.randperm(T * N, generator=generator).chunk(args.num_minibatches):
                b_obs, b_action, b_logprob, b_advantage, b_forced, b_target = (x[index] for x in flat)
                b_advantage = (b_advantage - b_advantage.mean()) / (b_advantage.std() + 1e-8)
                logits, new_value = model(b_obs)
                loss_p, entropy = policy_loss(logits, b_action, b_logprob, b_advantage, b_forced, args.clip)
                loss_v = 0.5 * F.mse_loss(new_value, b_target)
                optimizer.zero_grad()
                (loss_p + 0.5 * loss_v - entropy_weight * entropy).backward()  # Eq. 9, negated
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                losses.append(torch.stack([loss_p, loss_v, entropy]).detach())

        steps, last, now = (update + 1) * T * N, update + 1 == updates, time.perf_counter()  # (6) log and save
        steps_since += T * N
        if (update + 1) % 10 == 0 or last:
            mean, sps = float(np.mean(recent or [0])), steps_since / (now - since)
            loss_p, loss_v, entropy = torch.stack(losses).mean(0).tolist()
            for name, number in (("losses/policy_loss", loss_p), ("losses/value_loss", loss_v),
                                 ("losses/entropy", entropy), ("charts/SPS", sps)):  # fmt: skip
                writer.add_scalar(name, number, steps)
            rows.append([steps, round(now - began, 1), round(mean, 1), round(entropy, 4), round(sps)])
            head = "steps,seconds,return_last20,entropy,sps"
            np.savetxt(run_dir / "log.csv", rows, "%.10g", ",", header=head, comments="")
            left = (updates * T * N - steps) / sps / 60
            print(f"step {steps:8d} {100 * (update + 1) / updates:5.1f} %  return {mean:7.1f}  value {loss_v:.3f}  "
                  f"entropy {entropy:.3f}  {sps:5.0f} steps/s  {left:5.1f} min left", flush=True)  # fmt: skip
        if (update + 1) % args.checkpoint_every == 0 or last:
            save_actor(run_dir, recent, 0, steps)  # eval_episodes 0: the score is that of the last training games
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows,
                       "generator": generator.get_state(), "settings": settings, "update": update + 1,
                       "recent": recent, "seconds": now - began}  # fmt: skip
            write(checkpoint, lambda file: torch.save(content, file))  # noqa: B023
    writer.close()

    returns = evaluate(model, args.env_id, args.eval_episodes, args.seed + 10**6, args.max_steps).tolist()  # (7)
    folder = run_dir if args.size == "debug" else Path(args.experts_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = save_actor(folder, returns, len(returns), updates * T * N)
    print(f"{path}: {np.mean(returns):.1f} ± {np.std(returns):.1f} in {len(returns)} games")
    return {"return_mean": float(np.mean(returns)), "return_std": float(np.std(returns)), "actor": path}


if __name__ == "__main__":
    command(main, lambda: tyro.cli(Args))
