"""Products of matrices, and factorizations and solves by routines of the runtime."""

from __future__ import annotations

import torch

from ppl_gen.core.compiler.program import dense_strides
from ppl_gen.core.compiler.record import Operation, Place
from ppl_gen.core.compiler.rules.lowering import (
    Lowering,
    constant,
    places,
    rule_for,
    shaped,
    with_axis,
)

__all__: list[str] = []


@rule_for("mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm")
def _matrix_product(lowering: Lowering, operation: Operation) -> None:
    *plus, left, right = places(operation.arguments.values())[
        : 3 if "beta" in operation.arguments else 2
    ]
    total = operation.out
    out = lowering.program.new(total.shape) if plus else total
    length = left.shape[-1]
    if len(right.shape) == 1:
        over_rows = (0,) * (len(left.shape) - 1)
        lowering.contract(out, left, left.strides, right, (*over_rows, *right.strides), length)
    else:
        *batch_left, rows, along = left.strides
        *batch_right, down, columns = right.strides
        lowering.contract(
            out,
            left,
            (*batch_left, rows, 0, along),
            right,
            (*batch_right, 0, columns, down),
            length,
        )
    if plus:
        beta, alpha = operation["beta"], operation["alpha"]
        expression = "{0} * {1} + {2} * {3}" if (beta, alpha) != (1, 1) else "{0} + {2}"
        lowering.loop(total, expression, *plus, beta, out, alpha)


def transposed(place: Place) -> Place:
    """Return a tensor with its last two axes exchanged."""
    *batch, rows, columns = place.shape
    *steps, down, across = place.strides
    return shaped(place, (*batch, columns, rows), (*steps, across, down))


def _matrix(place: Place, vector: bool) -> Place:
    """Return a tensor of vectors as one of matrices of one column."""
    return with_axis(place, len(place.shape), 1, 1) if vector else place


@rule_for("linalg_cholesky_ex")
def _cholesky(lowering: Lowering, operation: Operation) -> None:
    matrix, out = operation["self"], operation.out
    size = matrix.shape[-1]
    if operation["upper"]:
        matrix, out = transposed(matrix), transposed(out)
    matrix, result = lowering.own(matrix), lowering.result(out)
    *_, rows, columns = matrix.strides

    def code(a: str, x: str) -> str:
        return f"cholesky({x}, {a}, {rows}, {columns}, {size});"

    lowering.routine(code, [matrix], [result], 2)
    lowering.keep(out, result)
    _no_error(lowering, operation, 1)


def _no_error(lowering: Lowering, operation: Operation, position: int) -> None:
    """Report success where PyTorch returns a code: what failed holds NaN."""
    if len(operation.outputs) > position:
        lowering.loop(operation.outputs[position], "splat(0)")


def _solve(
    lowering: Lowering, matrix: Place, right: Place, out: Place, *, upper: bool, unit: bool = False
) -> None:
    """Append the solution of triangular systems, batches broadcast."""
    lowering.loop(out, "{0}", right)
    size, columns = out.shape[-2:]
    *_, down, across = out.strides
    *_, rows, along = matrix.strides
    kind = "each" if matrix.live else "shared"

    def code(t: str, x: str, _: str) -> str:
        return (
            f"solve_triangular<{kind}>({x}, {down}, {across}, {t}, {rows}, {along}, "
            f"{size}, {columns}, {int(upper)}, {int(unit)});"
        )

    lowering.routine(code, [matrix, out], [out], 2)


@rule_for("linalg_solve_triangular")
def _solve_triangular(lowering: Lowering, operation: Operation) -> None:
    matrix, right, out = operation["self"], operation["B"], operation.out
    upper = bool(operation["upper"])
    if not operation["left"]:  # X A = B is A' X' = B'
        matrix, right, out = transposed(matrix), transposed(right), transposed(out)
        upper = not upper
    _solve(lowering, matrix, right, out, upper=upper, unit=bool(operation["unitriangular"]))


@rule_for("triangular_solve")
def _old_triangular_solve(lowering: Lowering, operation: Operation) -> None:
    matrix, upper = operation["A"], bool(operation["upper"])
    lowering.loop(operation.outputs[1], "{0}", matrix)
    if operation["transpose"]:
        matrix, upper = transposed(matrix), not upper
    unit = bool(operation["unitriangular"])
    _solve(lowering, matrix, operation["self"], operation.out, upper=upper, unit=unit)


@rule_for("cholesky_solve", "cholesky_inverse")
def _cholesky_solve(lowering: Lowering, operation: Operation) -> None:
    out = operation.out
    if operation.base == "cholesky_solve":
        right, factor = operation["self"], operation["input2"]
    else:
        right, factor = constant(torch.eye(out.shape[-1], dtype=torch.float64)), operation["self"]
    lower = transposed(factor) if operation["upper"] else factor
    between = lowering.program.new(out.shape)
    _solve(lowering, lower, right, between, upper=False)
    _solve(lowering, transposed(lower), between, out, upper=True)


# --- LU factors, for inverses, determinants and systems without structure.


def _as_factored(matrix: Place) -> Place:
    """Return what PyTorch factors for a determinant: of a dense matrix the transpose."""
    kept = [
        (s, d)
        for n, s, d in zip(matrix.shape, matrix.strides, dense_strides(matrix.shape), strict=True)
        if n != 1
    ]
    return transposed(matrix) if all(s == d for s, d in kept) else matrix


