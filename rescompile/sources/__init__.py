"""Where networks come from: checkpoints by format, published weights, and which network a checkpoint holds."""
