"""A stand-in for mmsegmentation's loading of models."""

from isegm.inference.utils import load_is_model


def init_segmentor(config, checkpoint, device):
    assert config.merged["model.type"] == "ClickSegmentorZoomIn"
    return load_is_model(checkpoint, device, eval_ritm=False)
