"""What `attnzoo cost` is given: an experiment file, the folder of a run or a sweep, or a preset."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import exists
from pathlib import Path

from attnzoo.attention import load_plugin
from attnzoo.config.experiment import ExperimentConfig
from attnzoo.config.load import Experiment, load_saved
from attnzoo.config.options import check_versions, resolve_options
from attnzoo.cost.published import published
from attnzoo.cost.subject import Size, Subject, subject_of
from attnzoo.engine.config import TrainConfig
from attnzoo.errors import UserError, did_you_mean, one_line, printable, unknown
from attnzoo.models import presets
from attnzoo.models.config import ModelConfig
from attnzoo.paths import user_path
from attnzoo.report.runs import find_plan, find_runs
from attnzoo.rundir.folder import RunFolder
from attnzoo.sweep.expand import expand_sweep

NUM_CLASSES = {"detector": 91, "vit": 1000}  # of COCO's category ids, and of ImageNet


@dataclass(frozen=True)
class Target:
    """The variants to be measured by name, and the device and threads of the first.

    `sweep`: the folder in which costs.json belongs; None for an experiment file or a preset. `preset`: its name.
    """

    subjects: dict[str, Subject]
    baseline: str
    device: str = "auto"
    threads: int | None = None
    sweep: Path | None = None
    preset: str | None = None


def find_target(text: str, baseline: str | None = None, overrides: Sequence[str] = ()) -> Target:
    """The target of an argument; `baseline` names a variant, by default that of the sweep.

    `overrides` change settings of an experiment file, such as "model.heads=4". Loads the plugins of experiments. Raises
    UserError for what is none of the three, an invalid config, a missing data set, an unknown baseline, and overrides
    of anything but an experiment file.
    """
    path = user_path(text)
    is_folder, is_preset = path.is_dir(), text in presets.names()
    if overrides and (is_folder or is_preset):
        kind = "folder of runs" if is_folder else "preset"
        raise UserError(f"{overrides[0]}: {text} is a {kind}; only experiment files take key=value")
    if is_folder:
        target = _of_runs(path)
    elif is_preset:
        target = _of_preset(text)
    elif path.suffix in (".yaml", ".yml") or path.exists():
        target = _of_experiment(path, overrides)
    else:
        raise UserError(
            f"{text}: no such experiment file, folder of runs or preset{did_you_mean(text, presets.names())}"
        )
    if baseline is None:
        return target
    if baseline not in target.subjects:
        raise unknown("variant", baseline, target.subjects, "--baseline")
    return dataclasses.replace(target, baseline=baseline)


def _of_runs(folder: Path) -> Target:
    """One subject for each variant of a run or a sweep.

    A variant without a run that can be read, or whose plugins changed, is left out with a message. Raises UserError if
    no variant remains.
    """
    runs = {run: entry for run, entry in find_runs([folder]).items() if exists(run.config)}
    if not runs:
        raise UserError(f"{folder}: no run in it has a config.yaml")
    sweeps = dict.fromkeys(run.path.parent for run in runs)
    by_variant: dict[str, list[RunFolder]] = {}
    for run, entry in runs.items():
        prefix = f"{run.path.parent.name}/" if len(sweeps) > 1 else ""  # each sweep has variants of its own
        by_variant.setdefault(prefix + (entry.variant_name or run.path.resolve().name), []).append(run)
    configs, errors = {}, {}
    for name, candidates in by_variant.items():
        for run in reversed(candidates):  # a run that was started anew comes after the old one
            try:
                configs[name] = _load_run(run)
                break
            except UserError as error:
                errors[name] = error
    if not configs:
        raise next(iter(errors.values()))
    for name in by_variant.keys() - configs.keys():
        print(f"variant {printable(name)} is left out: {one_line(str(errors[name]))}", file=sys.stderr)
    is_sweep = len(sweeps) == 1 and next(iter(runs)).path != folder
    return _of_configs(configs, find_plan([folder]).baseline, folder if is_sweep else None)


def _load_run(run: RunFolder) -> ExperimentConfig:
    """The config of a run, with its plugins loaded."""
    config = load_saved(run.config)
    for plugin in config.plugins:
        load_plugin(plugin, where="plugins")
    check_versions(config)
    return config


def _of_experiment(path: Path, overrides: Sequence[str]) -> Target:
    experiment = Experiment(path, overrides)
    sweep = expand_sweep(experiment)
    configs: dict[str, ExperimentConfig] = {}
    for run in sweep.runs:
        name = run.variant_name or run.config.name
        if name not in configs:
            try:
                configs[name] = resolve_options(run.config)
            except UserError as error:
                raise experiment.locate(error, run.changes, run.name) from None
    return _of_configs(configs, sweep.baseline, None)


def _of_configs(configs: dict[str, ExperimentConfig], baseline: str | None, sweep: Path | None) -> Target:
    first = next(iter(configs.values()))
    subjects = {name: subject_of(config) for name, config in configs.items()}
    if baseline is None or baseline not in subjects:
        baseline = next(iter(subjects))
    return Target(subjects, baseline, first.device, first.threads, sweep)


def _of_preset(preset: str) -> Target:
    figures = published(preset)
    model: ModelConfig
    size: Size
    if preset in presets.names(family="vit"):
        model, family = presets.classifier_config(preset, {}), "vit"
        size = (model.image_size, model.image_size)
    else:
        model, family = presets.detector_config(preset, {}), "detector"
        size = figures.size if figures else (800, 1120)
    subject = Subject(model, NUM_CLASSES[family], size, train=TrainConfig())
    return Target({preset: subject}, preset, preset=preset)
