"""Any PyTorch recommender becomes a bundle: its graph is exported, and cut at its lookups.

`program` exports the model and names its inputs and outputs, `lookups` finds where rows are read,
`cut` divides the graph into front and tower, `parts` makes archives of them, `write` puts the
bundle together, `check` compares it with the model, and `export` is the whole way.
"""
