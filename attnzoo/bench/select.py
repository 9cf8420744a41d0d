"""Choosing by name what to measure."""

from collections.abc import Collection, Sequence

from attnzoo.errors import unknown

ALL = "all"


def pick(kind: str, names: Sequence[str], allowed: Collection[str]) -> list[str]:
    """`names` in the order of `allowed`, or all of these for "all". Raises UserError for a name not among them."""
    for name in names:
        if name != ALL and name not in allowed:
            raise unknown(kind, name, [*allowed, ALL])
    return present(names, allowed)


def present(names: Sequence[str], allowed: Collection[str]) -> list[str]:
    """Those of `allowed` that `names` holds, all of them for "all"."""
    return [name for name in allowed if ALL in names or name in names]
