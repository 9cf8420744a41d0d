"""Selection of benchmarks by name."""

from collections.abc import Collection, Sequence

from attnzoo.errors import unknown

ALL = "all"


def select_names(kind: str, names: Sequence[str], allowed: Collection[str]) -> list[str]:
    """`names` in the order of `allowed`, or all of `allowed` for "all". Raises UserError for an unknown name."""
    for name in names:
        if name != ALL and name not in allowed:
            raise unknown(kind, name, [*allowed, ALL])
    return filter_names(names, allowed)


def filter_names(names: Sequence[str], allowed: Collection[str]) -> list[str]:
    """Those of `allowed` that are in `names`, or all of them for "all"."""
    return [name for name in allowed if ALL in names or name in names]
