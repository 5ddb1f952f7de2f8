"""What the forms `schema`, `tools` and `regex` have in common: JSON values, schemas, compact text, grammars, comparison."""
