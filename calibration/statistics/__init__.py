"""What calibration images show: histograms of every tensor and channel, and gradients of the logits."""
