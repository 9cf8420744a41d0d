"""Every registered attention fulfils every clause of the contract in every role it declares."""

import pytest

from attnzoo.contract import CLAUSES, Case, cases, compiles
from attnzoo.geometry import Role

# Compiling dominates the time. The fast tests compile dynamic shapes in one role, the last declared (a stage has one
# level, which compiles fastest), of neighborhood, window and dat in none, and export in all roles.
FAST_ROLES = {case.name: case.role for case in cases()}


def marks(clause: str, case: Case) -> tuple[pytest.MarkDecorator, ...]:
    if clause == "compile_dynamic" and (
        case.role != FAST_ROLES[case.name] or case.name in ("neighborhood", "window", "dat")
    ):
        return pytest.mark.slow, pytest.mark.long
    if clause == "compile_static":  # in CI of one attention
        return (pytest.mark.slow,) if case.name == "ms_deform" else (pytest.mark.slow, pytest.mark.long)
    return ()


PARAMETERS = [
    pytest.param(clause, case, id=f"{clause}-{case}", marks=marks(clause, case))
    for clause in CLAUSES
    for case in cases()
]


@pytest.mark.parametrize(("clause", "case"), PARAMETERS)
def test_contract(clause: str, case: Case) -> None:
    CLAUSES[clause](case)


# Inductor takes half a minute per attention, so only one role is compiled, and in CI one attention.
ONE_ROLE = [
    pytest.param(case, id=str(case), marks=() if case.name == "ms_deform" else pytest.mark.long)
    for case in {case.name: case for case in cases() if case.role == Role.ENCODER}.values()
]


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_ROLE)
def test_inductor(case: Case) -> None:
    compiles(case, dynamic=False, growths=(0,), backend="inductor")
