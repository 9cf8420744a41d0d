"""Check one attention against the clauses and print a line for each."""

import contextlib
import io
import logging
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from attnzoo.attention import ATTENTIONS
from attnzoo.contract import CLAUSES, PREREQUISITES, Case, Clause
from attnzoo.contract.cases import roles
from attnzoo.contract.explain import explain
from attnzoo.errors import UserError, as_yaml
from attnzoo.geometry import Role

MIN_PRINTED_SECONDS = 1.0  # the time of a faster clause is not printed


def report(name: str, options: Mapping[str, Any], verbose: bool = False) -> bool:
    """Print a line per clause and a summary; returns whether all clauses hold in all roles.

    `verbose` also prints tracebacks, warnings and logs. Raises UserError for options that the attention does not
    have, or that its constructor rejects in every role.
    """
    ATTENTIONS.check(name, options)
    cases = _cases(name, options)
    title = " ".join([name, *(f"{option}={as_yaml(value)}" for option, value in options.items())])
    print(f"{title}: {len(CLAUSES)} clauses in {', '.join(case.role for case in cases)}", flush=True)
    start, failed, skipped_roles = time.perf_counter(), [], set[Role]()
    for clause_name, clause in CLAUSES.items():
        applicable = [case for case in cases if case.role in clause.roles - skipped_roles]
        failed_roles = _run(clause_name, clause, applicable, verbose)
        if failed_roles:
            failed.append(clause_name)
        if clause_name in PREREQUISITES:
            skipped_roles |= failed_roles
    seconds = time.perf_counter() - start
    print(f"{title}: {_summary(failed, [case.role for case in cases], skipped_roles)} ({seconds:.0f} s)")
    return not failed


def _cases(name: str, options: Mapping[str, Any]) -> list[Case]:
    """The attention in the roles in which its constructor accepts the options; in all its roles without options."""
    all_cases = [Case(name, role, tuple(options.items())) for role in roles(name)]
    rejected: dict[Role, UserError] = {}
    for case in all_cases if options else ():
        try:
            case.build()
        except UserError as error:
            rejected[case.role] = error
        except Exception:  # reported by the first clause
            continue
    if len(rejected) == len(all_cases):
        raise next(iter(rejected.values()))
    for role, rejection in rejected.items():
        print(f"{name}: not possible in {role}: {rejection}")
    return [case for case in all_cases if case.role not in rejected]


def _run(clause_name: str, clause: Clause, cases: list[Case], verbose: bool) -> set[Role]:
    """Check one clause and print its line; returns the roles in which it fails."""
    errors: dict[Role, Exception] = {}
    start = time.perf_counter()
    for case in cases:
        try:
            with contextlib.nullcontext() if verbose else _quiet():
                clause(case)
        except Exception as error:
            errors[case.role] = error
    seconds = time.perf_counter() - start
    duration = f" ({seconds:.0f} s)" if seconds >= MIN_PRINTED_SECONDS else ""
    print(
        f"  {clause_name:<22} {', '.join(case.role for case in cases) or '-':<23} {_outcome(cases, errors)}{duration}",
        flush=True,
    )
    if verbose:
        for failure in errors.values():
            print("".join(traceback.format_exception(failure)), end="", flush=True)
    return set(errors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings and logs: torch.compile logs the whole graph when it fails."""
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


def _summary(failed: list[str], roles: list[Role], skipped_roles: set[Role]) -> str:
    if not failed:
        return f"all clauses hold in {', '.join(roles)}"
    prerequisites = " and ".join(name for name in failed if name in PREREQUISITES)
    hint = f"; fix {prerequisites} first, then check again" if skipped_roles else ""
    return f"{len(failed)} of {len(CLAUSES)} clauses fail: {', '.join(failed)}{hint}"
