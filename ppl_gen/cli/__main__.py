"""`python -m ppl_gen.cli`: the command, where its script is not installed."""

from ppl_gen.cli import main

if __name__ == "__main__":
    main()
