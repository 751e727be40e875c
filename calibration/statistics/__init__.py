"""Statistics of the calibration images: histograms of every tensor and channel, and gradients of the logits."""
