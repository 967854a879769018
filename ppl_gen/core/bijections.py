"""Bijections from unconstrained vectors to the supports that latent sites have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import biject_to, constraints, transforms
from torch.nn.functional import logsigmoid, pad

__all__ = ["bijection_to", "unconstrained_shape"]

Constraint = constraints.Constraint
Transform = transforms.Transform


def unconstrained_shape(bijection: Transform, shape: torch.Size) -> torch.Size:
    """Return the shape of the unconstrained value of a constrained one.

    Args:
        bijection: A bijection to a support.
        shape: Shape of the constrained value.
    """
    # PyTorch's elementwise transforms ask for a shape by an import that takes half a second.
    elementwise = bijection.domain.event_dim == 0 == bijection.codomain.event_dim
    return shape if elementwise else bijection.inverse_shape(shape)


def bijection_to(support: Constraint, shape: Sequence[int] | None = None) -> Transform:
    """Return a bijection from unconstrained space to a support.

    `torch.distributions.biject_to` has none for matrices that are positive definite, triangular or
    Cholesky factors; its sticks of simplices and correlations lose their digits near the boundary,
    and their derivatives branch on values. Those are made here; any other support is PyTorch's.
    Nothing is registered with PyTorch.

    Args:
        support: The support.
        shape: Shape of the constrained value, which only supports made of pieces (`cat`, `stack`)
            need.

    Returns:
        A transform with `inv`, `log_abs_det_jacobian`, `forward_shape` and `inverse_shape`. The
        Jacobian of a matrix is that of its free elements: those in the lower triangle, without
        the diagonal where that follows from the rest.

    Raises:
        NotImplementedError: If there is no bijection to the support.

    Example:
        >>> to_cholesky = bijection_to(constraints.lower_cholesky)
        >>> to_cholesky(torch.tensor([0.0, 0.0, 3.0]))
        tensor([[1., 0.],
                [3., 1.]])
    """
    if isinstance(support, constraints.independent):
        base = bijection_to(support.base_constraint, shape)
        if isinstance(base, _Pieces):
            return base
        return transforms.IndependentTransform(base, support.reinterpreted_batch_ndims)
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        if _has_tensors(support.base_constraint):
            msg = "the components of a mixture have different supports"
            raise NotImplementedError(msg)
        return bijection_to(support.base_constraint, shape)
    if isinstance(support, constraints.cat | constraints.stack):
        if shape is None:
            msg = f"a support of {type(support).__name__} needs the shape of its value"
            raise NotImplementedError(msg)
        return _Pieces(support, torch.Size(shape))
    make = _OURS.get(type(support))
    return biject_to(support) if make is None else make()


def _has_tensors(support: Constraint) -> bool:
    return any(
        isinstance(value, torch.Tensor) or (isinstance(value, Constraint) and _has_tensors(value))
        for value in vars(support).values()
    )


class _VectorToMatrix(Transform):
    """A bijection from vectors to square matrices."""

    domain = constraints.real_vector
    bijective = True
    on_diagonal = True  # whether the diagonal has free elements

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape (*batch, n, n) for (*batch, free elements)."""
        n = self._size(shape[-1])
        return torch.Size((*shape[:-1], n, n))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape (*batch, free elements) for (*batch, n, n)."""
        n = shape[-1]
        elements = n * (n + 1) // 2 if self.on_diagonal else n * (n - 1) // 2
        return torch.Size((*shape[:-2], elements))

    def _size(self, elements: int) -> int:
        """Return n for a number of free elements."""
        root = (math.isqrt(8 * elements + 1) - 1) // 2
        return root if self.on_diagonal else root + 1


def _below(n: int, device: torch.device, shift: int = 0) -> torch.Tensor:
    """Number the elements below the diagonal 0, 1, ..., row by row; those elsewhere are -1.

    Args:
        n: Size of the matrix.
        device: Where.
        shift: Columns by which the elements are moved to the right.
    """
    row = torch.arange(n, device=device).unsqueeze(-1)
    column = torch.arange(n, device=device) - shift
    return torch.where((column >= 0) & (column < row), row * (row - 1) // 2 + column, -1)


def _place(elements: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return matrices of the elements with the numbers given, and zeros where that is -1.

    Args:
        elements: (*batch, elements).
        places: (n, n).
    """
    # One gather from constant places: nothing is written in place, nothing branches.
    chosen = pad(elements, (1, 0)).index_select(-1, (places + 1).flatten())
    return chosen.reshape(elements.shape[:-1] + places.shape)


def _elements_below(matrix: torch.Tensor) -> torch.Tensor:
    row, column = torch.tril_indices(matrix.shape[-1], matrix.shape[-1], -1, device=matrix.device)
    return matrix[..., row, column]


