"""The load test: `remuda load`. It measures any OpenAI-compatible server over HTTP."""
