"""Means, segments, experiments and calibration."""
