"""Clients of a server, over HTTP alone: a Python client, a chat for the terminal, a load test."""
