# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "gymnasium", "ale-py", "numpy", "tyro", "tensorboard", "tqdm", "pillow", "filelock"]
# ///
"""Time a world-model update, an agent update and a policy step, on random pictures, without an environment.

    python benchmark/speed.py --size small
    python benchmark/speed.py --size paper --bf16 --cudagraphs          (on a GPU)

On a CPU the time is the process's own, so other programs disturb it little; on a GPU it is wall time between two
synchronisations. The three are timed in turns, round after round; the median counts. Batches: B=8 L=16 and 64
trajectories on a CPU; B=50 L=50 and 512 on a GPU. Actor and critic have 8 x 256 units. The losses are those of
world_model.py and ditto.py. --bf16 applies to all three, but ditto.py itself imagines and plays in float32.
"""

import copy
import csv
import functools
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ditto  # noqa: E402
import world_model  # noqa: E402


@dataclass
class Args:
    # run
    size: Literal["paper", "small"] = "small"
    """whose widths and pictures the world model has"""
    rounds: int = 9
    """rounds that count, after one to warm up"""
    csv: str = str(ROOT / "benchmark" / "results" / "speed.csv")
    """file to which three rows are appended; empty: none"""
    # runtime
    device: str = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:1 (one of several) or mps (at your own risk: untested)"""
    bf16: bool = False
    """convolutions and matrix products in bfloat16"""
    cudagraphs: bool = False
    """record each of the three as a CUDA graph and replay it (GPU only)"""


def about(device: torch.device) -> dict[str, str]:
    """Commit, hardware and versions of this run."""
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else []
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else (names or [platform.machine()])[0]
    return {"commit": git.strip() or "unknown", "hardware": hardware, "python": platform.python_version(),
            "torch": str(torch.__version__), "numpy": str(np.__version__)}  # fmt: skip


def main(args: Args) -> list[dict]:
    """Time the three; return their rows."""
    torch.set_num_threads(1), torch.set_flush_denormal(True)
    device, A, agent = world_model.find_device(args.device), 18, ditto.Args()
    cuda = device.type == "cuda"
    if args.cudagraphs and not cuda or args.rounds < 1:
        raise SystemExit("--cudagraphs needs CUDA, and --rounds must be 1 or more.")
    torch.cuda.set_device(device) if cuda else None  # this and the next as world_model.start
    torch.set_float32_matmul_precision("high" if cuda else "highest")
    H, size, entropy = agent.horizon, (agent.layers, agent.units), torch.tensor(agent.entropy, device=device)
    B, L, N, runs = (50, 50, 512, 10) if cuda else (8, 16, 64, 1)
    sizes = world_model.Args(**world_model.SIZES[args.size])
    model = world_model.WorldModel(world_model.model_config(sizes, 1, A)).to(device)
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    actor, critic = ditto.Actor(model.feat_size, A, True, *size), ditto.mlp(model.feat_size, 1, *size)
    actor.to(device), critic.to(device)
    target = copy.deepcopy(critic).requires_grad_(False)
    adam = functools.partial(torch.optim.Adam, lr=3e-4, fused=True, capturable=cuda)
    adam_model, adam_agent = adam(model.parameters(), eps=1e-5), adam([*actor.parameters(), *critic.parameters()])
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=args.bf16)

    def world_model_update(image: Tensor, prev_action: Tensor, is_first: Tensor, *state: Tensor):
        with autocast():
            loss, _, state = model(image, prev_action, is_first, state)
        adam_model.zero_grad(not args.cudagraphs), loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 200.0, foreach=True)
        adam_model.step()
        return loss.detach(), state

    def agent_update(expert_feat: Tensor):
        with autocast():
            loss, _ = ditto.agent_loss(agent, frozen, actor, critic, target, entropy, expert_feat)
        adam_agent.zero_grad(not args.cudagraphs), loss.backward(), adam_agent.step()
        return loss.detach()

    @torch.no_grad()
    def policy_step(image: Tensor, prev_action: Tensor, is_first: Tensor, *state: Tensor) -> Tensor:
        with autocast():
            return actor.sample(torch.cat(frozen.filter_step(state, image, prev_action, is_first), -1))

    def inputs(*shape: int) -> list[Tensor]:
        """Random image, prev_action, is_first (..., batch) and a state to go with them."""
        side = (sizes.picture, sizes.picture, 1)  # as `Episodes` holds them
        image = torch.randint(2, (*shape, *side), dtype=torch.uint8, device=device)  # small, as if normalised
        action = F.one_hot(torch.randint(A, shape, device=device), A).float()
        return [image, action, torch.zeros(shape, dtype=torch.bool, device=device), *model.initial(shape[-1])]

    expert_feat = torch.cat(frozen.encode(*inputs(H + 1, N)[:3])[:2], -1)  # (H + 1, N, F)
    jobs = [  # name, batch, frames, runs in a round, function, its input
        ("world model update", f"B={B} L={L}", B * L, runs, world_model_update, inputs(L, B)),
        ("agent update", f"B={N} H={H}", N * H, runs, agent_update, [expert_feat]),
        ("policy step", "N=1", 1, 10 * runs, policy_step, inputs(1)),
    ]
    if args.cudagraphs:
        adams = adam_model, adam_agent, adam_agent
        jobs = [(*job[:4], world_model.graphed(job[4], *job[5], optimizer=adam), job[5])
                for job, adam in zip(jobs, adams)]  # fmt: skip
    now, wait = time.process_time, lambda: None
    if device.type != "cpu":
        now, wait = time.perf_counter, torch.get_device_module(device).synchronize
    times, memory = [[] for _ in jobs], [0] * len(jobs)
    for i, (_, _, _, repeats, function, values) in (args.rounds + 1) * list(enumerate(jobs)):
        (torch.cuda.reset_peak_memory_stats(), wait()) if cuda else None
        began = now()
        for _ in range(repeats):
            function(*values)
        wait()
        times[i].append(1000 * (now() - began) / repeats)
        # on a GPU what was allocated while this one ran, on a CPU what the whole process has ever held (Linux: kB)
        held = torch.cuda.max_memory_allocated() / 2**20 if cuda else resource.getrusage(0).ru_maxrss / 2**10
        memory[i] = max(memory[i], held)

    settings, rows = {name: getattr(args, name) for name in ("size", "bf16", "cudagraphs", "rounds")}, []
    for (name, batch, frames, *_), ms, held in zip(jobs, times, memory):
        ms = statistics.median(ms[1:])
        print(f"{name:18s} {batch:10s} {ms:9.2f} ms {1000 * frames / ms:9.0f} frames/s {held:8.0f} MB")
        rows.append({"name": name, "batch": batch, "ms": round(ms, 3), "frames_per_second": round(1000 * frames / ms),
                     "peak_mb": round(held), "device": device.type, **settings, **about(device)})  # fmt: skip
    if args.csv:
        Path(args.csv).parent.mkdir(parents=True, exist_ok=True)
        with open(args.csv, "a", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader() if file.tell() == 0 else None
            writer.writerows(rows)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Args))
