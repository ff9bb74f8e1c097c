"""Models and towers that `torch.export.save` wrote, read as data and tried in confinement."""
