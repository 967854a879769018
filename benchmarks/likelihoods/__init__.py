"""What the measurements of autoregressive likelihoods are made of."""
