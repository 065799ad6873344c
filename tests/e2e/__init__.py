"""The whole way of a click, with the real Label Studio in a real browser (run it with `make e2e`)."""
