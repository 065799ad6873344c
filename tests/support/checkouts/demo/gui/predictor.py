"""A stand-in for InterFormer's predictor, whose label of what is certain grows with each click."""

import torch
from isegm.inference.drawing import drawn


class Predictor:
    def __init__(self, model, device, predictor_params):
        assert predictor_params["zoom_in_params"] is None
        self.model = model

    def set_input_image(self, img):
        self.data, self.image_feature = {"img": img}, img.mean()
        self.img_ori_shape = self.img_pad_shape = img.shape[:2]
        self.ref_label = self.prev_prediction = torch.zeros(1, 1, *img.shape[:2])

    def update_ref_label_by_new_click(self, click):
        assert self.ref_label.shape[2:] == self.img_ori_shape
        self.ref_label = drawn(self.model.radius, self.ref_label, click)

    def get_prediction(self, num_click, prev_mask):
        self.prev_prediction = (self.ref_label > 0.2).long()
        return self.prev_prediction.numpy()[0, 0]

    def get_states(self):
        return {"prev_prediction": self.prev_prediction.clone(), "ref_label": self.ref_label.clone()}

    def set_states(self, states):
        self.prev_prediction, self.ref_label = states["prev_prediction"], states["ref_label"]
