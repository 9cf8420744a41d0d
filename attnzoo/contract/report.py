"""Runs the clauses over one attention and prints a line for each."""

import contextlib
import io
import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from attnzoo.attention import ATTENTIONS
from attnzoo.contract import CLAUSES, FIRST, Case, Clause
from attnzoo.contract.cases import roles
from attnzoo.contract.explain import explain
from attnzoo.errors import UserError, as_yaml
from attnzoo.geometry import Role

SLOW = 1.0  # seconds from which a clause's time is printed


def report(name: str, options: Mapping[str, Any], verbose: bool = False) -> bool:
    """Print a line per clause and a summary; returns whether all clauses hold in all roles.

    `verbose` prints tracebacks, warnings and logs too. Raises UserError for options that the attention does not take,
    or that its constructor refuses in every role.
    """
    ATTENTIONS.check(name, options)
    possible = _possible(name, options)
    described = " ".join([name, *(f"{option}={as_yaml(value)}" for option, value in options.items())])
    print(f"{described}: {len(CLAUSES)} clauses in {', '.join(case.role for case in possible)}", flush=True)
    began, failed, blocked = time.perf_counter(), [], set[Role]()
    for title, clause in CLAUSES.items():
        cases = [case for case in possible if case.role in clause.roles - blocked]
        errors = _run(title, clause, cases, verbose)
        if errors:
            failed.append(title)
        if title in FIRST:
            blocked |= errors
    seconds = time.perf_counter() - began
    print(f"{described}: {_summary(failed, [case.role for case in possible], blocked)} ({seconds:.0f} s)")
    return not failed


def _possible(name: str, options: Mapping[str, Any]) -> list[Case]:
    """The cases in the roles in which the constructor takes the options; all roles where none are given."""
    every = [Case(name, role, tuple(options.items())) for role in roles(name)]
    refused: dict[Role, UserError] = {}
    for case in every if options else ():
        try:
            case.build()
        except UserError as refusal:
            refused[case.role] = refusal
        except Exception:  # the first clause says what is wrong
            continue
    if len(refused) == len(every):
        raise next(iter(refused.values()))
    for role, error in refused.items():
        print(f"{name}: not possible in {role}: {error}")
    return [case for case in every if case.role not in refused]


def _run(title: str, clause: Clause, cases: list[Case], verbose: bool) -> set[Role]:
    """Print the line of one clause; returns the roles in which it fails."""
    errors: dict[Role, Exception] = {}
    began = time.perf_counter()
    for case in cases:
        try:
            with contextlib.nullcontext() if verbose else _quiet():
                clause(case)
        except Exception as failure:
            errors[case.role] = failure
    seconds = time.perf_counter() - began
    took = f" ({seconds:.0f} s)" if seconds >= SLOW else ""
    print(
        f"  {title:<22} {', '.join(case.role for case in cases) or '-':<23} {_outcome(cases, errors)}{took}", flush=True
    )
    if verbose:
        for error in errors.values():
            print("".join(traceback.format_exception(error)), end="", flush=True)
    return set(errors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and logs: compilers log the whole graph where they fail."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _outcome(cases: list[Case], errors: Mapping[Role, Exception]) -> str:
    if not cases:
        return "not run"
    if not errors:
        return "pass"
    reason = explain(next(iter(errors.values())), ATTENTIONS.get(cases[0].name))
    where = "" if len(errors) == len(cases) else f" in {', '.join(errors)}"
    return f"FAIL{where}: {reason}"


def _summary(failed: list[str], checked: list[Role], blocked: set[Role]) -> str:
    if not failed:
        return f"all clauses hold in {', '.join(checked)}"
    rest = f"; mend {' and '.join(t for t in failed if t in FIRST)} first, then check again" if blocked else ""
    return f"{len(failed)} of {len(CLAUSES)} clauses fail: {', '.join(failed)}{rest}"
