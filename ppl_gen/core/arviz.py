"""The adapter from plain dictionaries of arrays to what ArviZ works on."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.core.errors import SiteError, unknown
from ppl_gen.diagnostics import import_arviz

__all__ = ["GROUPS", "to_arviz"]

GROUPS: tuple[str, ...] = (
    "posterior",
    "posterior_predictive",
    "log_likelihood",
    "sample_stats",
    "prior",
    "prior_predictive",
    "observed_data",
)
"""The groups that `to_arviz` knows, in the order in which it writes them."""

_SAMPLE_DIMS = ("chain", "draw")
# Groups whose variables have no chains and draws.
_PLAIN_GROUPS = frozenset({"observed_data"})


def to_arviz(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> Any:
    """Turn groups of arrays into the container of the installed line of ArviZ.

    Axes without a name are called `<site>_dim_<axis>`. A name is changed in two cases where xarray
    could not hold it: a "/" in the name of a site becomes ".", and an axis with the name of a
    site in the same group gets "_dim" appended.

    Args:
        groups: Arrays by group and site. Axes are `(chain, draw, *event)`, in `observed_data`
            `(*event)`. Groups are those of `GROUPS`; empty ones are left out. In `sample_stats`
            the names are ArviZ's: `diverging`, `energy`, `lp`, `acceptance_rate`, `tree_depth`,
            `n_steps`, `step_size`.
        dims: Names of the event axes by site. In `log_likelihood` the leading ones are used, as
            a log density has no event axes.
        coords: Labels along the named axes. They are used in each group where their number fits
            the axis, so that predictions for other data keep the same axis.
        attrs: Facts about the fit, written to the container and its posterior. Whatever is
            neither text nor number is written as JSON, so that NetCDF can hold it.

    Returns:
        An `arviz.InferenceData` (ArviZ 0.2x) or an `xarray.DataTree` (1.x).

    Raises:
        ValueError: If a group is unknown, or there is none with a site.
        SiteError: If an array lacks the axes `(chain, draw)`, its axes do not match their names,
            its chains and draws differ from those of its group, or its name cannot be used.
        TypeError: If an attribute cannot be written as JSON.

    Example:
        >>> draws = np.zeros((2, 10, 3))
        >>> data = to_arviz({"posterior": {"theta": draws}}, dims={"theta": ("school",)})
        >>> data["posterior"]["theta"].dims
        ('chain', 'draw', 'school')
    """
    for group in groups:
        if group not in GROUPS:
            raise unknown("group", group, GROUPS)
    plain_attrs = {name: _plain(name, value) for name, value in (attrs or {}).items()}
    datasets = {
        group: _dataset(
            group,
            groups[group],
            dims or {},
            coords or {},
            plain_attrs if group == "posterior" else {},
        )
        for group in GROUPS
        if groups.get(group)
    }
    if not datasets:
        raise ValueError("groups: expected at least one group with a site, got none.")

    arviz = import_arviz()
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(attrs=plain_attrs, **datasets)
    import xarray

    tree = xarray.DataTree.from_dict(datasets)
    tree.attrs = dict(plain_attrs)
    return tree


def _dataset(
    group: str,
    sites: Mapping[str, ArrayLike],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any],
) -> Any:
    """Build one group as an `xarray.Dataset`."""
    import xarray

    names = {site: site.replace("/", ".") for site in sites}
    variables: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    # The size of every axis so far and the site that it came from.
    sizes: dict[str, tuple[int, str]] = {}
    for site, values in sites.items():
        name = names[site]
        if name in variables or name in _SAMPLE_DIMS:
            raise SiteError(
                site,
                expected=f"a name that no other site or axis of the group {group} has",
                got=f"a second {name!r}",
                remedy="Give the site another name.",
            )
        array = np.asarray(values)
        axes = _axes(group, site, array, dims.get(site))
        axes = tuple(f"{axis}_dim" if axis in names.values() else axis for axis in axes)
        for axis, size in zip(axes, array.shape, strict=True):
            first_size, first_site = sizes.setdefault(axis, (size, site))
            if size != first_size:
                raise SiteError(
                    site,
                    expected=f"{first_size} along {axis!r}, as site {first_site!r} has",
                    got=f"{size} (shape {array.shape}, group {group})",
                    remedy="Give axes of different lengths different names.",
                )
        variables[name] = (axes, array)
    labels: dict[Hashable, Any] = {}
    for axis, (size, _) in sizes.items():
        given = coords.get(axis, coords.get(axis.removesuffix("_dim")))
        labels[axis] = list(given) if given is not None and len(given) == size else np.arange(size)
    return xarray.Dataset(variables, coords=labels, attrs=dict(attrs))


def _axes(
    group: str, site: str, array: NDArray[Any], event_dims: Sequence[str] | None
) -> tuple[str, ...]:
    """Name every axis of an array, chain and draw included."""
    sample_dims = () if group in _PLAIN_GROUPS else _SAMPLE_DIMS
    if array.ndim < len(sample_dims):
        raise SiteError(
            site,
            expected="axes (chain, draw, *event)",
            got=f"shape {array.shape} in the group {group}",
            remedy="Put chains and draws first.",
        )
    event_ndim = array.ndim - len(sample_dims)
    if event_dims is None:
        return (*sample_dims, *(f"{site.replace('/', '.')}_dim_{i}" for i in range(event_ndim)))
    if group == "log_likelihood":
        event_dims = event_dims[:event_ndim]
    if len(event_dims) != event_ndim:
        raise SiteError(
            site,
            expected=f"{len(event_dims)} event axes, named {', '.join(event_dims) or 'nothing'}",
            got=f"shape {array.shape} in the group {group}",
            remedy="Name each event axis once, or none of them.",
        )
    axes = (*sample_dims, *event_dims)
    if len(set(axes)) < len(axes):
        raise SiteError(
            site,
            expected="different names for all axes",
            got=", ".join(axes),
            remedy="Rename the repeated ones.",
        )
    return axes


def _plain(name: str, value: Any) -> str | int | float:
    """Write an attribute in a form that NetCDF can hold."""
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    try:
        return json.dumps(value)
    except TypeError as error:
        raise TypeError(f"attribute {name!r}: expected a JSON value, got {value!r}.") from error
