"""Search over the numbers of a recipe with Optuna (Akiba et al., KDD 2019). Each trial is a run, and trials compare as runs do.

The trials train on the days before the validation days and are compared on those; the test days have no part in the search.

Errors::

    TuneError                  a search that cannot be made
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.data.log import Log, before_day
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.training.recipe import with_recipe, with_settings
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import TrainConfig, train

__all__ = ["Choice", "Range", "Trial", "TuneError", "parse_space", "tune"]

STORAGE = "trials.log"
"""Journal of Optuna, by which a search continues."""


class TuneError(ValueError):
    """A search that cannot be made."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn on a log scale or not; whole ones where both are."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """Values to choose from."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """A trial that is done."""

    number: int
    settings: dict[str, Any]
    value: float
    """Mean AUC on the validation days of the tasks that order a page."""


def parse_space(texts: Sequence[str]) -> dict[str, Range | Choice]:
    """Parse `PART.NAME=LOW..HIGH`, `PART.NAME=LOW..HIGH log` and `PART.NAME=[A, B, …]`. Raises `TuneError`."""
    space: dict[str, Range | Choice] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        try:
            if not name or not equals:
                raise ValueError
            if values.startswith("["):
                found: Range | Choice = Choice(tuple(tomllib.loads(f"x = {values}")["x"]))
            else:
                numbers, _, scale = values.partition(" ")
                low, high = (tomllib.loads(f"x = {number}")["x"] for number in numbers.split(".."))
                found = Range(low, high, scale.strip() == "log")
                if scale.strip() not in ("", "log") or not (low < high and math.isfinite(low) and math.isfinite(high)):
                    raise ValueError
                if found.log and low <= 0:
                    raise ValueError
        except (ValueError, TypeError) as error:
            expected = "PART.NAME=LOW..HIGH, LOW..HIGH log or [A, B]"
            raise TuneError(f"Expected {expected}, got {text!r}") from error
        space[name] = found
    if not space:
        raise TuneError("Expected at least one number to search over, got none")
    return space


def tune(
    log: Log,
    *,
    out: Path,
    space: dict[str, Range | Choice],
    parts: Sequence[dict[str, Any]],
    config: TrainConfig,
    trials: int,
    validate_from: date,
    test_from: date,
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> list[Trial]:
    """Train `trials` runs `out`/trial-N with numbers from `space`, and return all of them, the best first.

    They train on the days before `validate_from` and are compared on the days from it to the one before `test_from`. An
    interrupted search continues. Raises `TuneError`, `RecipeError`, `DataError`.
    """
    # Imported here because it is an extra of its own.
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if not validate_from < test_from:
        raise DataError(log.name, f"expected validation days before the first test day {test_from}, got {validate_from}")
    known = before_day(log, test_from)

    def settings(trial: Any) -> dict[str, Any]:
        drawn = {}
        for name, values in space.items():
            if isinstance(values, Choice):
                drawn[name] = trial.suggest_categorical(name, list(values.values))
            elif isinstance(values.low, int) and isinstance(values.high, int):
                drawn[name] = trial.suggest_int(name, values.low, values.high, log=values.log)
            else:
                drawn[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
        return drawn

    def run(trial: Any) -> float:
        texts = [f"{name}={_toml(value)}" for name, value in settings(trial).items()]
        made = with_recipe(config, with_settings(parts, texts))
        report = (lambda stage, share: progress(f"trial {trial.number}: {stage}", share)) if progress else None
        folder = out / f"trial-{trial.number}"
        done = train(known, out=folder, test_from=validate_from, seeds=1, seed=seed, config=made, progress=report)
        return _objective(done)

    # The settings of the first trial say whether the recipe has all of these numbers.
    with_recipe(config, with_settings(parts, [f"{name}={_toml(_some(values))}" for name, values in space.items()]))
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(out / STORAGE)))
    about = msgspec.json.encode(
        [known.digest(), validate_from.isoformat(), config.plain(), list(parts), repr(sorted(space.items()))],
        order="deterministic",
    ).decode()
    study = optuna.create_study(
        storage=storage,
        study_name="pocketrank",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        load_if_exists=True,
    )
    if study.user_attrs.get("about", about) != about:
        raise TuneError(f"Expected the search that was begun here, got other data or numbers - at {out}. Choose another --out")
    study.set_user_attr("about", about)
    finished = optuna.trial.TrialState.COMPLETE
    if (left := trials - len(study.get_trials(deepcopy=False, states=(finished,)))) > 0:
        study.optimize(run, n_trials=left)
    found = [Trial(t.number, dict(t.params), float(t.value or 0)) for t in study.get_trials(states=(finished,))]
    return sorted(found, key=lambda trial: -trial.value)


def _objective(run: Run) -> float:
    metrics = msgspec.json.decode((run.folder / "metrics.json").read_bytes())["models"]["split"]
    weights = run.record.spec.task_weights
    known = [metrics[task]["auc"] for task in metrics if weights.get(task) and metrics[task]["auc"] is not None]
    return float(sum(known) / max(1, len(known)))


def _some(values: Range | Choice) -> Any:
    return values.low if isinstance(values, Range) else values.values[0]


def _toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()  # numbers, texts, booleans and lists are written alike
