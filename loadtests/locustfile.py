"""Drive any erless gateway with Locust; the options are those of `erless.observe.loadtest`.

    locust -f loadtests/locustfile.py --headless -u 50 -t 30s --host http://127.0.0.1:8080
    locust -f loadtests/locustfile.py --headless -u 64 --host URL --traffic step:50,150,50 \
        --duration 90 --queries m/queries.safetensors --expected predictions.json
"""

from erless.observe.loadtest.locust import locustfile

GatewayUser = locustfile.GatewayUser
if locustfile.early.traffic:
    Shape = locustfile.Shape
