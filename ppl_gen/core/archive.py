"""Draws on disk: an array of zarr for each site, written piece by piece and read when asked for.

Each group holds arrays (chain, draw, *site). A piece of a chain is a file with a checksum, and is
replaced as a whole: a process that is killed while it writes leaves it as it was or as it was to
be.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_gen.core.errors import LoadError

__all__ = ["Archive", "StoredDraws"]

# Bytes of one file, where a chain has as many draws.
_PIECE_BYTES = 2**20


class Archive:
    """A folder of groups of arrays, open for writing.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        self._root = zarr.open_group(path, mode="a", zarr_format=3)
        self._groups: dict[str, dict[str, Any]] = {}

    def create(
        self,
        group: str,
        sites: Mapping[str, torch.Tensor],
        dims: Mapping[str, Sequence[str]],
        axes: tuple[str, str],
    ) -> None:
        """Create a group of arrays, which hold NaN or 0 where nothing is written.

        Args:
            group: Its name.
            sites: By site, a tensor of the type and shape (chain, draw, *site) of its array.
            dims: Names of the axes of the sites, where they have names.
            axes: Names of the first two axes.
        """
        from zarr.codecs import Crc32cCodec

        target = self._root.require_group(group)
        names = _array_names(sites)
        target.attrs["arrays"] = list(names.values())
        sizes: dict[str, int] = {}
        for site, value in sites.items():
            shape = tuple(value.shape)
            dtype = torch.empty(0, dtype=value.dtype).numpy().dtype
            bytes_per_draw = dtype.itemsize * math.prod(shape[2:])
            rows = min(shape[1], _PIECE_BYTES // max(bytes_per_draw, 1))
            event = _axis_names(names[site], shape[2:], dims.get(site), names, sizes)
            target.create_array(
                names[site],
                shape=shape,
                chunks=tuple(max(n, 1) for n in (1, rows, *shape[2:])),
                dtype=dtype,
                fill_value=math.nan if dtype.kind == "f" else dtype.type(0),
                dimension_names=(*axes, *event),
                compressors=[Crc32cCodec()],
                attributes={"site": site},
            )

    def write(self, group: str, chain: int, start: int, values: Mapping[str, torch.Tensor]) -> None:
        """Write draws of one chain.

        Args:
            group: The group.
            chain: The chain.
            start: Number of the first draw.
            values: Draws by site, (draw, *site).
        """
        for site, value in values.items():
            array = self._group(group)[site]
            array[chain, start : start + len(value)] = value.detach().cpu().numpy()

    def grow(self, group: str, draws: int) -> None:
        """Make room for more draws in every chain.

        Args:
            group: The group.
            draws: Number of draws of each chain.
        """
        for array in self._group(group).values():
            if array.shape[1] < draws:
                array.resize((array.shape[0], draws, *array.shape[2:]))

    def _group(self, group: str) -> dict[str, Any]:
        if group not in self._groups:
            # A piece that is not there is one that was lost, so those of zeros are written as well.
            self._groups[group] = {
                site: array.with_config({"write_empty_chunks": True})
                for site, array in _open_arrays(self._root, group).items()
            }
        return self._groups[group]


class StoredDraws(Mapping[str, torch.Tensor]):
    """The draws of one group of a folder, read from disk each time that a site is asked for.

    Args:
        path: The folder.
        group: The group.
        counts: Number of draws that are there of each chain; as many as all chains have are read.
        step: Read only every so many-th of them.

    Raises:
        LoadError: If the group cannot be read, or a piece of it is missing or truncated. So does
            reading a site, where a piece of it was changed.
    """

    def __init__(self, path: Path, group: str, counts: Sequence[int], step: int = 1) -> None:
        import zarr

        self.path = path
        self.group = group
        self.counts = tuple(counts)
        self._read_part = slice(0, min(self.counts, default=0), step)
        try:
            self._arrays = _open_arrays(zarr.open_group(path, mode="r", zarr_format=3), group)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, f"{group} cannot be read: {error}") from error
        for site in self:
            self._check(site)
        # A site that is still in use is not read twice.
        self._read: weakref.WeakValueDictionary[str, torch.Tensor] = weakref.WeakValueDictionary()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the draws by site, without reading them."""
        count = len(range(*self._read_part.indices(self._read_part.stop)))
        return {s: (a.shape[0], count, *a.shape[2:]) for s, a in self._arrays.items()}

    def __getitem__(self, site: str) -> torch.Tensor:
        """Read the draws of a site, (chain, draw, *site)."""
        array = self._arrays[site]
        tensor = self._read.get(site)
        if tensor is None:
            with self._naming_damage(site):
                tensor = torch.from_numpy(np.asarray(array[:, self._read_part]))
            self._read[site] = tensor
        return tensor

    def thinned(self, step: int) -> StoredDraws:
        """Return every so many-th draw, to be read without the others in memory."""
        return StoredDraws(self.path, self.group, self.counts, step)

    def joined(self, site: str) -> torch.Tensor:
        """Read all that each chain has, one chain after the other, (draw, *site)."""
        array = self._arrays[site]
        with self._naming_damage(site):
            parts = [np.asarray(array[c, :count]) for c, count in enumerate(self.counts)]
        return torch.from_numpy(np.concatenate(parts))

    def __iter__(self) -> Iterator[str]:
        """Return the names of the sites."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """Return the number of sites."""
        return len(self._arrays)

    def _check(self, site: str) -> None:
        """See that every piece is there, which zarr would silently take for empty."""
        array = self._arrays[site]
        if math.prod(array.shape) == 0:
            return
        size = math.prod(array.chunks) * array.dtype.itemsize + 4  # and the checksum
        for chain, count in enumerate(self.counts):
            for piece in range(-(-count // array.chunks[1])):
                place = "/".join(["c", str(chain), str(piece), *["0"] * (array.ndim - 2)])
                file = self.path / array.path / place
                if not file.is_file() or file.stat().st_size != size:
                    what = "truncated" if file.is_file() else "missing"
                    raise _damaged(self.path, f"a piece of the draws of '{site}' is {what}")

    @contextlib.contextmanager
    def _naming_damage(self, site: str) -> Iterator[None]:
        self._check(site)
        try:
            yield
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.path, f"the draws of '{site}' were changed: {error}") from error


def _damaged(path: Path, what: str) -> LoadError:
    return LoadError(
        f"the posterior in {path.parent} is damaged: {path.name}: {what}. Restore it, or fit again."
    )


def _open_arrays(root: Any, group: str) -> dict[str, Any]:
    """Return the arrays of a group by site, in the order in which they were created."""
    arrays = dict(root[group].arrays())
    names = root[group].attrs["arrays"]
    return {str(arrays[name].attrs["site"]): arrays[name] for name in names}


def _array_names(sites: Mapping[str, Any]) -> dict[str, str]:
    """Return a name for each site's array: zarr takes "/" for a folder, and keeps some names."""
    names: dict[str, str] = {}
    for site in sites:
        name = site.replace("/", ".")
        while (
            name in names.values()
            or name in ("chain", "draw", "divergence", "zarr.json", "c")
            or name.startswith("__")
            or not name.strip(".")
        ):
            name = f"site_{name}"
        names[site] = name
    return names


def _axis_names(
    name: str,
    shape: tuple[int, ...],
    dims: Sequence[str] | None,
    names: Mapping[str, str],
    sizes: dict[str, int],
) -> tuple[str, ...]:
    """Return names of a site's axes that xarray can hold together with those of the others."""
    plain = [f"{name}_dim_{i}" for i in range(len(shape))]
    given = plain if dims is None or len(dims) != len(shape) else list(dims)
    found: list[str] = []
    for axis, own, size in zip(given, plain, shape, strict=True):
        # An axis must have one length in all of a group, and no array's name.
        axis = axis.replace("/", ".")
        taken = axis in found or axis in names.values() or sizes.get(axis, size) != size
        found.append(own if taken or axis in ("chain", "draw") else axis)
        sizes[found[-1]] = size
    return tuple(found)
