"""`attnzoo check FILE.py [NAME] [option=value …]`: holds an attention to the contract."""

import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnzoo.attention import ATTENTIONS, load_plugin
from attnzoo.contract.report import report
from attnzoo.errors import ExitCode, UserError, unknown
from attnzoo.schema import yaml12

COMMAND_LINE = "command line"


def check(target: str, words: Sequence[str] = (), verbose: bool = False) -> int:
    """Check the attentions of `target`, a file or the name of a registered one; returns the exit code.

    `words` are at most one name, where a file registers several, and options as `option=value`. Raises UserError for a
    target without an attention, an unknown name and options that it does not take.
    """
    chosen = [word for word in words if "=" not in word]
    if len(chosen) > 1:
        raise UserError(
            f"{COMMAND_LINE}: expected one NAME, found {', '.join(chosen)} (options are given as option=value)"
        )
    options = dict(_parse_option(word) for word in words if "=" in word)
    available = _names(target, verbose)
    for name in chosen:
        if name not in available:
            raise unknown("attention", name, available).at(target)
    for name in chosen or available:
        ATTENTIONS.check(name, options)
    passed = [report(name, options, verbose) for name in chosen or available]
    return ExitCode.OK if all(passed) else ExitCode.FAILED


def _parse_option(word: str) -> tuple[str, Any]:
    option, _, value = word.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", option):
        raise UserError(f"{COMMAND_LINE}: expected option=value, such as points=8, not {word!r}")
    return option, yaml12.parse_value(value, f"{COMMAND_LINE}: {option}")


def _names(target: str, verbose: bool) -> list[str]:
    """The attentions that a file or module registers, or a registered name."""
    if target in ATTENTIONS.names():
        return [target]
    if not re.search(r"[./\\]", target):
        raise UserError(
            f"{unknown('attention', target, ATTENTIONS.names())}; a file is given by its path, ending in .py"
        )
    in_package = [name for name in ATTENTIONS.names() if _file(name) == Path(target).resolve()]
    if in_package:
        return in_package
    try:
        return load_plugin(target)
    except UserError:
        raise
    except Exception as error:
        if verbose:
            traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f":{f.lineno}" for f in reversed(frames) if Path(f.filename) == Path(target).resolve()), "")
        raise UserError(f"{target}{line}: {type(error).__name__}: {error}") from None


def _file(name: str) -> Path:
    return Path(inspect.getfile(ATTENTIONS.get(name))).resolve()
