"""Check of the options of data sets and augmentations."""

from typing import Any

from attnzoo.errors import UserError


def check_option(key: str, value: Any, ok: bool, expected: str) -> None:
    """Raise UserError for the config key `key` unless `ok`."""
    if not ok:
        raise UserError(f"{key} = {value}: expected {expected}", key=key)
