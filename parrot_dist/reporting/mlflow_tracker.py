"""MLflow: a run in the experiment MLFLOW_EXPERIMENT_NAME, `parrot` unless set, of the server MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from parrot_dist import configuration, storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting.tracking import IDENTITY, Point

TAG = "parrot_dist.run"
BATCH = 1000  # metrics that MLflow takes at once


def check() -> None:
    """Look whether there is a server that answers.

    Raises:
        UserError: none is named, or it does not answer.
    """
    if "MLFLOW_TRACKING_URI" not in os.environ:
        raise UserError("tracking: mlflow needs a server; set MLFLOW_TRACKING_URI, for example to http://host:5000")
    # MLflow's own seven retries take minutes, at the start as in the run.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        place = os.environ["MLFLOW_TRACKING_URI"]
        raise UserError(f"tracking: MLFLOW_TRACKING_URI={place}: {str(error).splitlines()[0]}") from error


class Mlflow:
    """One MLflow run for all parts of a run: it is found again by its tag."""

    def __init__(self, config: Config) -> None:
        # MLflow would print the run's address in the end, with the password that MLFLOW_TRACKING_URI may hold; and
        # stdout belongs to the run's own lines.
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "parrot")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        identity = storage.read_bytes(storage.join(config.run_url, IDENTITY)).decode()
        found = self._client.search_runs([number], f"tags.`{TAG}` = '{identity}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(number, run_name=config.name, tags={TAG: identity}).info.run_id
        for key, value in configuration.flat(config).items():
            self._client.log_param(self._run, key, value)

    def log(self, points: Sequence[Point]) -> None:
        """Log metrics."""
        metrics = [
            Metric(curve, value, int(point.time * 1000), point.step)
            for point in points
            for curve, value in point.values.items()
        ]
        for first in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics[first : first + BATCH])

    def close(self, finished: bool) -> None:
        """Say how the run stands."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


open_tracker = Mlflow
