"""`erless example sequence`: a ranker of histories, trained on MovieLens, cut by the exporter."""
