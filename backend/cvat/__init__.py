"""CVAT's side of the backend: what its interactors are asked and how they answer. Values in, values out; no HTTP."""