class _LowerTriangular(_VectorToMatrix):
    """Lower triangular matrices whose diagonal is an elementwise bijection's.

    The vector has the n elements of the diagonal, then those below it, row by row.

    Args:
        support: The support.
        diagonal: From real numbers to what the diagonal may be.
    """

    def __init__(self, support: Constraint, diagonal: Transform) -> None:
        super().__init__()
        self.codomain = support
        self.diagonal = diagonal

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        n = self._size(x.shape[-1])
        below = _below(n, x.device)
        row = torch.arange(n, device=x.device)
        places = torch.where(below >= 0, below + n, torch.where(row == row.unsqueeze(-1), row, -1))
        return _place(torch.cat([self.diagonal(x[..., :n]), x[..., n:]], -1), places)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        diagonal = self.diagonal.inv(y.diagonal(dim1=-2, dim2=-1))
        return torch.cat([diagonal, _elements_below(y)], -1)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dy/dx| over the lower triangle, (*batch)."""
        diagonal = x[..., : y.shape[-1]]
        jacobian: torch.Tensor = self.diagonal.log_abs_det_jacobian(
            diagonal, y.diagonal(dim1=-2, dim2=-1)
        )
        return jacobian.sum(-1)


class _UnitLowerTriangular(_VectorToMatrix):
    """Lower triangular matrices with ones on the diagonal."""

    codomain = pyro_constraints.unit_lower_cholesky
    on_diagonal = False

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        n = self._size(x.shape[-1])
        return _place(x, _below(n, x.device)) + torch.eye(n, dtype=x.dtype, device=x.device)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return _elements_below(y)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return zeros, (*batch)."""
        return x.new_zeros(x.shape[:-1])


class _PositiveDefinite(_VectorToMatrix):
    """Positive definite matrices S = L L^T, with the logarithms of L's diagonal."""

    codomain = constraints.positive_definite

    def __init__(self) -> None:
        super().__init__()
        self._factor = _LowerTriangular(constraints.lower_cholesky, transforms.ExpTransform())

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        factor: torch.Tensor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self._factor.inv(torch.linalg.cholesky(y))
        return x

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dS/dx| = n log 2 + sum_i (n - i + 2) log L_ii, i = 1..n, (*batch)."""
        n = y.shape[-1]
        # n - i + 1 of S = L L^T (Muirhead 1982, theorem 2.1.9), and 1 of the logarithm.
        powers = torch.arange(n + 1, 1, -1, dtype=x.dtype, device=x.device)
        return n * math.log(2.0) + (x[..., :n] * powers).sum(-1)


class _CorrelationCholesky(_VectorToMatrix):
    """Cholesky factors of correlation matrices: rows of norm 1, made of signed sticks.

    Row i, 0 <= j < i: L_ij = tanh(x_ij) prod_{k < j} sech(x_ik) and L_ii = prod_{k < i} sech(x_ik).
    The map is that of Stan and PyTorch, computed in logarithms: 1 less a sum of squares has no
    correct digits left where a row is nearly determined by its first elements.

    References:
        Lewandowski, Kurowicka and Joe, Generating random correlation matrices based on vines and
        extended onion method (2009), Journal of Multivariate Analysis 100(9), 1989-2001.
    """

    codomain: Constraint = constraints.corr_cholesky
    on_diagonal = False

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        n = self._size(x.shape[-1])
        # What is left of a row's norm before column j, as a logarithm.
        log_left = 0.5 * _place(_log_sech2(x), _below(n, x.device, shift=1)).cumsum(-1)
        stick = _place(x.tanh(), _below(n, x.device)) + torch.eye(n, dtype=x.dtype, device=x.device)
        return stick * log_left.exp()

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        # sinh(x_ij) is L_ij over the norm of what follows it in its row.
        squares = y.square()
        following = squares.flip(-1).cumsum(-1).flip(-1)
        following = pad(following[..., 1:], (0, 1))
        x: torch.Tensor = (_elements_below(y) * _elements_below(following).rsqrt()).asinh()
        return x

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dL/dx| over the elements below the diagonal, (*batch)."""
        row, column = self._places(x, y)
        # sech^2 x_ik is the derivative of its own tanh and scales the i - 1 - k elements after it.
        power: torch.Tensor = 1.0 + 0.5 * (row - 1.0 - column)
        return (_log_sech2(x) * power).sum(-1)

    def _places(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        n = y.shape[-1]
        return torch.tril_indices(n, n, -1, device=x.device).to(x.dtype)


class _Correlation(_CorrelationCholesky):
    """Correlation matrices, by their Cholesky factors."""

    codomain: Constraint = pyro_constraints.corr_matrix

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        factor = super()._call(x)
        return factor @ factor.mT

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return super()._inverse(torch.linalg.cholesky(y))

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dR/dx| over the elements below the diagonal, (*batch)."""
        _, column = self._places(x, y)
        # R = L L^T adds (n - 1 - i) log L_ii, of which each x_ik of row i has log sech(x_ik).
        power: torch.Tensor = 1.0 + 0.5 * (y.shape[-1] - 2.0 - column)
        return (_log_sech2(x) * power).sum(-1)


def _log_sech2(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 - tanh(x)^2)."""
    return 2.0 * (math.log(2.0) + logsigmoid(2.0 * x) - x)


class _Simplex(Transform):
    """Simplices, by breaking sticks, in logarithms.

    y_k = s_k prod_{j < k} (1 - s_j) with s_k = sigmoid(x_k - log(n - k)) for k = 0..n - 1, and
    y_n what is left: zero is mapped to equal parts. The map is that of Stan and PyTorch.
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    bijective = True

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        logit = x - self._remaining(x).log()
        log_left = logsigmoid(-logit).cumsum(-1)
        y = (pad(logsigmoid(logit), (0, 1)) + pad(log_left, (1, 0))).exp()
        # A part of zero has no finite density.
        return y.clamp(min=torch.finfo(x.dtype).tiny)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        x = y[..., :-1].log() - left.log()
        return x + self._remaining(x).log()

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dy/dx| over all parts but the last, (*batch)."""
        remaining = self._remaining(x)
        logit = x - remaining.log()
        return (logsigmoid(logit) + remaining * logsigmoid(-logit)).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape (*batch, n + 1) for (*batch, n)."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape (*batch, n) for (*batch, n + 1)."""
        return torch.Size((*shape[:-1], shape[-1] - 1))

    def _remaining(self, x: torch.Tensor) -> torch.Tensor:
        """Return how many sticks are to come, this one included."""
        return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device)


