"""COCO+LVIS, the training set of RITM and SkipClick, built from the official files of COCO 2017 and LVIS v1.

The rules for one photo: `overlap` compares masks, `combine` joins what both sets say, `hierarchy` finds which mask is a
part of which, `layers` packs masks that overlap into few images. All photos: `official` finds and reads the
published files, `workers` shares the photos out to all cores, `records` keeps what was done, `build` is the whole.

The rules are those of RITM's released converter (tests/parity/golden_cocolvis.npz and golden_hierarchy.npz), and what
is written has the form of its published annotations.
"""
