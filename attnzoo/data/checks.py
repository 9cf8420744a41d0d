"""Check of the options of data sets and augmentations."""

from typing import Any

from attnzoo.errors import UserError, as_yaml


def check_option(key: str, value: Any, ok: bool, expected: str) -> None:
    """Raise UserError for the config key `key` unless `ok`."""
    if not ok:
        raise UserError(f"{key} = {as_yaml(value)}: expected {expected}", key=key)
