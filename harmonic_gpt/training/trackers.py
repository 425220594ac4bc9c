"""Experiment trackers, through Accelerate's `log_with`: wandb, tensorboard, trackio. Each is off unless the
configuration asks for it."""

import json
from pathlib import Path

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from harmonic_gpt.errors import InputError, reason_of
from harmonic_gpt.extras import require
from harmonic_gpt.run_config import RunConfig, load_run_config
from harmonic_gpt.runs.checkpoint import checkpoints, read_state

TENSORBOARD = "tensorboard"  # folder in the run's


def trackers(config: RunConfig, run_dir: Path, step: int = 0, wandb_id: str | None = None) -> list[GeneralTracker]:
    """What `tracking` asks for, not started yet. `step` finished updates are there already, of the wandb run
    `wandb_id`.

    Raises InputError that names the extra whose library is missing.
    """
    chosen = config.tracking
    wanted = {"wandb": chosen.wandb != "disabled", "tensorboard": chosen.tensorboard, "trackio": chosen.trackio}
    for name in (name for name, on in wanted.items() if on):
        try:
            require(name, name)
        except InputError as error:
            raise InputError(f"tracking.{name}: {error}") from error
    found: list[GeneralTracker] = []
    if wanted["wandb"]:
        identity = {"id": wandb_id, "resume": "allow", "name": run_dir.name}
        found.append(WandBTracker(chosen.project, dir=run_dir, mode=chosen.wandb, **identity))
    if wanted["tensorboard"]:  # rows of steps that will be run again are dropped
        found.append(TensorBoardTracker(TENSORBOARD, run_dir, purge_step=step + 1 if step else None))
    if wanted["trackio"]:
        found.append(
            TrackioTracker(chosen.project, name=run_dir.name, resume="allow" if step else "never", embed=False)
        )
    return found


def flat_config(config: RunConfig) -> dict[str, str | float]:
    """{"optim.lr": 0.004, ...}: the values that every tracker can store; a choice left open is "null"."""
    flat: dict[str, str | float] = {}
    for section, values in config.model_dump(mode="json").items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            name = f"{section}.{key}".rstrip(".")
            flat[name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return flat


def start(tracker: GeneralTracker, config: dict | None = None) -> None:
    """Start a tracker; wandb plots against our own step, since it cannot rewind its own on resume. Raises
    InputError."""
    try:
        tracker.start()
    except Exception as error:  # each library has its own kinds
        raise InputError(
            f"{tracker.name} did not start: {reason_of(error)}. Log in, or set tracking.{tracker.name} otherwise"
        ) from error
    if tracker.name == "wandb":
        tracker.tracker.define_metric("step")
        tracker.tracker.define_metric("*", step_metric="step")
    if config:
        tracker.store_init_configuration(config)


def log(tracker: GeneralTracker, step: int, values: dict) -> None:
    if tracker.name == "wandb":
        tracker.log({"step": step, **values})
    else:
        tracker.log(values, step=step)


def attach(run_dir: str | Path, report: str | Path) -> list[str]:
    """Add a report's figures, table and numbers to the trackers that the run logged to. Returns their names.

    Raises InputError: no such run or report, or the run logged to none.
    """
    from PIL import Image  # of the trackers' extras: training itself does without

    run_dir, report = Path(run_dir).expanduser(), Path(report).expanduser()
    saved = checkpoints(run_dir)
    if not saved:
        raise InputError(f"{run_dir}: no checkpoint; expected a run folder")
    state, config = read_state(saved[-1]), load_run_config(run_dir / "config.yaml")
    figures, text = sorted(report.glob("*.png")), report / "report.md"
    if not text.is_file():
        raise InputError(f"{report}: no report.md; expected a folder of `eval.py compare`")
    found = trackers(config, run_dir, state["step"], state.get("wandb_id"))
    if not found:
        raise InputError(
            f"{run_dir} logged to no tracker; see --tracking.wandb, --tracking.tensorboard and --tracking.trackio"
        )
    for tracker in found:
        start(tracker)
        images = {f"report/{path.stem}": np.asarray(Image.open(path).convert("RGB")) for path in figures}
        if tracker.name == "trackio":
            import trackio

            log(tracker, state["step"], {name: trackio.Image(image) for name, image in images.items()})
            log(tracker, state["step"], {"report": trackio.Markdown(text.read_text(encoding="utf-8"))})
        elif tracker.name == "tensorboard":
            tracker.log_images(
                {name: image[None] for name, image in images.items()}, step=state["step"], dataformats="NHWC"
            )
            log(tracker, state["step"], {"report": text.read_text(encoding="utf-8")})
        else:
            import wandb

            tracker.tracker.log({"step": state["step"], **{name: wandb.Image(image) for name, image in images.items()}})
            artifact = wandb.Artifact(f"report-{tracker.tracker.id}", type="report")
            artifact.add_dir(str(report))
            tracker.tracker.log_artifact(artifact)
        tracker.finish()
    return [tracker.name for tracker in found]
