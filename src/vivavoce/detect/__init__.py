"""Detectors: wave to events. ``step(wave, state) -> (probabilities, state)`` per chunk, ``segments(wave)`` for a
whole one.
"""
