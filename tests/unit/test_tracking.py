"""Curves are told once, at checkpoints, to whoever was asked for; a tracker that fails never ends a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from parrot_dist import configuration
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting import tracking
from parrot_dist.reporting.tracking import CURVES, Tracking, curves
from parrot_dist.training.gauges import gauge_name
from tests.keys import contents_of, holding
from tests.waiting import wait_until

FAILURES: list[str] = []
STEPS = 5  # in an epoch
PASSWORD = "planted-secret"
DASHBOARD = Path(__file__).parents[2] / "k8s" / "grafana-dashboard.json"


def job(folder: Path, *trackers: str) -> Config:
    words = [
        "name=run",
        f"output={folder}",
        "data.shards=corpus",
        "data.classes=[anger,joy]",
        "encoders.mamba.source=ssam:a",
        "encoders.attention.source=hf:b",
        f"tracking=[{','.join(trackers)}]",
    ]
    return configuration.load(None, words)


def run(tracker: Tracking, start: int, end: int, saved: set[int], quick: bool = False) -> None:
    """Steps `start` + 1 to `end`, with checkpoints at the steps `saved`; `quick` ones beat their epoch's record."""
    tracker.take("start", {"step": start, "workers": 2})
    for step in range(start + 1, end + 1):
        epoch = (step - 1) // STEPS
        tracker.take("step", {"epoch": epoch + 1, "step": step - epoch * STEPS, "steps": STEPS, "loss": 1 / step})
        record = ("epoch", {"epoch": epoch + 1, "step": step, "uar": 0.5, "marginal_error": None})
        checkpoint = ("checkpoint", {"step": step, "url": "", "stall": 0.1})
        events = [record] * (step % STEPS == 0) + [checkpoint] * (step in saved)
        for kind, data in reversed(events) if quick else events:
            tracker.take(kind, data)


def fail(text: str) -> None:
    """Where no warning is expected; raising would be lost in the thread."""
    FAILURES.append(text)


@pytest.fixture(autouse=True)
def no_warning() -> Iterator[None]:
    FAILURES.clear()
    yield
    assert FAILURES == []


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of a store in the environment, as on Kubernetes, of which a tracker could keep a copy."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)


class Fake:
    """Stands in for a service, and keeps what it is told."""

    def __init__(self, fails: str = "", why: str = "no route\nto host") -> None:
        self.points: list[tuple[int, str]] = []
        self.calls: list[str] = []
        self.fails, self.why = fails, why

    def open_tracker(self, _: Config) -> Fake:
        self._call("open")
        return self

    def log(self, points) -> None:
        self._call("log")
        self.points += [(point.step, curve) for point in points for curve in point.values]

    def close(self, finished: bool) -> None:
        self._call(f"close {finished}")

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails:
            raise ConnectionError(self.why)


def install(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "parrot_dist.reporting.tensorboard_tracker", Fake())
    monkeypatch.setitem(sys.modules, "parrot_dist.reporting.wandb_tracker", fake)


@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.sets(st.integers(1, 40)), st.booleans(), st.booleans()), min_size=1, max_size=5
    )
)
def test_no_point_is_told_twice_and_none_before_a_checkpoint_is_lost(lives) -> None:
    """Each life of a run goes on from the newest checkpoint; its driver, or only its workers, are lost at its end."""
    fake = Fake()
    with pytest.MonkeyPatch.context() as patch:
        install(fake, patch)
        settings = replace(job(Path("/nowhere")), tracking=["wandb"])
        stood, tracker = 0, Tracking(settings, fail)
        for length, saved, quick, driver_is_lost in lives:
            run(tracker, stood, stood + length, saved, quick)
            stood = max([step for step in saved if stood < step <= stood + length], default=stood)
            if driver_is_lost:
                tracker._pool.shutdown()  # and no close()
                tracker = Tracking(settings, fail)
        tracker.close(finished=True)
    expected = [(step, "train/loss") for step in range(1, stood + 1)]
    expected += [(step, "validation/uar") for step in range(STEPS, stood + 1, STEPS)]
    assert sorted(fake.points) == sorted(expected)
    steps = [step for step, _ in fake.points]
    assert steps == sorted(steps)  # wandb ignores what comes late


