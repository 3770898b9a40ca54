"""From answers to figures: means, segments, experiments and calibration."""
