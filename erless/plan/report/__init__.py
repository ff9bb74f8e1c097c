"""A plan as document, table, notes and plot."""
