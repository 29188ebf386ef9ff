"""Pages, tables, figures and model cards."""