class _Pieces(Transform):
    """A value stacked or concatenated from pieces, from one vector for all of them.

    Args:
        support: `constraints.cat` or `constraints.stack`.
        shape: Shape of the whole value.
    """

    domain = constraints.real_vector
    bijective = True

    def __init__(self, support: Any, shape: torch.Size) -> None:
        super().__init__()
        self.codomain = support
        self.shape = shape
        axis = support.dim % len(shape)
        self.axis = axis - len(shape)  # counted from the right, so that batches can stand in front
        self.stacked = isinstance(support, constraints.stack)
        self.lengths = [1] * len(support.cseq) if self.stacked else list(support.lengths)
        self.pieces: list[Transform] = []
        self.shapes: list[torch.Size] = []
        for piece, length in zip(support.cseq, self.lengths, strict=True):
            own = () if self.stacked else (length,)
            value = torch.Size((*shape[:axis], *own, *shape[axis + 1 :]))
            self.pieces.append(bijection_to(piece, value))
            self.shapes.append(self.pieces[-1].inverse_shape(value))

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        values = [p(part) for p, part in zip(self.pieces, self._parts(x), strict=True)]
        if self.stacked:
            values = [value.unsqueeze(self.axis) for value in values]
        return torch.cat(values, self.axis)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        batch = y.shape[: y.ndim - len(self.shape)]
        parts = [p.inv(v) for p, v in zip(self.pieces, self._values(y), strict=True)]
        return torch.cat([part.reshape((*batch, -1)) for part in parts], -1)

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return log |dy/dx| over all pieces, (*batch)."""
        batch = x.shape[:-1]
        terms = [
            piece.log_abs_det_jacobian(part, value).reshape((*batch, -1)).sum(-1)
            for piece, part, value in zip(self.pieces, self._parts(x), self._values(y), strict=True)
        ]
        return torch.stack(terms).sum(0)

    def _parts(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the unconstrained values of the pieces."""
        parts = x.split([shape.numel() for shape in self.shapes], -1)
        return [
            part.reshape(x.shape[:-1] + shape)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def _values(self, y: torch.Tensor) -> list[torch.Tensor]:
        """Return the constrained values of the pieces."""
        values = list(y.split(self.lengths, self.axis))
        return [value.squeeze(self.axis) for value in values] if self.stacked else values

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of the whole value for (*batch, elements)."""
        return shape[:-1] + self.shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape (*batch, elements) for that of a whole value."""
        elements = sum(part.numel() for part in self.shapes)
        return torch.Size((*shape[: len(shape) - len(self.shape)], elements))


def _lower_triangular(support: Constraint, diagonal: Callable[[], Transform]) -> Any:
    return lambda: _LowerTriangular(support, diagonal())


_OURS: dict[type[Constraint], Callable[[], Transform]] = {
    type(constraints.simplex): _Simplex,
    type(constraints.corr_cholesky): _CorrelationCholesky,
    type(pyro_constraints.corr_matrix): _Correlation,
    type(constraints.positive_definite): _PositiveDefinite,
    # Singular matrices have probability zero wherever there is a density.
    type(constraints.positive_semidefinite): _PositiveDefinite,
    type(constraints.lower_cholesky): _lower_triangular(
        constraints.lower_cholesky, transforms.ExpTransform
    ),
    type(pyro_constraints.softplus_lower_cholesky): _lower_triangular(
        pyro_constraints.softplus_lower_cholesky, transforms.SoftplusTransform
    ),
    type(constraints.lower_triangular): _lower_triangular(
        constraints.lower_triangular, lambda: transforms.identity_transform
    ),
    type(pyro_constraints.unit_lower_cholesky): _UnitLowerTriangular,
}
