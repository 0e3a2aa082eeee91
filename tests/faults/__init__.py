"""Fault tests: kills, cuts, flipped bits, refused answers."""
