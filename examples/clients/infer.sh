#!/bin/sh
# One query in JSON to a gateway: sh infer.sh http://127.0.0.1:PORT MODEL
set -eu
curl --fail-with-body --silent --show-error --max-time 5 \
    --header 'Content-Type: application/json' --header 'erless-deadline-ms: 1000' \
    --data '{"inputs": [
        {"name": "user", "datatype": "INT64", "shape": [2], "data": [3, 17]},
        {"name": "history", "datatype": "INT64", "shape": [2, 8],
         "data": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}]}' \
    "$1/v2/models/$2/infer"
