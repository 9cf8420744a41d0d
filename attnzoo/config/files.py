"""Locates experiment files, their bases and SLURM profiles."""

import difflib
from os.path import exists, isdir, isfile  # unlike those of Path they do not raise for a name that is too long
from pathlib import Path

from attnzoo.errors import UserError, as_yaml, did_you_mean, unknown
from attnzoo.paths import denied, real_path, user_path, why_no_file
from attnzoo.schema import yaml12
from attnzoo.schema.merge import ConfigLayer

PACKAGED = Path(__file__).resolve().parent.parent / "experiments"
MAX_BASES = 100  # files below one, and how deep
PROFILES = Path(__file__).resolve().parents[2] / "slurm"  # in a checkout


def find_experiment(path: str | Path) -> Path:
    """The experiment file `path`; if it does not exist, the packaged file of that name (`experiments/…`).

    Raises UserError with the nearest file otherwise.
    """
    path = user_path(path)
    if isfile(path):
        return path
    if path.parts[:1] == (PACKAGED.name,) and isfile(packaged := PACKAGED.joinpath(*path.parts[1:])):
        return packaged
    if isdir(path):
        raise UserError(f"{path}: expected an experiment file, not a folder")
    if exists(path):
        raise UserError(f"{path}: {why_no_file(path)}")
    if reason := denied(path):
        raise UserError(f"{path}: {reason}")
    if "=" in path.name and path.suffix != ".yaml":
        raise UserError(f"{path}: expected an experiment file before overrides, as in EXPERIMENT.yaml key=value")
    beside = sorted(path.parent.glob("*.yaml")) if isdir(path.parent) else []
    siblings = [str(other) for other in beside if isfile(other)]
    names = [f"{PACKAGED.name}/{other.name}" for other in sorted(PACKAGED.glob("*.yaml"))]
    raise UserError(f"{path}: no such experiment file{did_you_mean(str(path), dict.fromkeys(siblings + names))}")


def load_layers(path: Path, parents: tuple[Path, ...] = ()) -> list[ConfigLayer]:
    """The layers of a file, lowest precedence first: those of its `base:` files, recursively, then its own.

    A base is looked for relative to the file, then among the package's experiments. Raises UserError for a missing or
    circular base.
    """
    path = real_path(path)
    if path in parents:
        chain = " -> ".join(str(p) for p in (*parents[parents.index(path) :], path))
        raise UserError(f"{parents[-1]}: circular base: {chain}", key="base")
    if len(parents) >= MAX_BASES:
        raise UserError(f"{display_path(path)}: base: more than {MAX_BASES} files deep", key="base")
    values = yaml12.read(path)
    bases = values.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(
            f"{display_path(path)}: base = {as_yaml(bases)}: expected a file name or a list of them", key="base"
        )
    base_layers: list[ConfigLayer] = []
    for base in bases:
        base_layers += load_layers(_find_base(base, path), (*parents, path))
        if len(base_layers) > MAX_BASES:
            raise UserError(f"{display_path(path)}: base: more than {MAX_BASES} files", key="base")
    return [*base_layers, ConfigLayer(display_path(path), values)]


def find_profile(name: str, experiment: Path) -> Path:
    """The file of a SLURM profile: a path, or NAME.yaml in slurm/ here, above the experiment, or in the checkout.

    Raises UserError with the known profiles otherwise.
    """
    if name.endswith(".yaml"):
        path = user_path(name)
        if isfile(path):
            return path
        raise UserError(f"slurm.profile: {name!r}: {why_no_file(path)}", key="slurm.profile")
    folders = [Path("slurm"), *(parent / "slurm" for parent in real_path(experiment).parents), PROFILES]
    for folder in folders:
        if isfile(path := folder / f"{name}.yaml"):
            return path
    known = {path.stem for folder in folders for path in folder.glob("*.yaml")}
    raise unknown("profile", name, known, "slurm.profile")


def display_path(path: Path) -> str:
    """A path for messages: relative to the current folder if it is inside."""
    path = real_path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _find_base(base: str, child: Path) -> Path:
    folders = [folder for folder in dict.fromkeys((child.parent, PACKAGED)) if folder.is_dir()]
    for folder in folders:
        if isfile(path := folder / user_path(base)):
            return path
        if reason := denied(path):
            raise UserError(f"{display_path(child)}: base: {path}: {reason}", key="base")
    for path in (folder / user_path(base) for folder in folders):
        if exists(path):
            raise UserError(f"{display_path(child)}: base: {path}: {why_no_file(path)}", key="base")
    parents = [folder / Path(base).parent for folder in folders]
    found = [
        (folder, path)
        for folder, parent in zip(folders, parents, strict=True)
        for path in parent.glob("*.yaml")
        if isfile(path)
    ]
    known = {str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for folder, path in found}
    close = difflib.get_close_matches(base, sorted(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    searched = f"looked in {child.parent} and {PACKAGED}"
    raise UserError(f"{display_path(child)}: base: no such file {base!r}{hint} ({searched})", key="base")
