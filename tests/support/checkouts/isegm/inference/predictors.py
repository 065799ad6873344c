"""A stand-in for the predictor of RITM and its descendants: it remembers the photo and its last answer."""

import torch

from isegm.inference.drawing import drawn

asked = []


class Predictor:
    def __init__(self, net):
        self.net = net

    def set_input_image(self, image):
        self.prev_prediction = torch.zeros(1, 1, *image.shape[:2])

    def get_prediction(self, clicker, prev_mask=None):
        previous = self.prev_prediction if prev_mask is None else prev_mask
        self.prev_prediction = drawn(self.net.radius, previous, clicker.get_clicks()[-1])
        return self.prev_prediction.cpu().numpy()[0, 0]


def get_predictor(net, brs_mode, device, prob_thresh=0.49, with_flip=True, zoom_in_params=None, **options):
    asked.append({"mode": brs_mode, "zoom_in": zoom_in_params, "positions": net.backbone.size, **options})
    return Predictor(net)
