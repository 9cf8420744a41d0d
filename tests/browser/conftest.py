"""The browser of all tests in this folder."""

from support.browser import browser

__all__ = ["browser"]
