"""One module per command, thin over a library function; heavy imports inside (`--help` must not wait)."""
