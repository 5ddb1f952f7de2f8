"""Review: a page to accept, mend and drop questions and annotations, and Argilla's records."""
