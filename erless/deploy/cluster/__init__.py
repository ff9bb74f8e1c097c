"""Knative Serving and the settings that erless needs: to install and to check."""
