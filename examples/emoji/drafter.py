"""Trains the drafter in LANTERN's LlamaGen format on the target's own samples.

What is minimised is the share of drafts that strict acceptance rejects, 1 - sum(min(p, q)) under guidance and
temperature, with a little of EAGLE's smooth L1 between predicted and true hidden states (arXiv 2401.15077). On the same
images and steps it gave more than EAGLE's soft cross-entropy (overlap on fresh images 0.629 against 0.613).
Further passes read the drafter's own predictions, as drafting does below the first level (`unroll.py`).
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from ...calibration.states import StateSums
from ...export.families.llamagen.drafter import Drafter, DrafterConfig
from ...export.families.llamagen.model import LlamaGen
from ...runtime.errors import CascadeError
from ...runtime.rules.states import StateTable
from .captions import BACKGROUNDS, caption
from .config import Recipe
from .data import DataSet
from .model import TextToImage
from .optimizer import Optimizers
from .progress import Run, cosine_rate
from .sample import sample
from .unroll import unroll

_REGRESSION = 0.07  # weight of the hidden states' part
_EVERY = 50


def make_samples(
    recipe: Recipe, data: DataSet, tokenizer: Tokenizer, model: TextToImage, out: Path
) -> dict[str, Tensor]:
    """codes [S, HW] and hidden states [S, 2, T + HW - 1, D] (float16) of the target's samples; kept in `out`.

    Raises CascadeError when those in `out` are of another recipe.
    """
    folder = out / "drafter" / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    pool = data.split(held_out=False, groups=recipe.target_groups)
    parts = []
    for begin in tqdm(range(0, recipe.drafter_samples, recipe.sample_batch), desc="sampling", unit="batch"):
        file, count = folder / f"{begin:06d}.pt", min(recipe.sample_batch, recipe.drafter_samples - begin)
        if not file.is_file():
            rng = random.Random(begin)
            images = [data.emoji[rng.choice(pool)] for _ in range(count)]
            texts = [caption(p, rng.choice(["white", rng.choice(list(BACKGROUNDS))]), rng) for p in images]
            drawn, cond, uncond = sample(recipe, model, tokenizer, texts, seed=begin)
            hidden = torch.stack([cond, uncond], dim=1).half()
            torch.save({"codes": drawn.cpu(), "hidden": hidden.cpu()}, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
        parts.append(torch.load(file, weights_only=True))
        if len(parts[-1]["codes"]) != count:
            raise CascadeError(f"{file} holds samples of another recipe: choose another --out, or delete {folder}.")
    return {name: torch.cat([part[name] for part in parts]) for name in ("codes", "hidden")}


def state_table(recipe: Recipe, samples: dict[str, Tensor]) -> StateTable:
    """CASCADE's table of states, of the same samples."""
    codes, hidden = samples["codes"].numpy(), samples["hidden"]
    sums = StateSums.empty(recipe.codebook_size, recipe.dim)
    for one, states in zip(codes, hidden, strict=True):
        cond, uncond = states[:, recipe.prefix_len :].float()  # [HW - 1, D] each, behind the codes but the last
        sums.draw(one)
        sums.add(one[:-1], (uncond + recipe.guidance_scale * (cond - uncond)).numpy())
    return sums.table()


def drafter_config(recipe: Recipe) -> DrafterConfig:
    target = recipe.target()
    return DrafterConfig(
        dim=target.dim, n_head=target.n_head, ffn_dim=recipe.drafter_ffn, vocab_size=target.vocab_size,
        grid=target.grid, prefix_len=target.prefix_len,
    )  # fmt: skip


