"""COCO+LVIS, the training set of RITM and SkipClick, built from the official files of COCO 2017 and LVIS v1.

For one photo: `overlap` compares masks, `combine` merges both sets' annotations, `hierarchy` finds which mask is a part
of which, `layers` packs masks that overlap into few images. For all photos: `official` finds and reads the published
files, `workers` distributes the photos over all cores, `records` keeps what has been done, `build` does the whole.

The rules are those of RITM's released converter (tests/parity/golden_cocolvis.npz and golden_hierarchy.npz), and the
files have the format of its published annotations.
"""
