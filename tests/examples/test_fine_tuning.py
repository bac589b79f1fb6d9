"""The fine-tuning example: each mask moves its coordinates only, and the numbers are those of the logged center."""

import numpy as np
import pytest
import torch

from lsam_hpc.trajectory import Run
from tests.helpers.examples import script, tiny

RANKS = [1, pytest.param(2, marks=pytest.mark.slow("two ranks"))]


def ascents(run):
    """Yield each logged e as a dict: name of a parameter -> its part."""
    for rank in run.ranks:
        for row in range(len(run.snapshots(rank, "perturbation")["iteration"])):
            e = run.snapshot(rank, row, "perturbation")
            yield {name: e[at : at + int(np.prod(shape))].reshape(shape) for name, shape, at in run.layout}


def norm(e):
    return np.sqrt(sum((part.astype(float) ** 2).sum() for part in e.values()))


def moved_layers(e):
    return {name.rpartition(".")[0] for name, part in e.items() if part.any()}


@pytest.mark.parametrize("ranks", RANKS)
def test_each_mask_moves_its_coordinates_only(openmpi, tmp_path, ranks):
    rows = {row["method"]: row for row in tiny(openmpi, ranks, "fine_tuning", tmp_path)}
    example = script("fine_tuning")
    assert list(rows) == ["no fine-tuning", "AdamW", *example.METHODS]
    layers = moved_layers({name: np.ones(1) for name, *_ in Run(tmp_path / "0-all").layout})
    for name, rho in example.METHODS.items():
        run = Run(tmp_path / f"0-{name.replace(' ', '-')}")
        assert run.ranks == list(range(ranks))
        assert sum(len(run.steps(rank)["loss"]) for rank in run.ranks) == 48
        logged = list(ascents(run))
        assert len(logged) >= 4
        for e in logged:
            if name == "AdamW chains":
                assert norm(e) == 0
                continue
            weights = {n: part for n, part in e.items() if not any(word in n for word in ("bias", "embed", "norm"))}
            if name == "FSAM":
                most = int(0.1 * sum(part.size for part in weights.values()))
                assert 0.5 * most < sum(np.count_nonzero(part) for part in weights.values()) <= most
                assert norm(e) < rho
            else:
                assert norm(e) == pytest.approx(rho, rel=1e-3)
            if name == "SL-SAM":
                assert len(moved_layers(e)) == round(0.5 * len(layers))
            elif name == "last block":
                assert all(layer.startswith("blocks.layers.1.") for layer in moved_layers(e))
            else:
                assert moved_layers(e) == layers
        if name == "SL-SAM":
            assert len({tuple(sorted(moved_layers(e))) for e in logged}) > 1  # the bandit does not choose the same ones
        flat = np.stack([np.concatenate([part.ravel() for part in e.values()]) for e in logged])
        assert rows[name]["moved %"] == pytest.approx(100 * np.mean(flat != 0))

        # A pass over whole sentences must predict the verb from the words before it, as the script does from these.
        model = example.Transformer(16)
        torch.nn.utils.vector_to_parameters(torch.from_numpy(run.snapshot(0, -1, "center")), model.parameters())
        for domain, at in example.VERB_AT.items():
            words = example.sentences(domain, 512, seed=10**6)
            with torch.no_grad():
                logs = model(words).log_softmax(2)
            guesses = example.FIRST_VERB + logs[:, at - 1, example.FIRST_VERB :].argmax(1)
            assert rows[name][f"{domain} verbs %"] == pytest.approx(100 * np.mean((guesses == words[:, at]).numpy()))
            nll = -logs[:, :-1].gather(2, words[:, 1:, None]).mean()
            assert rows[name][f"{domain} perplexity"] == pytest.approx(np.exp(nll.item()), rel=1e-4)
        losses = run.steps(0)["loss"]
        assert losses[-4:].mean() < losses[:4].mean()


def test_the_farm_has_another_order_and_other_verbs():
    example = script("fine_tuning")
    verbs = {}
    for domain, at in example.VERB_AT.items():
        words = example.sentences(domain, 400, seed=0)
        assert words.shape == (400, 9)
        text = [[example.WORDS[i] for i in sentence] for sentence in words]
        for sentence in text:
            subject, verb = sentence[3], sentence[at]
            assert sentence[0] == f"{domain}:"
            assert verb.removesuffix("s") in example.VERBS
            assert subject.endswith("s") != verb.endswith("s")  # "the gulls hear", "the gull hears"
            verbs.setdefault((domain, subject.removesuffix("s")), set()).add(verb.removesuffix("s"))
    assert {len(v) for v in verbs.values()} == {1}
    assert sum(verbs["sea", noun] != verbs["farm", noun] for noun in example.NOUNS) >= 10
