"""From statistics to numbers of the INT8 network: thresholds, channel factors, rounded weights, and what they cost."""
