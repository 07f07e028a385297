"""What comes before a run: everything that can be known to be wrong without a worker."""

from __future__ import annotations

from parrot_dist import configuration, storage
from parrot_dist.config import Config
from parrot_dist.errors import UserError
from parrot_dist.reporting import tracking
from parrot_dist.reporting.provenance import record_start
from parrot_dist.reporting.view import View
from parrot_dist.training import checkpoint
from parrot_dist.training.model import CONFIG_PART, build_model, check_encoders, lacks_reference, pinned
from parrot_dist.training.task import check_corpus, check_task, open_task


def check_stores(config: Config) -> None:
    """Return if the places that a run writes to can be written to.

    Raises:
        UserError: one cannot; says why.
    """
    for place in {config.output, config.cache_url} if config.data.keep_frozen else {config.output}:
        storage.check_writable(place)


def prepare(config: Config, view: View) -> bool:
    """Find everything else that can be wrong before a worker starts, and write down the resolved configuration.

    For the driver that holds the run: another one could change what this has found, and would lose its own settings.
    Returns whether there is anything to do: not if the run is complete, which is then said.

    Raises:
        UserError: the corpus, an encoder or an earlier run of this name does not fit the configuration.
    """
    task = open_task(config)
    check_task(task)
    newest = checkpoint.newest_intact(config.run_url)
    model = build_model(pinned(config, newest))
    if newest is not None:
        earlier = configuration.loads(checkpoint.read_part(newest, CONFIG_PART).decode())
        changed = configuration.differences(earlier, config)
        if changed:
            raise UserError(
                f"name: {config.run_url} is a run with other settings; give this one another name=...\n"
                + "\n".join(f"  {change}" for change in changed)
            )
        check_corpus(task, newest)
        check_encoders(model, newest)
        # An early stop is final as long as nobody asks for more.
        same = (earlier.optim.epochs, earlier.optim.patience) == (config.optim.epochs, config.optim.patience)
        whole = newest.manifest.finished and not lacks_reference(newest, model)
        if whole and (same or newest.manifest.epoch >= config.optim.epochs):
            complete = f"{config.run_url} is complete after {newest.manifest.epoch} epochs; nothing to do"
            view.show("message", text=complete)
            show_end(view, config, "finished")
            return False
    if not storage.creates_once(config.output):
        unsafe = (
            f"{config.output}: this store knows no conditional writes (If-None-Match); two drivers of this run are not "
            "kept apart if they start at once: see to it that only one does"
        )
        view.show("warning", text=unsafe)
    tracking.check(config)
    storage.write_bytes(storage.join(config.run_url, CONFIG_PART), configuration.dumps(config).encode())
    record_start(config.run_url)
    return True


def show_end(view: View, config: Config, how: str, why: str | None = None) -> None:
    """Show how the run of `config` ended, and where its checkpoints are."""
    try:
        found = checkpoint.find_all(config.run_url)
        newest, best = found[-1] if found else None, checkpoint.best_of(found)
        places = {"newest": newest and newest.url, "best": best and best.url}
    except (UserError, OSError) as error:  # the store is away, which must not hide how the run ended
        view.show("warning", text=f"the checkpoints cannot be listed: {error}")
        places = dict.fromkeys(("newest", "best"), storage.join(config.run_url, checkpoint.FOLDER))
    view.show("end", how=how, why=why, **places)
