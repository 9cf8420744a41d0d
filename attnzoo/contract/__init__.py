"""The contract: what every attention must fulfil in every role it declares, one function per clause.

`tests/contract` checks every registered attention, `attnzoo check` one of your own. A clause
takes a `Case` and raises a `Violation`, or the error of the attention, if it does not hold.
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
    """A check of one case; skipped in roles to which it does not apply."""

    check: Callable[[Case], None]
    roles: frozenset[Role] = frozenset(Role)

    def __call__(self, case: Case) -> None:
        if case.role in self.roles:
            self.check(case)


_CLAUSES = (
    Clause(basics.interface),
    Clause(basics.shape),
    Clause(basics.map_sizes),
    Clause(basics.num_levels, frozenset({Role.ENCODER, Role.DECODER})),
    Clause(basics.reference_points),
    Clause(basics.state_dict),
    Clause(basics.meta_device),
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
PREREQUISITES = ("interface", "shape")  # roles in which one of these fails are not checked further

__all__ = ["CLAUSES", "PREREQUISITES", "Case", "Clause", "Violation", "cases", "compiles"]
