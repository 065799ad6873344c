"""The image, built and started for real (run it as root with `make image-test`)."""
