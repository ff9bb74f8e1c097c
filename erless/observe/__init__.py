"""What runs and how it fares: status and reports."""
