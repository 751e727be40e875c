"""The stages of a build, which ``pipeline`` calls in turn."""
