"""Methods that turn statistics into numbers of the INT8 network: thresholds, channel factors, rounded weights."""
