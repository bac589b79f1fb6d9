"""Trackers of experiments: each writes a run's numbers while it trains, by default without a network."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]
# The numbers of a point; one that is not finite, such as the distance before the first exchange, is left out.
NUMBERS = ("loss", "lr", "rho", "steps_per_second", "center_distance", "staleness_mean")


class Tracker(Protocol):
    """Receives the numbers of a run. Each method may raise anything: the caller then goes on without the tracker."""

    def log(self, step: int, values: Values) -> None:
        """Write numbers at a global step."""

    def close(self, results: Values) -> None:
        """Write the results, none if training did not end, and close."""


class Csv:
    """A table in RUN/tracked.csv; a resumed run continues it. The results are in RUN/tracked-results.json."""

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        self._file = (run_dir / "tracked.csv").open("a", newline="")
        self._writer = csv.DictWriter(self._file, ["step", *NUMBERS])
        if self._file.tell() == 0:
            self._writer.writeheader()
        self._results = run_dir / "tracked-results.json"

    def log(self, step: int, values: Values) -> None:
        """Append a row."""
        self._writer.writerow({"step": step, **values})
        self._file.flush()

    def close(self, results: Values) -> None:
        """Write tracked-results.json."""
        self._file.close()
        if results:
            self._results.write_text(json.dumps(dict(results), indent=1) + "\n")


class TensorBoard:
    """Events in RUN/tensorboard: `tensorboard --logdir runs` shows all runs."""

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        self._writer.add_text("options", _markdown(options))
        self._step = 0

    def log(self, step: int, values: Values) -> None:
        """Write a scalar for each number."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()

    def close(self, results: Values) -> None:
        """Write the results as scalars at the last step."""
        for name, value in results.items():
            self._writer.add_scalar(f"result/{name}", value, self._step)
        self._writer.close()


class WandB:
    """Weights & Biases: offline in RUN/wandb unless WANDB_MODE says otherwise; `wandb sync` uploads it later."""

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lsam-hpc"),
            name=run_dir.name,
            dir=str(run_dir),
            config=dict(options),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Values) -> None:
        """Write the numbers of a step."""
        self._run.log(dict(values), step=step)

    def close(self, results: Values) -> None:
        """Write the results as the run's summary."""
        import wandb

        self._run.summary.update(dict(results))
        self._run.finish(exit_code=0 if results else 1)
        wandb.teardown()  # else its service outlives the job


class MLflow:
    """MLflow: files in RUN/mlflow unless MLFLOW_TRACKING_URI names a server or a database."""

    def __init__(self, run_dir: Path, options: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (run_dir / "mlflow").absolute().as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs no SQL packages
        self._client = MlflowClient(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lsam-hpc")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
        for option, value in options.items():
            self._client.log_param(self._run, option, value)

    def log(self, step: int, values: Values) -> None:
        """Write a metric for each number."""
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self, results: Values) -> None:
        """Write the results as metrics, and end the run."""
        for name, value in results.items():
            self._client.log_metric(self._run, f"result_{name}", value)
        self._client.set_terminated(self._run, "FINISHED" if results else "KILLED")


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "csv": Csv,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _markdown(options: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in options.items())
    return f"| option | value |\n|---|---|\n{rows}"
