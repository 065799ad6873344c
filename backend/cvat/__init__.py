"""CVAT's requests to interactors, and their answers, as values; no HTTP."""
