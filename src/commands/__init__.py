"""What the commands do once their configuration is checked. Importing it is slow, so `src/<command>.py` does it last."""
