"""Locust: started as a process, and the locustfile that it runs."""