@pytest.mark.parametrize("moment", ["open", "log", "close True"])
def test_a_tracker_that_fails_is_said_once_and_left_out(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, warnings = Fake(fails=moment), []
    install(fake, monkeypatch)
    tracker = Tracking(replace(job(Path("/nowhere")), tracking=["wandb"]), warnings.append)
    run(tracker, 0, 10, {5, 10})
    tracker.close(finished=True)
    ours = [text for text in warnings if "wandb" in text]
    assert ours == ["tracking: wandb is left out from here on (ConnectionError: no route)"]
    assert fake.calls.count(moment) == 1


def test_tensorboard_goes_on_with_its_curves(tmp_path: Path) -> None:
    for start, end in ((0, 10), (10, 15)):
        tracker = Tracking(job(tmp_path), fail)
        run(tracker, start, end, {5, 10, 15})
        run(tracker, end, end + 3, set())  # of these no checkpoint is left
        tracker.close(finished=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(1, 16))
    assert losses[3].value == 0.25
    assert [event.step for event in events.Scalars("validation/uar")] == [5, 10, 15]
    assert "epoch/marginal_error" not in events.Tags()["scalars"]
    assert holding("train/loss", contents_of(tmp_path))
    assert holding(PASSWORD, contents_of(tmp_path)) == []


def test_mlflow_keeps_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    settings = job(tmp_path, "mlflow")
    for start, end in ((0, 10), (10, 15)):
        tracking.check(settings)
        tracker = Tracking(settings, fail)
        run(tracker, start, end, {5, 10, 15})
        tracker.close(finished=end == 15)
    client = mlflow.MlflowClient()
    number = client.get_experiment_by_name("parrot").experiment_id
    [one] = client.search_runs([number])
    assert (one.info.run_name, one.info.status) == ("run", "FINISHED")
    assert one.data.params["fusion.epsilon"] == "0.05"
    history = client.get_metric_history(one.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 16))
    assert holding("lifecycle_stage", contents_of(tmp_path / "mlflow"))
    assert holding(PASSWORD, contents_of(tmp_path)) == []


