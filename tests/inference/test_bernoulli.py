"""The log density of binary variables against PyTorch's own, in float64."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Bernoulli

from ppl_gen.inference.bernoulli import bernoulli_log_prob

# Logits from certain to certain, and beyond what a float32 probability can tell from 1.
LOGITS = torch.cat([torch.linspace(-30, 30, 2 * 131), torch.tensor([-200.0, 200.0])])


@pytest.mark.parametrize("shape", [(264,), (3, 88), (2, 3, 44), (24, 11), (264, 1)])
@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient(shape: tuple[int, ...], gray: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(LOGITS), generator=generator)
    logits = LOGITS[order].reshape(shape).to(dtype).requires_grad_()
    value = torch.rand(shape, generator=generator).to(dtype)
    value = value if gray else value.round()
    weight = torch.rand(shape[:1], generator=generator).to(dtype)
    fn = dist.Bernoulli(logits=logits, validate_args=False).to_event(len(shape) - 1)
    if len(shape) == 1:
        fn = dist.Bernoulli(logits=logits.unsqueeze(0), validate_args=False).to_event(2 - 1)
        value, weight = value.unsqueeze(0), weight[:1]
    ours = bernoulli_log_prob(fn, value)
    assert ours is not None
    (gradient,) = torch.autograd.grad((ours * weight).sum(), logits)

    exact = logits.detach().double().requires_grad_()
    theirs = Bernoulli(logits=exact, validate_args=False).log_prob(value.double().reshape(shape))
    theirs = theirs.reshape(value.shape).flatten(1).sum(-1)
    (expected,) = torch.autograd.grad((theirs * weight.double()).sum(), exact)
    # A sum of n numbers is rounded by up to n eps of the sum of their sizes, and s by eps.
    eps, terms = torch.finfo(dtype).eps, value[0].numel()
    size = (LOGITS.abs() + 1).sum().item()
    assert (ours.double() - theirs).abs().max() < eps * (size + 4 * terms)
    assert (gradient.double() - expected).abs().max() < 4 * eps


def test_many_draws_at_once() -> None:
    logits, value = torch.randn(5, 4, 6), (torch.rand(4, 6) > 0.5).float()

    def one(some: torch.Tensor) -> torch.Tensor:
        fn = dist.Bernoulli(logits=some, validate_args=False).to_event(1)
        found = bernoulli_log_prob(fn, value)
        assert found is not None
        return found

    logits.requires_grad_()
    together = torch.func.vmap(one)(logits)
    alone = torch.stack([one(some) for some in logits])
    torch.testing.assert_close(together, alone)
    gradients = [torch.autograd.grad(v.square().sum(), logits)[0] for v in (together, alone)]
    torch.testing.assert_close(*gradients)


def test_a_probability_that_is_no_number_stays_one() -> None:
    logits = torch.tensor([[0.3, float("nan"), 1.0]])
    found = bernoulli_log_prob(
        dist.Bernoulli(logits=logits, validate_args=False).to_event(1), torch.ones(1, 3)
    )
    assert found is not None
    assert found.isnan().all()


def test_what_is_left_to_pyro() -> None:
    logits, ones = torch.zeros(3, 2), torch.ones(3, 2)
    plain = dist.Bernoulli(logits=logits, validate_args=False)
    assert bernoulli_log_prob(plain.to_event(1), ones) is not None
    left = {
        "a gradient by the value": (plain.to_event(1), torch.ones(3, 2, requires_grad=True)),
        "another shape": (plain.to_event(1), torch.ones(2)),
        "another dtype": (plain.to_event(1), ones.double()),
        "no event": (plain, ones),
        "probabilities": (dist.Bernoulli(probs=0.5 * ones).to_event(1), ones),
        "validation": (dist.Bernoulli(logits=logits, validate_args=True).to_event(1), ones),
        "a mask": (plain.to_event(1).mask(torch.tensor([True, False, True])), ones),
        "another family": (dist.Normal(logits, 1.0).to_event(1), ones),
        "nothing": (dist.Bernoulli(logits=logits[:0], validate_args=False).to_event(1), ones[:0]),
    }
    for name, (fn, value) in left.items():
        assert bernoulli_log_prob(fn, value) is None, name


def test_second_derivatives_are_refused() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    fn = dist.Bernoulli(logits=logits, validate_args=False).to_event(1)
    found = bernoulli_log_prob(fn, torch.ones(1, 2))
    assert found is not None
    (gradient,) = torch.autograd.grad(found.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch.autograd.grad(gradient.sum(), logits)
