"""The chat for the terminal: `remuda chat`."""
