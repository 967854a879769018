"""The command `ppl-gen`: models, check, fit, compare, judge, repair, sbc and doctor."""

from ppl_gen.cli.application import app, main

__all__ = ["app", "main"]
