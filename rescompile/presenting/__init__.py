"""Everything that a person looks at: terminal, plots and HTML pages."""
