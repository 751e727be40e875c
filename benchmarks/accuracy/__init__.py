"""The published accuracy table: every checkpoint of RESCOMPILE_DATA, our engines and those of other quantizers.

python -m benchmarks.accuracy                 measure, write the raw JSON and docs/accuracy.md
python -m benchmarks.accuracy --page FILE...  write docs/accuracy.md again from raw JSON
"""
