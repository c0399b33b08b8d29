"""The only sentences and the only layout: terminal, HTML, Markdown, notebook."""
