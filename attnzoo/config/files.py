"""Finding experiment files and what they build on."""

import difflib
from os.path import isdir, isfile  # unlike those of Path they do not raise for a name that is too long
from pathlib import Path

from attnzoo.errors import UserError, did_you_mean, unknown
from attnzoo.schema import yaml12
from attnzoo.schema.merge import Layer

PACKAGED = Path(__file__).resolve().parent.parent / "experiments"
PROFILES = Path(__file__).resolve().parents[2] / "slurm"  # in a checkout


def find(path: str | Path) -> Path:
    """An experiment file: as given, or `experiments/…` from the package where there is no such file here.

    Raises UserError with the nearest file otherwise.
    """
    path = Path(path).expanduser()
    if isfile(path):
        return path
    if path.parts[:1] == (PACKAGED.name,) and isfile(packaged := PACKAGED.joinpath(*path.parts[1:])):
        return packaged
    if isdir(path):
        raise UserError(f"{path}: expected an experiment file, found a folder")
    beside = [str(other) for other in sorted(path.parent.glob("*.yaml"))] if isdir(path.parent) else []
    shipped = [f"{PACKAGED.name}/{other.name}" for other in sorted(PACKAGED.glob("*.yaml"))]
    raise UserError(f"{path}: no such experiment file{did_you_mean(str(path), dict.fromkeys(beside + shipped))}")


def layers(path: Path, above: tuple[Path, ...] = ()) -> list[Layer]:
    """A file's settings, lowest first: those of its `base:` files, which have bases of their own, then its own.

    A base is looked for relative to the file, then among the package's experiments. Raises UserError for a base that
    does not exist or builds on itself.
    """
    path = path.resolve()
    if path in above:
        chain = " -> ".join(str(p) for p in (*above[above.index(path) :], path))
        raise UserError(f"{above[-1]}: base: files build on each other: {chain}")
    content = yaml12.read(path)
    bases = content.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{shown(path)}: base = {bases!r}: expected a file name or a list of them")
    below = [layer for base in bases for layer in layers(_find_base(base, path), (*above, path))]
    return [*below, Layer(shown(path), content)]


def find_profile(name: str, where: str, experiment: Path) -> Path:
    """The file of a SLURM profile: a path, or NAME.yaml in slurm/ here, above the experiment, or in the checkout.

    Raises UserError with the known profiles otherwise.
    """
    if name.endswith(".yaml"):
        path = Path(name).expanduser()
        if isfile(path):
            return path
        raise UserError(f"{where}: no such file {name!r}")
    folders = [Path("slurm"), *(above / "slurm" for above in experiment.resolve().parents), PROFILES]
    for folder in folders:
        if isfile(found := folder / f"{name}.yaml"):
            return found
    raise unknown("profile", name, {path.stem for folder in folders for path in folder.glob("*.yaml")}, where)


def shown(path: Path) -> str:
    """A path as messages show it: relative to the current folder where it lies below."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _find_base(base: str, user: Path) -> Path:
    for folder in (user.parent, PACKAGED):
        if isfile(found := folder / base):
            return found
    folders = [folder for folder in dict.fromkeys((user.parent, PACKAGED)) if folder.is_dir()]
    known = {str(p.relative_to(folder)) for folder in folders for p in folder.glob(f"{Path(base).parent}/*.yaml")}
    close = difflib.get_close_matches(base, sorted(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UserError(f"{shown(user)}: base: no such file {base!r}{hint} (looked in {user.parent} and {PACKAGED})")