def train_drafter(
    recipe: Recipe, samples: dict[str, Tensor], target: LlamaGen, out: Path, begun: Drafter | None = None
) -> Drafter:
    """Trains (or goes on training) a drafter on the target's samples (`make_samples`), and returns it: a new one, or
    `begun`."""
    samples = {name: x.to(recipe.device) for name, x in samples.items()}
    run = Run(out, "drafter")
    drafter = (untrained(recipe, target) if begun is None else begun).to(recipe.device)
    optimizer = Optimizers((drafter,), recipe.drafter_lr, weight_decay=0.01)
    start = run.resume({"model": drafter}, optimizer)
    target = target.eval().requires_grad_(False)
    measure = torch.compile(losses) if recipe.device == "cuda" else losses  # twice as fast on an H200
    for step in tqdm(range(start, recipe.drafter_steps), desc="drafter", initial=start, total=recipe.drafter_steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(samples["codes"]), (recipe.drafter_batch,), generator=generator).to(recipe.device)
        loss, overlaps = measure(recipe, drafter, target, samples["codes"][rows], samples["hidden"][rows].float())
        optimizer.update(loss, cosine_rate(step, recipe.drafter_steps, 50), clip=0.5)
        if (step + 1) % _EVERY == 0 or step + 1 == recipe.drafter_steps:
            by_depth = {f"overlap_{depth}": float(x) for depth, x in enumerate(overlaps, start=1)}
            run.log(step + 1, loss=float(loss.detach()), **by_depth)
            run.save({"model": drafter}, optimizer, step + 1)
    if start < recipe.drafter_steps:
        run.plot()
    return drafter.eval()


def untrained(recipe: Recipe, target: LlamaGen) -> Drafter:
    """A new drafter, which has the target's embeddings."""
    torch.manual_seed(0)
    drafter = Drafter(drafter_config(recipe))
    drafter.embed_tokens.weight.data.copy_(target.tok_embeddings.weight)
    return drafter


def losses(
    recipe: Recipe, drafter: Drafter, target: LlamaGen, codes: Tensor, hidden: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Loss of codes [B, HW] and states [B, 2, T + HW - 1, D]; and, per depth, the mean of sum(min(p, q)).

    That overlap is the probability with which strict acceptance takes a single draft.
    """
    states = hidden.transpose(0, 1).flatten(0, 1)  # [2B, L, D], conditional rows first
    first = recipe.prefix_len - 1
    ids = F.pad(codes, (first, 0)).repeat(2, 1)  # slot s holds the token of slot s + 1
    wanted = states[:, first + 1 :]  # what slots first ... L - 2 should predict
    p = guided_distribution(recipe, target, wanted).exp()
    total, overlaps = torch.zeros((), device=states.device), []
    with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.bf16):
        passes = unroll(drafter, states, ids, first, len(recipe.drafter_passes))
    for weight, predicted in zip(recipe.drafter_passes, passes, strict=True):
        q = guided_distribution(recipe, target, predicted.float()).exp()
        overlap = torch.minimum(p, q).sum(-1).mean()
        total = total + weight * (1 - overlap + _REGRESSION * F.smooth_l1_loss(predicted.float(), wanted))
        overlaps.append(overlap.detach())
    return total, overlaps


@torch.no_grad()
def flatness(recipe: Recipe, target: LlamaGen, hidden: Tensor) -> tuple[float, float]:
    """Mean entropy in nats, and mean probability of the likeliest token, of the guided distribution that samples
    with states [S, 2, T + HW - 1, D] were drawn from. Peaky targets flatter every rule; real ones are flat."""
    entropies, tops = [], []
    for states in hidden[:, :, recipe.prefix_len - 1 :].to(recipe.device).split(16):
        distribution = guided_distribution(recipe, target, states.float().transpose(0, 1).flatten(0, 1))
        entropies.append(-(distribution.exp() * distribution).sum(-1).mean())
        tops.append(distribution.exp().amax(-1).mean())
    return float(torch.stack(entropies).mean()), float(torch.stack(tops).mean())


def guided_distribution(recipe: Recipe, target: LlamaGen, states: Tensor) -> Tensor:
    """Log-probabilities [B, n, V] of states [2B, n, D] under the recipe's guidance and temperature."""
    cond, uncond = states.chunk(2)
    logits = target.logits(uncond + recipe.guidance_scale * (cond - uncond))
    return (logits / recipe.temperature).log_softmax(-1)
