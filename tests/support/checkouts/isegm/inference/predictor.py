"""A stand-in for SegNext's predictor, whose photo and last mask are attributes."""

import torch

from isegm.inference.drawing import drawn


class BasePredictor:
    def __init__(self, model):
        self.model = model

    @property
    def device(self):
        return self.model.device

    def set_image(self, image):
        self.orig_img_shape = (1, 3, *image.shape[:2])
        self.prev_mask = torch.zeros(1, 1, *image.shape[:2])
        self.image_feats = image.mean()

    def predict(self, clicker):
        assert self.orig_img_shape[2:] == self.prev_mask.shape[2:]
        self.prev_mask = drawn(self.model.radius, self.prev_mask, clicker.get_clicks()[-1])
        return self.prev_mask.cpu().numpy()[0, 0]
