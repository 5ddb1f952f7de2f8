"""Pages, charts and tables: one way to show a result in a terminal, in Markdown and in HTML."""
