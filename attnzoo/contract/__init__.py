"""The contract: what every attention must fulfil in every role it declares, one function per clause.

`tests/contract` runs the clauses over all that is registered, `attnzoo check` over an attention of your own. A clause
takes a `Case` and raises an AssertionError, as a rule a `Violation`, if it does not hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

from attnzoo.contract import (
    basics,
    compilation,
    cost,
    gradients,
    inputs,
    numerics,
    options,
    padding,
    recording,
)
from attnzoo.contract.cases import Case, cases
from attnzoo.contract.compilation import compiles
from attnzoo.contract.expect import Violation
from attnzoo.geometry import Role


@dataclass(frozen=True)
class Clause:
    """A check of one case; in roles that it is not about it holds."""

    check: Callable[[Case], None]
    roles: frozenset[Role] = frozenset(Role)

    def __call__(self, case: Case) -> None:
        if case.role in self.roles:
            self.check(case)


_CLAUSES = (
    Clause(basics.interface),
    Clause(basics.shape),
    Clause(basics.other_maps),
    Clause(basics.number_of_levels, frozenset({Role.ENCODER, Role.DECODER})),
    Clause(basics.references_needed),
    Clause(basics.state_dict),
    Clause(basics.meta),
    Clause(inputs.depends_on_queries),
    Clause(inputs.other_image, frozenset({Role.DECODER})),
    Clause(inputs.batch_independence),
    Clause(padding.padding_is_ignored),
    Clause(padding.padded_equals_unpadded),
    Clause(padding.all_padded),
    Clause(gradients.gradients),
    Clause(options.options),
    Clause(numerics.precision),
    Clause(numerics.determinism),
    Clause(cost.flops),
    Clause(recording.record),
    Clause(compilation.compile_static),
    Clause(compilation.compile_dynamic),
    Clause(compilation.export),
)
CLAUSES = {clause.check.__name__: clause for clause in _CLAUSES}
FIRST = ("interface", "shape")  # where one of these fails, the others would only say so again

__all__ = ["CLAUSES", "FIRST", "Case", "Clause", "Violation", "cases", "compiles"]
