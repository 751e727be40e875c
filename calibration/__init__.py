"""Images to ranges to scales. Knows arrays and ONNX graphs, and nothing of engines.

images/                what is shown to the network: image sets, and preprocess.py on the way in
statistics/            what one pass over the images finds out
methods/               what is chosen from that: thresholds, channel factors, rounded weights
collect_statistics.py  the order of these steps
table.py               the result, calibration.json
"""
