"""Export: from a student to verified bundles."""
