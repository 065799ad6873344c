"""The Label Studio ML backend: HTTP, Label Studio's protocol, images, caches; the network is `skipclick`'s."""
