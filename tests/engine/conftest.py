"""The run that interrupted runs are compared with."""

from support.engine import uninterrupted  # noqa: F401
