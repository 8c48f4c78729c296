"""The commands of `spaces`, by topic; spaces_client/cli.py joins them."""
