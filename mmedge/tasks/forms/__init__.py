"""Answer forms: what an answer looks like, how it is judged and read, and what a student may write."""
