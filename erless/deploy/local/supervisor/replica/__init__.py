"""One running copy of a function: how it is started, asked, measured, limited and found again."""
