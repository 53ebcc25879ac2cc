"""Conversations with an instruct model on a squeezed cache."""
