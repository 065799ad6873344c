"""A stand-in for mmcv's configurations."""

from pathlib import Path
from types import SimpleNamespace


class Config:
    @staticmethod
    def fromfile(path):
        assert Path(path).suffix == ".py"
        config = Config()
        config.merged, config.model = {}, SimpleNamespace(decode_head=SimpleNamespace())
        return config

    def merge_from_dict(self, options):
        self.merged.update(options)
