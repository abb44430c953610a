"""Chameleon's transformer with an image head: Anole and Lumina-mGPT, whose images are different sequences of tokens."""
