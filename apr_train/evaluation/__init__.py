"""Held-out evaluation: rows of strategies over the same problems, their samples, and what is measured of them."""
