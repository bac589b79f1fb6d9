"""The facts at the top of `lsam report`: data, model, method, ranks, result, time, and the answer of the diagnosis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from lsam_hpc.landscape.chains.diagnosis import CheckResult, are_samples
from lsam_hpc.tools.inspect_run import ending

NECESSARY = 3  # the first checks of `diagnose`, from which its answer follows


def facts(info: dict[str, Any], verdicts: Sequence[CheckResult] | None) -> list[tuple[str, str]]:
    """Return names and values.

    Args:
        info: of `inspect_run.summary`.
        verdicts: of `diagnose`; None if there are too few rows.
    """
    rows = {
        "Data": _data(info["config"]),
        "Model": f"{_model(info['config'])}{info['parameters']:,} parameters in {info['tensors']} tensors",
        "Training": _training(info["config"]),
        "Method": _method(info["config"]),
        "Ranks": _ranks(info),
        "Result": _result(info),
        "Time": _time(info),
        "Verdict": answer(verdicts),
        "Software": _software(info["attributes"]),
    }
    return [(name, text) for name, text in rows.items() if text]


def answer(verdicts: Sequence[CheckResult] | None) -> str:
    """Return whether the chains are samples, and which checks failed."""
    if verdicts is None:
        return "Not judged: the chains have too few rows, or losses that are not finite"
    failed = [verdict.name for verdict in verdicts if verdict.good is False]
    first = [verdict.name for verdict in verdicts[:NECESSARY] if verdict.name in failed]
    others = [name for name in failed if name not in first]
    if are_samples(list(verdicts)):
        text = "The chains are samples, by the necessary checks"
    else:
        text = f"The chains are not samples: {_and(first or ['agreement'])} failed"
    return f"{text}; other problems: {_and(others)}" if others else text


def _data(config: Mapping[str, Any]) -> str:
    name = config.get("data")
    if name is None:
        return "not named in the run's options"
    words = [str(name)]
    words += [f"{config['subset']} {'windows' if name == 'text' else 'images'}"] if config.get("subset") else []
    words += [f"{config['validation']} for validation"] if config.get("validation") else []
    words += [f"label noise {config['label_noise']:g}"] if config.get("label_noise") else []
    words += [f"augmentation {config['augment']}"] if config.get("augment", "none") != "none" else []
    words += [f"adversarial {config['adversarial']}"] if config.get("adversarial", "none") != "none" else []
    return ", ".join(words)


def _model(config: Mapping[str, Any]) -> str:
    name = config.get("model")
    if name is None and config.get("data") is not None and find_spec("torch"):
        from lsam_hpc.train.models import DEFAULT_MODEL

        name = DEFAULT_MODEL.get(str(config["data"]), "cnn")
    return f"{name}, " if name else ""


def _training(config: Mapping[str, Any]) -> str:
    if "optimizer" not in config:
        return ""
    words = [str(config["optimizer"])]
    words += [f"lr {config['lr']:g} ({config.get('lr_schedule', 'constant')})"] if config.get("lr") is not None else []
    names = {"momentum": "momentum", "weight_decay": "weight decay", "batch_size": "batch", "epochs": "epochs"}
    words += [f"{text} {config[name]:g}" for name, text in names.items() if config.get(name)]
    return ", ".join(words)


def _method(config: Mapping[str, Any]) -> str:
    if "coupling" not in config:
        return ""
    names = ("rho", "period", "temperature", "stiffness")
    used = [name for name in names if name != "stiffness" or config["coupling"] == "kernel"]
    words = [f"ascent {config.get('ascent', 'sam')}", f"{config['coupling']} coupling"]
    words += [f"{name} {config[name]:g}" for name in used if isinstance(config.get(name), (int, float))]
    words += [f"pull {config['pull']:g}"] if isinstance(config.get("pull"), (int, float)) else []
    words += [str(config[name]) for name in ("topology", "mode") if config.get(name) not in (None, "center")]
    return ", ".join(words)


def _ranks(info: dict[str, Any]) -> str:
    ranks = info["ranks"]
    hosts = {rank["host"] for rank in ranks}
    steps, exchanges = [rank["steps"] for rank in ranks], sum(rank["exchanges"] for rank in ranks)
    started = info["attributes"]["ranks"]
    count = str(started) if started == len(ranks) else f"{len(ranks)} of {started}"
    on = f"on {len(hosts)} hosts" if len(hosts) > 1 else f"on {next(iter(hosts))}"
    each = f" ({min(steps):,} to {max(steps):,} each)" if len(steps) > 1 else ""
    return f"{count} {on}; {sum(steps):,} steps{each}, {exchanges:,} exchanges"


def _result(info: dict[str, Any]) -> str:
    center, ranks = info["center"], info["ranks"]
    words = []
    if center["test_error"] is not None:
        words.append(f"center: train loss {center['train_loss']:.4g}, test error {center['test_error']:.2f} %")
    if center["test_perplexity"] is not None:
        words[-1] += f", test perplexity {center['test_perplexity']:.4g}"
    results = [rank["result"] for rank in ranks if rank["result"]]
    errors = [r["sample_test_error"] for r in results if r.get("sample_test_error") is not None]
    losses = [r["sample_train_loss"] for r in results if r.get("sample_train_loss") is not None]
    if errors and losses:
        words.append(f"samples: train loss {_span(losses, '.4g')}, test error {_span(errors, '.2f')} %")
    perplexities = [p for r in results if (p := r.get("sample_test_perplexity")) is not None]
    if errors and losses and perplexities:
        words[-1] += f", test perplexity {_span(perplexities, '.4g')}"
    last = [rank["loss"] for rank in ranks if rank["loss"] is not None]
    if not words and last:
        words.append(f"last mini-batch loss {_span(last, '.4g')}")
    words += [] if center["test_error"] is not None else [ending(info)]
    return "; ".join(words)


def _time(info: dict[str, Any]) -> str:
    ranks = info["ranks"]
    seconds = [rank["result"].get("seconds") or rank["seconds"] for rank in ranks if rank["seconds"]]
    words = []
    if seconds:
        rate = sum(rank["steps"] for rank in ranks) / max(seconds)
        words.append(f"{_duration(max(seconds))} of training, {_rate(rate)} steps/s of all ranks")
    words.append(f"started {_date(info['attributes']['created'])}")
    return "; ".join(words)


def _software(attributes: Mapping[str, Any]) -> str:
    commit = f" ({attributes['git_commit'][:12]})" if attributes["git_commit"] else ""
    library = str(attributes["mpi_library"]).partition(",")[0]
    return (
        f"lsam-hpc {attributes['code_version']}{commit}, torch {attributes['torch_version']} on "
        f"{attributes['device']}, {library}, launched by {attributes['launcher']}"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _date(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:  # another program's log
        return text


def _span(values: Sequence[float], spec: str) -> str:
    low, high = format(min(values), spec), format(max(values), spec)
    return low if low == high else f"{low} to {high}"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
