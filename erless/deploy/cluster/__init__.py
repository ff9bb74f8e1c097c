"""`erless cluster init`: Knative Serving and the settings that erless needs, on any cluster."""
