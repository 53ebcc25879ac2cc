"""The cache: layers of bounded stores behind transformers' Cache interface."""
