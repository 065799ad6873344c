"""InterFormer as a model of `bench/noc.py`, by the demo of its authors' checkout; see docs/baselines.md."""

import os
from pathlib import Path

import mmcv
import torch
from demo.gui.clicker import Click
from demo.gui.predictor import Predictor
from mmseg.apis import init_segmentor

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
PIPELINE = [
    {"type": "LoadImageFromFile"},  # the predictor puts the photo in its place
    {"type": "Resize", "img_scale": None, "ratio_range": (1.0, 1.0), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 0.0},
    {"type": "Normalize", "mean": MEAN, "std": STD, "to_rgb": False},
    {"type": "Pad", "size": None, "size_divisor": 32, "pad_val": 0, "seg_pad_val": 0},
    {"type": "ImageToTensor", "keys": ["img"]},
    {"type": "Collect", "keys": ["img"]},
]


class InterFormer:
    version = "InterFormer " + os.environ["INTERFORMER_CHECKPOINT"]

    def __init__(self):
        checkpoint, device = os.environ["INTERFORMER_CHECKPOINT"], os.environ.get("DEVICE", "cpu")
        config = mmcv.Config.fromfile(str(next(Path(checkpoint).parent.glob("*.py"))))
        kinds = {"model.backbone.type": "MAEWithSimpleFPN", "model.type": "ClickSegmentorZoomIn"}
        config.merge_from_dict(kinds | {"data.test": {"pipeline": PIPELINE}})
        config.model.decode_head.norm_cfg = {"type": "BN", "requires_grad": True}
        model = init_segmentor(config, checkpoint, device=device)
        rules = {"inner_radius": 5, "outer_radius": 0, "zoom_in_params": None}
        self.predictor = Predictor(model, torch.device(device), rules)

    @torch.no_grad()
    def encode(self, image):
        self.predictor.set_input_image(image)
        names = ("data", "image_feature", "img_ori_shape", "img_pad_shape")
        photo = {name: getattr(self.predictor, name) for name in names}
        return photo, {(): self.predictor.get_states()}  # and by an object's clicks, where it stands

    @torch.no_grad()
    def click(self, features, clicks, previous):
        photo, states = features
        done = tuple(clicks[:-1])
        if done not in states:
            self.click(features, done, None)
        vars(self.predictor).update(photo)
        self.predictor.set_states(states.pop(done) if done else states[done])
        last = clicks[-1]
        self.predictor.update_ref_label_by_new_click(Click(last.positive, (round(last.y), round(last.x))))
        mask = self.predictor.get_prediction(len(clicks), None)
        states[tuple(clicks)] = self.predictor.get_states()
        return mask
