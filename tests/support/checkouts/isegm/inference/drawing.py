"""What the stand-ins for networks do: half of the mask before, and a disc around the last click."""

import torch


def drawn(radius, previous, click):
    rows, columns = torch.meshgrid(*map(torch.arange, previous.shape[-2:]), indexing="ij")
    inside = (rows - click.coords[0]) ** 2 + (columns - click.coords[1]) ** 2 <= radius**2
    return torch.where(inside, float(click.is_positive), 0.5 * previous)
