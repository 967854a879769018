"""Training by steps: the loop, what decides on its steps, and how it is kept on disk."""
