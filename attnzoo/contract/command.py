"""`attnzoo check FILE.py|NAME [NAME] [option=value …]`: holds attentions to the contract; trains nothing."""

import inspect
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnzoo.attention import ATTENTIONS, load_accepted
from attnzoo.contract.report import report
from attnzoo.errors import COMMAND_LINE, ExitCode, UserError, unknown
from attnzoo.paths import real_path, user_path
from attnzoo.schema import yaml12


def check_attentions(target: str, words: Sequence[str] = (), verbose: bool = False) -> int:
    """Check the attentions of `target`, a file or the name of a registered one; returns the exit code.

    `words` are at most one name, where a file registers several, and options as `option=value`. What `register` refuses
    is printed and fails; the others are checked. Raises UserError for a target that cannot be imported or without an
    attention, an unknown name and options that it does not take.
    """
    chosen = [word for word in words if "=" not in word]
    options = dict(_parse_option(word) for word in words if "=" in word)
    available, refused = _names(target, verbose)
    for name in chosen:
        if name not in available:
            raise _unknown_word(name, target, available)
    if len(chosen) > 1:
        raise UserError(f"{COMMAND_LINE}: expected one NAME, got {', '.join(chosen)}")
    for name in chosen or available:
        ATTENTIONS.check(name, options)
    for error in refused:
        print(f"refused: {error}", flush=True)
    passed = [report(name, options, verbose) for name in chosen or available]
    return ExitCode.OK if all(passed) and not refused else ExitCode.FAILED


def _unknown_word(word: str, target: str, available: Sequence[str]) -> UserError:
    """The error for a word that is no attention of `target`: perhaps an option without its value."""
    options: Mapping[str, Any] = {
        option: p.default for name in available for option, p in ATTENTIONS.options(name).items()
    }
    if word in options or target in available:
        expected = f"{word if word in options else 'option'}=value"
        return UserError(f"{COMMAND_LINE}: {word!r}: expected {expected} (options: {', '.join(options) or 'none'})")
    return unknown("attention", word, available).at(target)


def _parse_option(word: str) -> tuple[str, Any]:
    option, _, value = word.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", option):
        raise UserError(f"{COMMAND_LINE}: expected option=value, such as points=8, not {word!r}")
    return option, yaml12.parse_value(value, f"{COMMAND_LINE}: {option}")


def _names(target: str, verbose: bool) -> tuple[list[str], list[UserError]]:
    """The attentions that a file or module registers, or a registered name; an error for each that is refused."""
    if target in ATTENTIONS.names():
        return [target], []
    if not re.search(r"[./\\]", target):
        raise UserError(
            f"{unknown('attention', target, ATTENTIONS.names())}; a file is given by its path, ending in .py"
        )
    in_package = [name for name in ATTENTIONS.names() if _file(name) == real_path(user_path(target))]
    if in_package:
        return in_package, []
    try:
        found, refused = load_accepted(target)
    except UserError as error:
        if verbose and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        raise
    if not found:
        raise refused[0]
    return found, refused


def _file(name: str) -> Path:
    return Path(inspect.getfile(ATTENTIONS.get(name))).resolve()
