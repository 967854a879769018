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
    "floor": "What two samples of one and the same posterior would show by chance. Only what is "
    "beyond it counts as an error.",
    "Monte Carlo standard error (MCSE)": "How far a number is off, typically, because there are "
    "only so many draws. More draws make it smaller; they do not mend an approximation.",
    "ELBO": "Evidence lower bound, in nats: what a variational method makes as large as it can. "
    "It is below the log evidence by the ELBO gap.",
    "ELBO gap": "How far an approximation is from the posterior, in nats: the Kullback-Leibler "
    "divergence from one to the other. 0 is perfect.",
    "log evidence": "The logarithm of the probability of the data under the model, all unknown "
    "quantities averaged out.",
    "reweighting": "Giving each draw of an approximation a weight that mends it (Pareto-smoothed "
    "importance sampling). It works where no few draws carry all of the weight.",
    "Pareto k-hat": "How heavy the tail of these weights is. Above its threshold, at most 0.7, the "
    "weights cannot be relied on. It is an estimate: its interval is printed with it.",
    "effective sample size (ESS)": "As many independent draws as these, which depend on each other "
    "or have weights, are worth. In the bulk for averages, in the tails for intervals.",
    "R-hat": "Whether chains agree: near 1 they do; above 1.01 they have not run for long enough.",
    "E-BFMI": "Whether a Hamiltonian sampler reaches all energies: below 0.3 it is slow in the "
    "tails.",
    "divergence": "A step of a Hamiltonian sampler that failed. Many in one place mean that a part "
    "of the posterior is missed.",
    "1-Wasserstein distance": "How far draws have to be moved, on average, to turn one sample into "
    "the other. Sliced: averaged over directions.",
    "MMD": "Maximum mean discrepancy: a distance between two samples that sees differences of any "
    "kind, joint ones as well.",
    "classifier test (C2ST)": "How often a classifier tells draws of two methods apart: 0.5 is "
    "never better than chance, 1 is always.",
    "elpd": "Expected log predictive density, in nats: how well a fitted model predicts each "
    "observation from the others (leave-one-out). Higher is better.",
    "LOO-PIT": "Where each observation lies in its prediction from the others, from 0 to 1. For a "
    "model that fits these numbers are uniform.",
}
