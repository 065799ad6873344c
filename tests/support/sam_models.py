"""Models of SAM's family, small enough for tests, with random weights."""

from __future__ import annotations

from typing import Any

from transformers import (
    EdgeTamConfig,
    EdgeTamModel,
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam3ImageProcessor,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    Sam3TrackerProcessor,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    TimmWrapperConfig,
)

SIDE = 128
"""Of the square that they look at, in pixels."""

PROMPTS = {"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8}
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 32}
VISION = {
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "window_size": 4,
    "global_attn_indexes": [1],
    "num_pos_feats": 16,
    "mlp_dim": 32,
}
HIERA = {
    "hidden_size": 8,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 4, 8],
    "global_attention_blocks": [3],
}


SAM3_VIT = {
    "model_type": "sam3_vit_model",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 16,
    "pretrain_image_size": SIDE,
    "window_size": 4,
    "global_attn_indexes": [1],
}
REPVIT = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}


def tiny(family: str) -> tuple[Any, Any]:
    """A model and its processor, as transformers builds them."""
    square = {"height": SIDE, "width": SIDE}
    pyramid = {
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    rest = {"prompt_encoder_config": PROMPTS, "mask_decoder_config": DECODER}
    if family == "sam2":
        hiera = Sam2HieraDetConfig(**HIERA).to_dict()
        vision = pyramid | {"backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8]}
        return Sam2Model(Sam2Config(vision_config=vision, **rest)), Sam2Processor(Sam2ImageProcessor(size=square))
    if family == "sam3":
        vision = pyramid | {"model_type": "sam3_vision_model", "backbone_config": SAM3_VIT}
        tracker = Sam3TrackerConfig(vision_config=vision, **rest)
        return Sam3TrackerModel(tracker), Sam3TrackerProcessor(Sam3ImageProcessor(size=square))
    if family == "edgetam":
        backbone = TimmWrapperConfig(architecture="repvit_m1", model_args=REPVIT).to_dict()
        vision = pyramid | {"backbone_config": backbone, "backbone_channel_list": [384, 192, 96, 48]}
        return EdgeTamModel(EdgeTamConfig(vision_config=vision, **rest)), Sam2Processor(Sam2ImageProcessor(size=square))
    images = SamImageProcessor(size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE})
    if family == "sam":
        sam = SamConfig(vision_config=VISION, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
        return SamModel(sam), SamProcessor(images)
    decoder = DECODER | {"vit_dim": 32}
    sam_hq = SamHQConfig(vision_config=VISION, prompt_encoder_config=PROMPTS, mask_decoder_config=decoder)
    return SamHQModel(sam_hq), SamHQProcessor(images)
