"""Training: recipes, data, the loop, the papers' experiments, and fine-tuning for INT8."""
