"""Training of the head alone, on views that a frozen backbone has encoded once.

python -m train encode-views --data DIR --backbone efficientnet_lite2 --crop 320 --views 5000 --output VIEWS
python -m train refit-head --data DIR --backbone efficientnet_lite2 --head bundled init.safetensors
python -m train fit-head --views VIEWS --init init.safetensors --steps 20000 --output RUN
python -m train fit-head --views VIEWS --backbone efficientnet_lite2 --resume RUN/head.pt --steps 40000 --output RUN2
python -m train export-head RUN2/head.pt skipclick.safetensors --backbone efficientnet_lite2

Views are stored as the backbone's taps in bfloat16. Each place of a batch holds one object of one view for several
clicks: every answer has a loss, and is the previous mask of the next click.
"""
