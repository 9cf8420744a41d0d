"""The run that interrupted ones are compared with."""

from support.engine import whole  # noqa: F401
