"""Normal guides that follow a model's plates: one block for each row, given what the rows share.

A hierarchical model's groups tell each other nothing beyond what its global latents say, and its
posterior keeps that: given the globals, the rows of a plate are independent. The guide has just
this form, so that the number of its parameters grows with the number of rows, not its square.

References:
    Gaussian variational approximation with sparse precision matrices. Tan and Nott, 2018.
    arXiv:1605.05622.
    Automatic structured variational inference. Ambrogioni et al., 2021. arXiv:2002.00643.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ppl_gen.core import LogDensity
from ppl_gen.core.evaluation import Evaluate
from ppl_gen.core.structure import Plate, Site
from ppl_gen.inference.vi.families import Family, FullRank, Normal
from ppl_gen.inference.vi.minimise import minimise
from ppl_gen.inference.vi.mode import root_of_inverse, widths_of
from ppl_gen.inference.vi.noise import standard_noise, whitened
from ppl_gen.inference.vi.vector_guide import VectorGuide

__all__ = ["Layout", "Rows", "Structured", "StructuredGuide", "coupled_plates", "start_of"]

Array: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_ROUNDS = 10
_STEPS = 300
# A climb that promises less, in nats, has arrived.
_LEAST_GAIN = 1e-3
_START_DRAWS = 128


class Rows(NamedTuple):
    """The coordinates of a plate's rows.

    Args:
        plate: The plate's name.
        places: Places in the vector, shape `(rows, coordinates of a row)`.
    """

    plate: str
    places: Integers


@dataclass(frozen=True)
class Layout:
    """Which coordinates of a vector are global, and which belong to which row of a plate.

    Args:
        dim: Length of the vector.
        plates: The rows of each plate. What is in none of them is global.
    """

    dim: int
    plates: tuple[Rows, ...]

    @classmethod
    def of(cls, density: LogDensity) -> Layout:
        """Return the layout that a model's plates give.

        A site in several plates, nested or crossed, belongs to the rows of the outermost one; the
        sites of one plate share its rows. Sequential plates give no rows: their sites are global.
        """
        members: dict[Plate, list[Integers]] = {}
        for block in density.blocks.values():
            found = _outermost(block.site)
            if found is None:
                continue
            plate, axis = found
            places = np.arange(block.start, block.stop).reshape(block.shape)
            rows = np.moveaxis(places, axis, 0).reshape(plate.size, -1)
            members.setdefault(plate, []).append(rows)
        plates = (Rows(p.name, np.concatenate(parts, axis=1)) for p, parts in members.items())
        return cls(density.dim, tuple(plates))

    @cached_property
    def shared(self) -> Integers:
        """Places of the global coordinates, shape `(globals,)`."""
        of_rows = [rows.places.ravel() for rows in self.plates]
        return np.setdiff1d(np.arange(self.dim), np.concatenate([np.zeros(0, int), *of_rows]))

    @cached_property
    def below(self) -> tuple[Integers, Integers]:
        """Rows and columns of what the factor has below its diagonal.

        First that of the globals; then, for each plate, what its rows take from the globals, row
        by row, and what each row has of its own.
        """
        above, left = np.tril_indices(len(self.shared), -1)
        rows, columns = [self.shared[above]], [self.shared[left]]
        for _, index in self.plates:
            rows.append(np.repeat(index.ravel(), len(self.shared)))
            columns.append(np.tile(self.shared, index.size))
            above, left = np.tril_indices(index.shape[1], -1)
            rows.append(index[:, above].ravel())
            columns.append(index[:, left].ravel())
        return np.concatenate(rows), np.concatenate(columns)

    @property
    def width(self) -> int:
        """Number of the coordinates that one row's block is about, the globals among them."""
        return len(self.shared) + max((rows.places.shape[1] for rows in self.plates), default=0)


def _outermost(site: Site) -> tuple[Plate, int] | None:
    """Return the outermost plate that the site has an axis for, and the axis."""
    for plate in reversed(site.plates):
        if plate.dim is None:
            continue
        axis = len(site.shape) - site.event_dim + plate.dim
        if axis >= 0 and site.shape[axis] == plate.size:
            return plate, axis
    return None


