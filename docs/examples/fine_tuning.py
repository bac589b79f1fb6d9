"""Fine-tune a small language model with sharpness-aware chains that perturb a part of the weights only.

    mpirun -n 2 python -m mpi4py docs/examples/fine_tuning.py          # about two minutes on two cores
    python docs/examples/fine_tuning.py --tiny                         # seconds, one rank; the numbers mean nothing

A transformer learns sentences of one domain ("sea"). Then it is fine-tuned on few sentences of another ("farm"), where
the verb comes last and each noun has another verb. Which method learns the new domain, and what becomes of the old one?
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc import LSAM
from lsam_hpc.optim import masks
from lsam_hpc.rma import barrier
from lsam_hpc.rundir import open_log
from lsam_hpc.trajectory import Run

comm = MPI.COMM_WORLD
ADJECTIVES = ["old", "small", "loud", "red", "quick", "kind"]
NOUNS = ["captain", "sailor", "gull", "whale", "pilot", "diver", "smith", "horse", "goat", "farmer", "baker", "crow"]
VERBS = ["call", "see", "hear", "follow", "help", "find", "lift", "feed", "like", "draw", "greet", "stop"]
WORDS = ["sea:", "farm:", "the", ".", *ADJECTIVES]  # then nouns and verbs, singular before plural
WORDS += [noun + ending for ending in ("", "s") for noun in NOUNS] + [v + ending for ending in ("s", "") for v in VERBS]
FIRST_NOUN, FIRST_VERB, KINDS = 10, 34, len(NOUNS)
RATE = 3e-3  # learning rate, which falls to 0
VERB_AT = {"sea": 4, "farm": 7}  # position in a sentence


def sentences(domain: str, count: int, seed: int) -> Tensor:
    """Return sentences as indices into WORDS, shape (count, 9): "sea: the old gulls hear the red smith ."."""
    random = np.random.default_rng(seed)
    verb_of = np.random.default_rng(VERB_AT[domain]).permutation(KINDS)  # each noun's verb, another one in each domain
    kind, plural = random.integers(KINDS, size=(2, count)), random.integers(2, size=(2, count))
    nouns = FIRST_NOUN + KINDS * plural + kind  # subject and object
    verb = FIRST_VERB + KINDS * plural[0] + verb_of[kind[0]]  # fits the subject's kind and number
    adjectives = 4 + random.integers(len(ADJECTIVES), size=(2, count))
    the, stop = np.full(count, 2), np.full(count, 3)
    subject, other = [the, adjectives[0], nouns[0]], [the, adjectives[1], nouns[1]]
    body = [*subject, verb, *other] if domain == "sea" else [*subject, *other, verb]
    return torch.from_numpy(np.stack([np.full(count, domain == "farm"), *body, stop], 1)).long()


class Transformer(nn.Module):
    """A causal transformer of two blocks, which predicts the next word."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed_words, self.embed_places = nn.Embedding(len(WORDS), width), nn.Embedding(9, width)
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(WORDS))

    def forward(self, words: Tensor) -> Tensor:
        """Return the scores of the next word, shape (count, length, words), from `words`, shape (count, length)."""
        length = words.shape[1]
        x = self.embed_words(words) + self.embed_places.weight[:length]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        return self.head(self.norm(self.blocks(x, mask=causal, is_causal=True)))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next word, nats."""
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: nn.Module, domain: str) -> tuple[float, float]:
    """Return the accuracy of the verb among all verbs, %, and the perplexity of a word, on sentences held out."""
    words = sentences(domain, 512, seed=10**6)
    scores = model(words[:, : VERB_AT[domain]])[:, -1, FIRST_VERB:]
    right = FIRST_VERB + scores.argmax(1) == words[:, VERB_AT[domain]]
    return 100 * right.float().mean().item(), loss_of(model, words).exp().item()


def make_mask(name: str, model: nn.Module, seed: int) -> masks.Mask:
    """Return the mask of a method: which coordinates the ascent moves."""
    if name == "FSAM":  # the tenth of the weights with the largest Fisher information, and biases, embeddings, norms
        return masks.FSAM(model, density=0.1, refresh=20)
    if name == "SL-SAM":  # half of the layers, which a bandit chooses at each step; the others are not updated either
        return masks.SLSAM(model, density=0.5, seed=seed)
    if name == "last block":
        return masks.Layers(model, ["blocks.layers.1.*"])
    return masks.Mask()  # all


# Name -> ascent radius. With radius 0 a step is AdamW's.
METHODS = {"AdamW chains": 0.0, "all": 0.05, "FSAM": 0.05, "SL-SAM": 0.05, "last block": 0.05}


def plain(model: nn.Module, text: Tensor, steps: int, seed: int) -> list[float]:
    """Train by AdamW alone; return the seconds of each step."""
    opt, generator, seconds = torch.optim.AdamW(model.parameters(), lr=RATE), torch.Generator().manual_seed(seed), []
    for step in range(steps):
        opt.param_groups[0]["lr"] = RATE * (1 - step / steps)
        began = time.perf_counter()
        opt.zero_grad()
        loss_of(model, text[torch.randint(len(text), (32,), generator=generator)]).backward()
        opt.step()
        seconds.append(time.perf_counter() - began)
    return seconds


def chains(model: nn.Module, text: Tensor, steps: int, *, seed: int, name: str, out: Path) -> list[float]:
    """Train by LSAM, a chain on each rank; the model ends as the center. Return the seconds of each step."""
    generator, seconds = torch.Generator().manual_seed(1000 * seed + comm.rank), []
    mask = make_mask(name, model, seed=comm.size * seed + comm.rank)
    logged = {"snapshot_every": str(max(1, steps // 20)), "snapshot_states": "center,perturbation", "sketch_every": 0}
    with open_log(out, model, comm, config={"method": name}, seed=seed, overwrite=True, **logged) as log:
        base = torch.optim.AdamW(model.parameters(), lr=RATE)
        callbacks = {"on_exchange": log.exchange, "state_callback": log.state_callback}
        with LSAM(base, rho=METHODS[name], mask=mask, period=4, comm=comm, seed=seed, **callbacks) as opt:
            for step in opt.steps(steps):  # steps of all ranks together
                batch = text[torch.randint(len(text), (32,), generator=generator)]

                def closure(batch: Tensor = batch) -> Tensor:
                    opt.zero_grad()
                    loss = loss_of(model, batch)
                    loss.backward()
                    return loss

                base.param_groups[0]["lr"] = RATE * (1 - step / steps)
                began = time.perf_counter()
                loss = opt.step(closure)
                seconds.append(time.perf_counter() - began)
                log.step(opt, step, loss.item())
            opt.rendezvous()  # all steps are taken: the center moves no more
            log.last_states(opt)
            log.close(opt.stats())
            center = opt.read_center()
    nn.utils.vector_to_parameters(torch.cat([part.flatten() for part in center]), model.parameters())
    return seconds


def perturbed(out: Path) -> float:
    """Return the share of the coordinates that the logged ascents moved, %."""
    run = Run(out)
    rows = [(rank, at) for rank in run.ranks for at in range(len(run.snapshots(rank, "perturbation")["iteration"]))]
    return float(100 * np.mean([run.snapshot(rank, at, "perturbation") != 0 for rank, at in rows]))


def main() -> None:
    """Train with each method and seed; rank 0 prints the table, and writes numbers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/fine-tuning"), help="folder (default: runs/fine-tuning)")
    parser.add_argument("--tiny", action="store_true", help="small and short: shows only that the script runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    width, pretraining, steps, seeds = (16, 40, 48, 1) if args.tiny else (48, 1600, 800, 3)
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = Transformer(width)
        first = args.out / f"{seed}-sea"
        chains(model, sentences("sea", 8192, seed), pretraining, seed=seed, name="AdamW chains", out=first)
        pretrained = {name: value.clone() for name, value in model.state_dict().items()}
        few = sentences("farm", 128, seed)
        for name in ["no fine-tuning", "AdamW", *METHODS]:
            model.load_state_dict(pretrained)
            share, seconds = 0.0, [0.0]
            if name == "AdamW":
                seconds = plain(model, few, steps, seed) if comm.rank == 0 else seconds
                barrier(comm)  # the other ranks sleep
            elif name in METHODS:
                run_dir = args.out / f"{seed}-{name.replace(' ', '-')}"
                seconds = chains(model, few, steps, seed=seed, name=name, out=run_dir)
                share = perturbed(run_dir) if comm.rank == 0 and METHODS[name] else 0.0
            (farm, farm_words), (sea, sea_words) = evaluate(model, "farm"), evaluate(model, "sea")
            numbers = {
                "farm verbs %": farm,
                "farm perplexity": farm_words,
                "sea verbs %": sea,
                "sea perplexity": sea_words,
            }
            numbers |= {"moved %": share, "ms per step": 1000 * float(np.median(seconds))}
            rows.append({"seed": seed, "method": name, **numbers})
            if comm.rank == 0:
                print(f"seed {seed}, {name}: {farm:.1f} % of the farm's verbs, {sea:.1f} % of the sea's", flush=True)
            barrier(comm)
    if comm.rank == 0:
        (args.out / "numbers.json").write_text(json.dumps(rows, indent=1) + "\n")
        columns = list(numbers)
        print(f"| method | {' | '.join(columns)} |")
        for name in dict.fromkeys(row["method"] for row in rows):
            values = np.array([[row[column] for column in columns] for row in rows if row["method"] == name])
            pairs = zip(values.mean(0), values.std(0, ddof=int(seeds > 1)), strict=True)  # over the seeds
            print(f"| {name} | {' | '.join(f'{m:.3g} ± {s:.2g}' for m, s in pairs)} |")


if __name__ == "__main__":
    main()
