"""The arithmetic: queries, embedding bags, dense tower, the monolith. Pure, no I/O policy."""
