"""Measure a deployment under load: Locust sends, the target is asked what runs meanwhile."""
