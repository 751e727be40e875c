"""One function per rule; `lint.check` holds the table of all."""
