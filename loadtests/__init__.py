"""Load tests: Locust files, and peers to compare with. Run Locust on `locustfile.py`."""
