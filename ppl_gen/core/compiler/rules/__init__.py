"""What each ATen operator means, as loops over elements and calls of routines."""

from ppl_gen.core.compiler.rules import elementwise, linear_algebra, movement, reductions
from ppl_gen.core.compiler.rules.lowering import is_known, lower

__all__ = ["elementwise", "is_known", "linear_algebra", "lower", "movement", "reductions"]
