"""Result directories as pages."""
