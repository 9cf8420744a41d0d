"""Every registered attention, in every role it declares, fulfils every clause of the contract."""

import pytest
from support_contract import CHECKS, Case, cases

# Static shapes are compiled in the slow part: the fast one compiles dynamic shapes and exports static ones.
CLAUSES = [pytest.param(name, marks=pytest.mark.slow if name == "compile_static" else ()) for name in CHECKS]


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("clause", CLAUSES)
def test_contract(clause: str, case: Case) -> None:
    CHECKS[clause](case)
