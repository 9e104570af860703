"""Where frames and rows come from."""
