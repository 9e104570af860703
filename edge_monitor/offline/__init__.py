"""The workstation: calibration and what is computed from it."""
