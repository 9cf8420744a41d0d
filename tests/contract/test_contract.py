"""Every registered attention, in every role it declares, fulfils every clause of the contract."""

import pytest

from attnzoo.contract import CLAUSES, Case, cases, compiles
from attnzoo.geometry import Role

# Static shapes are compiled in the slow part: the fast one compiles dynamic shapes and exports static ones.
NAMES = [pytest.param(name, marks=pytest.mark.slow if name == "compile_static" else ()) for name in CLAUSES]


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("clause", NAMES)
def test_contract(clause: str, case: Case) -> None:
    CLAUSES[clause](case)


# The compiler takes half a minute for each: one role says enough.
ONE_ROLE = list({case.name: case for case in cases() if case.role == Role.ENCODER}.values())


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_ROLE, ids=str)
def test_inductor(case: Case) -> None:
    compiles(case, dynamic=False, growths=(0,), backend="inductor")
