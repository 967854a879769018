"""Missing values of data with holes, drawn from what the observed ones say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.distributions import Categorical, Distribution, Independent

from ppl_gen.core import Posterior, SiteError
from ppl_gen.core.arguments import bind
from ppl_gen.core.errors import check_count
from ppl_gen.core.pair import model_of, own_copy, prepare, signature
from ppl_gen.core.params import AnswerParams
from ppl_gen.core.progress import ProgressBar
from ppl_gen.core.scope import isolated, unchecked
from ppl_gen.core.structure import kind_of
from ppl_gen.inference.elbo import Sites
from ppl_gen.inference.tempering import Particles, temper

__all__ = ["Imputation", "impute"]

# Fewer particles do not find all the modes that are left open by what is observed.
_LEAST_PARTICLES = 100
# Numbers of the distributions of images that are held at a time: 4 MiB in float32.
_CHUNK = 2**20
# Families of particles whose means are compared: so many do, whatever the number of particles.
_FAMILIES = 100


@dataclass(frozen=True, eq=False)
class Imputation:
    """Draws of the missing values of each row, and how good they are.

    Args:
        draws: The rows with their holes filled by joint draws given what is observed, in the dtype
            of the data, `(draws, n, *image_shape)`. Those of one row are in no order.
        mean: Expected values of the missing pixels given the observed ones, and the observed ones
            themselves, `(n, *image_shape)`; of categories the expected number.
        latents: The latents that each draw was made from, `(draws, n, latent_size)`: what
            `pair.decode` makes of them has no pixel noise.
        log_likelihood: Log density of the observed pixels of each row, in nats, `(n,)`, in float64.
        ess: Effective sample size of each row: as many independent draws would give `mean` as
            accurately, `(n,)`; at most the number of particles. It is an estimate, good to about a
            factor of two. Below 10, raise `moves` or `draws`.
        acceptance: Mean probability of acceptance of the particles' last moves, `(n,)`: 0.8 is
            aimed at, and near 0 nothing moved.
    """

    draws: torch.Tensor
    mean: torch.Tensor
    latents: torch.Tensor
    log_likelihood: torch.Tensor
    ess: torch.Tensor
    acceptance: torch.Tensor

    @classmethod
    def empty(cls, rows: torch.Tensor, draws: int, latent_size: int) -> Imputation:
        """Return one to be written into, of rows `(n, *image_shape)`."""
        floating = rows.dtype if rows.is_floating_point() else torch.get_default_dtype()
        per_row = torch.empty(3, len(rows), dtype=torch.float64)
        return cls(
            rows.new_empty(draws, *rows.shape),
            torch.empty_like(rows, dtype=floating),
            torch.empty(draws, len(rows), latent_size),
            *per_row.unbind(0),
        )


def impute(
    posterior: Posterior,
    x: torch.Tensor,
    mask: torch.Tensor,
    *,
    draws: int = 100,
    moves: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> Imputation:
    r"""Draw the missing values of data with holes from a fitted pair with a decoder, such as a VAE.

    Pixels are independent given the latents, so that those missing say nothing of them:

    .. math::
        p(x_\text{mis} \mid x_\text{obs}) = \int p(x_\text{mis} \mid z) \, p(z \mid x_\text{obs})
        \, dz, \qquad p(z \mid x_\text{obs}) \propto p(z) \prod_{j \text{ observed}} p(x_j \mid z).

    Particles drawn from the prior are brought to :math:`p(z \mid x_\text{obs})` by sequential Monte
    Carlo: through powers of the likelihood, with moves by Hamiltonian Monte Carlo. It is exact in
    the limit of many particles, finds several modes with their weights, and asks nothing of the
    guide, which was trained on whole images and knows nothing of holes. (Filling holes and encoding
    in turn, the pseudo-Gibbs sampler of Rezende et al., is as wrong as the guide is; with Mattei
    and Frellsen's correction it is right, but stays in the mode where it starts, since a filled
    image has latents near those it was filled from.)

    Args:
        posterior: A posterior whose pair has a method `decode`, from latents
            `(*batch, latent_size)` to a distribution of images with independent pixels, and whose
            model has one latent site, inside the plate of its rows.
        x: Data, `(n, *image_shape)`, as the pair takes them. What is in the holes is not looked at:
            it may be NaN.
        mask: True where a value is observed, of the shape of `x`, or of one image for all of them.
            Where nothing is observed, the draws are the prior's.
        draws: Number of draws of each row. There are as many particles, and 100 at least.
        moves: Number of moves of the particles at each power of the likelihood.
        seed: Seed of the draws.
        progress: Whether to show a progress bar.

    Returns:
        The draws, on the CPU. Their memory apart, what is needed does not grow with their number.

    Raises:
        SiteError: If data or mask are of the wrong shape, dtype or values.
        TypeError: If the pair has no decoder, or one whose pixels are not independent.
        ValueError: If the posterior was loaded without its pair, or a number is out of range.

    References:
        Wu, Burda, Salakhutdinov and Grosse (2017), On the Quantitative Analysis of Decoder-Based
        Generative Models, arXiv:1611.04273 (tempering the latents of a decoder). Rezende, Mohamed
        and Wierstra (2014), Stochastic Backpropagation and Approximate Inference in Deep Generative
        Models, arXiv:1401.4082. Mattei and Frellsen (2018), Leveraging the Exact Likelihood of Deep
        Latent Variable Models, arXiv:1802.04826. The effective sample size compares families of
        particles, after Chan and Lai (2013), A general theory of particle filters in hidden Markov
        models and some applications, Annals of Statistics 41, arXiv:1312.5114.

    Example:
        >>> import ppl_gen as pg
        >>> from ppl_gen.inference import SVI
        >>> from ppl_gen.models import VAE
        >>> x = torch.rand(20, 8, 8)
        >>> method = SVI(guide="pair", batch_size=10, epochs=1)
        >>> pair = VAE((8, 8), latent_size=2, hidden_sizes=(16,))
        >>> posterior = pg.fit(pair, {"x": x}, method, progress=False)
        >>> upper = (torch.arange(8) < 4).unsqueeze(1).expand(8, 8)
        >>> filled = impute(posterior, x, upper, draws=5, progress=False)
        >>> filled.draws.shape, filled.mean.shape, filled.ess.shape
        (torch.Size([5, 20, 8, 8]), torch.Size([20, 8, 8]), torch.Size([20]))
    """
    check_count("draws", draws)
    check_count("moves", moves)
    decoder = _Decoder(posterior)
    count = max(draws, _LEAST_PARTICLES)
    bar = ProgressBar("impute", len(x), enabled=progress)
    with isolated(seed, decoder.dtype), torch.no_grad(), AnswerParams(decoder.pair), bar:
        filled, mask = _checked(decoder, x, mask)
        width, latent_size = decoder.sizes(filled)
        result = Imputation.empty(filled, draws, latent_size)
        size = max(1, _CHUNK // (count * width))
        for start in range(0, len(filled), size):
            part = slice(start, start + size)
            rows = _Rows(decoder, filled[part], mask[part], width)

            def report(powers: torch.Tensor, done: int = start) -> None:
                bar.update(done + int(powers.sum()))

            with unchecked():
                prior = decoder.prior(rows.values)
                particles = temper(
                    prior.sample((count,)),
                    prior.log_prob,
                    rows.log_likelihood,
                    moves=moves,
                    split=rows.split,
                    callback=report,
                )
                rows.impute(particles, result, part)
    return result


class _Decoder:
    """What is asked of a pair: the prior of its latents, and the pixels that they make.

    Args:
        posterior: The posterior.

    Raises:
        TypeError: If its pair is of another kind.
        ValueError: If it has none.
    """

    def __init__(self, posterior: Posterior) -> None:
        if posterior.pair is None:
            msg = (
                "this posterior was loaded without its pair: pg.load(path, pair=pair) gives it one."
            )
            raise ValueError(msg)
        kind = type(posterior.pair).__name__
        if not callable(getattr(posterior.pair, "decode", None)):
            msg = (
                f"{kind} has no method `decode`: impute() needs a pair such as VAE, with "
                "`decode(z)` from latents to a distribution of images."
            )
            raise TypeError(msg)
        self.pair: Any = own_copy(posterior.pair).eval()
        names = list(signature(self.pair).parameters)
        if len(names) != 1:
            msg = (
                f"{kind}.model takes {', '.join(names) or 'nothing'}: impute() needs a model of "
                "one argument, the data with holes."
            )
            raise TypeError(msg)
        self.name = names[0]
        parameter = next((p for p in self.pair.parameters() if p.is_floating_point()), None)
        self.dtype = torch.get_default_dtype() if parameter is None else parameter.dtype
        self.device = torch.device("cpu") if parameter is None else parameter.device

    def move(self, values: torch.Tensor) -> torch.Tensor:
        """Return values as the pair computes with them."""
        return values.to(self.device, self.dtype if values.is_floating_point() else None)

    def sizes(self, filled: torch.Tensor) -> tuple[int, int]:
        """Return how many numbers the distribution of a row and its latents have."""
        latents = self.prior(self.move(filled[:1])).sample()
        pixels = self.pixels(latents)
        width = max(getattr(pixels, name).numel() for name in pixels.arg_constraints)
        return width, latents.numel()

    def prior(self, values: torch.Tensor) -> Any:
        """Return the distribution of the latents of rows, from a run of the model.

        Args:
            values: The rows, with something in their holes.
        """
        sites = Sites()
        with sites:
            model_of(self.pair)(**{self.name: values})
        latents = {n: msg for n, msg in sites.messages.items() if kind_of(msg) != "observed"}
        if len(latents) == 1:
            (site,) = latents.values()
            prior = site["fn"]
            vectors = len(prior.event_shape) == 1 and prior.batch_shape == (len(values),)
            if kind_of(site) == "latent" and vectors:
                return prior
        found = [f"'{n}' {tuple(msg['value'].shape)}" for n, msg in latents.items()]
        msg = (
            f"{type(self.pair).__name__}: impute() needs one continuous latent site, a vector for "
            f"each row; the model has {', '.join(found) or 'none'}."
        )
        raise TypeError(msg)

    def pixels(self, latents: torch.Tensor) -> Distribution:
        """Return the distributions of single pixels, (*batch, *image_shape)."""
        images: Any = self.pair.decode(latents)
        shape = images.event_shape
        pixels: Distribution = images.base_dist if isinstance(images, Independent) else images
        if pixels.event_shape or pixels.batch_shape != latents.shape[:-1] + shape:
            msg = (
                f"{type(self.pair).__name__}.decode: expected independent pixels, such as "
                f"Bernoulli(logits=...).to_event(2), got {type(images).__name__} with event shape "
                f"{tuple(shape)} and batch shape {tuple(images.batch_shape)}. Pixels that depend "
                "on each other given the latents cannot be left out of the likelihood."
            )
            raise TypeError(msg)
        return pixels


class _Rows:
    """Some rows of the data, of which all particles fit into memory.

    Args:
        decoder: The pair.
        filled: The rows, with zeros in their holes.
        mask: Where they are observed.
        width: How many numbers the distribution of a row has.
    """

    def __init__(
        self, decoder: _Decoder, filled: torch.Tensor, mask: torch.Tensor, width: int
    ) -> None:
        self.decoder = decoder
        self.filled = filled
        self.values = decoder.move(filled)
        self.observed = mask.to(decoder.device)
        self.split = max(1, _CHUNK // (len(filled) * width))

    def log_likelihood(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the log density of what is observed, (particle, row), in float64."""
        log_prob: torch.Tensor = self.decoder.pixels(latents).log_prob(self.values)
        return log_prob.masked_fill(~self.observed, 0.0).flatten(2).sum(-1, dtype=torch.float64)

    def impute(self, particles: Particles, result: Imputation, part: slice) -> None:
        """Write into a part of the result what particles say of the holes."""
        moments = _Moments(len(particles.latents), self.filled)
        for latents, ancestors in zip(
            particles.latents.split(self.split), particles.ancestors.split(self.split), strict=True
        ):
            expected = _expected(self.decoder.pixels(latents))
            moments.add(expected.masked_fill(self.observed, 0.0).cpu(), ancestors.cpu())
        observed = self.observed.cpu()
        filled = self.filled.to(result.mean.dtype)
        result.mean[part] = torch.where(observed, filled, moments.mean.to(filled))
        result.ess[part] = moments.ess()
        result.log_likelihood[part] = particles.log_evidence
        result.acceptance[part] = particles.acceptance

        # Particles come in the order of their ancestors, and those next to each other are alike.
        order = torch.rand(particles.ancestors.shape).argsort(0)[: len(result.draws)]
        chosen = particles.latents.take_along_dim(order.unsqueeze(-1).to(self.decoder.device), 0)
        result.latents[:, part] = chosen
        for start in range(0, len(chosen), self.split):
            some = slice(start, start + self.split)
            drawn = self.decoder.pixels(chosen[some]).sample().to(self.filled)
            result.draws[some, part] = torch.where(observed, self.filled, drawn)