def _factor(lowering: Lowering, matrix: Place, lu: Place, pivots: Place) -> tuple[Place, Place]:
    """Append an LU factorization, and return the factors and pivots row by row."""
    matrix = lowering.own(matrix)
    factors, exchanges = lowering.result(lu), lowering.result(pivots)
    size = matrix.shape[-1]
    *_, rows, columns = matrix.strides

    def code(a: str, x: str, p: str) -> str:
        return f"lu_factor({x}, {p}, {a}, {rows}, {columns}, {size});"

    lowering.routine(code, [matrix], [factors, exchanges], (2, 2, 1))
    lowering.keep(lu, factors)
    lowering.keep(pivots, exchanges)
    return factors, exchanges


def _solve_by_factors(
    lowering: Lowering,
    lu: Place,
    pivots: Place,
    right: Place,
    out: Place,
    *,
    left: bool,
    adjoint: bool,
) -> None:
    right = lowering.own(right)
    lu, pivots, result = lowering.dense(lu), lowering.dense(pivots), lowering.result(out)
    size = lu.shape[-1]
    others = out.shape[-1] if left else out.shape[-2]
    *_, down, across = right.strides

    def code(f: str, p: str, b: str, x: str) -> str:
        return (
            f"lu_solve({x}, {f}, {p}, {b}, {down}, {across}, {size}, {others}, "
            f"{int(left)}, {int(adjoint)});"
        )

    lowering.routine(code, [lu, pivots, right], [result], (2, 1, 2, 2))
    lowering.keep(out, result)


@rule_for("linalg_lu_factor_ex")
def _lu_factor(lowering: Lowering, operation: Operation) -> None:
    lu, pivots, *_ = operation.outputs
    _factor(lowering, operation["A"], lu, pivots)
    _no_error(lowering, operation, 2)


@rule_for("linalg_lu_solve")
def _lu_solve(lowering: Lowering, operation: Operation) -> None:
    _solve_by_factors(
        lowering,
        operation["LU"],
        operation["pivots"],
        operation["B"],
        operation.out,
        left=bool(operation["left"]),
        adjoint=bool(operation["adjoint"]),
    )


@rule_for("_linalg_solve_ex")
def _general_solve(lowering: Lowering, operation: Operation) -> None:
    matrix, right = operation["A"], operation["B"]
    out, lu, pivots, _ = operation.outputs
    factors, exchanges = _factor(lowering, matrix, lu, pivots)
    vector = len(right.shape) == 1 or right.shape == matrix.shape[:-1]
    _solve_by_factors(
        lowering,
        factors,
        exchanges,
        _matrix(right, vector),
        _matrix(out, vector),
        left=bool(operation["left"]),
        adjoint=False,
    )
    _no_error(lowering, operation, 3)


@rule_for("linalg_inv_ex")
def _inverse(lowering: Lowering, operation: Operation) -> None:
    matrix = lowering.own(operation["A"])
    size = matrix.shape[-1]
    result = lowering.result(operation.out)
    lu, pivots = lowering.program.new(matrix.shape), lowering.program.new(matrix.shape[:-1])
    *_, rows, columns = matrix.strides

    def code(a: str, x: str, f: str, p: str) -> str:
        return f"inverse({x}, {f}, {p}, {a}, {rows}, {columns}, {size});"

    lowering.routine(code, [matrix], [result, lu, pivots], (2, 2, 2, 1))
    lowering.keep(operation.out, result)
    _no_error(lowering, operation, 1)


@rule_for("_linalg_det", "_linalg_slogdet")
def _determinant(lowering: Lowering, operation: Operation) -> None:
    matrix = operation["A"]
    size = matrix.shape[-1]
    *results, lu, pivots = operation.outputs
    factors, exchanges = _factor(lowering, _as_factored(matrix), lu, pivots)

    def det(f: str, p: str, x: str) -> str:
        return f"*{x} = lu_det({f}, {p}, {size});"

    def slogdet(f: str, p: str, sign: str, x: str) -> str:
        return f"lu_slogdet({sign}, {x}, {f}, {p}, {size});"

    code = det if len(results) == 1 else slogdet
    lowering.routine(code, [factors, exchanges], results, (2, 1, *(0 for _ in results)))


@rule_for("_linalg_eigh")
def _eigenvectors(lowering: Lowering, operation: Operation) -> None:
    matrix = operation["A"] if operation["UPLO"] == "L" else transposed(operation["A"])
    matrix = lowering.own(matrix)
    size = matrix.shape[-1]
    values, vectors = operation.outputs
    kept = lowering.result(values)
    basis = (
        lowering.result(vectors) if operation["compute_v"] else lowering.program.new(matrix.shape)
    )
    work = lowering.program.new(matrix.shape)
    *_, rows, columns = matrix.strides

    def code(a: str, w: str, v: str, spare: str) -> str:
        return f"eigh({w}, {v}, {spare}, {a}, {rows}, {columns}, {size});"

    lowering.routine(code, [matrix], [kept, basis, work], (2, 1, 2, 2))
    lowering.keep(values, kept)
    if operation["compute_v"]:
        lowering.keep(vectors, basis)
