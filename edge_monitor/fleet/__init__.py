"""The fleet side: collector, store and web page."""
