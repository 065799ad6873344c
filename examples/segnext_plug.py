"""SegNext as a model of `bench/noc.py`, by its authors' checkout; docs/baselines.md says which."""

import os

import torch
from isegm.inference.clicker import Click, Clicker
from isegm.inference.predictor import BasePredictor
from isegm.inference.utils import load_is_model


class SegNext:
    version = "SegNext " + os.environ["SEGNEXT_CHECKPOINT"]

    def __init__(self):
        self.predictor = BasePredictor(load_is_model(os.environ["SEGNEXT_CHECKPOINT"], os.environ.get("DEVICE", "cpu")))

    @torch.no_grad()
    def encode(self, image):
        self.predictor.set_image(image)
        return {name: getattr(self.predictor, name) for name in ("orig_img_shape", "image_feats", "prev_mask")}

    @torch.no_grad()
    def click(self, features, clicks, previous):
        vars(self.predictor).update(features)  # this photo, and nothing of the object clicked before
        if previous is not None:
            self.predictor.prev_mask = torch.from_numpy(previous)[None, None].to(self.predictor.device)
        clicker = Clicker()
        for click in clicks:
            clicker.add_click(Click(is_positive=click.positive, coords=(round(click.y), round(click.x))))
        return self.predictor.predict(clicker)
