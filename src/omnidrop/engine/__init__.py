"""Runs a method inside a transformers model: hooks, caches, masks, and what this transformers release calls things."""