class _Moments:
    """Mean of the particles' expected pixels, and how far families of particles are apart.

    Args:
        count: Number of particles.
        rows: The rows.
    """

    def __init__(self, count: int, rows: torch.Tensor) -> None:
        self.count = count
        self.shape = rows.shape
        self.sums = torch.zeros(_FAMILIES * len(rows), rows[0].numel(), dtype=torch.float64)
        self.sizes = torch.zeros(_FAMILIES * len(rows), dtype=torch.float64)
        self.squares = torch.zeros(len(rows), dtype=torch.float64)

    def add(self, expected: torch.Tensor, ancestors: torch.Tensor) -> None:
        """Add particles: expected pixels, (particle, row, *image), and ancestors."""
        rows = len(self.squares)
        family = (ancestors % _FAMILIES * rows + torch.arange(rows)).flatten()
        values = expected.flatten(2).double()
        self.sums.index_add_(0, family, values.flatten(0, 1))
        self.sizes.index_add_(0, family, torch.ones(len(family), dtype=torch.float64))
        self.squares += values.square().sum((0, 2))

    @property
    def mean(self) -> torch.Tensor:
        """The mean, (row, *image)."""
        total: torch.Tensor = self.sums.unflatten(0, (_FAMILIES, -1)).sum(0)
        return total.reshape(self.shape) / self.count

    def ess(self) -> torch.Tensor:
        """Return the variance between particles relative to that of their mean, (row,).

        Families that descend from different draws of the prior are independent but for the
        resampling, which does not correlate them in the limit; their distances from the mean tell
        its error, as long as more than one of them is left.
        """
        sums = self.sums.unflatten(0, (_FAMILIES, -1))
        sizes = self.sizes.unflatten(0, (_FAMILIES, -1))
        mean = sums.sum(0) / self.count
        variance = self.squares / self.count - mean.square().sum(-1)
        apart = (sums - sizes.unsqueeze(-1) * mean).square().sum((0, -1)) / self.count**2
        left = 1 - (sizes / self.count).square().sum(0)
        ess = (variance * left / apart).clamp(1, self.count)
        ess = torch.where(left <= 0, 1.0, ess)
        # Nothing to say, as in a row without holes, is said without error.
        return torch.where(variance <= 1e-12, float(self.count), ess)