def test_mlflow_without_a_server_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        tracking.check(job(tmp_path, "mlflow"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=re.escape("MLFLOW_TRACKING_URI=http://127.0.0.1:9: ")):
        tracking.check(job(tmp_path, "mlflow"))
    assert not (tmp_path / "run").exists()


class FakeMlflow(BaseHTTPRequestHandler):
    """Knows one finished run, which is its answer to everything."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        run = {"info": {"run_id": "0", "run_name": "run", "experiment_id": "1", "status": "FINISHED"}}
        answer = {"experiment": {"experiment_id": "1", "name": "parrot"}, "runs": [run], "run": run}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer | {"run_info": run["info"]}).encode())

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing for every request."""


@pytest.fixture
def server() -> Iterator[str]:
    """Where `FakeMlflow` answers, with a user and a password in the address."""
    with HTTPServer(("127.0.0.1", 0), FakeMlflow) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield f"http://me:{PASSWORD}@127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_password_in_mlflows_address_is_not_printed_at_the_end(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    settings = job(tmp_path, "mlflow")
    tracking.check(settings)
    tracker = Tracking(settings, fail)
    run(tracker, 0, 10, {10})
    tracker.close(finished=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("password", [PASSWORD, f"a/{PASSWORD}", f"a@{PASSWORD}", f"a?{PASSWORD}", f"a#{PASSWORD}"])
def test_a_password_in_mlflows_address_is_not_shown(
    password: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{password}@127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI=http://127\.0\.0\.1:9: \w+") as refusal:
        tracking.check(job(tmp_path, "mlflow"))
    assert PASSWORD not in str(refusal.value)
    fake, warnings = Fake("log", f"no answer from http://me:{password}@127.0.0.1:9/api"), []
    install(fake, monkeypatch)
    tracker = Tracking(replace(job(tmp_path), tracking=["wandb"]), warnings.append)
    run(tracker, 0, 10, {10})
    tracker.close(finished=True)
    assert [text for text in warnings if "wandb" in text] == [
        "tracking: wandb is left out from here on (ConnectionError: no answer from http://127.0.0.1:9/api)"
    ]


def test_a_key_that_wandb_does_not_take_is_not_shown() -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    script = f"""if True:  # in a process of its own: wandb keeps in mind what it met first
        import os
        from parrot_dist.errors import UserError
        from parrot_dist.reporting import wandb_tracker
        os.environ["WANDB_BASE_URL"] = "http://me:{PASSWORD}@127.0.0.1:9"
        os.environ.pop("WANDB_MODE", None)
        for key in ({PASSWORD!r}, "{PASSWORD} {"k" * 40}", "{PASSWORD}/{"k" * 40}"):
            os.environ["WANDB_API_KEY"] = key
            try:
                wandb_tracker.check()
            except UserError as error:
                print(error)
    """
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    lines = ended.stdout.splitlines()
    assert len(lines) == 3
    assert all(re.match(r"tracking: wandb: .* WANDB_MODE=offline", line) for line in lines)
    assert PASSWORD not in ended.stdout + ended.stderr


def test_wandb_offline_keeps_the_id_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # its own process may be slow to start on a busy machine
    settings = job(tmp_path, "wandb")
    for start, end in ((0, 10), (10, 15)):
        folder = tmp_path / f"from-{start}"  # its own folders are named by the second
        folder.mkdir()
        monkeypatch.setenv("WANDB_DIR", str(folder))
        tracking.check(settings)
        tracker = Tracking(settings, fail)
        run(tracker, start, end, {5, 10, 15})
        tracker.close(finished=end == 15)
    identity = (tmp_path / "run" / "tracking_id").read_text()
    files = sorted(tmp_path.glob(f"from-*/wandb/offline-run-*/run-{identity}.wandb"))
    assert len(files) == 2  # `wandb sync` makes one run of them
    # wandb's own process may still be writing when it has said that a run is finished.
    wait_until(lambda: {str(file) for file in files} <= set(holding("validation/uar", contents_of(tmp_path))))
    assert holding(PASSWORD, contents_of(tmp_path)) == []


def test_wandb_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key could be
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"tracking: wandb: .* WANDB_MODE=offline"):
        tracking.check(job(tmp_path, "wandb"))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_extra_that_is_not_installed_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"parrot_dist.reporting.{name}_tracker", raising=False)
    with pytest.raises(UserError, match=re.escape(f"{name} is not installed; pip install 'parrot-dist[{name}]'")):
        tracking.check(job(tmp_path, name))


def test_what_is_not_there_makes_no_curve() -> None:
    assert curves("step", {"loss": 1.0, "marginal_error": None}) == {"train/loss": 1.0}
    assert curves("message", {"text": "loss"}) == {}


def test_the_dashboard_shows_metrics_that_are_exported() -> None:
    exported = {f"ray_{gauge_name(curve)}" for named in CURVES.values() for curve in named.values()}
    text = DASHBOARD.read_text()
    shown = set(re.findall(r"ray_\w+", text))
    wanted = {
        "train_loss",
        "train_utterances_per_second",
        "train_data_wait",
        "train_marginal_error",
        "checkpoint_stall",
    }
    assert {f"ray_parrot_{name}" for name in wanted} <= shown <= exported
    for panel in json.loads(text)["panels"]:
        assert all('{run=~"$run"}' in target["expr"] for target in panel["targets"])
