"""The native CPU library: how it is built, found, checked and installed."""
