"""Tests; they mirror the code. `just test` runs them, `just test-slow` the long ones."""
