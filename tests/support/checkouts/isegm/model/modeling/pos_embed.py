"""A stand-in for SimpleClick's position embedding."""


def interpolate_pos_embed_inference(backbone, size, device):
    backbone.size = size
