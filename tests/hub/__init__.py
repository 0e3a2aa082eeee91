"""Tests of pipeline/hub against the loopback hub of tests/hub_server.py."""
