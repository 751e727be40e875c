"""Images to ranges to scales: image sets, observers, thresholds and calibration tables."""
