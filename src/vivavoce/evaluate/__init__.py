"""Measuring: how quick a system is on this machine, with nothing loaded but random weights."""
