"""A stand-in for InterFormer's clicks."""

from isegm.inference.clicker import Click  # noqa: F401
