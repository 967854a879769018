"""The words of the report, explained."""

from __future__ import annotations

__all__ = ["GLOSSARY"]

GLOSSARY = {
    "posterior": "What the data and the model say about the unknown quantities: not one value for "
    "each, but how plausible each value is. Every method gives draws from it, or from an "
    "approximation.",
    "sd": "Standard deviation: how spread out a quantity is. Two thirds of a bell curve are within "
    "one sd of its middle.",
    "reference": "The posterior that the others are measured against, usually by Markov chains, "
    "which are right if run for long enough.",
    "error of a mean": "How far a method's average is from that of the reference, in sds of the "
    "reference.",
    "floor": "The most that two samples of one and the same posterior would show by chance, with "
    "95 % probability. Only what is beyond it counts as an error.",
    "Monte Carlo standard error (MCSE)": "How far a number is off, typically, because there are "
    "only so many draws. More draws make it smaller; they do not mend an approximation.",
    "ELBO": "Evidence lower bound, in nats: what a variational method makes as large as it can. "
    "It is below the log evidence by the ELBO gap.",
    "ELBO gap": "How far an approximation is from the posterior, in nats: the Kullback-Leibler "
    "divergence from one to the other. 0 is perfect.",
    "log evidence": "The logarithm of the probability of the data under the model, all unknown "
    "quantities averaged out. By the weights of an approximation or, where these cannot be relied "
    "on, by bridge sampling: from the draws of the reference and those of a bell curve like it.",
    "reweighting": "Giving each draw of an approximation a weight that mends it (Pareto-smoothed "
    "importance sampling). It works where no few draws carry all of the weight.",
    "Pareto k-hat": "How heavy the tail of these weights is. Above its threshold, at most 0.7, the "
    "weights cannot be relied on. It is an estimate: its interval is printed with it.",
    "short chains": "Markov chains that start from draws of an approximation. How far they move "
    "from it is at least how wrong it is.",
    "kernel Stein test": "Whether draws fit the slopes of the model's density (kernel Stein "
    "discrepancy). It needs no reference, and says whether draws are off, not how far.",
    "effective sample size (ESS)": "As many independent draws as these, which depend on each other "
    "or have weights, are worth. In the bulk for averages, in the tails for intervals.",
    "R-hat": "Whether chains agree: near 1 they do; above 1.01 they have not run for long enough.",
    "nested R-hat": "The same for many short chains, taken in groups: each chain alone may be too "
    "short to show that it agrees with the others.",
    "E-BFMI": "Whether a Hamiltonian sampler reaches all energies: below 0.3 it is slow in the "
    "tails.",
    "divergence": "A step of a Hamiltonian sampler that failed. Many in one place mean that a part "
    "of the posterior is missed.",
    "1-Wasserstein distance": "How far draws have to be moved, on average, to turn one sample into "
    "the other. Sliced: averaged over directions.",
    "MMD": "Maximum mean discrepancy: a distance between two samples that sees differences of any "
    "kind, joint ones as well.",
    "classifier test (C2ST)": "Shown a draw of each of two methods, how often a classifier tells "
    "which is which: 0.5 is no better than chance, 1 is always.",
    "elpd": "Expected log predictive density, in nats: how well a fitted model predicts each "
    "observation from the others (leave-one-out). Higher is better. Where k-hat is too high at an "
    "observation, the number is marked: it may be far off, and says nothing of which is better.",
    "LOO-PIT": "Where each observation lies in its prediction from the others, from 0 to 1. For a "
    "model that fits these numbers are uniform.",
}
