"""One query in JSON to a gateway: `python infer.py http://127.0.0.1:PORT MODEL`."""

import json
import sys
import urllib.request

url, model = sys.argv[1:3]
query = {
    "inputs": [
        {"name": "user", "datatype": "INT64", "shape": [2], "data": [3, 17]},
        {"name": "history", "datatype": "INT64", "shape": [2, 8], "data": list(range(16))},
    ]
}
request = urllib.request.Request(
    f"{url}/v2/models/{model}/infer",
    data=json.dumps(query).encode(),
    headers={"Content-Type": "application/json", "erless-deadline-ms": "1000"},
)
with urllib.request.urlopen(request, timeout=5) as answer:
    for output in json.load(answer)["outputs"]:
        print(output["name"], output["data"])