class Structured(FullRank):
    """Covariances `L Lᵀ` whose lower triangular factor has the blocks of a layout.

    With noise `e`, globals are `m + L e`, a row's coordinates are `m_r + B_r e + L_r e_r`: linear
    in the globals, and independent of the other rows given them.

    Parameters: means; logarithms of the diagonal of `L`; what is below it, as the layout orders it.

    Args:
        layout: The layout.
    """

    def __init__(self, layout: Layout) -> None:
        Family.__init__(self, layout.dim)
        self.layout = layout
        self._rows, self._columns = layout.below
        from scipy import sparse

        diagonal = np.arange(self.dim)
        rows = np.concatenate([diagonal, self._rows])
        columns = np.concatenate([diagonal, self._columns])
        # In which order the compressed matrix holds the elements.
        numbered = sparse.coo_array((np.arange(len(rows)) + 1, (rows, columns))).tocsr()
        self._order = numbered.data - 1
        self._compressed = numbered.indices, numbered.indptr

    @property
    def width(self) -> int:
        """Number of coordinates of noise whose moments are made exact together."""
        return self.layout.width

    def noise(self, generator: np.random.Generator, size: int) -> Array:
        """Return noise whose moments are exact within the globals and each row.

        A bound on a posterior of the same structure has no other moments in it.
        """
        half = standard_noise(generator, size, self.dim)[: size // 2]
        shared = whitened(half[:, self.layout.shared])
        half[:, self.layout.shared] = shared
        for _, index in self.layout.plates:
            rows = half[:, index.ravel()]
            rows = rows - shared @ (shared.T @ rows / len(half))
            by_row = rows.reshape(len(half), *index.shape).transpose(1, 0, 2)
            half[:, index.ravel()] = (
                whitened(by_row).transpose(1, 0, 2).reshape(len(half), index.size)
            )
        return np.concatenate([half, -half])

    def mean_pull_back(self, parameters: Array, noise: Array, gradients: Array) -> Array:
        """Return the mean over draws of what `pull_back` returns, without its memory."""
        count = len(noise)
        of_scale = np.einsum("nd,nd->d", gradients, noise) / count
        parts = [gradients.mean(axis=0), of_scale * np.exp(parameters[self.dim : 2 * self.dim])]
        shared = self.layout.shared
        of_shared = noise[:, shared]
        above, left = np.tril_indices(len(shared), -1)
        parts.append((gradients[:, shared].T @ of_shared / count)[above, left])
        for _, index in self.layout.plates:
            parts.append((gradients[:, index.ravel()].T @ of_shared / count).ravel())
            above, left = np.tril_indices(index.shape[1], -1)
            own = [
                np.einsum("nr,nr->r", gradients[:, index[:, i]], noise[:, index[:, j]]) / count
                for i, j in zip(above, left, strict=True)
            ]
            if own:
                parts.append(np.stack(own, axis=1).ravel())
        return np.concatenate(parts)

    def normal(self, parameters: Array) -> Normal:
        """Return the distribution, its factor in compressed form."""
        from scipy import sparse

        diagonal = np.exp(parameters[self.dim : 2 * self.dim])
        elements = np.concatenate([diagonal, parameters[2 * self.dim :]])[self._order]
        factor = sparse.csr_array((elements, *self._compressed), shape=(self.dim, self.dim))
        return Normal(parameters[: self.dim], factor)


class StructuredGuide(VectorGuide):
    """A normal distribution of the form of `Structured` over the vector of a `LogDensity`.

    Args:
        dim: Length of the vector.
        rows: For each plate, for each of its rows, the places of its coordinates in the vector.

    Example:
        >>> StructuredGuide(5, [[[1, 3], [2, 4]]]).below.shape
        torch.Size([6])
    """

    def __init__(self, dim: int, rows: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__()
        self.dim = dim
        self.rows = rows
        self._layout = Layout(dim, tuple(Rows("", np.array(plate)) for plate in rows))
        self.loc = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(dim, dtype=torch.float64))
        elements = len(self._layout.below[0])
        self.below = nn.Parameter(torch.zeros(elements, dtype=torch.float64))

    @classmethod
    def of(cls, layout: Layout, normal: Normal) -> StructuredGuide:
        """Return the guide of a normal distribution.

        Args:
            layout: The layout of its factor.
            normal: The distribution, its factor in compressed form.
        """
        guide = cls(layout.dim, [rows.places.tolist() for rows in layout.plates])
        with torch.no_grad():
            guide.loc.copy_(torch.from_numpy(normal.mean))
            guide.log_scale.copy_(torch.from_numpy(np.log(normal.factor.diagonal())))
            if len(guide.below) > 0:
                guide.below.copy_(torch.from_numpy(normal.factor[layout.below]))
        return guide

    def rsample(self, draws: int) -> torch.Tensor:
        """Return reparametrised draws, (draws, dim)."""
        noise = torch.randn(draws, self.dim, dtype=self.loc.dtype, device=self.loc.device)
        of_shared, plates = self._blocks()
        shared = noise[:, self._layout.shared]
        spread = torch.empty_like(noise)
        spread[:, self._layout.shared] = shared @ of_shared.mT
        for index, cross, own in plates:
            rows = torch.einsum("rij,nrj->nri", own, noise[:, index])
            spread[:, index] = rows + torch.einsum("rig,ng->nri", cross, shared)
        return self.loc + spread

    def log_prob(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the log density of vectors, (n, dim) to (n,)."""
        centred = vectors - self.loc
        of_shared, plates = self._blocks()
        shared = torch.linalg.solve_triangular(
            of_shared, centred[:, self._layout.shared].mT, upper=False
        ).mT
        squares = shared.square().sum(1)
        for index, cross, own in plates:
            rows = centred[:, index] - torch.einsum("rig,ng->nri", cross, shared)
            noise = torch.linalg.solve_triangular(own, rows.permute(1, 2, 0), upper=False)
            squares = squares + noise.square().sum((0, 1))
        constant = 0.5 * self.dim * math.log(2.0 * math.pi)
        log_prob: torch.Tensor = -0.5 * squares - self.log_scale.sum() - constant
        return log_prob

    def _blocks(
        self,
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """Return the globals' factor; and of each plate places, cross blocks and own factors."""
        count = len(self._layout.shared)
        scale, start = self.log_scale.exp(), 0

        def lower(index: Integers, start: int) -> tuple[torch.Tensor, int]:
            """Return triangles of the diagonal and of the elements from `start` on."""
            above, left = np.tril_indices(index.shape[-1], -1)
            stop = start + math.prod(index.shape[:-1]) * len(above)
            triangle = torch.diag_embed(scale[index])
            triangle[..., above, left] = self.below[start:stop].reshape(*index.shape[:-1], -1)
            return triangle, stop

        of_shared, start = lower(self._layout.shared, start)
        plates = []
        for _, index in self._layout.plates:
            stop = start + index.size * count
            cross = self.below[start:stop].reshape(*index.shape, count)
            own, start = lower(index, stop)
            plates.append((torch.from_numpy(index), cross, own))
        return of_shared, plates


def start_of(
    evaluate: Evaluate, layout: Layout, point: Array, generator: np.random.Generator
) -> tuple[Normal, int]:
    """Return a guide to start from, its factor in compressed form, and the gradients it took.

    It is Laplace's approximation of the layout's structure; or, where that has no use, as in the
    neck of a funnel, the best of those on the way there.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        layout: The layout.
        point: A point of finite density, shape `(dim,)`.
        generator: Where the noise comes from that guides are compared on.
    """
    family = Structured(layout)
    noise = family.noise(generator, max(_START_DRAWS, 4 * layout.width))
    count = 0

    def at(points: Array) -> tuple[Array, Array]:
        nonlocal count
        count += len(points)
        values, gradients = evaluate(torch.from_numpy(points))
        return values.numpy(), gradients.numpy()

    def bound(guide: Normal) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            value = float(at(guide.draw(noise))[0].mean()) + guide.log_det
        return value if np.isfinite(value) else -np.inf

    def descent(z: Array, guide: Normal) -> tuple[float, Array]:
        with np.errstate(over="ignore", invalid="ignore"):
            values, gradients = at(guide.draw(z[None]))
        if not np.isfinite(values[0]) or not np.isfinite(gradients).all():
            return np.inf, np.zeros_like(z)
        return -float(values[0]), -guide.pull_back(gradients)[0]

    guide = best = Normal(point, family.normal(family.standard()).factor)
    highest = bound(best)
    for _ in range(_ROUNDS):

        def standardised(z: Array, guide: Normal = guide) -> tuple[float, Array]:
            return descent(z, guide)

        climbed = minimise(standardised, np.zeros(layout.dim), tolerance=1e-3, most_steps=_STEPS)
        point = guide.draw(climbed.point[None])[0]
        # In the neck of a funnel numbers overflow: such a guide has no bound, and is not kept.
        with np.errstate(all="ignore"):
            guide = _laplace(at, layout, point, guide.sd)
            promised = 0.5 * float(np.square(guide.pull_back(at(point[None])[1])).sum())
        reached = bound(guide)
        if reached > highest:
            highest, best = reached, guide
        if promised <= _LEAST_GAIN or not np.isfinite(promised):
            break
    return best, count


def coupled_plates(
    evaluate: Evaluate, layout: Layout, guide: Normal, generator: np.random.Generator
) -> list[str]:
    """Return the plates whose rows are not independent of other rows given the globals.

    Half of the rows are moved: the log density's gradient at the others must not feel it.

    Args:
        evaluate: Values (n,) and gradients (n, dim) of vectors (n, dim).
        layout: The layout.
        guide: How wide the posterior is.
        generator: Which rows are moved, and how far.
    """
    moved = guide.mean.copy()
    still = []
    for _, index in layout.plates:
        chosen = generator.permutation(len(index)) < len(index) / 2
        places = index[chosen].ravel()
        moved[places] += guide.sd[places] * generator.standard_normal(len(places))
        still.append(index[~chosen].ravel())
    _, gradients = evaluate(torch.from_numpy(np.stack([guide.mean, moved])))
    # The gradients' natural unit is one over the standard deviation.
    before, after = gradients.numpy() * guide.sd
    felt = np.abs(after - before) > 1e-6 * (1 + np.abs(before))
    pairs = zip(layout.plates, still, strict=True)
    return [rows.plate for rows, places in pairs if felt[places].any()]


def _laplace(
    at: Callable[[Array], tuple[Array, Array]], layout: Layout, point: Array, scale: Array
) -> Normal:
    """Return the normal whose precision has the log density's curvature, within the layout."""
    # The second pass steps as far as the first says that the density is wide.
    scale = widths_of(_precision(at, layout, point, scale).diagonal(layout))
    precision = _precision(at, layout, point, scale)
    of_shared = precision.shared
    given = []
    for cross, own in precision.plates:
        roots = np.stack([root_of_inverse(block) for block in own])
        slopes = roots @ (roots.transpose(0, 2, 1) @ cross)
        of_shared = of_shared - np.einsum("rig,rih->gh", cross, slopes)
        given.append((roots, slopes))
    root = root_of_inverse(of_shared)
    diagonal = np.empty(layout.dim)
    diagonal[layout.shared] = np.diag(root)
    below = [root[np.tril_indices(len(root), -1)]]
    for (_, index), (roots, slopes) in zip(layout.plates, given, strict=True):
        diagonal[index] = np.diagonal(roots, axis1=1, axis2=2)
        above, left = np.tril_indices(index.shape[1], -1)
        below += [-(slopes @ root).ravel(), roots[:, above, left].ravel()]
    return Structured(layout).normal(np.concatenate([point, np.log(diagonal), *below]))


class _Precision(NamedTuple):
    """A negative Hessian, as far as a layout has blocks for it.

    Args:
        shared: That of the globals, shape `(globals, globals)`.
        plates: For each plate, of each row with the globals and with itself, shapes
            `(rows, coordinates, globals)` and `(rows, coordinates, coordinates)`.
    """

    shared: Array
    plates: list[tuple[Array, Array]]

    def diagonal(self, layout: Layout) -> Array:
        """Return its diagonal, shape `(dim,)`."""
        result = np.empty(layout.dim)
        result[layout.shared] = np.diag(self.shared)
        for (_, index), (_, own) in zip(layout.plates, self.plates, strict=True):
            result[index] = np.diagonal(own, axis1=1, axis2=2)
        return result


def _precision(
    at: Callable[[Array], tuple[Array, Array]], layout: Layout, point: Array, scale: Array
) -> _Precision:
    """Return the negative Hessian by central differences, all rows of a plate moved at once."""
    # Steps that are lost in the point's own rounding say nothing.
    step = np.maximum(1e-4 * scale, 1e-10 * (1 + np.abs(point)))
    moved = [places for _, index in layout.plates for places in index.T]
    along = np.zeros((len(layout.shared) + len(moved), layout.dim))
    along[np.arange(len(layout.shared)), layout.shared] = step[layout.shared]
    for row, places in enumerate(moved, start=len(layout.shared)):
        along[row, places] = step[places]
    _, gradients = at(np.concatenate([point - along, point + along]))
    change = (gradients[: len(along)] - gradients[len(along) :]) / 2
    of_shared = change[: len(layout.shared)] / step[layout.shared, None]
    block = of_shared[:, layout.shared]
    plates, start = [], len(layout.shared)
    for _, index in layout.plates:
        stop = start + index.shape[1]
        cross = of_shared[:, index].transpose(1, 2, 0)
        own = (change[start:stop][:, index] / step[index].T[:, :, None]).transpose(1, 0, 2)
        plates.append((cross, (own + own.transpose(0, 2, 1)) / 2))
        start = stop
    return _Precision((block + block.T) / 2, plates)
