"""Worker: one model by one peer in JAX, in a process of its own; prints a line of JSON.

"mean_field" and "full_rank" are NumPyro's `AutoNormal` and `AutoMultivariateNormal`, by `SVI.run`
with Adam, whose steps are one compiled loop; "pathfinder" is BlackJAX's multi-path Pathfinder with
its own defaults, compiled as a whole. Each runs twice, "cold" with what it compiles, "warm" again
with another seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.util import initialize_model

sys.path.insert(0, str(Path(__file__).parents[1] / "sampler_models"))

from numpyro_models import MODELS

AUTOGUIDES = {"mean_field": AutoNormal, "full_rank": AutoMultivariateNormal}
PATHS = 8
BOUND_DRAWS = 1000

Draws = dict[str, Any]
Run = tuple[Draws, float | None]
Data = dict[str, np.ndarray[Any, Any]]


def by_adam(guide: str, model: Any, data: Data, options: argparse.Namespace) -> Callable[..., Run]:
    """Return a function that fits an autoguide."""
    autoguide = AUTOGUIDES[guide](model)
    svi = SVI(model, autoguide, numpyro.optim.Adam(options.rate), Trace_ELBO())

    def fit(key: jax.Array) -> Any:
        result = svi.run(key, options.steps, progress_bar=False, **data)
        return jax.block_until_ready(result.params)

    def judge(params: Any, key: jax.Array) -> Run:
        draws = autoguide.sample_posterior(key, params, sample_shape=(options.draws,))
        # In parts: the draws of one with all of its data do not fit everywhere.
        bound = Trace_ELBO()
        one = jax.jit(lambda key: bound.loss(key, params, model, autoguide, **data))
        losses = jax.lax.map(one, jax.random.split(key, BOUND_DRAWS))
        return draws, -float(losses.mean())

    return fit, judge  # type: ignore[return-value]


def by_pathfinder(model: Any, data: Data, options: argparse.Namespace) -> Callable[..., Run]:
    """Return a function that follows paths and resamples their draws."""
    from blackjax.vi import multipathfinder

    info = initialize_model(jax.random.PRNGKey(0), model, model_kwargs=data)
    _, unravel = ravel_pytree(info.param_info.z)
    size = len(ravel_pytree(info.param_info.z)[0])

    def log_density(vector: jax.Array) -> jax.Array:
        return -info.potential_fn(unravel(vector))

    pathfinder = multipathfinder.as_top_level_api(log_density)

    @jax.jit
    def run(key: jax.Array) -> jax.Array:
        starts, paths, chosen = jax.random.split(key, 3)
        points = jax.random.uniform(starts, (PATHS, size), minval=-2.0, maxval=2.0)
        state, _ = multipathfinder.multi_approximate(paths, log_density, points)
        return pathfinder.sample(chosen, state, options.draws)

    def fit(key: jax.Array) -> Any:
        return jax.block_until_ready(run(key))

    def judge(vectors: Any, key: jax.Array) -> Run:
        values = jax.vmap(lambda vector: info.postprocess_fn(unravel(vector)))(vectors)
        return values, None

    return fit, judge  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=list(MODELS), required=True)
    parser.add_argument("--method", choices=[*AUTOGUIDES, "pathfinder"], required=True)
    parser.add_argument("--data", type=Path, required=True, help="an .npz file")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--draws", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True, help="an .npz file for the draws")
    options = parser.parse_args()
    with np.load(options.data) as stored:
        data = {name: jnp.asarray(value) for name, value in stored.items()}
    model = MODELS[options.model]
    seconds = []
    fit: Any = None
    for turn in range(2):
        began = time.perf_counter()
        if fit is None:
            if options.method == "pathfinder":
                fit, judge = by_pathfinder(model, data, options)  # type: ignore[misc]
            else:
                fit, judge = by_adam(options.method, model, data, options)  # type: ignore[misc]
        found = fit(jax.random.PRNGKey(options.seed + turn))
        seconds.append(time.perf_counter() - began)
        if turn == 0:
            first = found
    draws, elbo = judge(first, jax.random.PRNGKey(options.seed + 2))
    np.savez(options.out, **{name: np.asarray(value) for name, value in draws.items()})
    packages = (
        ("numpyro", "jax", "blackjax") if options.method == "pathfinder" else ("numpyro", "jax")
    )
    result = {
        "seconds_cold": seconds[0],
        "seconds_warm": seconds[1],
        "elbo": elbo,
        "versions": {name: metadata.version(name) for name in packages},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    numpyro.enable_x64()
    numpyro.set_platform("cpu")
    main()