def _expected(pixels: Distribution) -> torch.Tensor:
    """Return the expected values of pixels; of categories, the expected number."""
    mean: torch.Tensor
    if isinstance(pixels, Categorical):
        probs = pixels.probs
        mean = probs @ torch.arange(probs.shape[-1]).to(probs)
    else:
        mean = pixels.mean
    return mean


def _checked(
    decoder: _Decoder, x: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows with zeros in their holes, and the mask of all of them, on the CPU."""
    x, mask = torch.as_tensor(x).cpu(), torch.as_tensor(mask).cpu()
    name = decoder.name
    if mask.dtype != torch.bool:
        raise SiteError(
            "mask",
            what="argument",
            expected="booleans, True where a value is observed",
            got=str(mask.dtype),
            remedy="Write mask.bool(), or ~x.isnan() where NaN marks what is missing.",
        )
    if mask.shape not in (x.shape, x.shape[1:]):
        raise SiteError(
            "mask",
            what="argument",
            expected=f"the shape {tuple(x.shape)} of '{name}', or {tuple(x.shape[1:])} for all of "
            "its rows",
            got=f"shape {tuple(mask.shape)}",
            remedy="Give a boolean for each value.",
        )
    mask = mask.expand(x.shape)
    bad = mask & ~x.isfinite()
    if bad.any():
        raise SiteError(
            name,
            expected="finite values where the mask is True",
            got=f"{int(bad.sum())} that are NaN or infinite",
            remedy="Set the mask to False there.",
        )
    filled = x.masked_fill(~mask, 0)
    bind(decoder.pair, {name: filled})
    if not torch.equal(prepare(decoder.pair, {name: filled})[name], filled):
        raise SiteError(
            name,
            expected="observed values that the pair scores as they are",
            got="some that its `prepare` changes, such as gray pixels where it draws binary ones",
            remedy="Prepare them first: torch.bernoulli(x) on what is observed, or x.round().",
        )
    return filled, mask
