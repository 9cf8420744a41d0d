"""Every registered attention, in every role it declares, fulfils every clause of the contract."""

import pytest
from support_contract import CHECKS, Case, cases


@pytest.mark.parametrize("case", cases(), ids=str)
@pytest.mark.parametrize("clause", CHECKS)
def test_contract(clause: str, case: Case) -> None:
    CHECKS[clause](case)
